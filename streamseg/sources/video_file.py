"""Video file as a source: opening, choice of the stream, start position and concatenated parts.

FFmpeg demuxes and decodes the file (see ``decoding.py``). If there are several video streams, the
first is read, or the one that the config selects; cover art is read as a video of one frame if
there is no other video.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from streamseg.config import SourceConfig
from streamseg.errors import NoFramesError, SourceError, TooLargeError, redact_address
from streamseg.sources.base import (
    MIN_TICK,
    LazyFrame,
    RecordingClock,
    SourceControl,
    SourceReport,
    decoder_limit,
    deliver_frames,
)
from streamseg.sources.container_checks import (
    count_missing_bytes,
    count_repeated_frames,
    describe_unread_part,
)
from streamseg.sources.decoding import StartPosition, StreamDecoder
from streamseg.sources.demuxers import open_container
from streamseg.sources.mpegts import StreamPart, StreamPartFile, trim_part
from streamseg.sources.random_access import RandomAccessFinder
from streamseg.sources.timeline import Timeline
from streamseg.sources.video_streams import (
    MAX_FRAME_RATE,
    choose_stream,
    find_stream,
    nominal_frame_rate,
    read_packets,
)
from streamseg.structures.results import Frame

_MAX_TICK = 0.01
_TRANSPORT_STREAM = "mpegts"
_PROBE_BYTES = 8 * 2**20
"""Number of bytes searched for a change of video before the source is opened; more than FFmpeg
reads of a file to detect its streams."""
_WHOLE_FILE = StreamPart()


class VideoFileSource:
    """One video stream of a file; a :class:`~streamseg.sources.base.Source`.

    ``start`` doesn't seek, because containers seek inexactly: the packets before the last suitable
    random access point are read but not decoded. If decoding from there might not give the same
    frames, everything from the beginning is decoded.

    A transport stream whose codec changes is read in parts, each with an epoch of its own.

    Raises:
        SourceError: the file can't be read, or has no stream with the configured index.
        NoFramesError: the file has no video, or none that can be decoded.
        TooLargeError: the frames have more than ``max_pixels``.
    """

    live = False

    def __init__(self, name: str, path: Path, config: SourceConfig) -> None:
        self.name = name
        self.control = SourceControl()
        self._path = path
        self._config = config
        self._url = redact_address(config.url)
        with self._open_stream(self._trim_part(_WHOLE_FILE, _PROBE_BYTES)) as (container, stream):
            self.report = _create_report(container, stream)

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames; see :class:`~streamseg.sources.base.Source`."""
        config = self._config
        first_part = self._trim_part(_WHOLE_FILE)
        with self._open_stream(first_part) as (container, stream):
            self.report = report = _create_report(container, stream)
            tick = _clock_tick(stream)
        has_limits = bool(config.start) or config.end is not None
        beginning = self._find_beginning() if has_limits else 0.0
        lazy_frames = self._lazy_frames(first_part, beginning, report)
        clock = RecordingClock(beginning, tick)
        yield from deliver_frames(self.name, config, lazy_frames, report, self.control, clock)

    def _lazy_frames(
        self, part: StreamPart, beginning: float, report: SourceReport
    ) -> Generator[LazyFrame, None, None]:
        """Yield the frames of a part and of the following parts, then report missing data."""
        start = StartPosition()
        if self._config.start and part == _WHOLE_FILE:
            start = self._find_start(beginning)
        report.skipped = start.index
        incomplete = ""
        while True:
            with self._open_stream(part) as (container, stream):
                decoder = StreamDecoder(
                    container,
                    stream,
                    self._config,
                    start,
                    count_missing_bytes(self._path),
                    report,
                    repeated_frames=count_repeated_frames(self._path, stream.index),
                )
                yield from decoder.lazy_frames()
            incomplete = incomplete or report.incomplete
            if start.index and not decoder.frame_count:
                incomplete = f"nothing after frame {start.index} could be decoded"
            if part.following is None:
                break
            try:
                part = self._trim_part(part.following)
                with self._open_stream(part):
                    pass
            except TooLargeError:
                raise
            except SourceError as error:
                reason = str(error).removeprefix(f"{self._url}: ")
                incomplete = f"the next part can't be decoded: {reason}"
                break
            start = decoder.next_start()
        report.incomplete = incomplete or describe_unread_part(self._path)

    def _trim_part(self, part: StreamPart, max_bytes: int | None = None) -> StreamPart:
        """Trim a part to end where the video's codec or PID changes.

        Args:
            part: part with an unknown end.
            max_bytes: number of bytes to search; None for all.
        """
        with self._open_container(part) as container:
            if container.format.name != _TRANSPORT_STREAM:
                return part
            pid = find_stream(container, self._config).id
        return trim_part(self._path, part, pid, max_bytes)

    @contextmanager
    def _open_stream(
        self, part: StreamPart = _WHOLE_FILE
    ) -> Iterator[tuple[InputContainer, VideoStream]]:
        """Open the file, or a part of it, and choose the video stream."""
        with self._open_container(part) as container:
            yield container, choose_stream(container, self._config)

    @contextmanager
    def _open_container(self, part: StreamPart) -> Iterator[InputContainer]:
        try:
            with self._path.open("rb") as file:
                if not file.read(1):
                    raise NoFramesError(f"{self._url}: the file is empty")
        except OSError as error:
            raise SourceError(f"{self._url}: can't be read: {error.strerror}") from None
        limit = decoder_limit(self._config.max_pixels)
        with ExitStack() as stack:
            part_file = None
            if part != _WHOLE_FILE:
                part_file = stack.enter_context(StreamPartFile(self._path, part))
            container = open_container(self._path, self._url, limit, part_file)
            yield stack.enter_context(closing(container))

    def _find_beginning(self) -> float:
        """Return the pts at which the recording begins, in seconds.

        It is 0 if decoding or another stream begins at or before 0: with B-frames, the first frame
        is displayed later. Otherwise it is the first frame's pts, because the clock has another
        origin.
        """
        with self._open_stream() as (container, stream):
            first = next(read_packets(container, stream), None)
            first_pts, container_start = stream.start_time, container.start_time
            if first is None or first_pts is None or container_start is None:
                return 0.0
            first_dts = first_pts if first.dts is None else first.dts
            is_zero_inside = min(first_dts, container_start, first_pts) <= 0 <= first_pts
            return 0.0 if is_zero_inside else float(first_pts * (stream.time_base or 0))

    def _find_start(self, beginning: float) -> StartPosition:
        """Return the last random access point at or before ``config.start``.

        Its timeline holds the frames before it, so that times and epochs are those of the whole.
        """
        start = StartPosition()
        with self._open_stream() as (container, stream):
            finder = RandomAccessFinder(stream)
            timeline = Timeline(float(1 / nominal_frame_rate(stream)))
            times: list[float] = []
            displayed = 0
            for count, packet in enumerate(read_packets(container, stream)):
                is_access_point = finder.add_packet(packet)
                if not finder.is_exact or packet.pts is None:
                    break
                seconds = float(packet.pts * packet.time_base)
                if is_access_point:
                    epochs = [timeline.add_frame(time)[0] for time in sorted(times)]
                    times.clear()
                    if any(epochs) or seconds - beginning > self._config.start:
                        break
                    start = StartPosition(count, displayed, timeline=copy.deepcopy(timeline))
                if not packet.is_discard:
                    times.append(seconds)
                    displayed += 1
        return start


def _create_report(container: InputContainer, stream: VideoStream) -> SourceReport:
    """Return a report with the size, rate and length that the file states; they may be wrong."""
    duration = None
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / av.time_base
    rate = stream.average_rate
    return SourceReport(
        size=(stream.codec_context.height, stream.codec_context.width),
        fps=float(rate) if rate and rate <= MAX_FRAME_RATE else None,
        expected=stream.frames or None,
        duration=duration,
    )


def _clock_tick(stream: VideoStream) -> float:
    """Return the rounding unit of the stream's times, in seconds.

    A time base coarser than 10 ms (GIF) counts frames, and its times are exact.
    """
    base = float(stream.time_base or 0)
    return base if MIN_TICK < base <= _MAX_TICK else MIN_TICK
