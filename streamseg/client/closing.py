"""Closing a subscriber from anywhere: its reader, another thread, a signal handler.

A ZeroMQ socket belongs to one thread at a time. So who closes does not touch the sockets of a
reader that is at work: the reader is woken, and closes them itself. No lock is waited for, because
a signal handler may have interrupted the very thread that holds it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from streamseg.errors import UsageError


class Turn:
    """The right to use the sockets: one reader has it at a time, until they are closed.

    Args:
        close_sockets: called once or more often when ``close`` was called, by whoever has the
            turn then.

    Attributes:
        is_closed: whether ``close`` was called.
        wake_up: file descriptor that is readable from then on.
    """

    def __init__(self, close_sockets: Callable[[], None]) -> None:
        self._close_sockets = close_sockets
        self._taken = threading.Lock()
        self.is_closed = False
        self.wake_up, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)

    def __del__(self) -> None:
        # Not before: another thread may be about to write there.
        for end in (self.wake_up, self._write_end):
            os.close(end)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Use the sockets.

        Raises:
            UsageError: somebody else is using them.
        """
        if not self._taken.acquire(blocking=False):
            raise UsageError("another thread or task is reading this subscriber: make one for each")
        try:
            yield
        finally:
            self._taken.release()
            self._close_if_asked()

    def close(self) -> None:
        """Have the sockets closed: now, or by the reader that is at work."""
        self.is_closed = True
        with contextlib.suppress(BlockingIOError):  # it was written often enough
            os.write(self._write_end, b"\0")
        self._close_if_asked()

    def _close_if_asked(self) -> None:
        """Close the sockets unless somebody has the turn, who does it at its end."""
        if self.is_closed and self._taken.acquire(blocking=False):
            try:
                self._close_sockets()
            finally:
                self._taken.release()
