"""The protocol, version 1: addresses, topics, messages and limits. No sockets here.

Two sockets publish. At ADDR: ``masks/<source>/``, ``status/<source>/`` and ``status//`` (the
service itself), each in two parts ``[topic, JSON]``. At the frames address: ``frames/<source>/``
(annotated) and ``video/<source>/`` (plain), in three parts ``[topic, JSON, JPEG]``, where the JSON
is that frame's complete masks message; statuses are repeated there, so that a subscriber to
pictures needs no other socket to learn that a source has ended.

A third, a ROUTER, gives masks messages again, as they were published, to who asks for what he has
missed: one part of JSON (a ``ReplayRequest``), answered by them and a ``ReplayAnswer``.

``docs/protocol.md`` is generated from the classes below.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from streamseg.errors import MaskError, UsageError, WireError
from streamseg.structures.masks import MAX_PIXELS, Masks
from streamseg.structures.results import SOURCE_NAME, Instances, Result, Segment

VERSION = 1
MAX_JSON_BYTES = 4 * 1024 * 1024
"""A masks message of 100 instances at 1080p has about 50 kB; larger than this is never sent."""
MAX_JPEG_BYTES = 16 * 1024 * 1024
MAX_INSTANCES = 10_000
MAX_TOPIC_BYTES = len("status/") + 64 + len("/")

Topic: TypeAlias = Literal["masks", "frames", "video", "status"]
State: TypeAlias = Literal["connecting", "live", "stalled", "waiting", "ended", "failed"]
Dropped: TypeAlias = dict[str, int]
Int64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
FINAL: tuple[State, ...] = ("ended", "failed")
"""Nothing comes from a source, or a service, after these."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a socket is: ``tcp://host:port`` or ``ipc://path``.

    Attributes:
        transport: ``tcp`` or ``ipc``.
        host: a name or an address without brackets, ``*`` for every interface; the path of ipc.
        port: 0 is any free one, and ipc's.
    """

    transport: Literal["tcp", "ipc"]
    host: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that ``text`` is.

        Raises:
            UsageError: it isn't one; libzmq itself would take many of those without a word.
        """
        if ipc := re.fullmatch(r"ipc://(.+)", text):
            if "\0" in text or len(ipc[1].encode("utf-8", "surrogateescape")) > 107:
                raise UsageError(f"{text!r}: the path of an ipc address has at most 107 bytes")
            return cls("ipc", ipc[1])
        tcp = re.fullmatch(
            r"tcp://(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>\*|[A-Za-z0-9._-]{1,253}))"
            r":(?P<port>\*|\d{1,5})",
            text,
            re.ASCII,
        )
        if tcp is None:
            raise UsageError(f"{text!r} isn't an address: write tcp://HOST:PORT or ipc://PATH")
        port = 0 if tcp["port"] == "*" else int(tcp["port"])
        if port > 65535:
            raise UsageError(f"{text!r}: ports go up to 65535")
        host = tcp["six"] or tcp["name"]
        if tcp["six"] or re.fullmatch(r"[\d.]+", host):
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise UsageError(f"{text!r}: {host!r} isn't an IP address") from None
        return cls("tcp", host, port)

    def __str__(self) -> str:
        if self.transport == "ipc":
            return f"ipc://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port or '*'}"

    @property
    def for_pictures(self) -> Address:
        """Where the pictures are unless it is said: the next port, or ``<path>-frames``.

        Raises:
            UsageError: there is no next port.
        """
        if self.transport == "ipc":
            return self if self.host == "*" else replace(self, host=f"{self.host}-frames")
        if self.port == 65535:
            raise UsageError(f"{self} has no next port for the pictures: name one for them")
        return replace(self, port=self.port + 1 if self.port else 0)

    @property
    def for_replay(self) -> Address:
        """Where replay is unless it is said: the port after the next, or ``<path>-replay``.

        Raises:
            UsageError: there is no such port.
        """
        if self.transport == "ipc":
            return self if self.host == "*" else replace(self, host=f"{self.host}-replay")
        if self.port >= 65534:
            raise UsageError(f"{self} has no port for replay, two further on: name one for it")
        return replace(self, port=self.port + 2 if self.port else 0)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.transport == "ipc" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_everywhere(self) -> bool:
        """Whether it stands for every interface, so that nobody can connect to it as it is."""
        return self.transport == "tcp" and self.host in ("*", "0.0.0.0", "::")  # noqa: S104


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object; unknown keys are ignored, so that a newer service can add some."""


class InstanceMessage(Message, frozen=True, kw_only=True, rename={"class_name": "name"}):
    """One object in one frame.

    Attributes:
        track: its identity in this source and epoch, -1 if it has none yet.
        label: category id, as the dataset has it.
        class_name: the category's name (``name`` on the wire).
        score: 0 to 1.
        box: x1, y1, x2, y2 in pixels; right and lower edges are exclusive.
        rle: COCO's compressed counts of the full frame, whose size is the message's.
        from_box: true where there was no mask and ``rle`` is the box's; left out otherwise.
    """

    track: Int64
    label: Int64
    class_name: str
    score: float
    box: tuple[float, float, float, float]
    rle: str
    from_box: bool | msgspec.UnsetType = msgspec.UNSET


class SegmentMessage(Message, frozen=True, kw_only=True, rename={"class_name": "name"}):
    """One part of a panoptic result.

    Attributes:
        id: the segment's number in this frame.
        label: category id.
        class_name: the category's name (``name`` on the wire).
        thing: false for stuff.
        area: pixels.
        rle: COCO's compressed counts of the full frame.
    """

    id: Int64
    label: Int64
    class_name: str
    thing: bool
    area: int
    rle: str


class RecordedMessage(Message, frozen=True, kw_only=True):
    """A frame's results as ``results.jsonl`` has them: they depend on the input alone.

    Attributes:
        v: the protocol's version, 1.
        source: the source's name.
        epoch: goes up by one at each reconnection or jump in time; identities don't cross it.
        seq: per topic and service, one more each message: a gap is a loss.
        frame: the frame's index in the source.
        item: the file's name, for images; null otherwise. Bytes that aren't UTF-8 are ``%XX``.
        pts: seconds, from the stream's own time base.
        size: height, width.
        model: the model's name.
        instances: what is in the frame.
        segments: the panoptic parts; left out by models that have none.
    """

    v: int
    source: str
    epoch: int
    seq: Int64
    frame: int
    item: str | None
    pts: float
    size: tuple[int, int]
    model: str
    instances: Annotated[list[InstanceMessage], Meta(max_length=MAX_INSTANCES)]
    segments: (
        Annotated[list[SegmentMessage], Meta(max_length=MAX_INSTANCES)] | msgspec.UnsetType
    ) = msgspec.UNSET


class MasksMessage(RecordedMessage, frozen=True, kw_only=True):
    """A frame's results as they are published.

    Attributes:
        service: an id of this start of the service.
        captured_at: Unix seconds when the frame was decoded.
        published_at: Unix seconds when the message was made.
        age_ms: from capture to publication, on a monotonic clock.
        dropped: the source's frames dropped so far, by reason.
        timing: milliseconds spent, by stage.
    """

    service: str
    captured_at: float
    published_at: float
    age_ms: float
    dropped: Dropped
    timing: dict[str, float]


class StatusMessage(Message, frozen=True, kw_only=True):
    """The state of a source, or of the service itself (``source`` is empty).

    Sent every second and at each change. ``decoded = published + sum(dropped) + sum(failed) +
    in_flight``, always. A status that is sent again, for one who has just joined, keeps its
    ``seq``.

    Attributes:
        v: the protocol's version, 1.
        service: an id of this start of the service.
        source: the source's name, empty for the service.
        seq: per topic and service.
        state: ``connecting``, ``live``, ``stalled``, ``waiting``, ``ended`` or ``failed``.
        reason: why, in words.
        epoch: the source's.
        decoded: frames that came out of the decoder.
        published: frames handed to the masks socket.
        dropped: frames dropped, by reason.
        failed: frames that couldn't be processed, by reason.
        in_flight: frames on their way.
        endpoints: addresses of the sockets: ``masks``, ``frames`` and, where it is on, ``replay``.
    """

    v: int
    service: str
    source: str
    seq: Int64
    state: State
    reason: str
    epoch: int
    decoded: int
    published: Int64
    dropped: Dropped
    failed: Dropped
    in_flight: int
    endpoints: dict[str, str]


class ReplayRequest(Message, frozen=True, kw_only=True):
    """Asks for a source's masks messages that were missed; the replay socket's only request.

    Attributes:
        v: the protocol's version, 1.
        service: the start of the service whose messages are missing.
        source: the source's name.
        since: the number of the last message that isn't missing; those after it are wanted.
    """

    v: int
    service: str
    source: str
    since: Int64


class ReplayAnswer(Message, frozen=True, kw_only=True):
    """Ends an answer of the replay socket, after the messages themselves.

    What is missing before ``first``, or between the messages, can't be had any more.

    Attributes:
        v: the protocol's version, 1.
        service: the start that answers; if it isn't the one asked for, what was missed is lost.
        source: the source's name.
        complete: false if there is more: ask again, since ``last``.
        first: the number of the first message given; null if none was.
        last: the number of the last message given; null if none was.
    """

    v: int
    service: str
    source: str
    complete: bool
    first: int | None
    last: int | None


def topic(kind: Topic, source: str) -> bytes:
    """The topic of a source; ``topic("status", "")`` is the service's own."""
    return f"{kind}/{source}/".encode("ascii")


