"""``streamseg watch``: receives results, draws a live table of the sources, and records files."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streamseg import protocol
from streamseg.cli.recorder import Recorder, raise_service_failure
from streamseg.client import Received, Subscriber
from streamseg.errors import ReceiveTimeout, escape_unprintable
from streamseg.protocol.messages import StatusMessage

POLL_INTERVAL = 0.2
"""Timeout of one receive call, after which a stop or a silent service is noticed, in seconds."""
DRAW_INTERVAL = 0.2
"""Minimum time between two drawings of the table, in seconds."""
RATE_WINDOW = 5.0
"""Time over which the rates of the live table are computed, in seconds."""
SILENT_AFTER = 3.0
"""Time without a message after which a service counts as silent, in seconds.

A service publishes its status every second.
"""
MAX_SAMPLES = 1000
"""Number of messages per source whose ages and arrival times are kept."""


@dataclass(slots=True)
class SourceStatistics:
    """Statistics of the messages received from one source.

    Attributes:
        frames: number of messages.
        instances: number of instances in all messages.
        names: number of instances by class name, in the latest message.
        ages_ms: ages of the latest results, in milliseconds.
        arrivals: arrival times of the latest messages, monotonic seconds.
    """

    frames: int = 0
    instances: int = 0
    names: Counter[str] = field(default_factory=Counter)
    ages_ms: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))

    def add(self, received: Received, now: float) -> None:
        """Add a message that arrived at ``now`` (monotonic seconds)."""
        self.frames += 1
        self.instances += len(received.instances)
        self.names = Counter(received.instances.names)
        self.ages_ms.append(received.age_ms)
        self.arrivals.append(now)

    @property
    def fps(self) -> float:
        """Messages per second over the latest messages, by the receiver's monotonic clock."""
        if len(self.arrivals) < 2 or self.arrivals[-1] <= self.arrivals[0]:
            return 0.0
        return (len(self.arrivals) - 1) / (self.arrivals[-1] - self.arrivals[0])

    def recent_fps(self, now: float) -> float:
        """Return the messages per second over the last ``RATE_WINDOW`` seconds."""
        if not self.arrivals:
            return 0.0
        start = max(now - RATE_WINDOW, self.arrivals[0])
        count = sum(arrival > start for arrival in self.arrivals)
        return count / (now - start) if count else 0.0


class Overview:
    """Table of the sources of a service. All times are monotonic seconds given by the caller.

    Args:
        now: time of the start.
    """

    def __init__(self, now: float) -> None:
        self.statistics: dict[str, SourceStatistics] = {}
        self._last_message_at = now
        self._statuses: Mapping[str, StatusMessage] = {}
        self._lost: Mapping[str, int] = {}

    def add(self, received: Received, now: float) -> None:
        """Add a result that arrived at ``now``."""
        self._last_message_at = now
        self.statistics.setdefault(received.source, SourceStatistics()).add(received, now)

    def update_statuses(
        self, statuses: Mapping[str, StatusMessage], lost: Mapping[str, int], now: float
    ) -> None:
        """Update the latest status messages and the number of lost messages by source.

        Every new status message differs in its ``seq``, so a change means that one arrived.
        """
        if statuses != self._statuses:
            self._last_message_at = now
        self._statuses, self._lost = statuses, lost

    def table(self, now: float, *, closing: bool = False) -> Table:
        """Return the table of the sources.

        Args:
            now: current time.
            closing: whether to show the rates over all messages instead of the recent ones.
        """
        silence = now - self._last_message_at
        is_silent = silence > SILENT_AFTER
        table = Table("source", "state", "frames", "fps", "age p50", "lost", "in view")
        # The title is at the top: a table that is higher than the terminal loses its end.
        table.title = f"no message for {silence:.0f} s" if is_silent else None
        for name in sorted({*self.statistics, *filter(None, self._statuses)}):
            source = self.statistics.get(name, SourceStatistics())
            table.add_row(
                _plain_text(name),
                _plain_text(self._state(name, is_silent=is_silent)),
                str(source.frames),
                f"{source.fps if closing else source.recent_fps(now):.1f}",
                f"{np.median(source.ages_ms):.0f} ms" if source.ages_ms else "-",
                str(self._lost.get(name, 0)),
                _plain_text(
                    ", ".join(f"{count} {label}" for label, count in source.names.most_common(4))
                    or "-"
                ),
            )
        return table

    def _state(self, source: str, *, is_silent: bool) -> str:
        status = self._statuses.get(source)
        if is_silent and (status is None or status.state not in protocol.FINAL):
            return "silent"
        return status.state if status else "?"


class Watch:
    """Run of ``streamseg watch``: receives results until the end, shows and records them.

    Args:
        subscriber: connected subscriber; with annotated images if they are to be saved.
        save: video file of the images of one source: that of the first message.
        jsonl: file of the results.
        limit: maximum number of messages.
        timeout: maximum time without a message, in seconds; None waits without a limit.
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
        self._is_stopped = False
        self._overview = Overview(time.monotonic())
        self._live: Live | None = None
        self._next_drawing_at = 0.0

    def show(self) -> None:
        """Receive until the service ends, ``limit`` is reached or ``stop`` is called.

        Raises:
            ReceiveTimeout: no message arrived within the timeout.
            OutputError: a file couldn't be written; the other file was completed.
        """
        console = Console(stderr=True)
        with Recorder(self._jsonl, self._save) as recorder:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                self._live = live if console.is_terminal else None
                for received in recorder.record(islice(self._messages(), self._limit)):
                    self._overview.add(received, time.monotonic())
                    self._refresh_table()
            self._update_statuses()
            Console().print(self._overview.table(time.monotonic(), closing=True))

    def stop(self) -> None:
        """Stop after the current message."""
        self._is_stopped = True

    abort = stop

    def _messages(self) -> Iterator[Received]:
        """Yield received messages; keep the table up to date while none arrives."""
        last_message_at = time.monotonic()
        while not self._is_stopped:
            try:
                received = self._subscriber.receive(POLL_INTERVAL)
            except ReceiveTimeout:
                silence = time.monotonic() - last_message_at
                if self._timeout is not None and silence > self._timeout:
                    raise ReceiveTimeout(f"no result in {self._timeout:g} s") from None
                self._refresh_table()
                continue
            if received is None:
                raise_service_failure(self._subscriber)
                return
            last_message_at = time.monotonic()
            yield received

    def _refresh_table(self) -> None:
        """Draw the table, at most once per ``DRAW_INTERVAL``."""
        if time.monotonic() < self._next_drawing_at:
            return
        self._update_statuses()
        if self._live is not None:
            self._live.update(self._overview.table(time.monotonic()), refresh=True)
        self._next_drawing_at = time.monotonic() + DRAW_INTERVAL

    def _update_statuses(self) -> None:
        subscriber = self._subscriber
        self._overview.update_statuses(subscriber.statuses, subscriber.gaps, time.monotonic())


def _plain_text(received: str) -> Text:
    """Return received text for a table cell, without markup and control characters."""
    return Text(escape_unprintable(received))
