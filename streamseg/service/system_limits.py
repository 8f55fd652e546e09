"""Limits of the operating system: open files and threads.

What a service may need at the most is compared with them before it starts. Should they be reached
all the same, ``FileReserve`` keeps the control endpoint reachable.
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
"""Open files that are asked of the system at the most; in containers the limit may be 2**30."""
RESERVED_FILES = 8
"""Connections to control that are accepted when the process has no descriptor left."""
_PROBE_STACK = 64 * 1024
"""Stack of a thread that only waits, in bytes."""


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard one; the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_OPEN_FILES
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def check_open_files(needed: Mapping[str, int], advice: str = "") -> None:
    """Refuse to start what the limit of open files has no room for.

    Args:
        needed: open files at the most, by what they are for.
        advice: another remedy than a higher limit; empty where there is none.

    Raises:
        ConfigError: the limit is lower than their sum.
    """
    total, limit = sum(needed.values()), raise_open_files_limit()
    if total > limit:
        parts = ", ".join(f"{count} for {purpose}" for purpose, count in needed.items() if count)
        raise ConfigError(
            f"{total} open files are needed ({parts}), and this process may have {limit}: raise "
            f"the limit (ulimit -n {total}; LimitNOFILE= of a systemd unit){advice}"
        )


def check_threads(needed: int) -> None:
    """Refuse to start what the system has no threads for.

    Whatever limits them (``ulimit -u``, a control group) is found by starting as many for a moment.

    Args:
        needed: threads beside those that run.

    Raises:
        ConfigError: there are fewer.
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
    """Descriptors that are kept open, to be given up for what must work without any left.

    A descriptor that comes back takes the place of one that was given up without being free in
    between: another thread would have it at once. One that another thread has got all the same is
    replaced as soon as there is a free one.
    """

    def __init__(self) -> None:
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._kept: list[int] = []
        self.refill()

    def refill(self) -> None:
        """Take as many descriptors as are missing, and free."""
        with contextlib.suppress(OSError):  # none is free
            while len(self._kept) < RESERVED_FILES:
                self._kept.append(os.dup(self._null))

    def give_up_one(self) -> bool:
        """Close a kept descriptor; False if none is left."""
        if not self._kept:
            return False
        os.close(self._kept.pop())
        return True

    def take_back(self, descriptor: int) -> None:
        """Close what ``descriptor`` stands for, and keep it if one is missing."""
        if self._null >= 0 and len(self._kept) < RESERVED_FILES:
            os.dup2(self._null, descriptor, inheritable=False)
            self._kept.append(descriptor)
        else:
            os.close(descriptor)

    def close(self) -> None:
        """Give up all of them; may be called twice."""
        while self.give_up_one():
            pass
        if self._null >= 0:
            os.close(self._null)
            self._null = -1


class ReservedListener(socket.socket):
    """Listening socket that accepts connections from a reserve when there is no descriptor left.

    Args:
        listening: taken over.
        reserve: for its connections.
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
            if not self._is_waiting():  # the system looks for a descriptor before it looks for one
                raise BlockingIOError(errno.EAGAIN, "no connection is waiting") from None
            if not self._reserve.give_up_one():
                raise
            return self.accept()
        self._reserve.refill()
        return _ReservedConnection(connection, self._reserve), address

    def _is_waiting(self) -> bool:
        """Return whether there is a connection to accept."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        return bool(poll.poll(0))


class _ReservedConnection(socket.socket):
    """Accepted connection whose descriptor goes back to the reserve."""

    def __init__(self, accepted: socket.socket, reserve: FileReserve) -> None:
        super().__init__(fileno=accepted.detach())
        self._reserve = reserve

    def close(self) -> None:
        descriptor = self.detach()
        if descriptor >= 0:
            self._reserve.take_back(descriptor)
