"""Video files: whatever FFmpeg can demux and decode; opened, asked what they are, and begun.

Choices where formats leave one: of several video streams the first, or the one that the config
names; cover art is a video of one frame only where there is no other. What becomes of pixels and
times is told in ``decoding.py``.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from streamseg.config import SourceConfig
from streamseg.errors import NoFramesError, SourceError, redact_address
from streamseg.sources.base import Reins, SourceReport, decoder_limit, deliver
from streamseg.sources.decoding import Reading, Start, choose_stream, packets_of, reason_of
from streamseg.sources.promise import missing_bytes
from streamseg.types import Frame

_MAX_RATE = 1000


class VideoFile:
    """One video stream of a file; a :class:`~streamseg.sources.base.Source`.

    ``start`` doesn't seek, because containers seek inexactly: it reads the packets before the
    last keyframe that is early enough, without decoding them. So a frame's index is the same
    wherever one starts, as long as each packet before makes one frame.

    Raises:
        SourceError: the file can't be read, or hasn't the stream that is asked for.
        NoFramesError: it has no video, or none that can be decoded.
        TooLargeError: its frames have more than ``max_pixels``.
    """

    live = False

    def __init__(self, name: str, path: Path, config: SourceConfig) -> None:
        self.name = name
        self.reins = Reins()
        self._path = path
        self._config = config
        self._url = redact_address(config.url)
        with closing(self._open()) as container:
            self.report = _hints(container, choose_stream(container, self._config))

    def frames(self) -> Generator[Frame, None, None]:
        """See :class:`~streamseg.sources.base.Source`."""
        start = self._find_start() if self._config.start else Start()
        with closing(self._open()) as container:
            stream = choose_stream(container, self._config)
            self.report = _hints(container, stream)
            missing = missing_bytes(self._path)
            reading = Reading(container, stream, self._config, start, missing, self.report)
            yield from deliver(self.name, self._config, reading.pictures(), self.report, self.reins)

    def _open(self) -> InputContainer:
        self._check_readable()
        # This limit holds in the decoder that FFmpeg probes with, before the size is known here.
        options = {"max_pixels": str(decoder_limit(self._config.max_pixels))}
        try:
            return av.open(f"file:{self._path}", options=options, metadata_errors="replace")
        except (av.error.FFmpegError, ValueError) as error:
            raise NoFramesError(f"{self._url}: {self._explain(error)}") from None

    def _check_readable(self) -> None:
        try:
            with self._path.open("rb") as file:
                if not file.read(1):
                    raise NoFramesError(f"{self._url}: the file is empty")
        except OSError as error:
            raise SourceError(f"{self._url}: can't be read: {error.strerror}") from None

    def _explain(self, error: Exception) -> str:
        with self._path.open("rb") as file:
            head = file.read(12)
        if head[4:8] == b"ftyp":
            return "its index (moov) is missing: the recording was cut off before it was finished"
        return f"isn't a video that can be read ({reason_of(error)})"

    def _find_start(self) -> Start:
        """The last keyframe that isn't after ``config.start``."""
        start = Start()
        with closing(self._open()) as container:
            stream = choose_stream(container, self._config)
            for count, packet in enumerate(packets_of(container, stream)):
                if packet.pts is None:
                    return Start()
                seconds = float(packet.pts * packet.time_base)
                if packet.is_keyframe and seconds <= self._config.start:
                    start = Start(count, count, seconds)
                elif seconds < start.seconds:  # shown before its keyframe, stored after it
                    start = replace(start, index=start.index + 1)
                if packet.dts is not None and packet.dts * packet.time_base >= self._config.start:
                    break
        return start


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
