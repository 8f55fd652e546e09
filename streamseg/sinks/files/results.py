"""File sinks for ``results.jsonl`` and annotated video, and atomic writing of JSON files.

A file is written as ``<name>.part`` and renamed when it is complete and on the disk, see
:mod:`~streamseg.sinks.files.part_file`. A run that ends before that leaves the ``.part``, with
everything that was written until then.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from streamseg import protocol
from streamseg.errors import OutputError
from streamseg.pipeline.mailbox import Policy
from streamseg.sinks.base import Sink, abort_sink
from streamseg.sinks.files.part_file import PartFile, output_errors
from streamseg.structures.results import Image, Result

if TYPE_CHECKING:
    from typing_extensions import Self

    from streamseg.sinks.files.video import H264File

SQUARE = Fraction(1)
WHOLE = ".whole.part"
"""Suffix of the ordinary MP4 while packets are copied into it."""


class OutputFile(ABC):
    """Sink that writes a file: ``<path>.part`` until a clean ``close``, ``path`` afterwards.

    As a context manager it opens the file, closes it at the end, and aborts after an exception.

    Args:
        path: path of the complete file; an existing file is replaced by ``close``.
    """

    policy: Policy = "block"
    capacity = 4

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._is_open = False

    def open(self) -> None:
        """Create the ``.part``.

        Raises:
            OutputError: it can't be written there.
        """
        self._create()
        self._is_open = True

    @abstractmethod
    def write(self, result: Result) -> None:
        """Write a result.

        Raises:
            OutputError: it can't be written.
        """

    def close(self) -> None:
        """Complete the file and rename it to ``path``; does nothing if it isn't open.

        Raises:
            OutputError: it can't be completed; the ``.part`` stays.
        """
        if self._is_open:
            self._is_open = False
            with output_errors(self.path):
                self._complete()

    def abort(self) -> None:
        """Close the file without completing it; the ``.part`` stays, readable as far as it goes."""
        if self._is_open:
            self._is_open = False
            with output_errors(self.path):
                self._leave()

    def __enter__(self) -> Self:
        self.open()
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
    def _create(self) -> None: ...

    @abstractmethod
    def _complete(self) -> None: ...

    @abstractmethod
    def _leave(self) -> None: ...


class ResultsFile(OutputFile):
    """JSON lines, one per frame; each is in the file when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._seq: Counter[str] = Counter()

    def write(self, result: Result) -> None:
        self.write_message(protocol.recorded_message(result, self._seq[result.source]))
        self._seq[result.source] += 1

    def write_message(self, message: protocol.RecordedMessage) -> None:
        """Write a line.

        Raises:
            OutputError: it can't be written.
        """
        with output_errors(self.path):
            self._file.write(protocol.encode(message) + b"\n")

    def _create(self) -> None:
        with output_errors(self.path):
            self._file = PartFile(self.path)

    def _complete(self) -> None:
        self._file.publish()

    def _leave(self) -> None:
        self._file.close()


class VideoFile(OutputFile):
    """H.264 video in MP4; see :class:`~streamseg.sinks.files.video.H264File`.

    The ``.part`` is a fragmented MP4, which can be played as far as it goes, however the run ends;
    ``close`` copies its packets into an ordinary MP4.

    The first image sets the size and the pixel aspect. Without any image there is no file:
    ``close`` removes the ``.part``, and an existing file stays as it was.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._encoder: H264File | None = None

    def write(self, result: Result) -> None:
        from streamseg.visualization import annotate_result

        frame = result.frame
        image = annotate_result(result)
        self.write_image(image, frame.pts, frame.epoch, pixel_aspect=frame.pixel_aspect)

    def write_image(
        self, image: Image, pts: float, epoch: int = 0, *, pixel_aspect: Fraction = SQUARE
    ) -> None:
        """Write an image.

        Args:
            image: uint8 (H, W, 3) RGB.
            pts: seconds.
            epoch: epoch of the source; a new one may set the clock back.
            pixel_aspect: width of a pixel over its height.

        Raises:
            OutputError: it can't be written.
        """
        from streamseg.sinks.files.video import H264File

        with output_errors(self.path):
            if self._encoder is None:
                size = image.shape[0], image.shape[1]
                self._encoder = H264File(self._fragments, size, pixel_aspect, self.name)
            self._encoder.write(image, pts, epoch, pixel_aspect)

    def _create(self) -> None:
        try:
            from streamseg.sinks.files.video import require_encoder
        except ModuleNotFoundError as error:
            raise OutputError(
                f"{self.path}: writing video needs {error.name}: pip install 'streamseg[server]'"
            ) from None
        require_encoder()
        with output_errors(self.path):
            self._fragments = PartFile(self.path)

    def _complete(self) -> None:
        with self._fragments:
            if self._encoder is not None:
                self._encoder.close()
                self._copy_packets(self._encoder)
            self._fragments.discard()

    def _copy_packets(self, encoder: H264File) -> None:
        """Write the ordinary MP4; if that fails, the fragments stay."""
        ordinary = PartFile(self.path, WHOLE)
        try:
            encoder.copy_into(ordinary)
            ordinary.publish()
        except BaseException:
            ordinary.discard()
            raise

    def _leave(self) -> None:
        with self._fragments:
            if self._encoder is None:
                self._fragments.discard()
            else:
                self._encoder.close()


SinkT = TypeVar("SinkT", bound=Sink)


class IsolatedOutput(Generic[SinkT]):
    """Wrapper that isolates the failure of a sink: other sinks continue, the error is stored.

    Args:
        sink: the wrapped sink.

    Attributes:
        failure: the first error, reported at the end of the run; nothing is written after it.
    """

    policy: Policy = "block"

    def __init__(self, sink: SinkT) -> None:
        self._sink = sink
        self.name = sink.name
        self.capacity = sink.capacity
        self.failure: OutputError | None = None

    def attempt(self, action: Callable[[SinkT], None]) -> None:
        """Call ``action`` with the sink, unless the output has failed."""
        if self.failure is not None:
            return
        try:
            action(self._sink)
        except OutputError as error:
            self.failure = error
            with suppress(OutputError):  # the first failure is the one to report
                abort_sink(self._sink)

    def open(self) -> None:
        """Open the sink."""
        try:
            self._sink.open()
        except OutputError as error:
            self.failure = error

    def write(self, result: Result) -> None:
        """Write a result, unless the output has failed."""
        self.attempt(lambda sink: sink.write(result))

    def close(self) -> None:
        """Close the sink, unless the output has failed."""
        self.attempt(lambda sink: sink.close())

    def abort(self) -> None:
        """End the sink without completing what it has written."""
        self.attempt(abort_sink)


def write_json_atomically(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` as indented JSON to ``path``, completely or not at all.

    Bytes of file names that aren't UTF-8 are written as ``%XX``.

    Raises:
        OutputError: it can't be written.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomically(path, protocol.escape_undecodable(text).encode())


def write_bytes_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path``, completely or not at all; an existing file stays until then.

    Raises:
        OutputError: it can't be written.
    """
    with output_errors(path):
        file = PartFile(path)
        try:
            file.write(data)
            file.publish()
        except BaseException:
            file.discard()
            raise
