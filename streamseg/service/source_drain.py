"""Drain tracking: detects when the last result and image of an ended source have been sent.

When a source ends, its last frames may still wait for the model, in a mailbox or for the image
encoder. Its ``ended`` status must follow them, because subscribers leave when they receive it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from streamseg.pipeline.metrics import Metrics
from streamseg.structures.results import Result


class SourceDrain:
    """Counts what is in flight for each source, and reports an ended source once nothing is.

    Args:
        metrics: the frame accounts.

    Attributes:
        on_drained: called with ``(source, reason, failed)``, once per ``end_source``.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.on_drained: Callable[[str, str, bool], None] = lambda *_: None
        self._metrics = metrics
        self._lock = threading.Lock()
        self._pending_images: dict[str, int] = {}
        self._ended: dict[str, tuple[str, bool]] = {}

    def count_images(self, results: Iterable[Result]) -> Iterator[Result]:
        """Pass on results for the image encoder, and count each as a pending image."""
        for result in results:
            with self._lock:
                pending = self._pending_images.get(result.source, 0)
                self._pending_images[result.source] = pending + 1
            yield result

    def settle_images(self, results: Iterable[Result]) -> Iterator[Result]:
        """Pass on results to the image encoder, and settle each when the next one is requested."""
        for result in results:
            yield result
            self.settle_image(result.source)

    def settle_image(self, source: str) -> None:
        """Settle a pending image: it was encoded, or dropped."""
        with self._lock:
            self._pending_images[source] -= 1
        self.check(source)

    def check_published(self, results: Iterable[Result]) -> Iterator[Result]:
        """Pass on published results, and check the source of each afterwards."""
        for result in results:
            yield result
            self.check(result.source)

    def end_source(self, source: str, reason: str, *, failed: bool = False) -> None:
        """Record that a source has no more frames."""
        with self._lock:
            self._ended[source] = (reason, failed)
        self.check(source)

    def check(self, source: str) -> None:
        """Call ``on_drained`` if the source has ended and nothing of it is in flight."""
        with self._lock:
            in_flight = self._metrics.account(source).snapshot().in_flight
            if source not in self._ended or in_flight or self._pending_images.get(source):
                return
            reason, failed = self._ended.pop(source)
            self._pending_images.pop(source, None)
        self.on_drained(source, reason, failed)
