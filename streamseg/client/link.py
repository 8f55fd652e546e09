"""A subscriber's SUB socket: reconnected when it goes silent, checked for refused handshakes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

import zmq

from streamseg.client.authentication import HandshakeMonitor, Keys
from streamseg.errors import RefusedError, UsageError
from streamseg.protocol.address import Address

log = logging.getLogger(__name__)

RECONNECT_AFTER = 5.0
"""Seconds without any message, not even a status, before the socket is replaced.

libzmq abandons a connection after a message that is too large or a refused handshake. This also
replaces ZMTP heartbeats: if one times out while the receive queue is full, libzmq 4.3.5 reconnects
and then aborts the process (``Assertion failed: _input_stopped``).
"""
RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000


class Link:
    """A connected SUB socket with its subscriptions. Used by one thread at a time.

    Args:
        context: ZeroMQ context of the socket.
        address: endpoint to connect to.
        topics: topic prefixes to subscribe to.
        keys: keys of the subscriber, or None.
        queue_size: high-water mark of received messages.
        max_part_bytes: largest accepted message part.

    Raises:
        UsageError: libzmq can't connect to the address.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        topics: Sequence[bytes],
        *,
        keys: Keys | None,
        queue_size: int,
        max_part_bytes: int,
    ) -> None:
        self.address = address
        self.reopened = 0
        self._context = context
        self._topics = topics
        self._keys = keys
        self._queue_size = queue_size
        self._max_part_bytes = max_part_bytes
        self._handshakes = HandshakeMonitor(address, keys)
        self.socket = self._open()

    @property
    def problem(self) -> str | None:
        """Why the latest handshake failed, or None."""
        return self._handshakes.problem

    def receive_waiting(self) -> Iterator[list[bytes]]:
        """Yield the received messages, as lists of parts; doesn't block."""
        with contextlib.suppress(zmq.Again):
            while True:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
                self._received_at = time.monotonic()
                yield parts

    def check(self) -> None:
        """Replace the socket if it has been silent; call this after reading all messages.

        Raises:
            RefusedError: the service refuses the connection and never accepted one before. After
                an accepted connection, a refusal is retried like any disconnection.
        """
        self._handshakes.read_events()
        if self._handshakes.is_refused and not self._handshakes.was_admitted:
            raise RefusedError(f"{self.address}: {self._handshakes.problem}")
        if time.monotonic() - self._received_at > RECONNECT_AFTER:
            log.debug("%s: reconnecting", self.address)
            self.close()
            self.socket = self._open()
            self.reopened += 1

    def close(self) -> None:
        """Disconnect. May be called twice."""
        if not self.socket.closed:
            self._handshakes.detach()
            self.socket.close(linger=0)

    def _open(self) -> zmq.Socket[bytes]:
        sock = self._context.socket(zmq.SUB)
        sock.rcvhwm = self._queue_size
        sock.sndhwm = 0  # subscriptions are messages too: libzmq drops those beyond the mark
        sock.setsockopt(zmq.MAXMSGSIZE, self._max_part_bytes)
        set_common_options(sock, self.address, self._keys)
        for topic in self._topics:
            sock.subscribe(topic)
        self._handshakes.attach(sock)
        try:
            sock.connect(str(self.address))
        except zmq.ZMQError as error:
            self._handshakes.detach()
            sock.close(linger=0)
            raise UsageError(f"{self.address}: {error}") from None
        self._received_at = time.monotonic()
        return sock


def set_common_options(sock: zmq.Socket[bytes], address: Address, keys: Keys | None) -> None:
    """Set the options of every subscriber socket: linger, IPv6, reconnection and keys."""
    sock.linger = 0
    for option, value in (
        (zmq.IPV6, int(":" in address.host)),
        (zmq.RECONNECT_IVL, RECONNECT_MS),
        (zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS),
    ):
        sock.setsockopt(option, value)
    if keys is not None:
        keys.apply_to(sock)
