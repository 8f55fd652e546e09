"""Limits of the operating system: open files and threads.

They are checked before a service starts. If the limit of open files is reached all the same,
``FileReserve`` keeps the HTTP API reachable.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import threading
from collections.abc import Mapping

from streamseg.errors import ConfigError

MAX_OPEN_FILES = 2**20
"""Highest limit of open files that is requested; in containers the hard limit may be 2**30."""
RESERVED_FILES = 8
"""Connections to the HTTP API that are accepted when the process has no file descriptor left."""
_PROBE_STACK = 64 * 1024
"""Stack size of a thread that only waits, in bytes."""


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard one; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_OPEN_FILES
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def check_open_files(needed: Mapping[str, int], advice: str = "") -> None:
    """Check that the limit of open files is high enough.

    Args:
        needed: maximum number of open files, by purpose.
        advice: remedy other than a higher limit, for the message; may be empty.

    Raises:
        ConfigError: the limit is lower than the sum of ``needed``.
    """
    total, limit = sum(needed.values()), raise_open_files_limit()
    if total > limit:
        parts = ", ".join(f"{count} for {purpose}" for purpose, count in needed.items() if count)
        raise ConfigError(
            f"{total} open files are needed ({parts}), and this process may have {limit}: raise "
            f"the limit (ulimit -n {total}; LimitNOFILE= of a systemd unit){advice}"
        )


def check_threads(needed: int) -> None:
    """Check that as many threads can be started, by starting them for a moment.

    This finds every limit: ``ulimit -u``, a control group, the kernel's.

    Args:
        needed: number of threads in addition to those that are running.

    Raises:
        ConfigError: the system allows fewer.
    """
    release = threading.Event()
    before = threading.stack_size(_PROBE_STACK)
    started: list[threading.Thread] = []
    try:
        for _ in range(needed):
            thread = threading.Thread(target=release.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise ConfigError(
            f"{needed} threads are needed, and the system allows {len(started)}: raise the limit "
            "(ulimit -u; TasksMax= of a systemd unit; --pids-limit of a container), or name fewer "
            "sources"
        ) from None
    finally:
        threading.stack_size(before)
        release.set()
        for thread in started:
            thread.join()


class FileReserve:
    """File descriptors held open, to be released for connections when no other is free.

    When such a connection is closed, its descriptor returns to the reserve without being free in
    between: another thread would take it at once. If another thread took one anyway, ``refill``
    replaces it as soon as one is free.
    """

    def __init__(self) -> None:
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._kept: list[int] = []
        self.refill()

    def refill(self) -> None:
        """Duplicate as many descriptors as are missing, as far as there are free ones."""
        with contextlib.suppress(OSError):  # no descriptor is free
            while len(self._kept) < RESERVED_FILES:
                self._kept.append(os.dup(self._null))

    def release_one(self) -> bool:
        """Close a descriptor of the reserve; return False if none is left."""
        if not self._kept:
            return False
        os.close(self._kept.pop())
        return True

    def take_back(self, descriptor: int) -> None:
        """Close the file of ``descriptor``, and keep the descriptor if one is missing."""
        if self._null >= 0 and len(self._kept) < RESERVED_FILES:
            os.dup2(self._null, descriptor, inheritable=False)
            self._kept.append(descriptor)
        else:
            os.close(descriptor)

    def close(self) -> None:
        """Release every descriptor; may be called twice."""
        while self.release_one():
            pass
        if self._null >= 0:
            os.close(self._null)
            self._null = -1


class ReservedListener(socket.socket):
    """Listening socket that uses a reserve for its connections when no descriptor is free.

    Args:
        listening: listening socket, which this one takes over.
        reserve: descriptors for its connections.
    """

    def __init__(self, listening: socket.socket, reserve: FileReserve) -> None:
        super().__init__(fileno=listening.detach())
        self._reserve = reserve

    def accept(self) -> tuple[socket.socket, object]:
        """Accept a connection; see ``socket.socket.accept``."""
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if not self._has_pending():  # accept() fails like this without any connection, too
                raise BlockingIOError(errno.EAGAIN, "no connection is waiting") from None
            if not self._reserve.release_one():
                raise
            return self.accept()
        self._reserve.refill()
        return _ReservedConnection(connection, self._reserve), address

    def _has_pending(self) -> bool:
        """Return whether there is a connection to accept."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        return bool(poll.poll(0))


class _ReservedConnection(socket.socket):
    """Accepted connection whose descriptor returns to the reserve."""

    def __init__(self, accepted: socket.socket, reserve: FileReserve) -> None:
        super().__init__(fileno=accepted.detach())
        self._reserve = reserve

    def close(self) -> None:
        descriptor = self.detach()
        if descriptor >= 0:
            self._reserve.take_back(descriptor)
