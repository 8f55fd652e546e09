"""Where frames come from: recordings and live streams, all opened by their url.

``open_source`` is the one way in. A source is whatever has the members of
:class:`~streamseg.sources.base.Source`; a new kind is a module here and a line in
``open_source``. Recorded ones (``video``, ``images``, ``pattern``) wait for their reader. Live
ones (``live``: what they share; ``connection``: how each kind is opened; ``http``) don't.
"""

from __future__ import annotations

import os
from pathlib import Path

from streamseg.config import SourceConfig, source_config, source_names
from streamseg.errors import ConfigError, NoFramesError, SourceError, redact_address
from streamseg.sources.base import Source, SourceControl, SourceReport
from streamseg.sources.connection import is_live, live_source
from streamseg.sources.image_file import IMAGE_ENDINGS
from streamseg.sources.image_sequence import ImageFiles
from streamseg.sources.inputs import (
    Input,
    expand_inputs,
    find_images,
    find_inputs,
    is_url,
    place_outputs,
)
from streamseg.sources.live import LiveSource
from streamseg.sources.pattern import SCHEME, TestPattern
from streamseg.sources.video_file import VideoFile

__all__ = [
    "ImageFiles",
    "Input",
    "LiveSource",
    "Source",
    "SourceControl",
    "SourceReport",
    "TestPattern",
    "VideoFile",
    "expand_inputs",
    "find_inputs",
    "open_source",
    "place_outputs",
]

LIVE_ONLY = (
    *("transport", "open_timeout", "stall_after", "max_attempts", "user"),
    *("password_env", "password_file", "hosts", "input"),
)


def open_source(config: SourceConfig | str | os.PathLike[str]) -> Source:
    """A source, opened and looked at; nothing stays open until its ``frames()`` are asked for.

    Args:
        config: the source, or its url or path.

    Raises:
        ConfigError: a value of the config or an option in a ``test:`` url is wrong, or is for
            another kind of source.
        NoFramesError: there is nothing in it that could be decoded.
        TooLargeError: its frames have more than ``max_pixels``.
        SourceError: it is missing, can't be read, or is of a kind that isn't known.
    """
    checked = source_config(config)
    try:
        return _open(checked)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SourceError(f"{redact_address(checked.url)[:200]}: can't be read: {reason}") from None


def _open(config: SourceConfig) -> Source:
    name = source_names([(config.name, config.url)])[0]
    if not is_live(config.url):
        _check_recorded(config)
    if config.url.startswith(SCHEME):
        return TestPattern(name, config)
    if is_live(config.url):
        return live_source(name, config)
    url = redact_address(config.url)
    if is_url(config.url):
        raise SourceError(f"{url}: can't be opened; known are rtsp, rtmp, http, udp and {SCHEME}")
    path = Path(config.url)
    images = find_images(config.url)
    if images:
        return ImageFiles(name, images, config)
    if path.is_dir():
        raise NoFramesError(
            f"{url}: the folder has no images; known are {', '.join(IMAGE_ENDINGS)}"
        )
    if not path.exists():
        raise SourceError(f"{url}: there is no such file, and no image matches it")
    if not path.is_file():
        raise SourceError(f"{url}: isn't a file or a folder")
    return VideoFile(name, path, config)


def _check_recorded(config: SourceConfig) -> None:
    """Refuse options that would be ignored."""
    for option in LIVE_ONLY:
        if getattr(config, option) != getattr(SourceConfig(url="-"), option):
            raise ConfigError(f"{redact_address(config.url)}: {option} is for live sources only")
