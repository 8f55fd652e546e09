"""One pass over a video stream: packets in; upright RGB pictures with times, and an account, out.

One thread decodes. FFmpeg's own threads would gain little, because many sources keep all cores
busy anyway, and cost much: on damaged input, frame threads patch up differently from run to run
and lose good frames at the end; what slice threads do depends on the number of cores. With one
thread, recorded results depend on the input alone.

Choices where formats leave one: alpha is dropped, interlaced frames are taken as they are, high
dynamic range is converted plainly (no tone mapping).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import cast

import av.error
import av.logging
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from streamseg.config import SourceConfig
from streamseg.errors import NoFramesError, SourceError, redact_address
from streamseg.sources.base import (
    BadImageError,
    LazyFrame,
    SourceReport,
    check_pixels,
    decoder_limit,
)
from streamseg.sources.display_matrix import UPRIGHT, Orientation, TiltError, orientation_of
from streamseg.sources.timeline import DisplayOrder, Timeline
from streamseg.structures.results import Image

# FFmpeg's log stays off: its lines hold URLs with their passwords, and a decoder's thread that
# wants the interpreter's lock to log can wait for ever on the thread that closes the decoder.
av.logging.set_level(None)

_INVENT_REFERENCES = (
    *("mpeg1video", "mpeg4", "h263", "h263p", "flv", "wmv1", "wmv2"),
    *("msmpeg4", "msmpeg4v1", "msmpeg4v2"),
)
"""Decoders that begin with a grey picture where a live stream is joined between two key frames;
the others give nothing before the first one."""
_DEFAULT_RATE = Fraction(25)
_MAX_RATE = 1000
_WIDEST_PIXEL = 8
_TRAILER_BYTES = 1024
_LONG_RUN = 10
"""Packets in a row that can't be decoded: damage heals at the next key frame, this didn't."""


_NUMBERED_FORMAT = "avi"
_MAX_REORDERED = {"h264": 16, "hevc": 16, "vvc": 16}
"""Packets that a decoder may hold; other codecs hold one if they have B-frames."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where decoding begins.

    Attributes:
        packets: how many to pass over.
        index: of the first frame.
        epoch: of the first frame, unless the timeline has begun more.
        seconds: time of the first frame; earlier ones are passed over.
        timeline: that of the frames before, None if there are none.
    """

    packets: int = 0
    index: int = 0
    epoch: int = 0
    seconds: float = -math.inf
    timeline: Timeline | None = None


class Reading:
    """One pass over a stream.

    Args:
        container: open, and read by nobody else.
        stream: one of its streams.
        config: whose limits hold.
        start: where to begin.
        missing: bytes that the file should have and hasn't.
        report: where bad packets and what is missing are noted.
        by_arrival: take the time from the clock on the wall, because the stream has none.
        left: once set, no further packet is read; a live stream may have many and no frame.
        repeats: how many of the frames that are promised repeat the one before, without a packet.

    Attributes:
        broken: why the container couldn't be read on; empty if it came to its end.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        config: SourceConfig,
        start: Start,
        missing: int,
        report: SourceReport,
        *,
        by_arrival: bool = False,
        left: threading.Event | None = None,
        repeats: int = 0,
    ) -> None:
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        self._container = container
        self._stream = stream
        self._config = config
        self._start = start
        self._missing = missing
        self._report = report
        self._timeline = start.timeline or Timeline(float(1 / frame_rate(stream)))
        self._order = _display_order(container, stream)
        self._reformatter = VideoReformatter()
        self._aspect = _pixel_aspect(stream)
        self._repeats = repeats
        self._packets = 0
        self._discarded = 0
        self._good = 0
        self._bad = 0
        self._bad_at_end = 0
        self._last: Packet[VideoStream] | None = None
        self._began = time.monotonic() if by_arrival else None
        self._left = left or threading.Event()
        self._awaits_key = left is not None and stream.codec_context.name in _INVENT_REFERENCES
        self._shape: tuple[int, int, Orientation] | None = None
        self.broken = ""

    @property
    def frame_count(self) -> int:
        """How many frames were decoded."""
        return self._good

    def continue_after(self) -> Start:
        """Return where another reading goes on, with an epoch of its own."""
        self._timeline.cut()
        return Start(0, self._next_index, self._start.epoch, timeline=self._timeline)

    @property
    def _next_index(self) -> int:
        return self._start.index + self._good + self._bad

    def pictures(self) -> Generator[LazyFrame, None, None]:
        """All that can be decoded, in display order; then the report says what is missing."""
        for frame in self._decoded():
            seconds = self._seconds(frame)
            if seconds is not None and seconds < self._start.seconds:
                self._report.skipped += 1
                continue
            orientation = self._orientation(frame)
            shape = frame.height, frame.width, orientation
            if self._shape not in (None, shape):
                self._timeline.cut()  # nothing is where it was
            self._shape = shape
            cuts, pts = self._timeline.place(seconds)
            index = self._next_index
            self._good += 1
            load = partial(self._load, frame, orientation)
            epoch = self._start.epoch + cuts
            yield LazyFrame(index, epoch, pts, load, damaged=bool(frame.is_corrupt))
        self._take_stock()

    def _decoded(self) -> Iterator[VideoFrame]:
        packets = packets_of(self._container, self._stream, self._note_break, self._note_repeat)
        for packet in packets:
            if self._left.is_set():
                return
            self._packets += 1
            self._last = packet
            self._awaits_key &= not packet.is_keyframe
            if self._awaits_key:
                continue
            if self._packets > self._start.packets:
                yield from self._decode(packet)
        yield from self._decode(None)

    def _decode(self, packet: Packet[VideoStream] | None) -> Iterator[VideoFrame]:
        """The frames that a packet completes; None gets out those that the decoder holds back."""
        limit = self._config.max_pixels
        order = None
        if packet is not None:
            self._discarded += packet.is_discard
            if packet.dts is not None and packet.pts is not None and self._order is not None:
                order = self._order
                order.add(packet.dts, packet.pts)
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.error.FFmpegError as error:
            context = self._stream.codec_context
            check_pixels(self._config.url, context.width, context.height, limit)
            self._bad += 1
            self._bad_at_end += 1
            self._report.count_bad(reason_of(error))
            if order is not None:
                order.drop_last()
            return
        if packet is not None and frames:
            self._bad_at_end = 0
        if order is not None and not frames:
            order.drop_silent()
        for frame in frames:
            check_pixels(self._config.url, frame.width, frame.height, limit)
            yield frame

    def _seconds(self, frame: VideoFrame) -> float | None:
        if self._began is not None:
            return time.monotonic() - self._began
        base = self._stream.time_base
        pts = frame.pts
        if self._order is not None:
            pts = self._order.take(pts, is_key=frame.key_frame)
        return None if pts is None or base is None else float(pts * base)

    def _orientation(self, frame: VideoFrame) -> Orientation:
        """Return how a frame is shown; what a stream's SEI says holds until the next key frame."""
        try:
            orientation = orientation_of(frame)
        except TiltError as error:
            self._report.note(str(error))
            return UPRIGHT
        if orientation is None and self._shape is not None and not frame.key_frame:
            return self._shape[2]
        return orientation or UPRIGHT

    def _load(self, frame: VideoFrame, orientation: Orientation) -> tuple[Image, Fraction]:
        """The frame's pixels, uint8 (H, W, 3) RGB, upright, and the shape of a pixel."""
        try:
            rgb = self._reformatter.reformat(frame, format="rgb24")
            pixels = cast(Image, rgb.to_ndarray())
        except (av.error.FFmpegError, ValueError) as error:
            raise BadImageError(reason_of(error)) from None
        aspect = 1 / self._aspect if orientation.is_transposed else self._aspect
        return orientation.apply(pixels), aspect

    def _note_break(self, reason: str) -> None:
        self.broken = reason

    def _note_repeat(self) -> None:
        self._repeats += 1

    def _take_stock(self) -> None:
        """Compare what came with what the container and the times promise."""
        report = self._report
        report.incomplete = self._what_is_missing()
        decoded = self._packets - self._start.packets
        silent = decoded - self._discarded - self._good - self._bad
        if silent > 0 and not self._start.packets:
            report.note(f"{silent} packet(s) gave no frame")
        lost = self._timeline.lost - self._repeats - max(0, silent)
        if lost > 0:
            report.note(f"{lost} frame(s) missing, by the timestamps")

    def _what_is_missing(self) -> str:
        promised = self._stream.frames
        came = f"{self._packets} of {promised} frames came" if promised else "the rest is missing"
        if self._missing:
            return f"the file ends {self._missing} bytes early, {came}"
        if self.broken and not self._is_at_end():
            return f"it can't be read on ({self.broken}), {came}"
        if self._bad_at_end >= _LONG_RUN and self._good:
            return f"none of the last {self._bad_at_end} packets could be decoded"
        if self._ends_in_a_frame():
            return f"it ends in the middle of a frame, {came}"
        if self._packets + self._repeats < promised and self._ends_early():
            return came
        return ""

    def _is_at_end(self) -> bool:
        """Whether what the demuxer stumbled over is no more than a trailer."""
        last = self._last
        if last is None or last.pos is None:
            return False
        return last.pos + last.size + _TRAILER_BYTES >= self._container.size

    def _ends_in_a_frame(self) -> bool:
        """Demuxers flag a packet that is cut short; in a transport stream the flag says less."""
        last = self._last
        return bool(last and last.is_corrupt) and "mpegts" not in self._container.format.name

    def _ends_early(self) -> bool:
        """Whether the time is short, too: an edit list may leave out frames that are promised."""
        stream = self._stream
        if "mov" not in self._container.format.name:
            return "avi" in self._container.format.name
        if stream.duration is None or stream.time_base is None:
            return False
        end = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        return self._timeline.now + 1.5 * self._timeline.gap < end


