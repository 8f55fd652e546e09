"""Where frames come from: video files, images and the test pattern, all opened by their url.

``open_source`` is the one way in. A source is whatever has the four members of
:class:`~streamseg.sources.base.Source`; a new kind is a module here and a line in
``open_source``. All of today's are recorded: they wait for their reader. Cameras and network
streams, which don't, will sit beside them.
"""

from __future__ import annotations

from pathlib import Path

from streamseg.config import SourceConfig, source_names
from streamseg.errors import NoFramesError, SourceError, redact
from streamseg.sources.base import Source, SourceReport
from streamseg.sources.files import expand_inputs, find_images, is_url
from streamseg.sources.imagefile import IMAGE_ENDINGS
from streamseg.sources.images import ImageFiles
from streamseg.sources.pattern import SCHEME, TestPattern
from streamseg.sources.video import VideoFile

__all__ = [
    "ImageFiles",
    "Source",
    "SourceReport",
    "TestPattern",
    "VideoFile",
    "expand_inputs",
    "open_source",
]


def open_source(config: SourceConfig) -> Source:
    """A source, opened and looked at; nothing stays open until its ``frames()`` are asked for.

    Raises:
        ConfigError: the options in a ``test:`` url are wrong.
        NoFramesError: there is nothing in it that could be decoded.
        TooLargeError: its frames have more than ``max_pixels``.
        SourceError: it is missing, can't be read, or is of a kind that isn't known.
    """
    name = source_names([(config.name, config.url)])[0]
    if config.url.startswith(SCHEME):
        return TestPattern(name, config)
    if is_url(config.url):
        raise SourceError(
            f"{redact(config.url)}: only files, folders, globs and {SCHEME} can be opened"
        )
    path = Path(config.url)
    images = find_images(config.url)
    if images:
        return ImageFiles(name, images, config)
    if path.is_dir():
        raise NoFramesError(
            f"{config.url}: the folder has no images; known are {', '.join(IMAGE_ENDINGS)}"
        )
    if not path.exists():
        raise SourceError(f"{config.url}: there is no such file, and no image matches it")
    if not path.is_file():
        raise SourceError(f"{config.url}: isn't a file or a folder")
    return VideoFile(name, path, config)
