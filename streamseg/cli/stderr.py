"""Standard error under ``--log json``: what libraries write there becomes records, too.

Native libraries, the interpreter and child processes write to file descriptor 2, past Python's
logging. The descriptor is made a pipe, and a child process turns each line that comes out of it
into a record. It is a process because a thread could not read while a library that holds the
interpreter's lock waits for the full pipe, and would lose the last lines of a process that aborts.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable

MAX_LINE_BYTES = 64 * 1024
"""Longer lines become several records."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""What a terminal or a supervisor sends to all processes of a service; the child ends after it."""


class WrappedStderr:
    """File descriptor 2 of this process, wrapped from when this is made until the process ends.

    Args:
        wrap: makes a record, without a line's end, of a line.

    Raises:
        OSError: the pipe or the process can't be made; nothing was changed.
    """

    def __init__(self, wrap: Callable[[str], str]) -> None:
        # The process writes its own records itself, so that none is lost however it ends; the lock
        # keeps them and the child's apart. The system unlocks it when its owner dies.
        self._lock = tempfile.TemporaryFile()  # noqa: SIM115 - open until the process ends
        self._stderr = os.dup(2)
        source, sink = os.pipe()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            if os.fork() == 0:
                _run_child(source, self._stderr, self._lock.fileno(), wrap, blocked)
            os.dup2(sink, 2)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(source)
            os.close(sink)

    def write(self, record: str) -> None:
        """Write a record of this process."""
        _write(self._stderr, self._lock.fileno(), record)


def _run_child(
    source: int, stderr: int, lock: int, wrap: Callable[[str], str], mask: set[int | signal.Signals]
) -> None:
    """Wrap lines until nobody can write any more; never returns."""
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        source, stderr, lock = _keep_only(source, stderr, lock)
        _wrap_lines(source, lambda line: _write(stderr, lock, wrap(line)))
    finally:
        os._exit(0)  # nothing of the parent's is cleaned up here


def _keep_only(*descriptors: int) -> list[int]:
    """Close all descriptors but these, which get other numbers; 0, 1 and 2 lead nowhere.

    Whoever waits for the end of the service's output must not wait for this process.
    """
    first = 3 + max(descriptors)
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, first) for descriptor in descriptors]
    os.closerange(0, first)
    for _ in range(3):
        os.open(os.devnull, os.O_RDWR)
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 3) for descriptor in high]
    os.closerange(max(kept) + 1, os.sysconf("SC_OPEN_MAX"))
    return kept


def _wrap_lines(source: int, emit: Callable[[str], None]) -> None:
    rest = b""
    while data := os.read(source, 2**16):
        *lines, rest = re.split(rb"[\r\n]+", rest + data)
        if len(rest) > MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        _emit_all(lines, emit)
    _emit_all([rest], emit)


def _emit_all(lines: list[bytes], emit: Callable[[str], None]) -> None:
    for line in lines:
        if line.strip():
            try:
                emit(line.decode(errors="backslashreplace"))
            except OSError:  # nobody reads any more; the service must not wait for that
                continue


def _write(stderr: int, lock: int, record: str) -> None:
    data = f"{record}\n".encode(errors="backslashreplace")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    try:
        while data:
            data = data[os.write(stderr, data) :]
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN)


def is_own() -> bool:
    """Whether ``sys.stderr`` is what the process was started with, and not replaced by a test."""
    own = sys.__stderr__
    return own is not None and sys.stderr is own and own.fileno() == 2
