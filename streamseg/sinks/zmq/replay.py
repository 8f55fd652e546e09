"""Replay: the masks messages of the last seconds, for a subscriber that was away or too slow.

The network thread keeps every masks message here as it was published and answers from here, so
that a short disconnection loses nothing. What is kept is bounded in seconds and in bytes, the
oldest goes first. What is answered is bounded too: each answer, each call, and each peer's queue,
so that one who asks without end takes neither the thread nor the memory.

A peer that asks and never reads costs at most its queue: ``ANSWERS_QUEUED`` messages, 384 MiB if
each were as large as it may be, 1 MB with 20 instances in frames of 1080p.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections import deque
from dataclasses import dataclass

import zmq

from streamseg import protocol
from streamseg.errors import WireError
from streamseg.structures.results import SOURCE_NAME

log = logging.getLogger(__name__)

DEFAULT_BYTES = 64 * 1024 * 1024
"""Of all that is kept."""
OVERHEAD = 256
"""Bytes that a message costs besides its own."""
ANSWER_MESSAGES = 32
ANSWER_BYTES = 4 * 1024 * 1024
"""Of one answer, which has at least one message if there is any; for more one asks again."""
ANSWERS_QUEUED = 3 * ANSWER_MESSAGES
"""Messages queued for one peer: more than one answer, because libzmq counts what has left by the
half queue."""
REQUESTS_AT_ONCE = 8
"""Requests that one call of ``answer`` takes; the others wait for the next."""
MAX_REQUEST = 512
"""Bytes; a request has some 150, a step of CURVE's handshake 276."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """One message, as it was published."""

    seq: int
    at: float
    message: bytes

    @property
    def cost(self) -> int:
        return len(self.message) + OVERHEAD


class Replay:
    """What was published lately. Belongs to the network thread.

    Args:
        seconds: how long a message is kept.
        max_bytes: of all messages kept.
        service: the id of this start, as its messages say it.
    """

    def __init__(self, seconds: float, max_bytes: int, service: str) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._service = service
        self._kept: dict[bytes, deque[_Kept]] = {}
        self._order: deque[bytes] = deque()
        self._bytes = 0

    @property
    def bytes_kept(self) -> int:
        """What is kept now, with what it costs to keep it."""
        return self._bytes

    def keep(self, topic: bytes, seq: int, message: bytes) -> None:
        """Keep a message, and let go of the oldest that there is no room or time for.

        Args:
            topic: ``masks/<source>/``.
            seq: its number, larger than that of the topic's message before.
            message: its JSON.
        """
        kept = _Kept(seq, time.monotonic(), message)
        self._kept.setdefault(topic, deque()).append(kept)
        self._order.append(topic)
        self._bytes += kept.cost
        self._let_go()

    def answer(self, sock: zmq.Socket[bytes]) -> None:
        """Answer what has been asked so far, up to a bound; what is no request is ignored.

        Never waits: what has no room in a peer's queue is not sent.

        Args:
            sock: see ``set_up``; to be called again while it can be read from.
        """
        self._let_go()
        sent = 0
        for _ in range(REQUESTS_AT_ONCE):
            try:
                peer, *parts = sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                sent += self._answer_one(sock, peer, _request(parts))
            except WireError as error:
                log.debug("replay: %s", error)
            except zmq.ZMQError as error:  # gone, or its queue is full: it asks again
                log.debug("replay: an answer that can't be sent: %s", error)
            if sent >= ANSWER_BYTES:
                return

    def _answer_one(
        self, sock: zmq.Socket[bytes], peer: bytes, request: protocol.ReplayRequest
    ) -> int:
        """Send what was asked for; its bytes."""
        topic = protocol.topic("masks", request.source)
        given: list[_Kept] = []
        complete = True
        if request.service == self._service:
            given, complete = self._after(topic, request.since)
        for kept in given:
            sock.send_multipart([peer, topic, kept.message], zmq.NOBLOCK)
        end = protocol.ReplayAnswer(
            v=protocol.VERSION,
            service=self._service,
            source=request.source,
            complete=complete,
            first=given[0].seq if given else None,
            last=given[-1].seq if given else None,
        )
        sock.send_multipart([peer, protocol.encode(end)], zmq.NOBLOCK)
        return sum(kept.cost for kept in given)

    def _after(self, topic: bytes, since: int) -> tuple[list[_Kept], bool]:
        """As many messages after ``since`` as one answer may have, and whether these are all."""
        kept: deque[_Kept] = self._kept.get(topic, deque())
        given: list[_Kept] = []
        size = 0
        for at in range(bisect.bisect_right(kept, since, key=lambda one: one.seq), len(kept)):
            size += len(kept[at].message)
            if len(given) == ANSWER_MESSAGES or (given and size > ANSWER_BYTES):
                return given, False
            given.append(kept[at])
        return given, True

    def _let_go(self) -> None:
        """Forget the oldest, until what is left is young and small enough."""
        oldest = time.monotonic() - self._seconds
        while self._order:
            topic = self._order[0]
            kept = self._kept[topic]
            if self._bytes <= self._max_bytes and kept[0].at >= oldest:
                return
            self._order.popleft()
            self._bytes -= kept.popleft().cost
            if not kept:
                del self._kept[topic]


def set_up(sock: zmq.Socket[bytes]) -> None:
    """Make a ROUTER that nobody can stall or fill, before it is bound."""
    sock.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a full queue is said, and ends that answer
    sock.sndhwm = ANSWERS_QUEUED
    sock.rcvhwm = REQUESTS_AT_ONCE
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST)


def _request(parts: list[bytes]) -> protocol.ReplayRequest:
    if len(parts) != 1:
        raise WireError(f"a request of {len(parts)} parts")
    request = protocol.decode(parts[0], protocol.ReplayRequest)
    if not SOURCE_NAME.fullmatch(request.source):
        raise WireError(f"a request for {request.source[:80]!r}, which can't be a source")
    return request
