"""A source that never ends by itself: connected to, watched, and connected to again.

Reads of a network or a camera can block, and neither a signal nor closing them from outside gets
them out. So each connection is read in a thread of its own, and ``frames()``, in another, counts
what comes: no frame for ``stall_after`` seconds is a failure, whatever the socket says. A reader
that is given up is left alone; it ends by its own timeouts, or, over HTTP, is aborted.

On a live source an end of stream is a fault, too. After each the connection is made anew, later and
later up to ``LONGEST_DELAY``, with an ``epoch`` of its own.
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
LONGEST_DELAY = 2.0
"""Seconds before the next attempt, each drawn from the upper half: many cameras that went away
together don't come back together."""
MOST_LATE = 3
"""Readers of a source that may be blocked in the system; with more, none is added."""
LOOK_UP_EVERY = 0.1
"""Seconds of waiting for a frame after which a stop is noticed."""
_HANDED_OVER = 2


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a connection's frames begin.

    Attributes:
        index: of its first frame.
        epoch: of its first frame.
        seconds: frames of an earlier time are skipped.
    """

    index: int = 0
    epoch: int = 0
    seconds: float = -math.inf


class Abandonment(threading.Event):
    """Event that is set when a connection's reader is given up; it can abort a blocked read."""

    def __init__(self) -> None:
        super().__init__()
        self._abort: Callable[[], None] | None = None

    def on_set(self, abort: Callable[[], None]) -> None:
        """Call ``abort`` when this is set, from the thread that sets it, or now if it is set."""
        self._abort = abort
        if self.is_set():
            abort()

    def set(self) -> None:
        """Give the reader up."""
        super().set()
        if self._abort is not None:
            self._abort()


Read: TypeAlias = Callable[
    [Beginning, SourceReport, Abandonment, bool], Generator[Frame, None, None]
]
"""``(beginning, report, left, again)``: one connection's frames, from opening it to its end.

It ends soon after ``left`` is set. ``again`` says that the last connection came to nothing because
nobody answered, or fell silent. Raises SourceError or OSError for whatever is wrong.
"""
Tell: TypeAlias = Callable[[State, str], None]


class LiveSource:
    """A camera or a network stream; a :class:`~streamseg.sources.base.Source`.

    Args:
        name: of the source.
        config: its timeouts, and how often to try.
        read: gives one connection's frames.

    Attributes:
        tell: called with a state and its reason when one changes; ``live`` is said by nobody, a
            frame says it. Set it before ``frames()`` is called.
    """

    live = True

    def __init__(self, name: str, config: SourceConfig, read: Read) -> None:
        self.name = name
        self.control = SourceControl()
        self.report = SourceReport()
        self.tell: Tell = lambda state, reason: log.info("%s: %s %s", name, state, reason)
        self._config = config
        self._read = read
        self._next = Beginning()
        self._late: list[threading.Thread] = []
        self._reported = ""

    def frames(self) -> Generator[Frame, None, None]:
        """The frames of one connection after the other, until stopped.

        Raises:
            SourceError: ``max_attempts`` have failed in a row.
        """
        failures = 0
        unanswered = False
        while self._may_connect():
            self.tell("connecting", "")
            try:
                for frame in self._connection(again=unanswered):
                    failures, unanswered = 0, False
                    yield frame
            except Exception as error:  # noqa: BLE001 - none is a reason to lose the camera
                failures += 1
                unanswered = isinstance(error, (NoAnswerError, StalledError))
                if not isinstance(error, (SourceError, OSError)):
                    self._report(error)
                self._wait(failures, error)

    def _report(self, fault: Exception) -> None:
        """Log what only a mistake in this program, or a library's, can be; not at each attempt."""
        if repr(fault) != self._reported:
            self._reported = repr(fault)
            log.error("%s: unexpected", self.name, exc_info=fault)

    def _may_connect(self) -> bool:
        """Wait while that isn't wanted or isn't possible; False once the source is stopped."""
        while not self.control.stopped:
            self._late = [thread for thread in self._late if thread.is_alive()]
            if self.control.paused:
                self.tell("waiting", "paused")
                self.control.hold()
            elif len(self._late) >= MOST_LATE:
                self.tell("waiting", f"{len(self._late)} reads of it are blocked")
                self.control.sleep(LONGEST_DELAY)
            else:
                return True
        return False

    def _connection(self, *, again: bool) -> Generator[Frame, None, None]:
        """The frames of a new connection, until it fails, or is given up, or isn't wanted."""
        reader = _Reader(self.name, self._read, self._next, self.report, again=again)
        try:
            reader.start()
            for frame in reader.frames(self._config, self.control):
                self._next = Beginning(frame.index + 1, frame.epoch + 1)
                yield frame
        finally:
            reader.leave()
            self._late.append(reader.thread)

    def _wait(self, failures: int, error: Exception) -> None:
        """Say what was wrong, and sleep until the next attempt.

        Raises:
            SourceError: there is none.
        """
        reason = str(error) or type(error).__name__
        if failures == self._config.max_attempts:
            url = redact_address(self._config.url)
            raise SourceError(f"{url}: given up after {failures} attempts: {reason}")
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 8))
        delay *= random.uniform(0.5, 1)  # noqa: S311 - no secret
        state: State = "stalled" if isinstance(error, StalledError) else "waiting"
        self.tell(state, f"{reason}; next attempt in {delay:.1f} s")
        self.control.sleep(delay)


class _Reader:
    """One connection, read by a thread of its own."""

    def __init__(
        self, name: str, read: Read, beginning: Beginning, report: SourceReport, *, again: bool
    ) -> None:
        self._left = Abandonment()
        self._came: queue.Queue[Frame | Exception | None] = queue.Queue(_HANDED_OVER)
        self._frames = read(beginning, report, self._left, again)
        self.thread = threading.Thread(target=self._run, name=f"reader:{name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self.thread.start()

    def leave(self) -> None:
        """Don't wait for it any longer; it ends by itself."""
        self._left.set()

    def frames(self, config: SourceConfig, control: SourceControl) -> Generator[Frame, None, None]:
        """What is read, until ``control`` are pulled.

        Raises:
            SourceError: what the reader met; that the stream ended; or nothing came in time.
        """
        patience = config.open_timeout
        since = time.monotonic()
        stalled: SourceError = NoAnswerError(f"no frame within {patience:g} s")
        while not (control.stopped or control.paused):
            try:
                item = self._came.get(timeout=LOOK_UP_EVERY)
            except queue.Empty:
                if time.monotonic() - since > patience:
                    raise stalled from None
                continue
            if item is None:
                raise SourceError("the stream ended")
            if isinstance(item, Exception):
                raise item
            yield item
            since, patience = time.monotonic(), config.stall_after
            stalled = StalledError(f"no frame for {patience:g} s")

    def _run(self) -> None:
        try:
            with closing(self._frames) as frames:
                for frame in frames:
                    if not self._hand_over(frame):
                        return
            self._hand_over(None)
        except Exception as error:  # noqa: BLE001 - raised by frames(), where somebody waits
            self._hand_over(error)

    def _hand_over(self, item: Frame | Exception | None) -> bool:
        """Whether somebody took it."""
        while not self._left.is_set():
            try:
                self._came.put(item, timeout=LOOK_UP_EVERY)
            except queue.Full:
                continue
            return True
        return False