def parse_topic(raw: bytes) -> tuple[Topic, str]:
    """(kind, source) of a topic.

    Raises:
        WireError: it isn't one of the protocol's topics.
    """
    kind, _, rest = raw.partition(b"/")
    source = rest[:-1].decode("ascii", "replace")
    if kind not in (b"masks", b"frames", b"video", b"status") or rest[-1:] != b"/":
        raise WireError(f"{raw[:80]!r} isn't a topic of the protocol")
    if not SOURCE_NAME.fullmatch(source) and (source or kind != b"status"):
        raise WireError(f"{raw[:80]!r} has a source name that the protocol doesn't allow")
    return kind.decode("ascii"), source  # type: ignore[return-value]  # checked above


def instance_messages(instances: Instances) -> list[InstanceMessage]:
    """The rows of ``instances``; float32 values are written so that they come back the same."""
    rows = zip(
        instances.track_ids.tolist(),
        instances.labels.tolist(),
        instances.names,
        instances.scores.tolist(),
        instances.boxes.tolist(),
        instances.masks.counts,
        instances.masks.from_box.tolist(),
        strict=True,
    )
    return [
        InstanceMessage(
            track=track,
            label=label,
            class_name=name,
            score=score,
            box=tuple(box),
            rle=rle,
            from_box=from_box or msgspec.UNSET,
        )
        for track, label, name, score, box, rle, from_box in rows
    ]


