"""Live source: connects, detects stalls, and reconnects until it is stopped.

Reads from a network or a camera can block and can't be interrupted from outside. So a separate
thread reads each connection, and ``frames()`` monitors it: no frame for ``stall_after`` seconds is
a failure, whatever the state of the socket. An abandoned reader ends by its own timeouts or, over
HTTP, is aborted.

The end of a live stream is a failure, too. After each failure the source reconnects, with delays of
up to ``MAX_DELAY`` and a new ``epoch``.
"""

from __future__ import annotations

import logging
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias

from streamseg.config import SourceConfig
from streamseg.errors import NoAnswerError, SourceError, StalledError, redact_address
from streamseg.protocol.messages import State
from streamseg.sources.base import SourceControl, SourceReport
from streamseg.structures.results import Frame

log = logging.getLogger(__name__)

FIRST_DELAY = 0.5
MAX_DELAY = 2.0
"""Seconds before the next attempt, times a random factor from 0.5 to 1, so that many cameras that
failed together don't reconnect at the same time."""
MAX_BLOCKED_READERS = 3
"""Blocked readers of a source above which it doesn't reconnect."""
POLL_INTERVAL = 0.1
"""Seconds between checks whether the source was stopped."""
_QUEUE_SIZE = 2


@dataclass(frozen=True, slots=True)
class ConnectionStart:
    """Start of the frames of a connection.

    Attributes:
        index: index of the first frame.
        epoch: epoch of the first frame.
        seconds: frames with earlier pts are skipped.
    """

    index: int = 0
    epoch: int = 0
    seconds: float = -math.inf


class CancelEvent(threading.Event):
    """Event that is set when a reader is abandoned; it can abort a blocked read."""

    def __init__(self) -> None:
        super().__init__()
        self._abort: Callable[[], None] | None = None

    def on_set(self, abort: Callable[[], None]) -> None:
        """Call ``abort`` in the thread that sets the event, or now if it is set already."""
        self._abort = abort
        if self.is_set():
            abort()

    def set(self) -> None:
        """Abandon the reader."""
        super().set()
        if self._abort is not None:
            self._abort()


Read: TypeAlias = Callable[
    [ConnectionStart, SourceReport, CancelEvent, bool], Generator[Frame, None, None]
]
"""``(start, report, cancel_event, should_probe)``: opens a connection and yields its frames.

Ends soon after ``cancel_event`` is set. ``should_probe`` is true if the last connection was not
answered or stalled. Raises SourceError or OSError.
"""
OnState: TypeAlias = Callable[[State, str], None]


