"""Stop signals of a command, and the end of its process.

A signal handler of Python runs in the main thread, between two of its instructions: it must not
take a lock, because that thread may hold it, and it does not run while native code does. So the
handlers here do nothing. The interpreter writes the number of each signal into a pipe at once
(``signal.set_wakeup_fd``), and a thread reads it and acts.

Only the standard library is imported: the handlers must be installed before anything that takes
time. As process 1 of a container, a process does not receive a signal that has no handler.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, Protocol

INTERRUPTED = 130
"""Exit code of a command whose work was interrupted."""
STOP_WITHIN = 90.0
"""Time from the first stop signal to the forced end of the process, in seconds.

Commands have shorter deadlines of their own; this one is for those that cannot keep theirs.
"""
ABORT_WITHIN = 15.0
"""The same from a second stop signal, or from one that arrives after the work, in seconds."""
FLUSH_WITHIN = 5.0
"""Time limit for flushing the output at the end of the process, in seconds."""

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"


class Stoppable(Protocol):
    """Work that can be stopped from another thread."""

    def stop(self) -> None:
        """Finish what was begun, and end."""

    def abort(self) -> None:
        """End now."""


class _Phase(enum.Enum):
    """What a command is doing, which decides what a stop signal does."""

    LOADING = enum.auto()
    """The command line is not parsed yet: signals are kept until it is."""
    STARTING = enum.auto()
    """Nothing has begun: the process ends at once."""
    RUNNING = enum.auto()
    """The first signal stops the work, the second aborts it."""
    INTERRUPTIBLE = enum.auto()
    """The first signal raises KeyboardInterrupt in the main thread."""
    CLOSING = enum.auto()
    """The work is done or was interrupted: it only has to end in time."""


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP of this process; see ``install``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase = _Phase.LOADING
        self._pending: list[int] = []
        self._requests = 0
        self._work: Stoppable | None = None
        self._hangup: Callable[[], None] = self._stop
        self._exit_code = INTERRUPTED
        self._report: Callable[[str], None] = lambda _: None
        self._due = math.inf
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)

    def listen(self) -> None:
        """Install the handlers and start the thread that acts on the signals.

        SIGHUP stays ignored if it was, as ``nohup`` has it.
        """
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)
        os.register_at_fork(after_in_child=_forget_handlers)
        threading.Thread(target=self._receive, name="signals", daemon=True).start()

    def begin(
        self, exit_code: int, report: Callable[[str], None], *, hangup_stops: bool = True
    ) -> None:
        """Declare the command, once it is known.

        Args:
            exit_code: of a process that a signal ends before it has done anything.
            report: takes the line that says why the process ends.
            hangup_stops: whether SIGHUP is a stop signal; otherwise it does nothing until
                ``hangup_calls``, and is received even where it was ignored.
        """
        if not hangup_stops:
            signal.signal(signal.SIGHUP, self._handle)
        with self._lock:
            self._exit_code, self._report = exit_code, report
            if not hangup_stops:
                self._hangup = _do_nothing
            self._phase = _Phase.STARTING
            pending, self._pending = self._pending, []
        for number in pending:
            self._act(number)

    @contextmanager
    def stopping(self, work: Stoppable) -> Iterator[None]:
        """Let the first stop signal stop ``work``, and the second abort it."""
        with self._lock:
            self._work, self._phase = work, _Phase.RUNNING
        try:
            yield
        finally:
            self._phase = _Phase.CLOSING  # no lock: that thread may be in ``stop``, for long

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let the first stop signal raise KeyboardInterrupt in the main thread, here."""
        self._phase = _Phase.INTERRUPTIBLE
        try:
            yield
        finally:
            self._phase = _Phase.CLOSING

    @contextmanager
    def hangup_calls(self, action: Callable[[], None]) -> Iterator[None]:
        """Let SIGHUP call ``action``, in a thread that must not be kept waiting."""
        before, self._hangup = self._hangup, action
        try:
            yield
        finally:
            self._hangup = before

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        """Runs in the main thread, anywhere: takes no lock."""
        if self._phase is _Phase.INTERRUPTIBLE and self._is_stop(number):
            self._phase = _Phase.CLOSING  # the next one must not disturb the clean-up
            raise KeyboardInterrupt

    def _is_stop(self, number: int) -> bool:
        hangup_stops = self._hangup == self._stop
        return number in _STOP_SIGNALS or (number == signal.SIGHUP and hangup_stops)

    # The thread

    def _receive(self) -> None:
        while True:
            for number in os.read(self._read_end, 4096):
                self._act_or_report(number)

    def _act_or_report(self, number: int) -> None:
        try:
            self._act(number)
        except Exception as error:  # noqa: BLE001 - the next signal must still be received
            self._report(f"{signal.Signals(number).name} failed: {error!r}")

    def _act(self, number: int) -> None:
        with self._lock:
            if self._phase is _Phase.LOADING:
                self._pending.append(number)
                return
        if self._is_stop(number):
            self._stop()
        elif number == signal.SIGHUP:
            self._hangup()

    def _stop(self) -> None:
        with self._lock:
            if self._phase is _Phase.STARTING:
                self._end_now("stopped while it was starting", self._exit_code)
            work = self._work if self._phase is _Phase.RUNNING else None
            self._requests += 1
        first = self._requests == 1
        self._limit_to(STOP_WITHIN if first and work is not None else ABORT_WITHIN)
        if work is not None and first:
            work.stop()
        elif work is not None and self._requests == 2:
            work.abort()

    def _limit_to(self, seconds: float) -> None:
        """End the process after so long, whatever it is doing then."""
        due = time.monotonic() + seconds
        if due >= self._due:
            return
        self._due = due
        reason = f"not ended {seconds:g} s after the stop signal: ending now"
        timer = threading.Timer(seconds, self._end_now, [reason, self._exit_code or 1])
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # no more threads: only the limit is lost
            timer.start()

    def _end_now(self, reason: str, code: int) -> NoReturn:
        end_process(code, last=lambda: self._report(reason))


