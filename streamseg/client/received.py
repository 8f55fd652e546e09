"""A received result: the instances of one frame, with its image if that was subscribed to."""

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
    """The results of one frame.

    Attributes:
        message: the complete masks message.
        instances: instances of the frame; their run lengths were validated.
        segments: panoptic segments; None for models that don't predict them.
        jpeg: JPEG of the frame; None unless images were subscribed to.
    """

    message: MasksMessage
    instances: Instances
    segments: tuple[Segment, ...] | None
    jpeg: bytes | None = None

    @property
    def service(self) -> str:
        """Id of the service process; each start has a new one."""
        return self.message.service

    @property
    def source(self) -> str:
        """Name of the source."""
        return self.message.source

    @property
    def epoch(self) -> int:
        """Number of the source's connection; track ids are only comparable within one epoch."""
        return self.message.epoch

    @property
    def seq(self) -> int:
        """Sequence number of the message in its topic; gaps are lost messages."""
        return self.message.seq

    @property
    def index(self) -> int:
        """Index of the frame in its source, from 0."""
        return self.message.frame

    @property
    def item(self) -> str | None:
        """File name of the image, for a source that is a folder of images; otherwise None."""
        return self.message.item

    @property
    def pts(self) -> float:
        """Presentation time in seconds, on the stream's time base."""
        return self.message.pts

    @property
    def captured_at(self) -> float:
        """Unix time at which the frame was decoded, on the service's clock, in seconds."""
        return self.message.captured_at

    @property
    def published_at(self) -> float:
        """Unix time at which the message was published, on the service's clock, in seconds."""
        return self.message.published_at

    @property
    def age_ms(self) -> float:
        """Time from capture to publication, in milliseconds."""
        return self.message.age_ms

    @property
    def size(self) -> Size:
        """(height, width) of the frame."""
        return self.message.size

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.message.model

    @property
    def dropped(self) -> Mapping[str, int]:
        """Number of frames of the source dropped so far, by reason."""
        return self.message.dropped

    @property
    def timing(self) -> Mapping[str, float]:
        """Time spent on the frame in milliseconds, by stage."""
        return self.message.timing

    @property
    def frame(self) -> Image:
        """Decoded image of the frame: uint8 (H, W, 3) RGB. Requires ``streamseg[frames]``.

        Raises:
            UsageError: images were not subscribed to, or Pillow isn't installed.
            WireError: the data isn't a JPEG of the frame's size.
        """
        if self.jpeg is None:
            raise UsageError('no image: connect with frames="annotated" or frames="plain"')
        return decode_jpeg(self.jpeg, self.size)


def decode_jpeg(jpeg: bytes, size: Size) -> Image:
    """Decode a JPEG of the given size; the size is checked before memory is allocated.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        UsageError: Pillow isn't installed.
        WireError: the data isn't a JPEG of that size.
    """
    try:
        from PIL import Image as Pillow
    except ImportError:
        raise UsageError(
            "decoding images requires Pillow: pip install 'streamseg[frames]'"
        ) from None
    try:
        with Pillow.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            if (image.height, image.width) != tuple(size):
                raise WireError(f"the image of a {size} frame is {image.height} x {image.width}")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"an image can't be decoded: {error}") from None
