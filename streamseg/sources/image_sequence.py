"""Images as a source: a folder, a glob or a single file, each image a frame, in natural order.

Image files have no times, so the n-th image, counted from 0, gets the time of n seconds. Sizes may
differ. In a sequence, damaged and oversized images are counted and skipped. Of a file with several
images (pages, an animation, a stereo pair) the main one is read, and the number of such files is
reported.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

from streamseg.config import SourceConfig
from streamseg.errors import TooLargeError
from streamseg.sources.base import (
    BadImageError,
    LazyFrame,
    SourceControl,
    SourceReport,
    deliver_frames,
)
from streamseg.sources.image_file import read_image_file
from streamseg.structures.results import Frame, Image

_SQUARE_PIXELS = Fraction(1)


class ImageSequenceSource:
    """Image files as a recording; a :class:`~streamseg.sources.base.Source`.

    A frame's ``item`` is the file name; if names repeat, the path relative to the common folder.

    Raises:
        NoFramesError: there are no files.
        TooLargeError: while reading, if the only image has more than ``max_pixels``.
    """

    live = False

    def __init__(self, name: str, files: Sequence[Path], config: SourceConfig) -> None:
        self.name = name
        self.control = SourceControl()
        self._files = tuple(files)
        self._items = _choose_item_names(self._files)
        self._first_multi_image: tuple[Path, int] | None = None
        self._multi_image_files = 0
        self._config = config
        self.report = self._create_report()

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the images as frames; see :class:`~streamseg.sources.base.Source`."""
        self.report = self._create_report()
        yield from deliver_frames(
            self.name, self._config, self._lazy_frames(), self.report, self.control
        )

    def _create_report(self) -> SourceReport:
        return SourceReport(fps=1.0, expected=len(self._files), duration=float(len(self._files)))

    def _lazy_frames(self) -> Generator[LazyFrame, None, None]:
        self._first_multi_image, self._multi_image_files = None, 0
        try:
            for index, (file, item) in enumerate(zip(self._files, self._items, strict=True)):
                load = partial(self._load, file)
                yield LazyFrame(index, 0, float(index), load, item=item)
        finally:
            self._report_multi_image_files()

    def _load(self, file: Path) -> tuple[Image, Fraction]:
        """Read an image; also return its pixel aspect ratio."""
        try:
            image_file = read_image_file(file, self._config.max_pixels)
        except TooLargeError as error:
            if len(self._files) == 1:
                raise
            trouble = str(error)
        except BadImageError as error:
            trouble = f"{file}: {error}"
        else:
            if image_file.header.images > 1:
                self._first_multi_image = self._first_multi_image or (
                    file,
                    image_file.header.images,
                )
                self._multi_image_files += 1
            return image_file.pixels, _SQUARE_PIXELS
        self.report.add_note(trouble)
        raise BadImageError(trouble)

    def _report_multi_image_files(self) -> None:
        if self._first_multi_image is None:
            return
        file, images = self._first_multi_image
        others = self._multi_image_files - 1
        self.report.add_note(
            f"{file} holds {images} images: only the main image is used"
            + (f"; the same holds for {others} more file(s)" if others else "")
        )


def _choose_item_names(files: Sequence[Path]) -> list[str]:
    """Return the file names, or the paths relative to the common folder if names repeat."""
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([file.parent for file in files])
    return [file.relative_to(common).as_posix() for file in files]
