"""A subscriber at work: what it receives is counted, recorded and shown.

``streamseg watch`` and the demo are made of this; it is a subscriber like any other.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streamseg import protocol
from streamseg.client import Received, Subscriber
from streamseg.errors import OutputError, ReceiveTimeout, StreamsegError, printable
from streamseg.protocol.messages import StatusMessage
from streamseg.sinks.files.results import IsolatedOutput, ResultsFile, VideoFile

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

LOOK_UP_EVERY = 0.2
"""Seconds of waiting after which a stop, or a silence, is noticed."""
DRAW_EVERY = 0.2
"""Seconds, at least, from one drawing of the table to the next: each takes milliseconds."""
RATE_OVER = 5.0
"""Seconds over which the live table's rates are taken."""
SILENT_AFTER = 3.0
"""Seconds without a word from the service, which speaks every second."""
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

    def add(self, received: Received, now: float) -> None:
        """Count one message that came at ``now``."""
        self.frames += 1
        self.instances += len(received.instances)
        self.names = Counter(received.instances.names)
        self.ages_ms.append(received.age_ms)
        self.arrivals.append(now)

    @property
    def fps(self) -> float:
        """Messages per second over the latest ones, by the monotonic clock of the receiver.

        The time of publication is the service's wall clock, which may be set meanwhile.
        """
        if len(self.arrivals) < 2 or self.arrivals[-1] <= self.arrivals[0]:
            return 0.0
        return (len(self.arrivals) - 1) / (self.arrivals[-1] - self.arrivals[0])

    def fps_lately(self, now: float) -> float:
        """Messages per second over the last ``RATE_OVER`` seconds; 0 once none come."""
        if not self.arrivals:
            return 0.0
        since = max(now - RATE_OVER, self.arrivals[0])  # the first, or the oldest that is kept
        came = sum(arrival > since for arrival in self.arrivals)
        return came / (now - since) if came else 0.0


class Overview:
    """What is known of a service and its sources, as a table.

    There is no clock in here: whoever calls says what time it is (``now`` is monotonic).

    Args:
        now: when the watch began.
    """

    def __init__(self, now: float) -> None:
        self.seen: dict[str, Seen] = {}
        self._heard_at = now
        self._statuses: Mapping[str, StatusMessage] = {}
        self._lost: Mapping[str, int] = {}

    def add(self, received: Received, now: float) -> None:
        """Count one message that came at ``now``."""
        self._heard_at = now
        self.seen.setdefault(received.source, Seen()).add(received, now)

    def hear(
        self, statuses: Mapping[str, StatusMessage], lost: Mapping[str, int], now: float
    ) -> None:
        """Take what the subscriber knows by now: every status that comes differs in its ``seq``."""
        if statuses != self._statuses:
            self._heard_at = now
        self._statuses, self._lost = statuses, lost

    def table(self, now: float, *, closing: bool = False) -> Table:
        """The sources as they are ``now``; the closing one has the rates of all that came."""
        silence = now - self._heard_at
        silent = silence > SILENT_AFTER
        table = Table("source", "state", "frames", "fps", "age p50", "lost", "in view")
        # Above, not below: a table that is higher than the terminal loses its end.
        table.title = f"no word for {silence:.0f} s" if silent else None
        for name in sorted({*self.seen, *filter(None, self._statuses)}):
            seen = self.seen.get(name, Seen())
            table.add_row(
                _text(name),
                _text(self._state(name, silent=silent)),
                str(seen.frames),
                f"{seen.fps if closing else seen.fps_lately(now):.1f}",
                f"{np.median(seen.ages_ms):.0f} ms" if seen.ages_ms else "-",
                str(self._lost.get(name, 0)),
                _text(", ".join(f"{n} {what}" for what, n in seen.names.most_common(4)) or "-"),
            )
        return table

    def _state(self, source: str, *, silent: bool) -> str:
        status = self._statuses.get(source)
        if silent and (status is None or status.state not in protocol.FINAL):
            return "silent"
        return status.state if status else "?"