def choose_stream(container: InputContainer, config: SourceConfig) -> VideoStream:
    """The video stream that the config asks for, with a decoder and of a size that is allowed.

    Raises:
        NoFramesError: there is no video, or none whose codec is known.
        SourceError: there isn't the one that is asked for.
        TooLargeError: its frames have more than ``max_pixels``.
    """
    stream = find_stream(container, config)
    context = stream.codec_context
    if context is None:
        raise NoFramesError(f"{redact_address(config.url)}: its video codec is unknown")
    check_pixels(config.url, context.width, context.height, config.max_pixels)
    context.options = {"max_pixels": str(decoder_limit(config.max_pixels))}
    return stream


def find_stream(container: InputContainer, config: SourceConfig) -> VideoStream:
    """Return the video stream that the config asks for, whether or not it can be decoded.

    Cover art is one only where there is no other.

    Raises:
        NoFramesError: there is no video.
        SourceError: there isn't the one that is asked for.
    """
    url = redact_address(config.url)
    videos = container.streams.video
    moving = [s for s in videos if Disposition.attached_pic not in s.disposition]
    choices = moving or list(videos)
    if not choices:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise NoFramesError(f"{url}: has no video, only {kinds}")
    if config.stream >= len(choices):
        raise SourceError(
            f"{url}: has no video stream {config.stream}: there are {len(choices)}, counted from 0"
        )
    return choices[config.stream]