_installed: StopSignals | None = None
_ending = threading.Lock()


def install() -> None:
    """Receive the stop signals of this process from now on; for programs, from the main thread."""
    global _installed  # noqa: PLW0603 - handlers are the process's, too
    _installed = StopSignals()
    _installed.listen()


def installed() -> StopSignals | None:
    """Return the process's signals, or None in a process that handles its own."""
    return _installed


def end_process(code: int, *, last: Callable[[], None] | None = None) -> NoReturn:
    """Flush the output and end the process, without finalizing the interpreter.

    That would destroy objects under threads that still use them: a model in native code then
    aborts the process.

    Args:
        code: the exit code; 1 takes the place of 0 if the output cannot be written.
        last: reports why the process ends now, whatever its main thread is doing. Without it, the
            main thread has finished, and what is registered with ``atexit`` is called.
    """
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # another thread ends it
    watchdog = threading.Timer(FLUSH_WITHIN, _exit, [code or 1])
    watchdog.daemon = True
    with contextlib.suppress(RuntimeError):  # no more threads: only the limit is lost
        watchdog.start()
    if last is None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise the death of a worker
        _kill_children()
        atexit._run_exitfuncs()  # noqa: SLF001 - as the interpreter does at its end
    else:
        last()
    _exit(_flush(code, forced=last is not None))


def _exit(code: int) -> NoReturn:
    try:
        _kill_children()
    finally:
        os._exit(code)


def _flush(code: int, *, forced: bool) -> int:
    """Flush both streams; the exit code."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = code or 1
        if not isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError, ValueError):
                print(f"streamseg: stdout: {error}", file=sys.stderr)  # noqa: T201 - a CLI's voice
    with contextlib.suppress(OSError, ValueError):  # there is nowhere to report it
        if sys.stderr is not None:
            if forced and sys.stderr.isatty():
                sys.stderr.write(_SHOW_CURSOR)  # a progress bar may have hidden it
            sys.stderr.flush()
    return code


def _kill_children() -> None:
    """End the worker processes; a process that ends normally has none left."""
    multiprocessing = sys.modules.get("multiprocessing")
    active_children = getattr(multiprocessing, "active_children", list)  # it may be half imported
    for child in active_children():
        child.kill()


def _forget_handlers() -> None:
    """Give a forked child the system's handling, except of Ctrl-C: its parent ends it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _do_nothing() -> None:
    pass
