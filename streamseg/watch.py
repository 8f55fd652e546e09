"""A subscriber at work: what it receives is counted, recorded and shown.

``streamseg watch`` and the demo are made of this; it is a subscriber like any other.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from streamseg import wire
from streamseg.client import Received, Subscriber
from streamseg.errors import ReceiveTimeout, StreamsegError
from streamseg.sinks.files import ResultsFile, VideoFile

LOOK_UP_EVERY = 0.2
"""Seconds of waiting after which a stop is noticed."""
REMEMBERED = 1000
"""Messages of a source whose ages and rates are kept."""


@dataclass(slots=True)
class Seen:
    """What was received of one source."""

    frames: int = 0
    instances: int = 0
    names: Counter[str] = field(default_factory=Counter)
    ages_ms: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def add(self, received: Received) -> None:
        """Count one message."""
        self.frames += 1
        self.instances += len(received.instances)
        self.names = Counter(received.instances.names)
        self.ages_ms.append(received.age_ms)
        self.arrivals.append(received.published_at)

    @property
    def fps(self) -> float:
        """Messages a second, by the service's clock, over the latest ones."""
        if len(self.arrivals) < 2 or self.arrivals[-1] <= self.arrivals[0]:
            return 0.0
        return (len(self.arrivals) - 1) / (self.arrivals[-1] - self.arrivals[0])


class Watch:
    """Receives until the end, draws a live table, and writes files if asked.

    Args:
        subscriber: connected; with annotated pictures if they are to be saved.
        save: a video file of the pictures.
        jsonl: a file of the results.
        limit: end after so many messages.
        timeout: fail after so many seconds without one; None waits for ever.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        *,
        save: Path | None = None,
        jsonl: Path | None = None,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> None:
        self._subscriber = subscriber
        self._save = save
        self._jsonl = jsonl
        self._limit = limit
        self._timeout = timeout
        self._stopped = False
        self.seen: dict[str, Seen] = {}

    def show(self) -> None:
        """Receive until the sources or the service end, ``limit`` is reached or ``stop`` is called.

        Raises:
            ReceiveTimeout: nothing came for the subscriber's timeout.
            OutputError: a file can't be written.
        """
        console = Console(stderr=True)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            for received in self._recorded(islice(self._messages(), self._limit)):
                self.seen.setdefault(received.source, Seen()).add(received)
                if console.is_terminal:
                    live.update(self.table(), refresh=True)
        Console().print(self.table())

    def stop(self) -> None:
        """End after the message that is being handled."""
        self._stopped = True

    abort = stop

    def _messages(self) -> Iterator[Received]:
        """What is received, looking up now and then whether to stop."""
        silent_since = time.monotonic()
        while not self._stopped:
            try:
                received = self._subscriber.receive(LOOK_UP_EVERY)
            except ReceiveTimeout:
                if self._timeout is not None and time.monotonic() - silent_since > self._timeout:
                    raise ReceiveTimeout(f"no result in {self._timeout:g} s") from None
                continue
            if received is None:
                check_service(self._subscriber)
                return
            silent_since = time.monotonic()
            yield received

    def table(self) -> Table:
        """The sources as they are now."""
        table = Table("source", "state", "frames", "fps", "age p50", "lost", "in view")
        for name in sorted({*self.seen, *filter(None, self._subscriber.statuses)}):
            seen = self.seen.get(name, Seen())
            status = self._subscriber.statuses.get(name)
            table.add_row(
                name,
                status.state if status else "?",
                str(seen.frames),
                f"{seen.fps:.1f}",
                f"{np.median(seen.ages_ms):.0f} ms" if seen.ages_ms else "-",
                str(self._subscriber.gaps.get(name, 0)),
                ", ".join(f"{count} {what}" for what, count in seen.names.most_common(4)) or "-",
            )
        return table

    def _recorded(self, messages: Iterable[Received]) -> Iterable[Received]:
        if self._jsonl is not None:
            messages = record_results(messages, self._jsonl)
        if self._save is not None:
            messages = record_video(messages, self._save)
        return messages


def check_service(subscriber: Subscriber) -> None:
    """Once a subscriber has ended: what it received is all there was, or an error.

    Raises:
        StreamsegError: the service failed, so there should have been more.
    """
    status = subscriber.statuses.get("")
    if status is not None and status.state == "failed":
        raise StreamsegError(f"the service failed: {status.reason}")


def record_results(messages: Iterable[Received], path: Path) -> Iterator[Received]:
    """Pass messages through and write each as a line of ``results.jsonl``."""
    with ResultsFile(path) as file:
        for received in messages:
            file.write(wire.record(received.message))
            yield received


def record_video(messages: Iterable[Received], path: Path) -> Iterator[Received]:
    """Pass messages through and write their pictures as a video, with the source's own times."""
    with VideoFile(path) as video:
        for received in messages:
            video.write(received.frame, received.pts, received.epoch)
            yield received
