"""Replay requests of a subscriber: one at a time, with a time limit and a limited number of tries.

The DEALER socket is open only while messages are missing, so a late answer finds it closed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time

import zmq

from streamseg import protocol
from streamseg.client.authentication import Keys
from streamseg.client.link import set_common_options
from streamseg.client.session import Session
from streamseg.protocol.address import Address

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 1.0
"""Seconds from a request, or from a useful message of its answer, to the next one."""
MAX_ATTEMPTS = 2
"""Requests, each on a new connection, before missing messages are given up."""
PAUSE = 10.0
"""Seconds without requests after that, so that an unreachable service doesn't delay results."""
QUEUE_SIZE = 32
"""Messages queued here; the rest of an answer waits in the network and at the publisher."""


class ReplayClient:
    """Requests the messages that a session is missing.

    Args:
        context: ZeroMQ context of the socket.
        keys: keys of the subscriber, or None.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keys | None) -> None:
        self._context = context
        self._keys = keys
        self._socket: zmq.Socket[bytes] | None = None
        self._waiting_since: float | None = None
        self._failures = 0
        self._paused_until = -math.inf

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The open socket, if any, to poll."""
        return [] if self._socket is None else [self._socket]

    @property
    def seconds_to_timeout(self) -> float:
        """Seconds after which ``step`` must be called even if nothing arrives."""
        if self._waiting_since is None:
            return math.inf
        return max(0.0, self._waiting_since + ANSWER_TIMEOUT - time.monotonic())

    def step(self, session: Session, address: Address | None) -> bool:
        """Pass received answers to the session and request what is still missing; doesn't block.

        Args:
            session: gets the answers; gives up messages that can't be requested.
            address: endpoint of the service's replay socket, or None.

        Returns:
            Whether the session may have results already.
        """
        self._read(session)
        if self._waiting_since is not None:
            if self.seconds_to_timeout > 0:
                return False
            self._fail()
        if address is None or time.monotonic() < self._paused_until:
            session.give_up()
            self.close()
            return False
        request = session.next_request()
        if request is None:
            self.close()
            return False
        return self._send(request, address)

    def close(self) -> None:
        """Cancel the request and close the socket. May be called twice."""
        self._waiting_since = None
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _read(self, session: Session) -> None:
        if self._socket is None:
            return
        if self._waiting_since is not None and not session.is_requesting:
            self.close()  # the service was restarted
            return
        with contextlib.suppress(zmq.Again):
            while session.is_requesting:
                if session.feed_replay(self._socket.recv_multipart(zmq.NOBLOCK)):
                    self._waiting_since = time.monotonic()
                    self._failures = 0
            self._waiting_since = None

    def _fail(self) -> None:
        self.close()
        self._failures += 1
        if self._failures == MAX_ATTEMPTS:
            log.debug("replay requests are not answered")
            self._failures = 0
            self._paused_until = time.monotonic() + PAUSE

    def _send(self, request: bytes, address: Address) -> bool:
        try:
            if self._socket is None:
                self._socket = self._open(address)
            self._socket.send(request, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("%s: a replay request can't be sent: %s", address, error)
        self._waiting_since = time.monotonic()
        return True

    def _open(self, address: Address) -> zmq.Socket[bytes]:
        sock = self._context.socket(zmq.DEALER)
        sock.rcvhwm = QUEUE_SIZE
        sock.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_JSON_BYTES)
        set_common_options(sock, address, self._keys)
        try:
            sock.connect(str(address))
        except zmq.ZMQError:
            sock.close(linger=0)
            raise
        return sock