def packets_of(
    container: InputContainer,
    stream: VideoStream,
    broken: Callable[[str], None] = lambda _: None,
    empty: Callable[[], None] = lambda: None,
) -> Iterator[Packet[VideoStream]]:
    """The packets of a stream that hold something.

    Args:
        container: open.
        stream: one of its streams.
        broken: told why, where the container can't be read on; the packets end there.
        empty: called for each packet that holds nothing: the frame before, again.
    """
    try:
        for packet in container.demux(stream):
            # An empty one would tell the decoder that there is no more to come. PyAV adds one at
            # the end, without a time.
            if packet.size:
                yield packet
            elif packet.dts is not None:
                empty()
    except av.error.FFmpegError as error:
        broken(reason_of(error))
    except IndexError:
        # After the last packet, PyAV looks up streams that have only appeared since it opened.
        return


def reason_of(error: Exception) -> str:
    """What FFmpeg says is wrong, without the address that it may add."""
    return str(getattr(error, "strerror", None) or error)


def frame_rate(stream: VideoStream) -> Fraction:
    """Frames a second where a stream has no times: as the codec says, or else 25."""
    for rate in (stream.codec_context.framerate, stream.guessed_rate):
        if rate and 0 < rate <= _MAX_RATE:
            return rate
    return _DEFAULT_RATE


def _display_order(container: InputContainer, stream: VideoStream) -> DisplayOrder | None:
    """Return where times come from if the container has none of its own."""
    if container.format.name != _NUMBERED_FORMAT:
        return None
    context = stream.codec_context
    depth = _MAX_REORDERED.get(context.codec.canonical_name, int(context.has_b_frames))
    return DisplayOrder(depth)


def _pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a pixel over its height; 1 where the file doesn't say, or says nonsense."""
    aspect = stream.sample_aspect_ratio
    if not aspect or not Fraction(1, _WIDEST_PIXEL) <= aspect <= _WIDEST_PIXEL:
        return Fraction(1)
    return aspect
