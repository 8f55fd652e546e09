"""Video files: whatever FFmpeg can demux and decode; opened, asked what they are, and begun.

Choices where formats leave one: of several video streams the first, or the one that the config
names; cover art is a video of one frame only where there is no other. What becomes of pixels and
times is told in ``decoding.py``.
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
    deliver,
)
from streamseg.sources.container_checks import count_repeats, missing_bytes, unread_part
from streamseg.sources.decoding import (
    Reading,
    Start,
    choose_stream,
    find_stream,
    frame_rate,
    packets_of,
)
from streamseg.sources.demuxers import open_container
from streamseg.sources.mpegts import Part, PartFile, cut_part
from streamseg.sources.random_access import AccessPoints
from streamseg.sources.timeline import Timeline
from streamseg.structures.results import Frame

_MAX_RATE = 1000
_MAX_TICK = 0.01
_TRANSPORT_STREAM = "mpegts"
_PROBED_BYTES = 8 * 2**20
"""More than FFmpeg reads of a file to find out what it holds."""
_WHOLE = Part()


class VideoFile:
    """One video stream of a file; a :class:`~streamseg.sources.base.Source`.

    ``start`` doesn't seek, because containers seek inexactly: it reads the packets before the
    last random access point that is early enough, without decoding them. Where that doesn't
    surely give the frames of the whole recording, it decodes from the beginning.

    A transport stream that goes on in another codec is read in parts, each an epoch.

    Raises:
        SourceError: the file can't be read, or hasn't the stream that is asked for.
        NoFramesError: it has no video, or none that can be decoded.
        TooLargeError: its frames have more than ``max_pixels``.
    """

    live = False

    def __init__(self, name: str, path: Path, config: SourceConfig) -> None:
        self.name = name
        self.control = SourceControl()
        self._path = path
        self._config = config
        self._url = redact_address(config.url)
        with self._opened(self._part_at(_WHOLE, _PROBED_BYTES)) as (container, stream):
            self.report = _hints(container, stream)

    def frames(self) -> Generator[Frame, None, None]:
        """See :class:`~streamseg.sources.base.Source`."""
        config = self._config
        first = self._part_at(_WHOLE)
        with self._opened(first) as (container, stream):
            self.report = report = _hints(container, stream)
            tick = _tick(stream)
        is_cut = bool(config.start) or config.end is not None
        beginning = self._find_beginning() if is_cut else 0.0
        pictures = self._pictures(first, beginning, report)
        clock = RecordingClock(beginning, tick)
        yield from deliver(self.name, config, pictures, report, self.control, clock)

    def _pictures(
        self, part: Part, beginning: float, report: SourceReport
    ) -> Generator[LazyFrame, None, None]:
        """The pictures of a part and of those that follow it."""
        start = Start()
        if self._config.start and part == _WHOLE:
            start = self._find_start(beginning)
        report.skipped = start.index
        incomplete = ""
        while True:
            with self._opened(part) as (container, stream):
                missing = missing_bytes(self._path)
                repeats = count_repeats(self._path, stream.index)
                reading = Reading(
                    *(container, stream, self._config, start, missing, report), repeats=repeats
                )
                yield from reading.pictures()
            incomplete = incomplete or report.incomplete
            if start.index and not reading.frame_count:
                incomplete = f"nothing that follows frame {start.index} could be decoded"
            if part.following is None:
                break
            try:
                part = self._part_at(part.following)
                with self._opened(part):
                    pass
            except TooLargeError:
                raise
            except SourceError as error:
                reason = str(error).removeprefix(f"{self._url}: ")
                incomplete = f"it goes on with what can't be decoded: {reason}"
                break
            start = reading.continue_after()
        report.incomplete = incomplete or unread_part(self._path)

    def _part_at(self, part: Part, most: int | None = None) -> Part:
        """Return what there is of a part until the video's codec or PID changes.

        Args:
            part: with an unknown end.
            most: how many bytes to look through, None for all.
        """
        with self._container(part) as container:
            if container.format.name != _TRANSPORT_STREAM:
                return part
            pid = find_stream(container, self._config).id
        return cut_part(self._path, part, pid, most)

    @contextmanager
    def _opened(self, part: Part = _WHOLE) -> Iterator[tuple[InputContainer, VideoStream]]:
        """Open the file, or a part of it, and choose the stream."""
        with self._container(part) as container:
            yield container, choose_stream(container, self._config)

    @contextmanager
    def _container(self, part: Part) -> Iterator[InputContainer]:
        self._check_readable()
        limit = decoder_limit(self._config.max_pixels)
        with ExitStack() as stack:
            file = None if part == _WHOLE else stack.enter_context(PartFile(self._path, part))
            container = open_container(self._path, self._url, limit, file)
            yield stack.enter_context(closing(container))

    def _check_readable(self) -> None:
        try:
            with self._path.open("rb") as file:
                if not file.read(1):
                    raise NoFramesError(f"{self._url}: the file is empty")
        except OSError as error:
            raise SourceError(f"{self._url}: can't be read: {error.strerror}") from None

    def _find_beginning(self) -> float:
        """Return the pts at which the recording begins, in seconds.

        That is 0 where decoding, or another stream, begins by then: the first frame is shown later
        if frames are reordered. Else the clock began elsewhere, and it is the first frame's.
        """
        with self._opened() as (container, stream):
            first = next(packets_of(container, stream), None)
            shown_at, any_at = stream.start_time, container.start_time
            if first is None or shown_at is None or any_at is None:
                return 0.0
            decoded_at = shown_at if first.dts is None else first.dts
            is_zero_inside = min(decoded_at, any_at, shown_at) <= 0 <= shown_at
            return 0.0 if is_zero_inside else float(shown_at * (stream.time_base or 0))

    def _find_start(self, beginning: float) -> Start:
        """Return the last random access point that isn't after ``config.start``.

        Its timeline is that of the frames before, so that times and epochs are the same as well.
        """
        found = Start()
        with self._opened() as (container, stream):
            points = AccessPoints(stream)
            timeline = Timeline(float(1 / frame_rate(stream)))
            times: list[float] = []
            shown = 0
            for count, packet in enumerate(packets_of(container, stream)):
                is_access_point = points.examine(packet)
                if not points.is_exact or packet.pts is None:
                    break
                seconds = float(packet.pts * packet.time_base)
                if is_access_point:
                    epochs = [timeline.place(time)[0] for time in sorted(times)]
                    times.clear()
                    if any(epochs) or seconds - beginning > self._config.start:
                        break
                    found = Start(count, shown, timeline=copy.deepcopy(timeline))
                if not packet.is_discard:
                    times.append(seconds)
                    shown += 1
        return found


def _hints(container: InputContainer, stream: VideoStream) -> SourceReport:
    """What the file says of itself, which may be wrong."""
    duration = None
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / av.time_base
    rate = stream.average_rate
    return SourceReport(
        size=(stream.codec_context.height, stream.codec_context.width),
        fps=float(rate) if rate and rate <= _MAX_RATE else None,
        expected=stream.frames or None,
        duration=duration,
    )


def _tick(stream: VideoStream) -> float:
    """Return by how many seconds times may be rounded.

    A clock that is coarser than a hundredth, GIF's, counts frames: nothing is rounded.
    """
    base = float(stream.time_base or 0)
    return base if MIN_TICK < base <= _MAX_TICK else MIN_TICK
