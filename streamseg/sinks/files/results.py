"""Results in files: ``results.jsonl``, an annotated video, ``summary.json``.

A file is written under its name with ``.part`` behind it and takes its own name when it is
complete and on the disk, see :mod:`~streamseg.sinks.files.part_file`. Whatever ends a run before
that leaves the ``.part``, with all that was written until then.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from streamseg import protocol
from streamseg.errors import OutputError
from streamseg.sinks.files.part_file import PartFile, writing
from streamseg.structures.results import Image, Result

if TYPE_CHECKING:
    from typing_extensions import Self

    from streamseg.sinks.files.video import H264File

SQUARE = Fraction(1)
WHOLE = ".whole.part"
"""Suffix of the ordinary MP4 while packets are copied into it."""


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

    def drain(self, results: Iterable[Result]) -> Iterator[Result]:
        """The stage: write each result, then pass it on."""
        for result in results:
            self.add(result)
            yield result

    @abstractmethod
    def add(self, result: Result) -> None:
        """Write a result.

        Raises:
            OutputError: it can't be written.
        """

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
            self._file = PartFile(path)

    def add(self, result: Result) -> None:
        self.write(protocol.recorded_message(result, self._seq[result.source]))
        self._seq[result.source] += 1

    def write(self, message: protocol.RecordedMessage) -> None:
        """Add a line.

        Raises:
            OutputError: it can't be written.
        """
        with writing(self.path):
            self._file.write(protocol.encode(message) + b"\n")

    def _complete(self) -> None:
        self._file.publish()

    def _leave(self) -> None:
        self._file.close()


class VideoFile(OutputFile):
    """Video as H.264 in MP4; see :class:`~streamseg.sinks.files.video.H264File`.

    The ``.part`` is a fragmented MP4, which can be played as far as it goes whatever ends the run;
    ``close`` copies its packets into an ordinary MP4.

    The first picture sets the size and the shape of the pixels. Without any picture there is no
    file: ``close`` leaves nothing, and a file that was there before as it was.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            from streamseg.sinks.files.video import require_encoder
        except ModuleNotFoundError as error:
            raise OutputError(
                f"{path}: writing video needs {error.name}: pip install 'streamseg[server]'"
            ) from None
        require_encoder()
        self._encoder: H264File | None = None
        with writing(path):
            self._fragments = PartFile(path)

    def add(self, result: Result) -> None:
        from streamseg.visualization import annotate_result

        frame = result.frame
        picture = annotate_result(result)
        self.write(picture, frame.pts, frame.epoch, pixel_aspect=frame.pixel_aspect)

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
        from streamseg.sinks.files.video import H264File

        with writing(self.path):
            if self._encoder is None:
                size = image.shape[0], image.shape[1]
                self._encoder = H264File(self._fragments, size, pixel_aspect, self.name)
            self._encoder.write(image, pts, epoch, pixel_aspect)

    def _complete(self) -> None:
        with self._fragments:
            if self._encoder is not None:
                self._encoder.close()
                self._copy(self._encoder)
            self._fragments.discard()

    def _copy(self, encoder: H264File) -> None:
        """Make the ordinary MP4; if that fails, the fragments stay."""
        whole = PartFile(self.path, WHOLE)
        try:
            encoder.copy_into(whole)
            whole.publish()
        except BaseException:
            whole.discard()
            raise

    def _leave(self) -> None:
        with self._fragments:
            if self._encoder is None:
                self._fragments.discard()
            else:
                self._encoder.close()


FileT = TypeVar("FileT", bound=OutputFile)


class IsolatedOutput(Generic[FileT]):
    """Output whose failure costs nothing but itself: it is kept, and reported at the end.

    Args:
        open_file: opens the file; that it fails is kept, too.

    Attributes:
        failure: the first error; after it nothing is written any more.
    """

    def __init__(self, open_file: Callable[[], FileT]) -> None:
        self.failure: OutputError | None = None
        self._file: FileT | None = None
        try:
            self._file = open_file()
        except OutputError as error:
            self.failure = error

    def attempt(self, act: Callable[[FileT], None]) -> None:
        """Call ``act`` with the file, unless the output has failed."""
        if self._file is None or self.failure is not None:
            return
        try:
            act(self._file)
        except OutputError as error:
            self.failure = error
            with suppress(OutputError):  # which is known by now
                self._file.abort()

    def add(self, result: Result) -> None:
        """Write a result, unless the output has failed."""
        self.attempt(lambda file: file.add(result))

    def close(self) -> None:
        """Complete the file, unless the output has failed."""
        self.attempt(lambda file: file.close())

    def abort(self) -> None:
        """End the file without completing it."""
        self.attempt(lambda file: file.abort())


def write_json_atomically(path: Path, data: Mapping[str, Any]) -> None:
    """``data`` as indented JSON at ``path``, complete or not at all.

    File names in it may have bytes that aren't UTF-8; they become ``%XX``.

    Raises:
        OutputError: it can't be written.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomically(path, protocol.escape_undecodable(text).encode())


def write_bytes_atomically(path: Path, data: bytes | memoryview) -> None:
    """``data`` at ``path``, complete or not at all; what was there before stays until then.

    Raises:
        OutputError: it can't be written.
    """
    with writing(path):
        file = PartFile(path)
        try:
            file.write(data)
            file.publish()
        except BaseException:
            file.discard()
            raise
