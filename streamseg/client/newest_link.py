"""A link that keeps only the newest message of each topic, for readers slower than the stream.

A thread reads all the time. Otherwise old messages would wait in libzmq's queues, here and at the
publisher, while new ones are dropped.
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

_POLL_TIMEOUT = 0.5
"""Maximum time that one poll of the sockets waits, in seconds."""
_BATCH_SIZE = 1000
"""Messages read before the thread checks whether it was closed."""
_numbers = count()
"""Makes inproc names unique: libzmq frees a name some time after its socket was closed."""


class NewestLink:
    """Link with the interface of ``Link``, read by a thread of its own.

    Args:
        context: ZeroMQ context of the link's socket.
        link: connected link; the thread owns it from now on.

    Attributes:
        socket: becomes readable when a message may be waiting.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._newest: dict[bytes, list[bytes]] = {}
        self._failure: Exception | None = None
        self.socket = context.socket(zmq.PAIR)
        self._thread_socket = context.socket(zmq.PAIR)
        for end in (self.socket, self._thread_socket):
            end.sndhwm = end.rcvhwm = 1
        address = f"inproc://newest-{next(_numbers)}"
        self.socket.bind(address)
        self._thread_socket.connect(address)
        self._thread = threading.Thread(target=self._run, name="newest", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        """Endpoint that the link is connected to."""
        return self._link.address

    @property
    def reopened(self) -> int:
        """Number of times the socket was replaced."""
        return self._link.reopened

    @property
    def problem(self) -> str | None:
        """Why the latest handshake failed, or None."""
        return self._link.problem

    def receive_waiting(self) -> Iterator[list[bytes]]:
        """Yield the newest message of each topic, each one once; doesn't block."""
        with contextlib.suppress(zmq.Again):
            while True:
                self.socket.recv(zmq.NOBLOCK)
        while True:
            with self._lock:
                if not self._newest:
                    return
                parts = self._newest.pop(next(iter(self._newest)))
            yield parts

    def check(self) -> None:
        """Raise the error that ended the thread, if any.

        Raises:
            RefusedError: see ``Link.check``.
        """
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop the thread and close the link. May be called twice."""
        if self.socket.closed:
            return
        with contextlib.suppress(zmq.Again):  # the thread has ended already
            self.socket.send(b"", zmq.NOBLOCK)
        self._thread.join()
        self.socket.close(linger=0)

    # The thread

    def _run(self) -> None:
        try:
            while not self._thread_socket.poll(0):
                zmq.select([self._link.socket, self._thread_socket], [], [], _POLL_TIMEOUT)
                for parts in islice(self._link.receive_waiting(), _BATCH_SIZE):
                    self._store(parts)
                self._link.check()
        except Exception as error:  # noqa: BLE001 - raised by check in the reader's thread
            self._failure = error
            self._notify()
        finally:
            self._link.close()
            self._thread_socket.close(linger=0)

    def _store(self, parts: list[bytes]) -> None:
        """Replace the topic's message; a status message moves behind all others.

        Otherwise the status that ends a source could be read before its last result.
        """
        with self._lock:
            if parts[0].startswith(b"status/"):
                self._newest.pop(parts[0], None)
            if parts[0] in self._newest or len(self._newest) < 2 * MAX_SOURCES:
                self._newest[parts[0]] = parts
        self._notify()

    def _notify(self) -> None:
        with contextlib.suppress(zmq.Again):  # a notification is pending already
            self._thread_socket.send(b"", zmq.NOBLOCK)
