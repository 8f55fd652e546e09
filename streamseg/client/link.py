"""A SUB socket that is made anew when it may have gone deaf, and notices when it is refused."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

import zmq

from streamseg.client.authentication import Handshakes, Keys
from streamseg.errors import RefusedError, UsageError
from streamseg.protocol.address import Address

log = logging.getLogger(__name__)

DEAF_AFTER = 5.0
"""Seconds without a word, not even a status, after which the connection is made anew.

libzmq gives a connection up for good after one message that is too large, or a handshake that was
refused. This takes the place of ZMTP's heartbeats, too: when one of those runs out while the queue
here is full, libzmq 4.3.5 connects again and aborts the process (``Assertion failed:
_input_stopped``).
"""
RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000


class Link:
    """Subscribed from the beginning. Belongs to one thread at a time.

    Args:
        context: of the socket.
        address: where to connect to.
        topics: what to subscribe to.
        keys: the subscriber's, where the service has some.
        queued: messages that may wait here.
        largest: bytes of a part of a message.

    Raises:
        UsageError: there can be no connection to such an address.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        topics: Sequence[bytes],
        *,
        keys: Keys | None,
        queued: int,
        largest: int,
    ) -> None:
        self.address = address
        self.reopened = 0
        self._context = context
        self._topics = topics
        self._keys = keys
        self._queued = queued
        self._largest = largest
        self._handshakes = Handshakes(address, keys)
        self.socket = self._open()

    @property
    def trouble(self) -> str | None:
        """What stands in the way of the connection, if it is known."""
        return self._handshakes.trouble

    def waiting(self) -> Iterator[list[bytes]]:
        """The messages that have arrived."""
        with contextlib.suppress(zmq.Again):
            while True:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
                self._heard_at = time.monotonic()
                yield parts

    def look_after(self) -> None:
        """Connect again if nothing has come for long; everything that came must have been read.

        Raises:
            RefusedError: the service doesn't let us in, and never has. One that has is asked
                again and again, as after any disconnection.
        """
        self._handshakes.look()
        if self._handshakes.refused and not self._handshakes.admitted:
            raise RefusedError(f"{self.address}: {self._handshakes.trouble}")
        if time.monotonic() - self._heard_at > DEAF_AFTER:
            log.debug("%s: connecting again", self.address)
            self.close()
            self.socket = self._open()
            self.reopened += 1

    def close(self) -> None:
        """Let the service know that nobody is waiting here any more. May be called twice."""
        if not self.socket.closed:
            self._handshakes.let_go()
            self.socket.close(linger=0)

    def _open(self) -> zmq.Socket[bytes]:
        sock = self._context.socket(zmq.SUB)
        sock.rcvhwm = self._queued
        sock.sndhwm = 0  # subscriptions are sent messages: libzmq drops those there is no room for
        sock.setsockopt(zmq.MAXMSGSIZE, self._largest)
        prepare(sock, self.address, self._keys)
        for topic in self._topics:
            sock.subscribe(topic)
        self._handshakes.watch(sock)
        try:
            sock.connect(str(self.address))
        except zmq.ZMQError as error:
            self._handshakes.let_go()
            sock.close(linger=0)
            raise UsageError(f"{self.address}: {error}") from None
        self._heard_at = time.monotonic()
        return sock


def prepare(sock: zmq.Socket[bytes], address: Address, keys: Keys | None) -> None:
    """What every socket of a subscriber has: it comes again by itself, and has the keys."""
    sock.linger = 0
    for option, value in (
        (zmq.IPV6, int(":" in address.host)),
        (zmq.RECONNECT_IVL, RECONNECT_MS),
        (zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS),
    ):
        sock.setsockopt(option, value)
    if keys is not None:
        keys.put_on(sock)
