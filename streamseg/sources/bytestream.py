"""Byte stream that FFmpeg reads through PyAV, with a size limit and deferred exceptions.

PyAV keeps one exception of a callback until FFmpeg returns and prints a second one to stderr, and
FFmpeg may treat either as the end of the file. So ``read`` ends the stream instead, and the caller
that opened the stream raises ``failure`` afterwards.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing

from streamseg.errors import SourceError, redact
from streamseg.sources.base import LazyFrame

MAX_FRAME_BYTES = 64 * 2**20
"""Maximum number of bytes without a frame: demuxers and parsers keep an unfinished frame in memory,
however large it gets."""


class ByteStream:
    """File object from which FFmpeg reads one container.

    Args:
        name: address for messages, without a password.
        pieces: content in pieces of any size.
        formats: FFmpeg's names of the formats that are allowed.
        video_stream: index of the video stream to read.
        pace: called with the epoch and the time in seconds of each frame before it is yielded; may
            wait.
        is_continuation: whether the times continue those of the stream before.

    Attributes:
        name, formats, video_stream, is_continuation: as given.
        failure: error that ended the stream early; None if there was none.
    """

    def __init__(
        self,
        name: str,
        pieces: Iterator[bytes],
        formats: tuple[str, ...],
        video_stream: int,
        pace: Callable[[int, float], None] | None = None,
        *,
        is_continuation: bool = False,
    ) -> None:
        self.name = name
        self.formats = formats
        self.video_stream = video_stream
        self.is_continuation = is_continuation
        self.failure: Exception | None = None
        self._pieces = pieces
        self._pace = pace
        self._buffer = memoryview(b"")
        self._bytes_since_frame = 0

    @property
    def only_format(self) -> str | None:
        """The allowed format if there is only one, so that FFmpeg need not detect it."""
        return self.formats[0] if len(self.formats) == 1 else None

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes, as soon as there are any; empty at the end."""
        if not self._buffer and self.failure is None:
            try:
                self._buffer = memoryview(next(self._pieces, b""))
                self._check_frame_size()
            except SourceError as error:
                # The traceback would keep this stream and its data in a reference cycle.
                self.failure = error.with_traceback(None)
            except Exception as error:  # noqa: BLE001 - raised after FFmpeg has returned
                self.failure = error
        if self.failure is not None:
            return b""
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return bytes(data)

    def refuse_open(self, url: str, _flags: int, _options: Mapping[str, str]) -> io.BytesIO:
        """Refuse to open another address that a container refers to; PyAV's ``io_open``."""
        self.failure = self.failure or SourceError(f"{redact(url)}: not allowed in a stream")
        return io.BytesIO()

    def pace_frames(
        self, frames: Generator[LazyFrame, None, None]
    ) -> Generator[LazyFrame, None, None]:
        """Yield the frames decoded from this stream, each after ``pace`` has returned."""
        with closing(frames):
            for frame in frames:
                self._bytes_since_frame = 0
                if self._pace is not None:
                    self._pace(frame.epoch, frame.pts)
                yield frame

    def raise_failure(self) -> None:
        """Raise ``failure`` if there is one."""
        if self.failure is not None:
            raise self.failure

    def _check_frame_size(self) -> None:
        self._bytes_since_frame += len(self._buffer)
        if self._bytes_since_frame > MAX_FRAME_BYTES:
            raise SourceError(f"{self.name}: no frame in {MAX_FRAME_BYTES} bytes")
