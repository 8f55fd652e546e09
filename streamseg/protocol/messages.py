"""Messages and topics of the protocol, version 1, with their limits. No sockets.

There are two XPUB sockets. The masks socket publishes ``masks/<source>/``, ``status/<source>/`` and
``status//`` (the service itself), in two parts ``[topic, JSON]``. The frames socket publishes
``frames/<source>/`` (annotated) and ``video/<source>/`` (plain), in three parts ``[topic, JSON,
JPEG]``; the JSON is the complete masks message of the frame. It repeats the status messages, so
that a subscriber to images learns about the end of a source.

A ROUTER socket replays masks messages: a ``ReplayRequest`` is answered by the requested messages,
as they were published, and a ``ReplayAnswer``.

``docs/protocol.md`` is generated from these classes.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from streamseg.errors import WireError
from streamseg.structures.results import SOURCE_NAME

VERSION = 1
MAX_JSON_BYTES = 4 * 1024 * 1024
"""Maximum size of a JSON part; 100 instances at 1080p take about 50 kB."""
MAX_JPEG_BYTES = 16 * 1024 * 1024
"""Maximum size of a JPEG part."""
MAX_INSTANCES = 10_000
"""Maximum number of instances, and of segments, per message."""
MAX_TOPIC_BYTES = len("status/") + 64 + len("/")

Topic: TypeAlias = Literal["masks", "frames", "video", "status"]
State: TypeAlias = Literal["connecting", "live", "stalled", "waiting", "ended", "failed"]
Dropped: TypeAlias = dict[str, int]
Int64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
FINAL: tuple[State, ...] = ("ended", "failed")
"""Final states of a source or a service: no message follows."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """JSON object; unknown keys are ignored, so that newer services can add keys."""


class InstanceMessage(Message, frozen=True, kw_only=True, rename={"class_name": "name"}):
    """One instance of a frame.

    Attributes:
        track: track id in this source and epoch, -1 if untracked.
        label: category id of the dataset.
        class_name: category name (``name`` in JSON).
        score: 0 to 1.
        box: x1, y1, x2, y2 in pixels; the right and lower bounds are exclusive.
        rle: compressed COCO counts of the full frame; the frame size is that of the message.
        from_box: true if the instance has no mask and ``rle`` is its box; omitted otherwise.
    """

    track: Int64
    label: Int64
    class_name: str
    score: float
    box: tuple[float, float, float, float]
    rle: str
    from_box: bool | msgspec.UnsetType = msgspec.UNSET


class SegmentMessage(Message, frozen=True, kw_only=True, rename={"class_name": "name"}):
    """One segment of a panoptic result.

    Attributes:
        id: segment id in this frame.
        label: category id.
        class_name: category name (``name`` in JSON).
        thing: true for things, false for stuff.
        area: number of pixels.
        rle: compressed COCO counts of the full frame.
    """

    id: Int64
    label: Int64
    class_name: str
    thing: bool
    area: int
    rle: str


class RecordedMessage(Message, frozen=True, kw_only=True):
    """Result of a frame as a line of ``results.jsonl``; it depends only on the input.

    Attributes:
        v: protocol version, 1.
        source: source name.
        epoch: increased by one at each reconnection or jump in time; track ids are only comparable
            within an epoch.
        seq: sequence number per topic and service; a gap means lost messages.
        frame: index of the frame in the source.
        item: file name for image folders, otherwise null. Bytes that are not UTF-8 are ``%XX``.
        pts: presentation time in seconds, from the time base of the stream.
        size: height, width.
        model: model name.
        instances: instances of the frame.
        segments: panoptic segments; omitted by models without them.
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
    """Result of a frame as it is published.

    Attributes:
        service: id of the service; it changes at each start.
        captured_at: Unix time of decoding, in seconds.
        published_at: Unix time of publication, in seconds.
        age_ms: time from capture to publication in milliseconds, by a monotonic clock.
        dropped: number of dropped frames of the source so far, by reason.
        timing: milliseconds per stage.
    """

    service: str
    captured_at: float
    published_at: float
    age_ms: float
    dropped: Dropped
    timing: dict[str, float]


class StatusMessage(Message, frozen=True, kw_only=True):
    """State of a source, or of the service itself (``source`` is empty).

    Published every second and at each change. ``decoded = published + sum(dropped) + sum(failed) +
    in_flight`` always holds. A status that is repeated for a new subscriber keeps its ``seq``.

    Attributes:
        v: protocol version, 1.
        service: id of the service; it changes at each start.
        source: source name, empty for the service.
        seq: sequence number per topic and service.
        state: ``connecting``, ``live``, ``stalled``, ``waiting``, ``ended`` or ``failed``.
        reason: reason of the state, as text.
        epoch: epoch of the source.
        decoded: number of decoded frames.
        published: number of frames passed to the masks socket.
        dropped: number of dropped frames, by reason.
        failed: number of failed frames, by reason.
        in_flight: number of frames in progress.
        endpoints: addresses of the sockets: ``masks``, ``frames`` and, if enabled, ``replay``.
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
    """Request for missed masks messages of a source; the only request of the replay socket.

    Attributes:
        v: protocol version, 1.
        service: id of the service whose messages were missed.
        source: source name.
        since: ``seq`` of the last message that was received; those after it are requested.
    """

    v: int
    service: str
    source: str
    since: Int64


class ReplayAnswer(Message, frozen=True, kw_only=True):
    """End of an answer of the replay socket, after the replayed messages.

    Messages before ``first`` and gaps between the messages are no longer available.

    Attributes:
        v: protocol version, 1.
        service: id of the answering service; if it differs from the requested one, the missed
            messages are lost.
        source: source name.
        complete: false if there are more messages: request them since ``last``.
        first: ``seq`` of the first replayed message; null if there is none.
        last: ``seq`` of the last replayed message; null if there is none.
    """

    v: int
    service: str
    source: str
    complete: bool
    first: int | None
    last: int | None


def topic(kind: Topic, source: str) -> bytes:
    """Return the topic of a source; ``topic("status", "")`` is that of the service."""
    return f"{kind}/{source}/".encode("ascii")


def parse_topic(raw: bytes) -> tuple[Topic, str]:
    """Return kind and source of a topic.

    Raises:
        WireError: the topic is not part of the protocol.
    """
    kind, _, rest = raw.partition(b"/")
    source = rest[:-1].decode("ascii", "replace")
    if kind not in (b"masks", b"frames", b"video", b"status") or rest[-1:] != b"/":
        raise WireError(f"{raw[:80]!r} isn't a topic of the protocol")
    if not SOURCE_NAME.fullmatch(source) and (source or kind != b"status"):
        raise WireError(f"{raw[:80]!r} has a source name that the protocol doesn't allow")
    return kind.decode("ascii"), source  # type: ignore[return-value]  # checked above
