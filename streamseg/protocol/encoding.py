"""Encoding and decoding of protocol messages: JSON, limits, instances and segments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import numpy as np

from streamseg.errors import MaskError, WireError
from streamseg.protocol.messages import (
    MAX_JSON_BYTES,
    VERSION,
    InstanceMessage,
    MasksMessage,
    Message,
    RecordedMessage,
    SegmentMessage,
)
from streamseg.structures.masks import MAX_PIXELS, Masks
from streamseg.structures.results import Instances, Result, Segment


def instance_messages(instances: Instances) -> list[InstanceMessage]:
    """Convert instances to messages; float32 values survive the round trip exactly."""
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
    """Convert panoptic segments to messages; UNSET for models without them."""
    if segments is None:
        return msgspec.UNSET
    return [
        SegmentMessage(
            id=segment.id,
            label=segment.label,
            class_name=segment.name,
            thing=segment.thing,
            area=segment.mask.area,
            rle=segment.mask.to_rle()["counts"],
        )
        for segment in segments
    ]


def recorded_message(result: Result, seq: int) -> RecordedMessage:
    """Convert a result to a line of ``results.jsonl``."""
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
    """Add the fields of live messages to a recorded message."""
    return MasksMessage(
        **{name: getattr(recorded, name) for name in recorded.__struct_fields__},
        service=service,
        captured_at=result.frame.captured_at,
        published_at=published_at,
        age_ms=age_ms,
        dropped=dict(dropped),
        timing=dict(result.timing),
    )


def to_recorded(message: MasksMessage) -> RecordedMessage:
    """Convert a received message to a line of ``results.jsonl``."""
    fields = RecordedMessage.__struct_fields__
    return RecordedMessage(**{name: getattr(message, name) for name in fields})


_encoder = msgspec.json.Encoder()
MessageT = TypeVar("MessageT", bound=Message)


def encode(message: Message) -> bytes:
    """Encode a message as one line of JSON."""
    return _encoder.encode(message)


def decode(raw: bytes, kind: type[MessageT]) -> MessageT:
    """Decode a message and check its limits; RLE is validated by ``decode_instances``.

    Raises:
        WireError: the message is not JSON, has another type or version, or exceeds a limit.
    """
    if len(raw) > MAX_JSON_BYTES:
        raise WireError(f"a message of {len(raw)} bytes exceeds the limit of {MAX_JSON_BYTES}")
    try:
        message = msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"not a {kind.__name__}: {error}") from None
    version = getattr(message, "v", VERSION)
    if version != VERSION:
        raise WireError(f"a message of protocol version {version}; this client reads {VERSION}")
    return message


def decode_instances(message: RecordedMessage, max_pixels: int = MAX_PIXELS) -> Instances:
    """Decode the instances of a message and validate their RLE.

    Raises:
        WireError: a value is not finite, or an RLE is not a mask of the frame size.
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
    """Decode the panoptic segments of a message; None if it has none.

    Raises:
        WireError: an RLE is not a mask of the frame size.
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


_SURROGATES = re.compile("[\ud800-\udfff]")


def escape_undecodable(name: str) -> str:
    """Replace the bytes of a file name that are not UTF-8 by ``%XX``."""
    return _SURROGATES.sub(lambda byte: f"%{ord(byte[0]) & 0xFF:02X}", name)
