"""Replay buffer: the masks messages of the last seconds, for subscribers that missed some.

The publisher's thread stores every masks message as it was published and answers requests, so that
a short disconnection loses no results. The buffer is bounded in seconds and bytes; the oldest
messages are removed first. Answers are bounded per request, per call and per client, so that many
requests block neither the thread nor exhaust memory.

A client that sends requests and never reads costs at most its queue: ``MAX_QUEUED_ANSWERS``
messages, 384 MiB at their maximum size, 1 MB with 20 instances in 1080p frames.
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
"""Size of the buffer."""
OVERHEAD = 256
"""Memory in bytes that a message takes in addition to its content."""
MAX_ANSWER_MESSAGES = 32
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Limits of one answer, with at least one message if there is any; clients request the rest."""
MAX_QUEUED_ANSWERS = 3 * MAX_ANSWER_MESSAGES
"""Messages queued per client: more than one answer, because libzmq updates its count of sent
messages only at half of the high-water mark."""
REQUESTS_AT_ONCE = 8
"""Requests processed by one call of ``answer_requests``."""
MAX_REQUEST_BYTES = 512
"""Maximum size of a request, in bytes; a typical one has 150, a step of the CURVE handshake 276."""


@dataclass(frozen=True, slots=True)
class _StoredMessage:
    """One message as it was published."""

    seq: int
    published_at: float
    content: bytes

    @property
    def size(self) -> int:
        """Memory in bytes."""
        return len(self.content) + OVERHEAD


class ReplayBuffer:
    """Recently published masks messages. Belongs to the publisher's thread.

    Args:
        seconds: how long a message is kept.
        max_bytes: limit of all messages.
        service: id of the service process.
    """

    def __init__(self, seconds: float, max_bytes: int, service: str) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._service = service
        self._messages: dict[bytes, deque[_StoredMessage]] = {}
        self._topics: deque[bytes] = deque()  # topic of each message, oldest first
        self._size = 0

    @property
    def size(self) -> int:
        """Memory of the stored messages in bytes, including the overhead."""
        return self._size

    def add(self, topic: bytes, seq: int, content: bytes) -> None:
        """Store a message and remove those beyond the limits.

        Args:
            topic: ``masks/<source>/``.
            seq: sequence number, larger than that of the topic's previous message.
            content: its JSON.
        """
        message = _StoredMessage(seq, time.monotonic(), content)
        self._messages.setdefault(topic, deque()).append(message)
        self._topics.append(topic)
        self._size += message.size
        self._remove_old()

    def answer_requests(self, sock: zmq.Socket[bytes]) -> None:
        """Answer the waiting requests, a bounded number of them; doesn't block.

        Invalid requests are ignored; messages beyond a client's queue are not sent.

        Args:
            sock: ROUTER socket; call this again while it is readable.
        """
        self._remove_old()
        sent = 0
        for _ in range(REQUESTS_AT_ONCE):
            try:
                client, *parts = sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                sent += self._answer(sock, client, _decode_request(parts))
            except WireError as error:
                log.debug("replay: %s", error)
            except zmq.ZMQError as error:  # disconnected, or its queue is full: it asks again
                log.debug("replay: an answer can't be sent: %s", error)
            if sent >= MAX_ANSWER_BYTES:
                return

    def _answer(
        self, sock: zmq.Socket[bytes], client: bytes, request: protocol.ReplayRequest
    ) -> int:
        """Send the answer to a request; returns the size of its messages."""
        topic = protocol.topic("masks", request.source)
        messages: list[_StoredMessage] = []
        is_complete = True
        if request.service == self._service:
            messages, is_complete = self._find_after(topic, request.since)
        for message in messages:
            sock.send_multipart([client, topic, message.content], zmq.NOBLOCK)
        end = protocol.ReplayAnswer(
            v=protocol.VERSION,
            service=self._service,
            source=request.source,
            complete=is_complete,
            first=messages[0].seq if messages else None,
            last=messages[-1].seq if messages else None,
        )
        sock.send_multipart([client, protocol.encode(end)], zmq.NOBLOCK)
        return sum(message.size for message in messages)

    def _find_after(self, topic: bytes, since: int) -> tuple[list[_StoredMessage], bool]:
        """Return the messages after ``since`` that fit into one answer, and whether that's all."""
        stored: deque[_StoredMessage] = self._messages.get(topic, deque())
        messages: list[_StoredMessage] = []
        size = 0
        start = bisect.bisect_right(stored, since, key=lambda message: message.seq)
        for position in range(start, len(stored)):
            size += len(stored[position].content)
            if len(messages) == MAX_ANSWER_MESSAGES or (messages and size > MAX_ANSWER_BYTES):
                return messages, False
            messages.append(stored[position])
        return messages, True

    def _remove_old(self) -> None:
        """Remove the oldest messages until the limits of time and size hold."""
        oldest_allowed = time.monotonic() - self._seconds
        while self._topics:
            topic = self._topics[0]
            stored = self._messages[topic]
            if self._size <= self._max_bytes and stored[0].published_at >= oldest_allowed:
                return
            self._topics.popleft()
            self._size -= stored.popleft().size
            if not stored:
                del self._messages[topic]


def set_replay_options(sock: zmq.Socket[bytes]) -> None:
    """Set the options of the ROUTER socket, before it is bound."""
    sock.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a full queue raises an error, which ends the answer
    sock.sndhwm = MAX_QUEUED_ANSWERS
    sock.rcvhwm = REQUESTS_AT_ONCE
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)


def _decode_request(parts: list[bytes]) -> protocol.ReplayRequest:
    if len(parts) != 1:
        raise WireError(f"a request of {len(parts)} parts")
    request = protocol.decode(parts[0], protocol.ReplayRequest)
    if not SOURCE_NAME.fullmatch(request.source):
        raise WireError(f"a request with the invalid source name {request.source[:80]!r}")
    return request