def segment_messages(
    segments: tuple[Segment, ...] | None,
) -> list[SegmentMessage] | msgspec.UnsetType:
    """The panoptic parts, UNSET where the model has none."""
    if segments is None:
        return msgspec.UNSET
    return [
        SegmentMessage(
            id=s.id,
            label=s.label,
            class_name=s.name,
            thing=s.thing,
            area=s.mask.area,
            rle=s.mask.to_rle()["counts"],
        )
        for s in segments
    ]


def recorded_message(result: Result, seq: int) -> RecordedMessage:
    """The line of ``results.jsonl`` for ``result``."""
    frame = result.frame
    return RecordedMessage(
        v=VERSION,
        source=frame.source,
        epoch=frame.epoch,
        seq=seq,
        frame=frame.index,
        item=None if frame.item is None else escape_undecodable(frame.item),
        pts=frame.pts,
        size=frame.size,
        model=result.model,
        instances=instance_messages(result.instances),
        segments=segment_messages(result.segments),
    )


def masks_message(
    recorded: RecordedMessage,
    result: Result,
    *,
    service: str,
    published_at: float,
    age_ms: float,
    dropped: Mapping[str, int],
) -> MasksMessage:
    """``recorded`` with what only a live subscriber can use."""
    return MasksMessage(
        **{name: getattr(recorded, name) for name in recorded.__struct_fields__},
        service=service,
        captured_at=result.frame.captured_at,
        published_at=published_at,
        age_ms=age_ms,
        dropped=dict(dropped),
        timing=dict(result.timing),
    )


