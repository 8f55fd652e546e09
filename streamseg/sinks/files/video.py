"""H.264 encoder for MP4 files that browsers play: timestamps, colors and geometry.

The encoder is x264, which PyAV's wheels include. It uses one thread, the preset ``superfast`` and
no B-frames, since the model needs the cores. Memory is constant while images are written; the copy
at the end needs about 300 bytes per image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import cast

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from streamseg.errors import OutputError
from streamseg.sinks.files.part_file import PartFile
from streamseg.structures.masks import Size
from streamseg.structures.results import Image

log = logging.getLogger(__name__)

ENCODER = "libx264"
TICKS_PER_SECOND = 90_000
LONGEST_PAUSE = 3600 * TICKS_PER_SECOND
"""Gap in ticks beyond which the clock of the source was set, rather than the camera paused."""

MAX_SIDE = 16_384
"""Largest width and height that x264 encodes, in pixels."""

_FRAGMENTED = "frag_every_frame+delay_moov+default_base_moof"
"""Each image is in the file as soon as the next one is written; times needn't begin at 0."""
_ORDINARY = "+faststart"
_AS_STORED = {"fflags": "noparse"}
"""Packets are read as they were written: FFmpeg's parser would mark all I-frames as key frames."""
_OPTIONS = {"preset": "superfast", "crf": "23", "bf": "0"}
# Numbers of ITU-T H.273: primaries and transfer of BT.709 (and sRGB), matrix of BT.601.
_BT709 = 1
_BT601_MATRIX = 6


def require_encoder() -> None:
    """Check that PyAV has the encoder.

    Raises:
        OutputError: PyAV was built without x264.
    """
    try:
        av.Codec(ENCODER, "w")
    except av.codec.codec.UnknownCodecError:
        raise OutputError(
            f"video can't be written: this PyAV has no {ENCODER}: install its wheel from PyPI"
        ) from None


