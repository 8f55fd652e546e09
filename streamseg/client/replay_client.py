"""What a subscriber has missed is asked for here: one question at a time, and not for ever.

The socket is open only while something is missing: an answer that comes too late finds it closed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time

import zmq

from streamseg import protocol
from streamseg.client.authentication import Keys
from streamseg.client.link import prepare
from streamseg.client.session import Session
from streamseg.protocol.address import Address

log = logging.getLogger(__name__)

ANSWER_WITHIN = 1.0
"""Seconds from a question, or what was of use in its answer, to the next."""
ATTEMPTS = 2
"""Questions, each on a new connection, before what is missing is given up."""
REST = 10.0
"""Seconds after that in which nothing is asked: results shan't wait for nobody again and again."""
QUEUED = 32
"""Messages waiting here; the rest of an answer waits in the network and at the publisher."""


class Asker:
    """Asks for what a session is missing.

    Args:
        context: of the socket.
        keys: the subscriber's, where the service has some.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keys | None) -> None:
        self._context = context
        self._keys = keys
        self._socket: zmq.Socket[bytes] | None = None
        self._waits_since: float | None = None
        self._failed = 0
        self._rests_until = -math.inf

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """What to wait for, if there is something."""
        return [] if self._socket is None else [self._socket]

    @property
    def due_in(self) -> float:
        """Seconds after which to ``work`` even if nothing comes."""
        if self._waits_since is None:
            return math.inf
        return max(0.0, self._waits_since + ANSWER_WITHIN - time.monotonic())

    def work(self, session: Session, address: Address | None) -> bool:
        """Take what has come, and ask for what is still missing; never waits.

        Args:
            session: it is fed, and gives up what can't be had.
            address: where to ask.

        Returns:
            Whether there may be something to read already.
        """
        self._read(session)
        if self._waits_since is not None:
            if self.due_in > 0:
                return False
            self._fail()
        if address is None or time.monotonic() < self._rests_until:
            session.give_up()
            self.close()
            return False
        question = session.question()
        if question is None:
            self.close()
            return False
        return self._ask(question, address)

    def close(self) -> None:
        """Ask nothing, wait for nothing."""
        self._waits_since = None
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _read(self, session: Session) -> None:
        if self._socket is None:
            return
        if self._waits_since is not None and not session.is_asking:
            self.close()  # the service was started again
            return
        with contextlib.suppress(zmq.Again):
            while session.is_asking:
                if session.feed_replay(self._socket.recv_multipart(zmq.NOBLOCK)):
                    self._waits_since = time.monotonic()
                    self._failed = 0
            self._waits_since = None

    def _fail(self) -> None:
        self.close()
        self._failed += 1
        if self._failed == ATTEMPTS:
            log.debug("replay doesn't answer")
            self._failed = 0
            self._rests_until = time.monotonic() + REST

    def _ask(self, question: bytes, address: Address) -> bool:
        try:
            if self._socket is None:
                self._socket = self._open(address)
            self._socket.send(question, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("%s can't be asked: %s", address, error)
        self._waits_since = time.monotonic()
        return True

    def _open(self, address: Address) -> zmq.Socket[bytes]:
        sock = self._context.socket(zmq.DEALER)
        sock.rcvhwm = QUEUED
        sock.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_JSON_BYTES)
        prepare(sock, address, self._keys)
        try:
            sock.connect(str(address))
        except zmq.ZMQError:
            sock.close(linger=0)
            raise
        return sock
