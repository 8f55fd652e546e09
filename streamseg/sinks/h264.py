"""Pictures as H.264 in an MP4 file that a browser can play: times, colours and geometry.

The encoder is x264, which PyAV's wheels carry. It is set to be frugal, since the model needs the
cores: one thread, the preset ``superfast``, no B-frames. Memory is constant but for the index that
MP4 keeps until its end, about 100 bytes a frame.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from streamseg.errors import OutputError
from streamseg.masks import Size
from streamseg.types import Image

ENCODER = "libx264"
TICKS_PER_SECOND = 90_000
LONGEST_PAUSE = 3600 * TICKS_PER_SECOND
"""A leap in time beyond this is a clock that was set, not a camera that paused."""

_OPTIONS = {"preset": "superfast", "crf": "23", "bf": "0"}
# Numbers of ITU-T H.273: primaries and transfer of BT.709 (and sRGB), matrix of BT.601.
_BT709 = 1
_BT601_MATRIX = 6


def require_encoder() -> None:
    """Check that there is an encoder.

    Raises:
        OutputError: PyAV was built without x264.
    """
    try:
        av.Codec(ENCODER, "w")
    except av.codec.codec.UnknownCodecError:
        raise OutputError(
            f"video can't be written: this PyAV has no {ENCODER}; its wheels on PyPI have it"
        ) from None


class H264File:
    """An MP4 file with one video track, its index at the front.

    Times are the pictures' own, to 1/90000 s, from the first one on, so that a player shows it at
    once. They only go up: a time that is repeated or goes back becomes the next possible one; a new
    epoch that goes back in time goes on after the picture before it, and so does a leap of more
    than an hour.

    An odd width or height becomes even by repeating the last column or row. Pictures of another
    size than the first are scaled into it, aspect kept, on black.

    The matrix is BT.601 at every size, and the file says so: readers that heed the flag and those
    that take BT.601 for granted, as OpenCV does, both get the right colours.

    Args:
        path: where to write; any ending.
        size: (height, width) of the pictures.
        pixel_aspect: width of a pixel over its height.

    Raises:
        OSError: the file can't be written (all methods).
    """

    def __init__(self, path: Path, size: Size, pixel_aspect: Fraction) -> None:
        self._size = size
        self._pixel_aspect = pixel_aspect
        self._clock = _Clock()
        try:
            self._container = av.open(
                str(path), "w", format="mp4", options={"movflags": "+faststart"}
            )
            self._stream = self._add_stream()
        except av.FFmpegError as error:
            raise _as_os_error(error) from error

    def write(self, image: Image, pts: float, epoch: int, pixel_aspect: Fraction) -> None:
        """Add a picture.

        Args:
            image: uint8 (H, W, 3) RGB.
            pts: seconds.
            epoch: the source's; a new one may set the clock back.
            pixel_aspect: width of a pixel over its height.
        """
        stretch = pixel_aspect / self._pixel_aspect
        if image.shape[:2] != self._size or stretch != 1:
            image = _letterbox(image, self._size, stretch)
        planes = cv2.cvtColor(_pad_to_even(image), cv2.COLOR_RGB2YUV_I420)
        frame = av.VideoFrame.from_ndarray(np.asarray(planes, np.uint8), format="yuv420p")
        frame.pts = self._clock.ticks(pts, epoch)
        frame.time_base = Fraction(1, TICKS_PER_SECOND)
        try:
            self._encode(frame)
        except av.FFmpegError as error:
            raise _as_os_error(error) from error

    def close(self) -> None:
        """Write what the encoder still holds, and the index."""
        try:
            try:
                self._encode(None)
            finally:
                self._container.close()
        except av.FFmpegError as error:
            raise _as_os_error(error) from error

    def _encode(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._clock.gap  # the file keeps it for the last picture only
            self._container.mux(packet)

    def _add_stream(self) -> VideoStream:
        stream = cast(VideoStream, self._container.add_stream(ENCODER, options=_OPTIONS))
        height, width = self._size
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, TICKS_PER_SECOND)
        context = stream.codec_context
        context.time_base = Fraction(1, TICKS_PER_SECOND)
        context.thread_count = 1
        context.sample_aspect_ratio = self._pixel_aspect
        context.colorspace = _BT601_MATRIX
        context.color_range = ColorRange.MPEG
        context.color_primaries = context.color_trc = _BT709
        return stream


class _Clock:
    """Turns the times of pictures into ticks that only go up.

    Attributes:
        gap: ticks from one picture to the next, as last seen, at most a second.
    """

    def __init__(self) -> None:
        self.gap = TICKS_PER_SECOND // 25
        self._epoch: int | None = None
        self._shift = 0
        self._last = 0

    def ticks(self, pts: float, epoch: int) -> int:
        """When the next picture is shown."""
        own = round(pts * TICKS_PER_SECOND)
        if self._is_set_anew(own + self._shift, epoch):
            self._shift = self._next() - own
        now = own + self._shift
        if self._epoch is not None and now <= self._last:
            now = self._last + 1
        elif self._epoch is not None:
            self.gap = min(now - self._last, TICKS_PER_SECOND)
        self._epoch, self._last = epoch, now
        return now

    def _is_set_anew(self, now: int, epoch: int) -> bool:
        if self._epoch is None or now > self._last + LONGEST_PAUSE:
            return True
        return epoch != self._epoch and now <= self._last

    def _next(self) -> int:
        return 0 if self._epoch is None else self._last + self.gap


def _pad_to_even(image: Image) -> Image:
    height, width = image.shape[:2]
    if height % 2 == width % 2 == 0:
        return image
    padded = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return np.asarray(padded, np.uint8)


def _letterbox(image: Image, size: Size, stretch: Fraction) -> Image:
    """``image`` scaled into ``size``, with ``stretch`` times wider pixels, on black."""
    height, width = image.shape[0], float(image.shape[1] * stretch)
    scale = min(size[0] / height, size[1] / width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    box = np.zeros((*size, 3), np.uint8)
    x, y = (size[1] - inner[0]) // 2, (size[0] - inner[1]) // 2
    box[y : y + inner[1], x : x + inner[0]] = cv2.resize(image, inner, interpolation=method)
    return box


def _as_os_error(error: av.FFmpegError) -> OSError:
    return OSError(error.errno, error.strerror)