class Watch:
    """Receives until the end, draws a live table, and writes files if asked.

    Args:
        subscriber: connected; with annotated pictures if they are to be saved.
        save: a video file of one source's pictures: of the first that comes.
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
        self._overview = Overview(time.monotonic())
        self._live: Live | None = None
        self._look_up_at = 0.0

    def show(self) -> None:
        """Receive until the sources or the service end, ``limit`` is reached or ``stop`` is called.

        Raises:
            ReceiveTimeout: nothing came for the subscriber's timeout.
            OutputError: a file couldn't be written; all else went on to the end.
        """
        console = Console(stderr=True)
        with Recording(self._jsonl, self._save) as recording:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                self._live = live if console.is_terminal else None
                for received in recording.record(islice(self._messages(), self._limit)):
                    self._overview.add(received, time.monotonic())
                    self._look_up()
            self._hear()
            Console().print(self._overview.table(time.monotonic(), closing=True))

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
                self._look_up()
                continue
            if received is None:
                check_service(self._subscriber)
                return
            silent_since = time.monotonic()
            yield received

    def _look_up(self) -> None:
        """See how the service is, and show it, if that was long enough ago."""
        if time.monotonic() < self._look_up_at:
            return
        self._hear()
        if self._live is not None:
            self._live.update(self._overview.table(time.monotonic()), refresh=True)
        self._look_up_at = time.monotonic() + DRAW_EVERY

    def _hear(self) -> None:
        subscriber = self._subscriber
        self._overview.hear(subscriber.statuses, subscriber.gaps, time.monotonic())


def check_service(subscriber: Subscriber) -> None:
    """Once a subscriber has ended: what it received is all there was, or an error.

    Raises:
        StreamsegError: the service failed, so there should have been more.
    """
    status = subscriber.statuses.get("")
    if status is not None and status.state == "failed":
        raise StreamsegError(f"the service failed: {status.reason}")


class Recording:
    """Files that received messages are written to; one that fails doesn't cost the other.

    As a context manager it completes the files at the end, and leaves them as ``.part`` if there
    was an exception.

    Args:
        jsonl: file of the results, or None.
        save: video file of one source's pictures, with their own times, or None. The source is
            the first that comes; each other one is logged once as not saved.

    Raises:
        OutputError: a file can't be opened; on leaving the context: it couldn't be written.
    """

    def __init__(self, jsonl: Path | None, save: Path | None) -> None:
        self._results = None if jsonl is None else IsolatedOutput(ResultsFile(jsonl))
        self._video = None if save is None else IsolatedOutput(VideoFile(save))
        self._saved: str | None = None
        self._others: set[str] = set()
        for output in self._outputs:
            output.open()
        self._raise_failure()

    def record(self, messages: Iterable[Received]) -> Iterator[Received]:
        """Write each message, then pass it on."""
        for received in messages:
            if self._results is not None:
                self._write_result(self._results, received)
            if self._video is not None:
                self._write_picture(self._video, received)
            yield received

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for output in self._outputs:
            output.close() if error is None else output.abort()
        if error is None:
            self._raise_failure()

    @property
    def _outputs(self) -> list[IsolatedOutput[Any]]:
        return [output for output in (self._results, self._video) if output is not None]

    def _raise_failure(self) -> None:
        failures = [output.failure for output in self._outputs if output.failure is not None]
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise OutputError("; ".join(map(str, failures)))

    def _write_result(self, results: IsolatedOutput[ResultsFile], received: Received) -> None:
        results.attempt(lambda file: file.write_message(protocol.record(received.message)))

    def _write_picture(self, video: IsolatedOutput[VideoFile], received: Received) -> None:
        source = received.source
        self._saved = self._saved or source
        if source == self._saved:
            video.attempt(
                lambda file: file.write_image(received.frame, received.pts, received.epoch)
            )
        elif source not in self._others:
            self._others.add(source)
            log.warning(
                "%s isn't saved: a video is of one source, here %s; name one with --source",
                source,
                self._saved,
            )


def recorded(messages: Iterable[Received], recording: Recording) -> Iterator[Received]:
    """Record messages to their end, and complete the files."""
    with recording:
        yield from recording.record(messages)


def _text(wired: str) -> Text:
    """What came from the service, for a cell: no markup, and nothing that the terminal obeys."""
    return Text(printable(wired))