def record(message: MasksMessage) -> RecordedMessage:
    """What ``results.jsonl`` keeps of a message that was received."""
    fields = RecordedMessage.__struct_fields__
    return RecordedMessage(**{name: getattr(message, name) for name in fields})


_encoder = msgspec.json.Encoder()
MessageT = TypeVar("MessageT", bound=Message)


def encode(message: Message) -> bytes:
    """The message as one line of JSON."""
    return _encoder.encode(message)


def decode(raw: bytes, kind: type[MessageT]) -> MessageT:
    """The message in ``raw``, with every limit checked; run lengths are checked when decoded.

    Raises:
        WireError: not JSON, not of that kind, over a limit, or of another protocol version.
    """
    if len(raw) > MAX_JSON_BYTES:
        raise WireError(f"a message of {len(raw)} bytes is over the limit of {MAX_JSON_BYTES}")
    try:
        message = msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"not a {kind.__name__}: {error}") from None
    version = getattr(message, "v", VERSION)
    if version != VERSION:
        raise WireError(f"a message of protocol version {version}; this client reads {VERSION}")
    return message


def decode_instances(message: RecordedMessage, max_pixels: int = MAX_PIXELS) -> Instances:
    """The instances of a message, with every run checked.

    Raises:
        WireError: a value isn't finite, or run lengths aren't a mask of the message's size.
    """
    rows = message.instances
    with np.errstate(over="ignore"):
        boxes = np.array([row.box for row in rows], np.float32).reshape(-1, 4)
        scores = np.array([row.score for row in rows], np.float32)
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise WireError(f"{message.source}: frame {message.frame} has a value that isn't finite")
    try:
        masks = Masks.from_rle([row.rle for row in rows], message.size, max_pixels)
    except MaskError as error:
        raise WireError(f"{message.source}: frame {message.frame}: {error}") from None
    masks.from_box = np.array([row.from_box is True for row in rows], np.bool_)
    return Instances(
        boxes,
        scores,
        np.array([row.label for row in rows], np.int64),
        masks,
        {row.label: row.class_name for row in rows},
        np.array([row.track for row in rows], np.int64),
    )


def decode_segments(
    message: RecordedMessage, max_pixels: int = MAX_PIXELS
) -> tuple[Segment, ...] | None:
    """The panoptic parts of a message, None where it has none.

    Raises:
        WireError: run lengths aren't a mask of the message's size.
    """
    if isinstance(message.segments, msgspec.UnsetType):
        return None
    try:
        masks = Masks.from_rle([s.rle for s in message.segments], message.size, max_pixels)
    except MaskError as error:
        raise WireError(f"{message.source}: frame {message.frame}: {error}") from None
    return tuple(
        Segment(s.id, s.label, s.class_name, s.thing, mask)
        for s, mask in zip(message.segments, masks, strict=True)
    )


_NO_TEXT = re.compile("[\ud800-\udfff]")


def escape_undecodable(name: str) -> str:
    """Return a file name as UTF-8 can hold it: bytes that aren't UTF-8 become ``%XX``."""
    return _NO_TEXT.sub(lambda byte: f"%{ord(byte[0]) & 0xFF:02X}", name)
