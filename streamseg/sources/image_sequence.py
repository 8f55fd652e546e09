"""Folders and globs of images, and single ones: each image a frame, in the order people count in.

The n-th image is given the time of n seconds, because files have no times of their own. Sizes may
differ from image to image. One that is broken, or too large where others aren't, is counted and
skipped. Of a file of several images (pages, an animation, a stereo pair) the main one is read, and
how many such files there were is noted.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

from streamseg.config import SourceConfig
from streamseg.errors import TooLargeError
from streamseg.sources.base import BadImageError, LazyFrame, SourceControl, SourceReport, deliver
from streamseg.sources.image_file import read_still
from streamseg.structures.results import Frame, Image

_SQUARE = Fraction(1)


class ImageFiles:
    """Image files as a recording; a :class:`~streamseg.sources.base.Source`.

    ``item`` of a frame is its file's name; where names repeat, the path within the common folder.

    Raises:
        NoFramesError: there are no files.
        TooLargeError: when read, if the only image has more than ``max_pixels``.
    """

    live = False

    def __init__(self, name: str, files: Sequence[Path], config: SourceConfig) -> None:
        self.name = name
        self.control = SourceControl()
        self._files = tuple(files)
        self._items = _item_names(self._files)
        self._several: tuple[Path, int] | None = None
        self._several_count = 0
        self._config = config
        self.report = self._hints()

    def frames(self) -> Generator[Frame, None, None]:
        """See :class:`~streamseg.sources.base.Source`."""
        self.report = self._hints()
        yield from deliver(self.name, self._config, self._pictures(), self.report, self.control)

    def _hints(self) -> SourceReport:
        return SourceReport(fps=1.0, expected=len(self._files), duration=float(len(self._files)))

    def _pictures(self) -> Generator[LazyFrame, None, None]:
        self._several, self._several_count = None, 0
        try:
            for index, (file, item) in enumerate(zip(self._files, self._items, strict=True)):
                load = partial(self._load, file)
                yield LazyFrame(index, 0, float(index), load, item=item)
        finally:
            self._note_several()

    def _load(self, file: Path) -> tuple[Image, Fraction]:
        try:
            still = read_still(file, self._config.max_pixels)
        except TooLargeError as error:
            if len(self._files) == 1:
                raise
            trouble = str(error)
        except BadImageError as error:
            trouble = f"{file}: {error}"
        else:
            if still.header.images > 1:
                self._several = self._several or (file, still.header.images)
                self._several_count += 1
            return still.pixels, _SQUARE
        self.report.note(trouble)
        raise BadImageError(trouble)

    def _note_several(self) -> None:
        if self._several is None:
            return
        file, images = self._several
        others = self._several_count - 1
        self.report.note(
            f"{file} holds {images} pictures: only the first full-size one is used"
            + (f"; {others} more file(s) likewise" if others else "")
        )


def _item_names(files: Sequence[Path]) -> list[str]:
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([file.parent for file in files])
    return [file.relative_to(common).as_posix() for file in files]
