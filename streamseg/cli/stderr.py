"""Capture of standard error for ``--log json``: printed lines become log records.

Native libraries, the interpreter and child processes write to file descriptor 2 directly. The
descriptor is replaced by a pipe, and a child process converts each line from it to a record. A
thread would not do: it can't read while a library holds the interpreter lock and blocks on the full
pipe, and the last lines of an aborted process would be lost.
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
"""Maximum length of a line in bytes; longer lines are split into several records."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that are sent to all processes of a service; the child must end after its parent."""


class WrappedStderr:
    """Captured file descriptor 2 of this process, until the process ends.

    Args:
        wrap: function that converts a line to a record, without a newline.

    Raises:
        OSError: the pipe or the child process can't be created; nothing was changed.
    """

    def __init__(self, wrap: Callable[[str], str]) -> None:
        # The process writes its own records itself, so that none is lost if it is killed. The file
        # lock keeps them apart from those of the child; the system releases it if its owner dies.
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
        """Write a log record of this process."""
        _write(self._stderr, self._lock.fileno(), record)


def _run_child(
    source: int, stderr: int, lock: int, wrap: Callable[[str], str], mask: set[int | signal.Signals]
) -> None:
    """Convert lines until all write ends of the pipe are closed, then exit."""
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        source, stderr, lock = _keep_only(source, stderr, lock)
        _wrap_lines(source, lambda line: _write(stderr, lock, wrap(line)))
    finally:
        os._exit(0)  # skips the clean-up of the parent's state


def _keep_only(*descriptors: int) -> list[int]:
    """Close all other descriptors and return the new numbers of these; 0, 1 and 2 become null.

    A program that reads the service's output until its end must not wait for this process.
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
    incomplete = b""
    while data := os.read(source, 2**16):
        *lines, incomplete = re.split(rb"[\r\n]+", incomplete + data)
        if len(incomplete) > MAX_LINE_BYTES:
            lines, incomplete = [*lines, incomplete], b""
        _emit_all(lines, emit)
    _emit_all([incomplete], emit)


def _emit_all(lines: list[bytes], emit: Callable[[str], None]) -> None:
    for line in lines:
        if line.strip():
            try:
                emit(line.decode(errors="backslashreplace"))
            except OSError:  # stderr is closed; the service must not block on the pipe
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
    """Return whether ``sys.stderr`` is the original one, not replaced by a test."""
    own = sys.__stderr__
    return own is not None and sys.stderr is own and own.fileno() == 2
