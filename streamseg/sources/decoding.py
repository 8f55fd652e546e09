"""Decoding of one video stream: packets to upright RGB frames with times and loss counts.

Decoding uses one thread. FFmpeg's own threads would gain little, because many sources keep all
cores busy anyway. They also make results irreproducible: on damaged input, frame threads conceal
errors differently from run to run and lose good frames at the end, and the work of slice threads
depends on the number of cores.

Alpha is dropped, interlaced frames are not deinterlaced, and high dynamic range is converted
without tone mapping.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import av.error
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from streamseg.config import SourceConfig
from streamseg.sources.base import BadImageError, LazyFrame, SourceReport, check_pixels
from streamseg.sources.display_matrix import (
    UPRIGHT,
    DisplayMatrixError,
    Orientation,
    read_display_orientation,
)
from streamseg.sources.timeline import DisplayOrder, Timeline
from streamseg.sources.video_streams import (
    ffmpeg_error_message,
    frame_to_rgb,
    nominal_frame_rate,
    pixel_aspect_ratio,
    read_packets,
)
from streamseg.structures.results import Image

_DECODERS_WITHOUT_KEY_WAIT = (
    *("mpeg1video", "mpeg4", "h263", "h263p", "flv", "wmv1", "wmv2"),
    *("msmpeg4", "msmpeg4v1", "msmpeg4v2"),
)
"""Decoders that output gray frames if a live stream is joined between two key frames; all others
output nothing before the first key frame."""
_MAX_REORDERED = {"h264": 16, "hevc": 16, "vvc": 16}
"""Maximum number of packets that a decoder holds; other codecs hold one if they have B-frames."""
_FORMAT_WITHOUT_TIMES = "avi"
_MAX_TRAILER_BYTES = 1024
_MIN_LOST_END = 10
"""Number of undecodable packets at the end that make a recording incomplete; after damage, decoding
usually recovers at the next key frame."""


@dataclass(frozen=True, slots=True)
class StartPosition:
    """Position in a video stream at which decoding starts.

    Attributes:
        packets: number of packets to skip.
        index: index of the first frame.
        epoch: epoch of the first frame, unless the timeline has started more.
        seconds: time of the first frame, in seconds; earlier ones are skipped.
        timeline: timeline of the frames before; None if there are none.
    """

    packets: int = 0
    index: int = 0
    epoch: int = 0
    seconds: float = -math.inf
    timeline: Timeline | None = None


class StreamDecoder:
    """Decoder of one video stream, from a start position to the end of the container.

    Args:
        container: open container, used by nothing else.
        stream: one of its video streams.
        config: source config with the limits.
        start: position at which decoding starts.
        missing_bytes: number of bytes that the container states but the file doesn't have.
        report: report to which bad packets and missing data are added.
        use_arrival_times: whether frames get their arrival times, because the stream has none.
        stop_event: event after which no further packet is read; a live stream may give no frame for
            long.
        repeated_frames: number of stated frames that repeat the one before and have no packet.

    Attributes:
        read_error: why the container couldn't be read to its end; empty if it could.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        config: SourceConfig,
        start: StartPosition,
        missing_bytes: int,
        report: SourceReport,
        *,
        use_arrival_times: bool = False,
        stop_event: threading.Event | None = None,
        repeated_frames: int = 0,
    ) -> None:
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        self._container = container
        self._stream = stream
        self._config = config
        self._start = start
        self._missing_bytes = missing_bytes
        self._report = report
        self._timeline = start.timeline or Timeline(float(1 / nominal_frame_rate(stream)))
        self._display_order = _create_display_order(container, stream)
        self._reformatter = VideoReformatter()
        self._pixel_aspect = pixel_aspect_ratio(stream)
        self._repeated_frames = repeated_frames
        self._packets = 0
        self._discarded_packets = 0
        self._good_frames = 0
        self._bad_packets = 0
        self._bad_packets_at_end = 0
        self._last_packet: Packet[VideoStream] | None = None
        self._arrival_start = time.monotonic() if use_arrival_times else None
        self._stop_event = stop_event or threading.Event()
        codec = stream.codec_context.name
        self._awaits_key_frame = stop_event is not None and codec in _DECODERS_WITHOUT_KEY_WAIT
        self._shape: tuple[int, int, Orientation] | None = None
        self.read_error = ""

    @property
    def frame_count(self) -> int:
        """Number of frames decoded."""
        return self._good_frames

    def next_start(self) -> StartPosition:
        """Return the start position for a stream that follows this one, and start a new epoch."""
        self._timeline.start_epoch()
        return StartPosition(0, self._next_index, self._start.epoch, timeline=self._timeline)

    @property
    def _next_index(self) -> int:
        return self._start.index + self._good_frames + self._bad_packets

    def lazy_frames(self) -> Generator[LazyFrame, None, None]:
        """Yield all decodable frames in display order, then report missing data."""
        for frame in self._decoded_frames():
            seconds = self._read_time(frame)
            if seconds is not None and seconds < self._start.seconds:
                self._report.skipped += 1
                continue
            orientation = self._read_orientation(frame)
            shape = frame.height, frame.width, orientation
            if self._shape not in (None, shape):
                self._timeline.start_epoch()  # objects are elsewhere in a frame of another shape
            self._shape = shape
            new_epochs, pts = self._timeline.add_frame(seconds)
            index = self._next_index
            self._good_frames += 1
            load = partial(self._load, frame, orientation)
            epoch = self._start.epoch + new_epochs
            yield LazyFrame(index, epoch, pts, load, damaged=bool(frame.is_corrupt))
        self._report_losses()

    def _decoded_frames(self) -> Iterator[VideoFrame]:
        """Yield the frames of all packets from the start position on, in display order."""
        packets = read_packets(
            self._container, self._stream, self._set_read_error, self._count_repeated_frame
        )
        for packet in packets:
            if self._stop_event.is_set():
                return
            self._packets += 1
            self._last_packet = packet
            self._awaits_key_frame &= not packet.is_keyframe
            if self._awaits_key_frame:
                continue
            if self._packets > self._start.packets:
                yield from self._decode(packet)
        yield from self._decode(None)

    def _decode(self, packet: Packet[VideoStream] | None) -> Iterator[VideoFrame]:
        """Yield the frames that a packet completes; None flushes the decoder."""
        limit = self._config.max_pixels
        display_order = None
        if packet is not None:
            self._discarded_packets += packet.is_discard
            if (
                packet.dts is not None
                and packet.pts is not None
                and self._display_order is not None
            ):
                display_order = self._display_order
                display_order.add_packet(packet.dts, packet.pts)
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.error.FFmpegError as error:
            context = self._stream.codec_context
            check_pixels(self._config.url, context.width, context.height, limit)
            self._bad_packets += 1
            self._bad_packets_at_end += 1
            self._report.count_bad(ffmpeg_error_message(error))
            if display_order is not None:
                display_order.drop_failed_packet()
            return
        if packet is not None and frames:
            self._bad_packets_at_end = 0
        if display_order is not None and not frames:
            display_order.drop_packet_without_frame()
        for frame in frames:
            check_pixels(self._config.url, frame.width, frame.height, limit)
            yield frame

    def _read_time(self, frame: VideoFrame) -> float | None:
        """Return the time of a frame in seconds; None if it has none."""
        if self._arrival_start is not None:
            return time.monotonic() - self._arrival_start
        base = self._stream.time_base
        pts = frame.pts
        if self._display_order is not None:
            pts = self._display_order.next_time(pts, is_key=frame.key_frame)
        return None if pts is None or base is None else float(pts * base)

    def _read_orientation(self, frame: VideoFrame) -> Orientation:
        """Return a frame's orientation.

        A frame without one, unless it is a key frame, has that of the frame before: SEI messages
        apply to a whole coded video sequence.
        """
        try:
            orientation = read_display_orientation(frame)
        except DisplayMatrixError as error:
            self._report.add_note(str(error))
            return UPRIGHT
        if orientation is None and self._shape is not None and not frame.key_frame:
            return self._shape[2]
        return orientation or UPRIGHT

    def _load(self, frame: VideoFrame, orientation: Orientation) -> tuple[Image, Fraction]:
        """Convert a frame to upright uint8 (H, W, 3) RGB; also return its pixel aspect ratio."""
        try:
            pixels = frame_to_rgb(frame, self._reformatter)
        except (av.error.FFmpegError, ValueError) as error:
            raise BadImageError(ffmpeg_error_message(error)) from None
        aspect = 1 / self._pixel_aspect if orientation.is_transposed else self._pixel_aspect
        return orientation.apply(pixels), aspect

    def _set_read_error(self, reason: str) -> None:
        self.read_error = reason

    def _count_repeated_frame(self) -> None:
        self._repeated_frames += 1

    def _report_losses(self) -> None:
        """Compare the decoded frames with what the container and the times state."""
        report = self._report
        report.incomplete = self._describe_missing()
        decoded = self._packets - self._start.packets
        without_frame = decoded - self._discarded_packets - self._good_frames - self._bad_packets
        if without_frame > 0 and not self._start.packets:
            report.add_note(f"{without_frame} packet(s) without a frame")
        lost = self._timeline.lost_frames - self._repeated_frames - max(0, without_frame)
        if lost > 0:
            report.add_note(f"{lost} frame(s) missing according to the timestamps")

    def _describe_missing(self) -> str:
        """Return why the recording is incomplete; empty if it is complete."""
        stated = self._stream.frames
        counts = f"{self._packets} of {stated} frames read" if stated else "the rest is missing"
        if self._missing_bytes:
            return f"the file ends {self._missing_bytes} bytes early, {counts}"
        if self.read_error and not self._has_only_trailer_left():
            return f"reading failed ({self.read_error}), {counts}"
        if self._bad_packets_at_end >= _MIN_LOST_END and self._good_frames:
            return f"none of the last {self._bad_packets_at_end} packets could be decoded"
        # Demuxers set this flag for truncated packets; in a transport stream also for others.
        is_truncated = self._last_packet is not None and self._last_packet.is_corrupt
        if is_truncated and "mpegts" not in self._container.format.name:
            return f"the file ends within a frame, {counts}"
        if self._packets + self._repeated_frames < stated and self._ends_early():
            return counts
        return ""

    def _has_only_trailer_left(self) -> bool:
        """Return whether no more than a trailer follows the last packet."""
        packet = self._last_packet
        if packet is None or packet.pos is None:
            return False
        return packet.pos + packet.size + _MAX_TRAILER_BYTES >= self._container.size

    def _ends_early(self) -> bool:
        """Return whether the last frame is earlier than the stated end of the stream.

        An edit list may leave out stated frames, so their number alone doesn't show a loss.
        """
        stream = self._stream
        if "mov" not in self._container.format.name:
            return "avi" in self._container.format.name
        if stream.duration is None or stream.time_base is None:
            return False
        end = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        return self._timeline.latest_time + 1.5 * self._timeline.median_interval < end


def _create_display_order(container: InputContainer, stream: VideoStream) -> DisplayOrder | None:
    """Return the source of frame times for a container that stores none; None for others."""
    if container.format.name != _FORMAT_WITHOUT_TIMES:
        return None
    context = stream.codec_context
    depth = _MAX_REORDERED.get(context.codec.canonical_name, int(context.has_b_frames))
    return DisplayOrder(depth)