class H264File:
    """Fragmented MP4 with one video track, and its copy as an ordinary MP4.

    Fragments can be played as far as they go, however the program ends. The ordinary file, with
    its index at the front, can be played by every player and is quick to seek in.

    Times are those of the images, to 1/90000 s, relative to the first one. They are strictly
    increasing: a time that is repeated or goes back becomes the next possible one. A new epoch that
    goes back in time continues after the image before it, and so does a gap of more than an hour.

    An odd width or height becomes even by repeating the last column or row. Images that are
    larger than the encoder supports are scaled down, with a warning. Images of another size than
    the first are scaled to fit into it, aspect kept, on black.

    The matrix is BT.601 at every size, and flagged so: readers that use the flag and those that
    assume BT.601, as OpenCV does, both get the right colors.

    Args:
        file: file for the fragments; it stays open.
        size: (height, width) of the images.
        pixel_aspect: width of a pixel over its height.
        name: name of the video, for the warning.

    Raises:
        OSError: the file can't be written, or the encoder fails (all methods).
    """

    def __init__(self, file: PartFile, size: Size, pixel_aspect: Fraction, name: str) -> None:
        self._file = file
        self._first_size, self._size = size, encodable_size(size)
        self._pixel_aspect = pixel_aspect
        self._clock = _TimestampConverter()
        if self._size != size:
            log.warning(
                "%s: images of %d x %d pixels are scaled to %d x %d: H.264 sides are at most %d",
                name, *size[::-1], *self._size[::-1], MAX_SIDE,
            )  # fmt: skip
        with _os_errors():
            self._container = av.open(file, "w", format="mp4", options={"movflags": _FRAGMENTED})
            self._stream = self._add_stream(self._container)

    def write(self, image: Image, pts: float, epoch: int, pixel_aspect: Fraction) -> None:
        """Encode an image.

        Args:
            image: uint8 (H, W, 3) RGB.
            pts: seconds.
            epoch: epoch of the source; a new one may set the clock back.
            pixel_aspect: width of a pixel over its height.
        """
        stretch = pixel_aspect / self._pixel_aspect
        if image.shape[:2] != self._first_size or stretch != 1:
            image = _letterbox(image, self._size, stretch)
        elif self._size != self._first_size:
            image = _resize(image, (self._size[1], self._size[0]))
        planes = cv2.cvtColor(_pad_to_even(image), cv2.COLOR_RGB2YUV_I420)
        frame = av.VideoFrame.from_ndarray(np.asarray(planes, np.uint8), format="yuv420p")
        frame.pts = self._clock.ticks(pts, epoch)
        frame.time_base = Fraction(1, TICKS_PER_SECOND)
        with _os_errors():
            self._encode(frame)

    def close(self) -> None:
        """Write the images that the encoder still buffers."""
        with _os_errors():
            try:
                self._encode(None)
            finally:
                self._container.close()

    def copy_into(self, whole: PartFile) -> None:
        """Copy the packets of the closed file into an ordinary MP4, without encoding again."""
        with (
            _os_errors(),
            self._file.reopen() as fragments,
            av.open(fragments, "r", format="mp4", options=_AS_STORED) as given,
            av.open(
                whole,
                "w",
                format="mp4",
                options={"movflags": _ORDINARY},
                io_open=lambda *_: whole.reopen(),  # faststart moves the packets behind the index
            ) as container,
        ):
            stream = self._add_stream(container)
            context = stream.codec_context
            context.open()
            context.extradata = given.streams.video[0].codec_context.extradata
            for packet in given.demux(video=0):
                if packet.dts is not None:  # the last packet flushes the demuxer
                    packet.stream = stream
                    container.mux(packet)

    def _encode(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._clock.gap  # MP4 stores it for the last image only
            self._container.mux(packet)

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        stream = cast(VideoStream, container.add_stream(ENCODER, options=_OPTIONS))
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


class _TimestampConverter:
    """Converts presentation times to strictly increasing encoder timestamps, in ticks.

    Attributes:
        gap: ticks between the last two frames, at most ``TICKS_PER_SECOND``.
    """

    def __init__(self) -> None:
        self.gap = TICKS_PER_SECOND // 25
        self._epoch: int | None = None
        self._shift = 0
        self._last = 0

    def ticks(self, pts: float, epoch: int) -> int:
        """Return the timestamp of the next frame, in ticks."""
        unshifted = round(pts * TICKS_PER_SECOND)
        ticks = unshifted + self._shift
        if self._epoch is None:
            self._shift = -unshifted
            ticks = 0
        else:
            is_set_back = epoch != self._epoch and ticks <= self._last
            if is_set_back or ticks > self._last + LONGEST_PAUSE:
                self._shift = self._last + self.gap - unshifted
                ticks = self._last + self.gap
            if ticks <= self._last:
                ticks = self._last + 1
            else:
                self.gap = min(ticks - self._last, TICKS_PER_SECOND)
        self._epoch, self._last = epoch, ticks
        return ticks


def encodable_size(size: Size) -> Size:
    """Return the (height, width) at which images of ``size`` are encoded, aspect kept."""
    scale = min(1.0, MAX_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _pad_to_even(image: Image) -> Image:
    height, width = image.shape[:2]
    if height % 2 == width % 2 == 0:
        return image
    padded = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return np.asarray(padded, np.uint8)


def _letterbox(image: Image, size: Size, stretch: Fraction) -> Image:
    """Return ``image`` scaled into ``size`` on black, its pixels ``stretch`` times wider."""
    height, width = image.shape[0], float(image.shape[1] * stretch)
    scale = min(size[0] / height, size[1] / width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    box = np.zeros((*size, 3), np.uint8)
    x, y = (size[1] - inner[0]) // 2, (size[0] - inner[1]) // 2
    box[y : y + inner[1], x : x + inner[0]] = _resize(image, inner, smaller=scale < 1)
    return box


def _resize(image: Image, extent: tuple[int, int], *, smaller: bool = True) -> Image:
    """Return ``image`` resized to ``extent``, (width, height)."""
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, extent, interpolation=method), np.uint8)


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turn FFmpeg's errors into ``OSError``, which callers handle."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error
