"""What a subscriber is given: one frame's results, and its picture if there was asked for one."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streamseg.errors import UsageError, WireError
from streamseg.protocol.messages import MasksMessage
from streamseg.structures.masks import Size
from streamseg.structures.pickling import PickledByFields
from streamseg.structures.results import Image, Instances, Segment


@dataclass(frozen=True, slots=True, eq=False)
class Received(PickledByFields):
    """One frame's results.

    Attributes:
        message: the whole message, as it was sent.
        instances: what is in the frame, every run length checked.
        segments: the panoptic parts, None for models that have none.
        jpeg: the picture, if there was asked for one.
    """

    message: MasksMessage
    instances: Instances
    segments: tuple[Segment, ...] | None
    jpeg: bytes | None = None

    @property
    def service(self) -> str:
        """An id of this start of the service."""
        return self.message.service

    @property
    def source(self) -> str:
        """The source's name."""
        return self.message.source

    @property
    def epoch(self) -> int:
        """Goes up at each reconnection of the source; identities don't cross it."""
        return self.message.epoch

    @property
    def seq(self) -> int:
        """The number of this message in its topic: a gap is a loss."""
        return self.message.seq

    @property
    def index(self) -> int:
        """Which frame of the source it is, from 0."""
        return self.message.frame

    @property
    def item(self) -> str | None:
        """The file's name, for folders."""
        return self.message.item

    @property
    def pts(self) -> float:
        """Seconds, from the stream's own time base."""
        return self.message.pts

    @property
    def captured_at(self) -> float:
        """Unix seconds when the frame was decoded, on the service's clock."""
        return self.message.captured_at

    @property
    def published_at(self) -> float:
        """Unix seconds when the message was made, on the service's clock."""
        return self.message.published_at

    @property
    def age_ms(self) -> float:
        """Milliseconds from capture to publication."""
        return self.message.age_ms

    @property
    def size(self) -> Size:
        """(height, width) of the frame."""
        return self.message.size

    @property
    def model(self) -> str:
        """The model's name."""
        return self.message.model

    @property
    def dropped(self) -> Mapping[str, int]:
        """The source's frames dropped so far, by reason."""
        return self.message.dropped

    @property
    def timing(self) -> Mapping[str, float]:
        """Milliseconds spent, by stage."""
        return self.message.timing

    @property
    def frame(self) -> Image:
        """The picture, decoded: uint8 (H, W, 3) RGB. Needs ``streamseg[frames]``.

        Raises:
            UsageError: there was no picture asked for, or Pillow isn't installed.
            WireError: it isn't a JPEG of the frame's size.
        """
        if self.jpeg is None:
            raise UsageError('no picture: connect with frames="annotated" or frames="plain"')
        return decode_jpeg(self.jpeg, self.size)


def decode_jpeg(jpeg: bytes, size: Size) -> Image:
    """The picture in a JPEG, refused before it is decoded if it hasn't the frame's size."""
    try:
        from PIL import Image as Pillow
    except ImportError:
        raise UsageError(
            "pictures are decoded by Pillow: pip install 'streamseg[frames]'"
        ) from None
    try:
        with Pillow.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            if (picture.height, picture.width) != tuple(size):  # before anything is allocated
                raise WireError(
                    f"a picture of {picture.height} x {picture.width} of a {size} frame"
                )
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"a picture that can't be decoded: {error}") from None
