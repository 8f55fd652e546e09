"""Stop signals of a command, and termination of its process.

Python runs a signal handler in the main thread between two bytecode instructions: the handler must
not take a lock, which that thread may hold, and it does not run during native code. Therefore the
handlers here do nothing. The interpreter writes the number of each signal to a pipe immediately
(``signal.set_wakeup_fd``), and a thread reads and handles it.

The module imports only the standard library, because the handlers must be installed before imports
that take time. Process 1 of a container does not receive signals without a handler.
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
STOP_TIMEOUT = 90.0
"""Time from the first stop signal to the forced end of the process, in seconds.

Commands have shorter deadlines of their own; this limit applies if they fail to meet them.
"""
ABORT_TIMEOUT = 15.0
"""Time limit after a second stop signal, or after one that follows the work, in seconds."""
FLUSH_TIMEOUT = 5.0
"""Time limit for flushing the output at the end of the process, in seconds."""

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"


class Stoppable(Protocol):
    """Work that can be stopped from another thread."""

    def stop(self) -> None:
        """Finish the work in progress, then end."""

    def abort(self) -> None:
        """End immediately."""


class _Phase(enum.Enum):
    """Phase of a command; it determines the effect of a stop signal."""

    LOADING = enum.auto()
    """The command line is not parsed yet: signals are queued."""
    STARTING = enum.auto()
    """No work has started: a stop signal ends the process immediately."""
    RUNNING = enum.auto()
    """The first signal stops the work, the second aborts it."""
    INTERRUPTIBLE = enum.auto()
    """The first signal raises KeyboardInterrupt in the main thread."""
    CLOSING = enum.auto()
    """The work is done or was interrupted: the process must end within the time limit."""


class StopSignals:
    """Handling of SIGINT, SIGTERM and SIGHUP in this process; see ``install``."""

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
        """Install the handlers and start the thread that handles the signals.

        SIGHUP stays ignored if it was ignored before (``nohup``).
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
        """Set the properties of the command, once it is known.

        Args:
            exit_code: exit code if a signal ends the process before the work starts.
            report: function that prints why the process is ended.
            hangup_stops: whether SIGHUP is a stop signal; otherwise it has no effect until
                ``hangup_calls``, and is received even if it was ignored before.
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
            self._phase = (
                _Phase.CLOSING
            )  # no lock: the thread may be inside ``stop`` for a long time

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let the first stop signal raise KeyboardInterrupt in the main thread."""
        self._phase = _Phase.INTERRUPTIBLE
        try:
            yield
        finally:
            self._phase = _Phase.CLOSING

    @contextmanager
    def hangup_calls(self, action: Callable[[], None]) -> Iterator[None]:
        """Let SIGHUP call ``action`` in the signal thread; it must return quickly."""
        before, self._hangup = self._hangup, action
        try:
            yield
        finally:
            self._hangup = before

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal between any two instructions of the main thread: takes no lock."""
        if self._phase is _Phase.INTERRUPTIBLE and self._is_stop(number):
            self._phase = _Phase.CLOSING  # a second signal must not interrupt the clean-up
            raise KeyboardInterrupt

    def _is_stop(self, number: int) -> bool:
        hangup_stops = self._hangup == self._stop
        return number in _STOP_SIGNALS or (number == signal.SIGHUP and hangup_stops)

    # Signal thread

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
                self._end_now("stopped during start-up", self._exit_code)
            work = self._work if self._phase is _Phase.RUNNING else None
            self._requests += 1
        first = self._requests == 1
        self._limit_to(STOP_TIMEOUT if first and work is not None else ABORT_TIMEOUT)
        if work is not None and first:
            work.stop()
        elif work is not None and self._requests == 2:
            work.abort()

    def _limit_to(self, seconds: float) -> None:
        """End the process by force after ``seconds``, unless an earlier limit is set."""
        due = time.monotonic() + seconds
        if due >= self._due:
            return
        self._due = due
        reason = f"still running {seconds:g} s after the stop signal: ending by force"
        timer = threading.Timer(seconds, self._end_now, [reason, self._exit_code or 1])
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # no more threads: the limit is not enforced
            timer.start()

    def _end_now(self, reason: str, code: int) -> NoReturn:
        end_process(code, last=lambda: self._report(reason))


_installed: StopSignals | None = None
_ending = threading.Lock()


def install() -> None:
    """Install the signal handling of this process; must be called in the main thread."""
    global _installed  # noqa: PLW0603 - signal handlers are global, too
    _installed = StopSignals()
    _installed.listen()


def installed() -> StopSignals | None:
    """Return the signal handling of this process, or None if it was not installed."""
    return _installed


def end_process(code: int, *, last: Callable[[], None] | None = None) -> NoReturn:
    """Flush the output and end the process without finalizing the interpreter.

    Finalizing would destroy objects that other threads still use; a model in native code would
    then abort the process.

    Args:
        code: exit code; 0 becomes 1 if the output can't be written.
        last: function that reports a forced end, while the main thread may still be running. None
            means that the main thread has finished; ``atexit`` functions are then called.
    """
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # another thread is ending the process
    watchdog = threading.Timer(FLUSH_TIMEOUT, _exit, [code or 1])
    watchdog.daemon = True
    with contextlib.suppress(RuntimeError):  # no more threads: the limit is not enforced
        watchdog.start()
    if last is None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error when a worker ends
        _kill_children()
        atexit._run_exitfuncs()  # noqa: SLF001 - as the interpreter does when it exits
    else:
        last()
    _exit(_flush(code, forced=last is not None))


def _exit(code: int) -> NoReturn:
    try:
        _kill_children()
    finally:
        os._exit(code)


def _flush(code: int, *, forced: bool) -> int:
    """Flush stdout and stderr and return the exit code."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = code or 1
        if not isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError, ValueError):
                print(f"streamseg: stdout: {error}", file=sys.stderr)  # noqa: T201
    with contextlib.suppress(OSError, ValueError):  # nothing is left to report it on
        if sys.stderr is not None:
            if forced and sys.stderr.isatty():
                sys.stderr.write(_SHOW_CURSOR)  # a progress bar may have hidden it
            sys.stderr.flush()
    return code


def _kill_children() -> None:
    """Kill the worker processes that are left."""
    multiprocessing = sys.modules.get("multiprocessing")
    active_children = getattr(
        multiprocessing, "active_children", list
    )  # the module may be partially imported
    for child in active_children():
        child.kill()


def _forget_handlers() -> None:
    """Reset signal handling in a forked child; SIGINT is ignored, because its parent ends it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _do_nothing() -> None:
    pass
