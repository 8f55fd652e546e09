"""Byte stream that FFmpeg reads through PyAV: bounded, and without exceptions in a callback.

PyAV keeps one exception of a callback until FFmpeg returns. It prints a second one to stderr, and
FFmpeg may take either for the end of the file. So ``read`` ends the stream instead, and whoever
opened it raises ``failure`` afterwards.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing

from streamseg.errors import SourceError, redact
from streamseg.sources.base import LazyFrame

MAX_FRAME_BYTES = 64 * 2**20
"""Bytes of a stream in which there must be a frame. A demuxer or parser holds what it has read of
an unfinished frame in memory, whatever size a camera claims for it."""


class ByteStream:
    """File that FFmpeg reads one container from.

    Args:
        name: address, for messages; without a password.
        pieces: the bytes, in pieces of any size, as they come.
        formats: FFmpeg's names of the formats that the container may have.
        video_stream: index of the container's video stream to read.
        pace: called with the epoch and the seconds of each frame before it is given out; may wait.
        is_continuation: whether its times follow from those of the stream before.

    Attributes:
        name, formats, video_stream, is_continuation: as given.
        failure: why the stream ended early, None if it didn't.
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
        self._since_frame = 0

    @property
    def only_format(self) -> str | None:
        """The format, where there is no choice: FFmpeg need not wait for bytes to detect it."""
        return self.formats[0] if len(self.formats) == 1 else None

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes as soon as there are any; empty at the end."""
        if not self._buffer and self.failure is None:
            try:
                self._buffer = memoryview(next(self._pieces, b""))
                self._check_size()
            except SourceError as error:
                # Its traceback would keep this stream, and what was read of it, in a cycle.
                self.failure = error.with_traceback(None)
            except Exception as error:  # noqa: BLE001 - raised after FFmpeg has returned
                self.failure = error
        if self.failure is not None:
            return b""
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return bytes(data)

    def refuse_open(self, url: str, _flags: int, _options: Mapping[str, str]) -> io.BytesIO:
        """Refuse what a container wants to open beside itself; PyAV's ``io_open``."""
        self.failure = self.failure or SourceError(f"{redact(url)}: a stream may not lead to this")
        return io.BytesIO()

    def watch(self, pictures: Generator[LazyFrame, None, None]) -> Generator[LazyFrame, None, None]:
        """Yield the pictures that are decoded from this stream, at their pace."""
        with closing(pictures):
            for picture in pictures:
                self._since_frame = 0
                if self._pace is not None:
                    self._pace(picture.epoch, picture.pts)
                yield picture

    def raise_failure(self) -> None:
        """Raise ``failure``, if there is one."""
        if self.failure is not None:
            raise self.failure

    def _check_size(self) -> None:
        self._since_frame += len(self._buffer)
        if self._since_frame > MAX_FRAME_BYTES:
            raise SourceError(f"{self.name}: there is no frame in {MAX_FRAME_BYTES} bytes")
