"""A link of which only the newest message of each topic is kept: a slow reader gets what is now.

A thread reads all the time. Otherwise what is oldest would wait in libzmq's queues, here and at
the publisher, and what is newest would be lost.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from itertools import count, islice

import zmq

from streamseg.client.link import Link
from streamseg.client.session import MAX_SOURCES
from streamseg.protocol.address import Address

_LOOK_UP_EVERY = 0.5
"""Seconds."""
_READ_AT_ONCE = 1000
"""Messages after which the thread looks up, whether it shall end."""
_numbers = count()
"""For names that no link has had: libzmq gives one back some time after its socket was closed."""


class NewestLink:
    """Like ``Link``, around one that belongs to a thread from now on.

    Args:
        context: of the link's socket.
        link: connected.

    Attributes:
        socket: readable when a message may wait.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._newest: dict[bytes, list[bytes]] = {}
        self._failure: Exception | None = None
        self.socket = context.socket(zmq.PAIR)
        self._bell = context.socket(zmq.PAIR)
        for end in (self.socket, self._bell):
            end.sndhwm = end.rcvhwm = 1
        between = f"inproc://newest-{next(_numbers)}"
        self.socket.bind(between)
        self._bell.connect(between)
        self._thread = threading.Thread(target=self._read, name="newest", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        """Where it is connected to."""
        return self._link.address

    @property
    def reopened(self) -> int:
        """How often the connection was made anew."""
        return self._link.reopened

    @property
    def trouble(self) -> str | None:
        """What stands in the way of the connection, if it is known."""
        return self._link.trouble

    def waiting(self) -> Iterator[list[bytes]]:
        """The newest message of each topic, each once."""
        with contextlib.suppress(zmq.Again):
            while True:
                self.socket.recv(zmq.NOBLOCK)
        while True:
            with self._lock:
                if not self._newest:
                    return
                parts = self._newest.pop(next(iter(self._newest)))
            yield parts

    def look_after(self) -> None:
        """Raises what the thread has met.

        Raises:
            RefusedError: see ``Link``.
        """
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the thread, and with it the link. May be called twice."""
        if self.socket.closed:
            return
        with contextlib.suppress(zmq.Again):  # Again: the thread has ended by itself
            self.socket.send(b"", zmq.NOBLOCK)
        self._thread.join()
        self.socket.close(linger=0)

    # The thread

    def _read(self) -> None:
        try:
            while not self._bell.poll(0):
                zmq.select([self._link.socket, self._bell], [], [], _LOOK_UP_EVERY)
                for parts in islice(self._link.waiting(), _READ_AT_ONCE):
                    self._keep(parts)
                self._link.look_after()
        except Exception as error:  # noqa: BLE001 - raised by look_after, where somebody waits
            self._failure = error
            self._ring()
        finally:
            self._link.close()
            self._bell.close(linger=0)

    def _keep(self, parts: list[bytes]) -> None:
        """Put a message in the place of its topic's last one, a status behind all others.

        What a status says of a source's end shall not be read before the source's last result.
        """
        with self._lock:
            if parts[0].startswith(b"status/"):
                self._newest.pop(parts[0], None)
            if parts[0] in self._newest or len(self._newest) < 2 * MAX_SOURCES:
                self._newest[parts[0]] = parts
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(zmq.Again):  # Again: it has been rung already
            self._bell.send(b"", zmq.NOBLOCK)
