"""Results in files: ``results.jsonl``, an annotated video, ``summary.json``.

A file is written under its name with ``.part`` behind it and takes its own name when it is
complete and on the disk: a name without ``.part`` is never half a file. Whatever ends a run before
that leaves the ``.part``, with all that was written until then.
"""

from __future__ import annotations

import errno
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from streamseg import wire
from streamseg.errors import OutputError
from streamseg.types import Image, Result

if TYPE_CHECKING:
    from typing_extensions import Self

    from streamseg.sinks.h264 import H264File

SQUARE = Fraction(1)

_ADVICE = {
    errno.ENOENT: "there is no such folder: make it first",
    errno.ENOTDIR: "it lies in something that isn't a folder",
    errno.EACCES: "no right to write there: choose another folder",
    errno.EPERM: "no right to write there: choose another folder",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.EISDIR: "there is a folder of that name: choose another name",
    errno.ENOSPC: "the disk is full: make room and run again",
    errno.EDQUOT: "the disk quota is used up: make room and run again",
    errno.EFBIG: "the file would be larger than it may be",
}


class OutputFile(ABC):
    """A file on its way: ``<path>.part`` now, ``path`` after a clean ``close``.

    As a context manager it closes at the end, and aborts if there was an exception.

    Args:
        path: the file to be; one that is there already is replaced at the end.

    Raises:
        OutputError: it can't be written there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._part = part_of(path)
        self._ended = False

    def close(self) -> None:
        """Complete the file and give it its name; does nothing if it has ended already.

        Raises:
            OutputError: what is missing can't be written; the ``.part`` stays.
        """
        if not self._ended:
            self._ended = True
            with writing(self.path):
                self._complete()

    def abort(self) -> None:
        """End without completing: the ``.part`` stays, readable as far as it goes."""
        if not self._ended:
            self._ended = True
            with writing(self.path):
                self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    @abstractmethod
    def _complete(self) -> None: ...

    @abstractmethod
    def _leave(self) -> None: ...


class ResultsFile(OutputFile):
    """Results as lines of JSON, one a frame; each is in the file when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._seq: Counter[str] = Counter()
        with writing(path):
            check_target(path)
            self._file = self._part.open("wb", buffering=0)

    def write(self, message: wire.RecordedMessage) -> None:
        """Add a line.

        Raises:
            OutputError: it can't be written.
        """
        with writing(self.path):
            write_whole(self._file, wire.encode(message) + b"\n")

    def drain(self, results: Iterable[Result]) -> Iterator[Result]:
        """The stage: write each result, then pass it on."""
        for result in results:
            self.write(wire.recorded_message(result, self._seq[result.source]))
            self._seq[result.source] += 1
            yield result

    def _complete(self) -> None:
        self._file.close()
        publish(self.path)

    def _leave(self) -> None:
        self._file.close()


class VideoFile(OutputFile):
    """Pictures as H.264 in MP4 with their own times; see :class:`~streamseg.sinks.h264.H264File`.

    The first picture sets the size and the shape of the pixels. Without any picture there is no
    file: ``close`` leaves nothing, and a file that was there before as it was.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            from streamseg.sinks.h264 import require_encoder
        except ModuleNotFoundError as error:
            raise OutputError(
                f"{path}: writing video needs {error.name}: pip install 'streamseg[server]'"
            ) from None
        require_encoder()
        self._encoder: H264File | None = None
        with writing(path):
            check_target(path)
            self._part.open("wb").close()

    def write(
        self, image: Image, pts: float, epoch: int = 0, *, pixel_aspect: Fraction = SQUARE
    ) -> None:
        """Add a picture.

        Args:
            image: uint8 (H, W, 3) RGB.
            pts: seconds.
            epoch: the source's; a new one may set the clock back.
            pixel_aspect: width of a pixel over its height.

        Raises:
            OutputError: it can't be written.
        """
        from streamseg.sinks.h264 import H264File

        with writing(self.path):
            if self._encoder is None:
                size = image.shape[0], image.shape[1]
                self._encoder = H264File(self._part, size, pixel_aspect)
            self._encoder.write(image, pts, epoch, pixel_aspect)

    def drain(self, results: Iterable[Result]) -> Iterator[Result]:
        """The stage: paint and write each result, then pass it on."""
        from streamseg.annotate import paint_result

        for result in results:
            frame = result.frame
            picture = paint_result(result)
            self.write(picture, frame.pts, frame.epoch, pixel_aspect=frame.pixel_aspect)
            yield result

    def _complete(self) -> None:
        if self._encoder is None:
            self._part.unlink(missing_ok=True)
            return
        self._encoder.close()
        publish(self.path)

    def _leave(self) -> None:
        if self._encoder is not None:
            self._encoder.close()


def write_json_atomically(path: Path, data: Mapping[str, Any]) -> None:
    """``data`` as indented JSON at ``path``, complete or not at all.

    File names in it may have bytes that aren't UTF-8; they become ``%XX``.

    Raises:
        OutputError: it can't be written.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomically(path, wire.escape_undecodable(text).encode())


def write_bytes_atomically(path: Path, data: bytes | memoryview) -> None:
    """``data`` at ``path``, complete or not at all; what was there before stays until then.

    Raises:
        OutputError: it can't be written.
    """
    with writing(path):
        check_target(path)
        part_of(path).write_bytes(data)
        publish(path)


def write_whole(file: RawIOBase, data: bytes) -> None:
    """Write to a file without a buffer: what fails then has nothing left to fail with later."""
    rest = memoryview(data)
    while rest:  # a disk that is filling up takes a part first, and then says so
        rest = rest[file.write(rest) or 0 :]


def part_of(path: Path) -> Path:
    """Where a file or folder is before it is complete."""
    return path.with_name(path.name + ".part")


def check_target(path: Path) -> None:
    """Refuse now what would fail when the file is given its name, at the end of a long run."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def publish(path: Path) -> None:
    """Give the ``.part`` its name, once its content and then its name are on the disk."""
    part = part_of(path)
    sync(part)
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What can't be written becomes an ``OutputError`` with advice, in one line."""
    try:
        yield
    except OSError as error:
        reason = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(f"{path}: can't be written: {reason}") from error