class LiveSource:
    """A camera or a network stream; a :class:`~streamseg.sources.base.Source`.

    Args:
        name: name of the source.
        config: timeouts and number of attempts.
        read: opens a connection and yields its frames.

    Attributes:
        on_state: called with the new state and its reason, except for ``live``, which a frame
            implies. Set it before calling ``frames()``.
    """

    live = True

    def __init__(self, name: str, config: SourceConfig, read: Read) -> None:
        self.name = name
        self.control = SourceControl()
        self.report = SourceReport()
        self.on_state: OnState = lambda state, reason: log.info("%s: %s %s", name, state, reason)
        self._config = config
        self._read = read
        self._next_start = ConnectionStart()
        self._blocked: list[threading.Thread] = []
        self._last_logged = ""

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames of successive connections until the source is stopped.

        Raises:
            SourceError: ``max_attempts`` consecutive attempts have failed.
        """
        failures = 0
        was_unanswered = False
        while self._wait_until_connectable():
            self.on_state("connecting", "")
            try:
                for frame in self._read_connection(should_probe=was_unanswered):
                    failures, was_unanswered = 0, False
                    yield frame
            except Exception as error:  # noqa: BLE001 - reconnect after any error
                failures += 1
                was_unanswered = isinstance(error, (NoAnswerError, StalledError))
                if not isinstance(error, (SourceError, OSError)):
                    self._log_unexpected(error)
                self._wait_before_retry(failures, error)

    def _log_unexpected(self, error: Exception) -> None:
        """Log an unexpected exception, a bug of this program or a library, once."""
        if repr(error) != self._last_logged:
            self._last_logged = repr(error)
            log.error("%s: unexpected error", self.name, exc_info=error)

    def _wait_until_connectable(self) -> bool:
        """Wait while the source is paused or blocked; returns False if it was stopped."""
        while not self.control.stopped:
            self._blocked = [thread for thread in self._blocked if thread.is_alive()]
            if self.control.paused:
                self.on_state("waiting", "paused")
                self.control.wait_until_resumed()
            elif len(self._blocked) >= MAX_BLOCKED_READERS:
                self.on_state("waiting", f"{len(self._blocked)} readers are blocked")
                self.control.sleep(MAX_DELAY)
            else:
                return True
        return False

    def _read_connection(self, *, should_probe: bool) -> Generator[Frame, None, None]:
        """Yield the frames of a new connection until it fails, is abandoned, stopped or paused."""
        reader = _Reader(
            self.name, self._read, self._next_start, self.report, should_probe=should_probe
        )
        try:
            reader.start()
            for frame in reader.frames(self._config, self.control):
                self._next_start = ConnectionStart(frame.index + 1, frame.epoch + 1)
                yield frame
        finally:
            reader.abandon()
            self._blocked.append(reader.thread)

    def _wait_before_retry(self, failures: int, error: Exception) -> None:
        """Report the error and wait for the next attempt.

        Raises:
            SourceError: the maximum number of attempts is reached.
        """
        reason = str(error) or type(error).__name__
        if failures == self._config.max_attempts:
            url = redact_address(self._config.url)
            raise SourceError(f"{url}: given up after {failures} attempts: {reason}")
        delay = min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 8))
        delay *= random.uniform(0.5, 1)  # noqa: S311 - not cryptographic
        state: State = "stalled" if isinstance(error, StalledError) else "waiting"
        self.on_state(state, f"{reason}; next attempt in {delay:.1f} s")
        self.control.sleep(delay)


class _Reader:
    """Reader of one connection, in a separate thread."""

    def __init__(
        self,
        name: str,
        read: Read,
        start: ConnectionStart,
        report: SourceReport,
        *,
        should_probe: bool,
    ) -> None:
        self._cancel_event = CancelEvent()
        self._queue: queue.Queue[Frame | Exception | None] = queue.Queue(_QUEUE_SIZE)
        self._frames = read(start, report, self._cancel_event, should_probe)
        self.thread = threading.Thread(target=self._run, name=f"reader:{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def abandon(self) -> None:
        """Stop waiting for the thread, which ends by itself."""
        self._cancel_event.set()

    def frames(self, config: SourceConfig, control: SourceControl) -> Generator[Frame, None, None]:
        """Yield the frames until the source is stopped or paused.

        Raises:
            SourceError: the reader failed, the stream ended, or no frame arrived in time.
        """
        timeout = config.open_timeout
        last_frame_at = time.monotonic()
        stalled: SourceError = NoAnswerError(f"no frame within {timeout:g} s")
        while not (control.stopped or control.paused):
            try:
                item = self._queue.get(timeout=POLL_INTERVAL)
            except queue.Empty:
                if time.monotonic() - last_frame_at > timeout:
                    raise stalled from None
                continue
            if item is None:
                raise SourceError("the stream ended")
            if isinstance(item, Exception):
                raise item
            yield item
            last_frame_at, timeout = time.monotonic(), config.stall_after
            stalled = StalledError(f"no frame for {timeout:g} s")

    def _run(self) -> None:
        try:
            with closing(self._frames) as frames:
                for frame in frames:
                    if not self._put(frame):
                        return
            self._put(None)
        except Exception as error:  # noqa: BLE001 - raised by frames()
            self._put(error)

    def _put(self, item: Frame | Exception | None) -> bool:
        """Put an item into the queue; returns False if the reader was abandoned."""
        while not self._cancel_event.is_set():
            try:
                self._queue.put(item, timeout=POLL_INTERVAL)
            except queue.Full:
                continue
            return True
        return False
