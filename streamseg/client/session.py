"""What a subscriber knows of its service: fed with raw messages, it gives results. No sockets.

Nothing that arrives can crash it: what isn't a message of the protocol is counted and skipped.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from streamseg import protocol
from streamseg.client.message_order import Order
from streamseg.client.received import Received
from streamseg.client.service_identity import ServiceCheck
from streamseg.errors import UsageError, WireError
from streamseg.protocol.address import Address
from streamseg.protocol.messages import MasksMessage, ReplayAnswer, ReplayRequest, StatusMessage
from streamseg.structures.results import SOURCE_NAME

log = logging.getLogger(__name__)

Parts: TypeAlias = Sequence[bytes]

MAX_SOURCES = 1024
"""Different names that a subscriber takes in its life."""
HELD = 64
"""Messages, of all sources, held back while older ones are missing."""
LATE_PICTURES = 2.0
"""Seconds that pictures get to end after the service has said that it ended."""


class Session:
    """One subscriber's view of its service.

    Args:
        sources: names, None for all.
        kind: the topic that results come under.
        max_pixels: of a frame.
        replays: whether what is missing is to be asked for.
        guided: whether ``feed_guide`` says of which service the results must be.

    Attributes:
        statuses: the latest by source; the service's own is under the empty name.
        rejected: messages that were not what the protocol allows.
        pictures_at: where the service says that its pictures are, until somebody goes there.
        replay_at: where it says that it answers what is missing.

    Raises:
        UsageError: a name that can't be a source's.
    """

    def __init__(
        self,
        sources: Sequence[str] | None,
        kind: protocol.Topic,
        max_pixels: int,
        *,
        replays: bool = False,
        guided: bool = False,
    ) -> None:
        listed = isinstance(sources, Iterable) and not isinstance(sources, str | bytes)
        if sources is not None and not (listed and sources):
            raise UsageError("sources is a list of names, or None for all")
        for name in sources or ():
            if not isinstance(name, str) or not SOURCE_NAME.fullmatch(name):
                raise UsageError(f"{name!r} can't be a source: use letters, digits, dots, - and _")
        if not isinstance(max_pixels, int) or max_pixels < 1:
            raise UsageError(f"max_pixels must be a whole number from 1, not {max_pixels!r}")
        self._sources = None if sources is None else tuple(dict.fromkeys(sources))
        self._kind = kind
        self._max_pixels = max_pixels
        self._replays = replays
        self._service: str | None = None
        self._orders: dict[str, Order[Received]] = {}
        self._ready: deque[Received] = deque()
        self._asked: str | None = None
        self._check = ServiceCheck() if guided else None
        self._guide_ended_at = math.inf
        self._fed_at = -math.inf
        self.statuses: dict[str, StatusMessage] = {}
        self.rejected = 0
        self.pictures_at: Address | None = None
        self.replay_at: Address | None = None

    @property
    def topics(self) -> list[bytes]:
        """What to subscribe to."""
        service = protocol.topic("status", "")
        if self._sources is None:
            return [f"{self._kind}/".encode(), b"status/"]
        named = [protocol.topic(kind, s) for s in self._sources for kind in (self._kind, "status")]
        return [*named, service]

    @property
    def ended(self) -> bool:
        """Whether the named sources, or the service, have said their last, and all was given."""
        if self._ready or any(order.is_missing_some for order in self._orders.values()):
            return False
        if self._is_final("") or self._guide_is_final():
            return True
        return self._sources is not None and all(self._is_final(name) for name in self._sources)

    @property
    def gaps(self) -> Mapping[str, int]:
        """Messages lost so far, by source."""
        return {source: order.lost for source, order in self._orders.items()}

    @property
    def last_word(self) -> str:
        """What is known of the service, for people who wait for it."""
        if not self.statuses:
            return "is a service running there?"
        said = [f"{s.source or 'the service'} is {s.state} {s.reason}" for s in self._known()]
        return "; ".join(word.rstrip() for word in said[:5])

    def feed(self, parts: Parts) -> None:
        """Take a message of the socket that results come from; see ``take``."""
        self._fed_at = time.monotonic()
        try:
            kind, source = self._wanted(parts)
            message: Received | StatusMessage
            if kind == "status":
                message = _decode(parts[1], StatusMessage, source)
            else:
                message = self._received(parts, source)
            self._take_all([message] if self._check is None else self._check.pass_on(message))
        except WireError as error:
            self.reject(error)

    def take(self) -> Received | None:
        """The next result, if there is one."""
        if self._check is not None and not self._ready:
            self._take_all(self._check.release())
        return self._ready.popleft() if self._ready else None

    @property
    def other_service(self) -> tuple[str, str] | None:
        """Ids of this service and of another one whose pictures came instead, if some did."""
        if self._check is None or self._check.other is None:
            return None
        return self._check.service or "", self._check.other

    def feed_guide(self, parts: Parts) -> None:
        """Take a message of the socket that only says where the pictures are."""
        try:
            status = _service_status(parts)
            final = status.state in protocol.FINAL
            self._guide_ended_at = (
                min(self._guide_ended_at, time.monotonic()) if final else math.inf
            )
            if self._check is not None:
                own, others = self._check.answer(status.service)
                self._take_all(own)
                for _ in range(others):
                    self.reject(WireError("a picture of another service"))
            self.pictures_at = connectable(status.endpoints.get("frames", ""))
        except (WireError, UsageError) as error:
            self.reject(error)

    def reject(self, error: Exception) -> None:
        """Count something that can't be used."""
        self.rejected += 1
        log.debug("rejected: %s", error)

    # What is missing

    @property
    def is_asking(self) -> bool:
        """Whether there is a question whose answer hasn't ended."""
        return self._asked is not None

    def question(self) -> bytes | None:
        """A request for what a source is missing, None if nothing is; sources take turns."""
        for source in list(self._orders):
            order = self._orders[source]
            if not order.is_missing_some:
                continue
            self._orders[source] = self._orders.pop(source)  # next time, others come first
            self._asked = source
            return protocol.encode(
                ReplayRequest(
                    v=protocol.VERSION,
                    service=self._service or "",
                    source=source,
                    since=order.ask(),
                )
            )
        return None

    def feed_replay(self, parts: Parts) -> bool:
        """Take a message of the replay socket; ``is_asking`` says whether the answer goes on.

        Returns:
            Whether it was of use: something that was missing, or the end of the answer.
        """
        assert self._asked is not None, "nothing was asked"
        try:
            if len(parts) == 1:
                _decode(parts[0], ReplayAnswer, self._asked)
                # Another start of the service has given nothing: what was missing is lost.
                self._ready += self._orders[self._asked].answered()
                self._asked = None
                return True
            received = self._given_again(parts, self._asked)
            given = self._orders[self._asked].again(received.seq, received)
            self._ready += given
            return bool(given)
        except WireError as error:
            self.reject(error)
            return False

    def give_up(self) -> None:
        """What is missing now is lost."""
        self._asked = None
        for order in self._orders.values():
            self._ready += order.give_up()

    def _given_again(self, parts: Parts, source: str) -> Received:
        if len(parts) != 2 or parts[0] != protocol.topic("masks", source):
            raise WireError(f"{len(parts)} parts of replay under {parts[0][:80]!r}")
        received = self._received(parts, source)
        if received.service != self._service:
            raise WireError("a message of another start of the service")
        return received

    # What comes

    def _wanted(self, parts: Parts) -> tuple[protocol.Topic, str]:
        kind, source = protocol.parse_topic(parts[0])
        count = 3 if kind in ("frames", "video") else 2
        if kind not in (self._kind, "status") or len(parts) != count:
            raise WireError(f"{len(parts)} parts under {parts[0][:80]!r}")
        if self._sources is not None and source and source not in self._sources:
            raise WireError(f"{source} wasn't asked for")
        return kind, source

    def _take_all(self, messages: Iterable[Received | StatusMessage]) -> None:
        for message in messages:
            if isinstance(message, StatusMessage):
                self._take_status(message)
            else:
                self._take_result(message)

    def _take_status(self, status: StatusMessage) -> None:
        self._meet(status.service)
        _check_room(self.statuses, status.source)
        last = self.statuses.get(status.source)
        if last is not None and status.seq <= last.seq:
            return
        self.statuses[status.source] = status
        if self._replays:
            self._hear_of_replay(status)

    def _hear_of_replay(self, status: StatusMessage) -> None:
        """Where it is, and that there may have been messages which nothing came after."""
        told = status.endpoints.get("replay")
        try:
            self.replay_at = None if told is None else connectable(told)
        except UsageError as error:
            self.reject(error)
        order = self._orders.get(status.source)
        if order is not None:
            order.told(status.published - 1)
            self._settle(order)

    def _received(self, parts: Parts, source: str) -> Received:
        """The result in a message, every part of it checked."""
        message = _decode(parts[1], MasksMessage, source)
        instances = protocol.decode_instances(message, self._max_pixels)
        segments = protocol.decode_segments(message, self._max_pixels)
        return Received(message, instances, segments, parts[2] if len(parts) == 3 else None)

    def _take_result(self, received: Received) -> None:
        self._meet(received.service)
        _check_room(self._orders, received.source)
        order = self._orders.setdefault(received.source, Order())
        room = sum(other.held for other in self._orders.values()) < HELD
        self._ready += order.live(received.seq, received, room=room)
        self._settle(order)

    def _settle(self, order: Order[Received]) -> None:
        """Where nothing can be asked for, what is missing is lost at once."""
        if self.replay_at is None:
            self._ready += order.give_up()

    def _meet(self, service: str) -> None:
        """Another start of the service counts from 0 again, and its sources are alive again."""
        if service != self._service:
            self._service = service
            self._asked = None
            self.replay_at = None
            self.statuses.clear()
            for order in self._orders.values():
                self._ready += order.restart()

    def _known(self) -> list[StatusMessage]:
        return [self.statuses[name] for name in sorted(self.statuses)]

    def _is_final(self, source: str) -> bool:
        status = self.statuses.get(source)
        return status is not None and status.state in protocol.FINAL

    def _guide_is_final(self) -> bool:
        """Whether the service has ended and its pictures, which take another way, have too."""
        return time.monotonic() - max(self._guide_ended_at, self._fed_at) > LATE_PICTURES


