"""Folders and globs of images, and single ones: each image a frame, in the order people count in.

The n-th image is given the time of n seconds, because files have no times of their own. Sizes may
differ from image to image. One that is broken, or too large where others aren't, is counted and
skipped.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

from streamseg.config import SourceConfig
from streamseg.errors import TooLargeError
from streamseg.sources.base import BadPictureError, Picture, Reins, SourceReport, deliver
from streamseg.sources.imagefile import read_image
from streamseg.types import Frame, Image

_SQUARE = Fraction(1)


class ImageFiles:
    """Image files as a recording; a :class:`~streamseg.sources.base.Source`.

    ``item`` of a frame is its file's name.

    Raises:
        NoFramesError: there are no files.
        TooLargeError: when read, if the only image has more than ``max_pixels``.
    """

    live = False

    def __init__(self, name: str, files: Sequence[Path], config: SourceConfig) -> None:
        self.name = name
        self.reins = Reins()
        self._files = tuple(files)
        self._config = config
        self.report = self._hints()

    def frames(self) -> Generator[Frame, None, None]:
        """See :class:`~streamseg.sources.base.Source`."""
        self.report = self._hints()
        yield from deliver(self.name, self._config, self._pictures(), self.report, self.reins)

    def _hints(self) -> SourceReport:
        return SourceReport(fps=1.0, expected=len(self._files), duration=float(len(self._files)))

    def _pictures(self) -> Generator[Picture, None, None]:
        for index, file in enumerate(self._files):
            yield Picture(index, 0, float(index), partial(self._load, file), item=file.name)

    def _load(self, file: Path) -> tuple[Image, Fraction]:
        try:
            return read_image(file, self._config.max_pixels), _SQUARE
        except TooLargeError as error:
            if len(self._files) == 1:
                raise
            trouble = str(error)
        except BadPictureError as error:
            trouble = f"{file}: {error}"
        self.report.note(trouble)
        raise BadPictureError(trouble)
