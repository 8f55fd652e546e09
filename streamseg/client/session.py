"""Protocol state of a subscription: takes raw messages, returns results. Uses no sockets.

Invalid messages are counted and skipped.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from streamseg import protocol
from streamseg.client.message_order import MessageOrder
from streamseg.client.received import Received
from streamseg.client.service_identity import ServiceCheck
from streamseg.errors import UsageError, WireError
from streamseg.protocol.address import Address
from streamseg.protocol.messages import MasksMessage, ReplayAnswer, ReplayRequest, StatusMessage
from streamseg.structures.results import SOURCE_NAME

log = logging.getLogger(__name__)

Parts: TypeAlias = Sequence[bytes]

MAX_SOURCES = 1024
"""Number of source names that a subscriber accepts in its lifetime."""
MAX_BUFFERED_MESSAGES = 64
"""Messages of all sources buffered while earlier ones are missing."""
LATE_IMAGES_TIMEOUT = 2.0
"""Seconds that images may arrive after the end of the service was received."""


class Session:
    """State of one subscription.

    Args:
        sources: source names; None for all.
        kind: topic of the results: ``masks``, ``frames`` or ``video``.
        max_pixels: largest accepted frame.
        uses_replay: whether missing messages are requested again.
        has_status_link: whether the masks' service is known from a socket of its own, whose
            messages go to ``feed_service_status``; used with images.

    Attributes:
        statuses: latest status by source; the service's own has the empty name.
        rejected: number of invalid messages.
        images_address: endpoint of the images from the latest status; set to None by its reader.
        replay_address: endpoint of the replay socket from the latest status.

    Raises:
        UsageError: a source name is invalid.
    """

    def __init__(
        self,
        sources: Sequence[str] | None,
        kind: protocol.Topic,
        max_pixels: int,
        *,
        uses_replay: bool = False,
        has_status_link: bool = False,
    ) -> None:
        is_list = isinstance(sources, Iterable) and not isinstance(sources, str | bytes)
        if sources is not None and not (is_list and sources):
            raise UsageError("sources must be a list of names, or None for all")
        for name in sources or ():
            if not isinstance(name, str) or not SOURCE_NAME.fullmatch(name):
                raise UsageError(
                    f"invalid source name {name!r}: use letters, digits, dots, - and _"
                )
        if not isinstance(max_pixels, int) or max_pixels < 1:
            raise UsageError(f"max_pixels must be a whole number from 1, not {max_pixels!r}")
        self._sources = None if sources is None else tuple(dict.fromkeys(sources))
        self._kind = kind
        self._max_pixels = max_pixels
        self._uses_replay = uses_replay
        self._service: str | None = None
        self._orders: dict[str, MessageOrder[Received]] = {}
        self._ready: deque[Received] = deque()
        self._requested_source: str | None = None
        self._check = ServiceCheck() if has_status_link else None
        self._service_ended_at = math.inf
        self._fed_at = -math.inf
        self.statuses: dict[str, StatusMessage] = {}
        self.rejected = 0
        self.images_address: Address | None = None
        self.replay_address: Address | None = None

    @property
    def topics(self) -> list[bytes]:
        """Topic prefixes to subscribe to."""
        service = protocol.topic("status", "")
        if self._sources is None:
            return [f"{self._kind}/".encode(), b"status/"]
        named = [protocol.topic(kind, s) for s in self._sources for kind in (self._kind, "status")]
        return [*named, service]

    @property
    def ended(self) -> bool:
        """Whether all subscribed sources or the service have ended and no result is pending."""
        if self._ready or any(order.has_gap for order in self._orders.values()):
            return False
        if self._has_ended("") or self._have_images_ended():
            return True
        return self._sources is not None and all(self._has_ended(name) for name in self._sources)

    @property
    def gaps(self) -> Mapping[str, int]:
        """Number of messages lost so far, by source."""
        return {source: order.lost for source, order in self._orders.items()}

    @property
    def status_summary(self) -> str:
        """The latest states, for the error message of a timeout."""
        if not self.statuses:
            return "is a service running there?"
        statuses = [self.statuses[name] for name in sorted(self.statuses)][:5]
        parts = [f"{s.source or 'the service'} is {s.state} {s.reason}" for s in statuses]
        return "; ".join(part.rstrip() for part in parts)

    @property
    def other_service(self) -> tuple[str, str] | None:
        """Ids of the masks' service and of another one whose images arrived instead, or None."""
        if self._check is None or self._check.other is None:
            return None
        return self._check.service or "", self._check.other

    def feed(self, parts: Parts) -> None:
        """Process a message of the results' socket; then call ``take``."""
        self._fed_at = time.monotonic()
        try:
            kind, source = self._parse_topic(parts)
            message: Received | StatusMessage
            if kind == "status":
                message = _decode(parts[1], StatusMessage, source)
            else:
                message = self._decode_result(parts, source)
            self._add([message] if self._check is None else self._check.filter(message))
        except WireError as error:
            self.reject(error)

    def take(self) -> Received | None:
        """Return the next result, or None if there is none yet."""
        if self._check is not None and not self._ready:
            self._add(self._check.release_after_timeout())
        return self._ready.popleft() if self._ready else None

    def feed_service_status(self, parts: Parts) -> None:
        """Process a message of the socket that is subscribed to the service's own status only."""
        try:
            status = _decode_service_status(parts)
            is_final = status.state in protocol.FINAL
            self._service_ended_at = (
                min(self._service_ended_at, time.monotonic()) if is_final else math.inf
            )
            if self._check is not None:
                matching, discarded = self._check.set_service(status.service)
                self._add(matching)
                for _ in range(discarded):
                    self.reject(WireError("an image of another service"))
            self.images_address = parse_connect_address(status.endpoints.get("frames", ""))
        except (WireError, UsageError) as error:
            self.reject(error)

    def reject(self, error: Exception) -> None:
        """Count an invalid message."""
        self.rejected += 1
        log.debug("rejected: %s", error)

    # Replay

    @property
    def is_requesting(self) -> bool:
        """Whether a replay request is open."""
        return self._requested_source is not None

    def next_request(self) -> bytes | None:
        """Return a replay request for a source with a gap, or None; sources take turns."""
        for source in list(self._orders):
            order = self._orders[source]
            if not order.has_gap:
                continue
            self._orders[source] = self._orders.pop(source)  # move it behind the other sources
            self._requested_source = source
            return protocol.encode(
                ReplayRequest(
                    v=protocol.VERSION,
                    service=self._service or "",
                    source=source,
                    since=order.start_request(),
                )
            )
        return None

    def feed_replay(self, parts: Parts) -> bool:
        """Process a message of the replay socket; ``is_requesting`` is False after the last one.

        Returns:
            Whether the message made progress: a missing message, or the end of the answer.
        """
        assert self._requested_source is not None, "no request is open"
        try:
            if len(parts) == 1:
                _decode(parts[0], ReplayAnswer, self._requested_source)
                # A restarted service has sent nothing: the missing messages are lost.
                self._ready += self._orders[self._requested_source].end_request()
                self._requested_source = None
                return True
            received = self._decode_replayed(parts, self._requested_source)
            order = self._orders[self._requested_source]
            ready = order.add_replayed(received.seq, received)
            self._ready += ready
            return bool(ready)
        except WireError as error:
            self.reject(error)
            return False

    def give_up(self) -> None:
        """Count all missing messages as lost."""
        self._requested_source = None
        for order in self._orders.values():
            self._ready += order.give_up()

    def _decode_replayed(self, parts: Parts, source: str) -> Received:
        if len(parts) != 2 or parts[0] != protocol.topic("masks", source):
            raise WireError(f"{len(parts)} parts of replay under {parts[0][:80]!r}")
        received = self._decode_result(parts, source)
        if received.service != self._service:
            raise WireError("a replayed message of an earlier start of the service")
        return received

    # Received messages

    def _parse_topic(self, parts: Parts) -> tuple[protocol.Topic, str]:
        kind, source = protocol.parse_topic(parts[0])
        count = 3 if kind in ("frames", "video") else 2
        if kind not in (self._kind, "status") or len(parts) != count:
            raise WireError(f"{len(parts)} parts under {parts[0][:80]!r}")
        if self._sources is not None and source and source not in self._sources:
            raise WireError(f"{source} was not subscribed to")
        return kind, source

    def _decode_result(self, parts: Parts, source: str) -> Received:
        """Decode and validate all parts of a result."""
        message = _decode(parts[1], MasksMessage, source)
        instances = protocol.decode_instances(message, self._max_pixels)
        segments = protocol.decode_segments(message, self._max_pixels)
        return Received(message, instances, segments, parts[2] if len(parts) == 3 else None)

    def _add(self, messages: Iterable[Received | StatusMessage]) -> None:
        for message in messages:
            self._note_service(message.service)
            if isinstance(message, StatusMessage):
                self._add_status(message)
            else:
                self._add_result(message)

    def _add_result(self, received: Received) -> None:
        _check_room(self._orders, received.source)
        order = self._orders.setdefault(received.source, MessageOrder())
        has_room = sum(other.buffered for other in self._orders.values()) < MAX_BUFFERED_MESSAGES
        self._ready += order.add_live(received.seq, received, has_room=has_room)
        self._give_up_without_replay(order)

    def _add_status(self, status: StatusMessage) -> None:
        _check_room(self.statuses, status.source)
        previous = self.statuses.get(status.source)
        if previous is not None and status.seq <= previous.seq:
            return
        self.statuses[status.source] = status
        if self._uses_replay:
            self._find_gap(status)

    def _find_gap(self, status: StatusMessage) -> None:
        """Detect lost messages that no later message followed, from the count of published ones."""
        address = status.endpoints.get("replay")
        try:
            self.replay_address = None if address is None else parse_connect_address(address)
        except UsageError as error:
            self.reject(error)
        order = self._orders.get(status.source)
        if order is not None:
            order.note_published(status.published - 1)
            self._give_up_without_replay(order)

    def _give_up_without_replay(self, order: MessageOrder[Received]) -> None:
        if self.replay_address is None:
            self._ready += order.give_up()

    def _note_service(self, service: str) -> None:
        """Start over if the service was restarted: its sequence numbers start from 0 again."""
        if service != self._service:
            self._service = service
            self._requested_source = None
            self.replay_address = None
            self.statuses.clear()
            for order in self._orders.values():
                self._ready += order.restart()

    def _has_ended(self, source: str) -> bool:
        status = self.statuses.get(source)
        return status is not None and status.state in protocol.FINAL

    def _have_images_ended(self) -> bool:
        """Whether the service has ended and its images, sent on another socket, have too."""
        return time.monotonic() - max(self._service_ended_at, self._fed_at) > LATE_IMAGES_TIMEOUT