def connectable(address: str) -> Address:
    """The address that ``address`` is, if one can connect to it.

    Raises:
        UsageError: it isn't one, or stands for any host or port.
    """
    if not isinstance(address, str):
        raise UsageError(f"an address must be a text, not {type(address).__name__}")
    parsed = Address.parse(address)
    if parsed.transport == "tcp" and (parsed.port == 0 or parsed.host == "*"):
        raise UsageError(f"{address!r}: to connect, name a host and a port")
    return parsed


def _check_room(known: Mapping[str, object], source: str) -> None:
    if source not in known and len(known) >= MAX_SOURCES:
        raise WireError(f"{source} is one source more than {MAX_SOURCES}")


def _decode(raw: bytes, kind: type[protocol.MessageT], source: str) -> protocol.MessageT:
    message = protocol.decode(raw, kind)
    said: str = message.source  # type: ignore[attr-defined]  # all of these kinds have one
    if said != source:
        raise WireError(f"a message of {said[:80]!r} under the topic of {source!r}")
    return message


def _service_status(parts: Parts) -> StatusMessage:
    if len(parts) != 2 or parts[0] != protocol.topic("status", ""):
        raise WireError(f"{len(parts)} parts under {parts[0][:80]!r}")
    return _decode(parts[1], StatusMessage, "")
