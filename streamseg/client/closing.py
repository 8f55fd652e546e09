"""Exclusive use of a subscriber's sockets, and closing them from any thread or signal handler.

A ZeroMQ socket may be used by one thread at a time. So ``close`` doesn't touch the sockets while a
reader uses them: it wakes the reader, which closes them itself. ``close`` never waits for a lock,
because a signal handler may have interrupted the thread that holds it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from streamseg.errors import UsageError


class ReaderLock:
    """The right to use the sockets, held by one reader at a time until ``close``.

    Args:
        close_sockets: called at least once after ``close``, by the thread that holds the lock.

    Attributes:
        is_closed: whether ``close`` was called.
        wake_up: file descriptor that becomes readable on ``close``.
    """

    def __init__(self, close_sockets: Callable[[], None]) -> None:
        self._close_sockets = close_sockets
        self._lock = threading.Lock()
        self.is_closed = False
        self.wake_up, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)

    def __del__(self) -> None:
        # Not in close: another thread may be about to write to the pipe.
        for end in (self.wake_up, self._write_end):
            os.close(end)

    @contextmanager
    def acquire(self) -> Iterator[bool]:
        """Hold the lock. Yields False if ``close`` was called and the sockets must not be used.

        Raises:
            UsageError: another thread or task is reading.
        """
        if not self._lock.acquire(blocking=False):
            if self.is_closed:  # the lock may be held by ``close`` in another thread
                yield False
                return
            raise UsageError(
                "another thread or task is reading this subscriber: create one for each"
            )
        try:
            yield not self.is_closed
        finally:
            self._lock.release()
            self._close_if_requested()

    def close(self) -> None:
        """Close the sockets now, or have the active reader close them."""
        self.is_closed = True
        with contextlib.suppress(BlockingIOError):  # the pipe is full of earlier wake-ups
            os.write(self._write_end, b"\0")
        self._close_if_requested()

    def _close_if_requested(self) -> None:
        """Close the sockets unless a reader holds the lock; it closes them when it is done."""
        if self.is_closed and self._lock.acquire(blocking=False):
            try:
                self._close_sockets()
            finally:
                self._lock.release()