def parse_connect_address(address: str) -> Address:
    """Parse an address to connect to.

    Raises:
        UsageError: the address is invalid, or a wildcard for any host or port.
    """
    if not isinstance(address, str):
        raise UsageError(f"an address must be a string, not {type(address).__name__}")
    parsed = Address.parse(address)
    if parsed.transport == "tcp" and (parsed.port == 0 or parsed.host == "*"):
        raise UsageError(f"{address!r}: give the host and the port to connect to")
    return parsed


def _check_room(known: Mapping[str, object], source: str) -> None:
    if source not in known and len(known) >= MAX_SOURCES:
        raise WireError(f"{source} is one source more than {MAX_SOURCES}")


def _decode(raw: bytes, kind: type[protocol.MessageT], source: str) -> protocol.MessageT:
    message = protocol.decode(raw, kind)
    actual: str = message.source  # type: ignore[attr-defined]  # all these kinds have one
    if actual != source:
        raise WireError(f"a message of {actual[:80]!r} under the topic of {source!r}")
    return message


def _decode_service_status(parts: Parts) -> StatusMessage:
    if len(parts) != 2 or parts[0] != protocol.topic("status", ""):
        raise WireError(f"{len(parts)} parts under {parts[0][:80]!r}")
    return _decode(parts[1], StatusMessage, "")
