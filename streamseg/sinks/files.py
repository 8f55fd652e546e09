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


class _File(ABC):
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
        self._part = _part_of(path)
        self._ended = False

    def close(self) -> None:
        """Complete the file and give it its name; does nothing if it has ended already.

        Raises:
            OutputError: what is missing can't be written; the ``.part`` stays.
        """
        if not self._ended:
            self._ended = True
            with _writing(self.path):
                self._complete()

    def abort(self) -> None:
        """End without completing: the ``.part`` stays, readable as far as it goes."""
        if not self._ended:
            self._ended = True
            with _writing(self.path):
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


class ResultsFile(_File):
    """Results as lines of JSON, one a frame; each is in the file when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._seq: Counter[str] = Counter()
        with _writing(path):
            _check_target(path)
            self._file = self._part.open("wb", buffering=0)

    def write(self, message: wire.RecordedMessage) -> None:
        """Add a line.

        Raises:
            OutputError: it can't be written.
        """
        line = memoryview(wire.encode(message) + b"\n")
        with _writing(self.path):
            while line:  # a disk that is filling up takes a part first, and then says so
                line = line[self._file.write(line) :]

    def drain(self, results: Iterable[Result]) -> Iterator[Result]:
        """The stage: write each result, then pass it on."""
        for result in results:
            self.write(wire.recorded_message(result, self._seq[result.source]))
            self._seq[result.source] += 1
            yield result

    def _complete(self) -> None:
        self._file.close()
        _publish(self.path)

    def _leave(self) -> None:
        self._file.close()


class VideoFile(_File):
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
        with _writing(path):
            _check_target(path)
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

        with _writing(self.path):
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
        _publish(self.path)

    def _leave(self) -> None:
        if self._encoder is not None:
            self._encoder.close()


def write_json_atomically(path: Path, data: Mapping[str, Any]) -> None:
    """``data`` as indented JSON at ``path``, complete or not at all.

    Raises:
        OutputError: it can't be written.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, data: bytes | memoryview) -> None:
    """``data`` at ``path``, complete or not at all; what was there before stays until then.

    Raises:
        OutputError: it can't be written.
    """
    with _writing(path):
        _check_target(path)
        _part_of(path).write_bytes(data)
        _publish(path)


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _check_target(path: Path) -> None:
    """Refuse now what would fail when the file is given its name, at the end of a long run."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def _publish(path: Path) -> None:
    """Give the ``.part`` its name, once its content and then its name are on the disk."""
    part = _part_of(path)
    _sync(part)
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(f"{path}: can't be written: {reason}") from error
