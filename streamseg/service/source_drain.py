"""When a source of a running service is over: not when it ends, but when all of it has gone out.

A source's last frame may still be with the model, in a mailbox, or with the painter when the source
itself has nothing more. Subscribers take ``ended`` for the last word, so it must be that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from streamseg.pipeline.metrics import Metrics
from streamseg.structures.results import Result


class SourceDrain:
    """Says that a source has ended when the last of its results and pictures has gone out.

    Args:
        metrics: the accounts, which know what is on its way.
        over: told ``(source, reason, failed=…)``, once for each ``source_ended``.
    """

    def __init__(self, metrics: Metrics, over: Callable[..., None]) -> None:
        self._metrics = metrics
        self._over = over
        self._lock = threading.Lock()
        self._painting: dict[str, int] = {}
        self._ended: dict[str, tuple[str, bool]] = {}

    def to_paint(self, results: Iterable[Result]) -> Iterator[Result]:
        """Results on their way to the painter."""
        for result in results:
            with self._lock:
                self._painting[result.source] = self._painting.get(result.source, 0) + 1
            yield result

    def painted(self, results: Iterable[Result]) -> Iterator[Result]:
        """Results that the painter takes: when it asks for the next, it is done with the last."""
        for result in results:
            yield result
            self.painting_done(result.source)

    def painting_done(self, source: str) -> None:
        """A result was painted, or dropped before it was."""
        with self._lock:
            self._painting[source] -= 1
        self.look(source)

    def published(self, results: Iterable[Result]) -> Iterator[Result]:
        """Results that went out."""
        for result in results:
            yield result
            self.look(result.source)

    def source_ended(self, source: str, reason: str, *, failed: bool = False) -> None:
        """A source has no more frames."""
        with self._lock:
            self._ended[source] = (reason, failed)
        self.look(source)

    def look(self, source: str) -> None:
        """Say that a source is over if it is: something of it was settled."""
        with self._lock:
            busy = self._painting.get(source) or self._metrics.account(source).snapshot().in_flight
            if busy or source not in self._ended:
                return
            reason, failed = self._ended.pop(source)
            self._painting.pop(source, None)
        self._over(source, reason, failed=failed)
