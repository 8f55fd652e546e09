"""Sources of frames: recordings, image folders, live streams and plug-ins, opened by URL or path.

``open_source`` opens them all. Recorded sources (``video_file``, ``image_sequence``, ``pattern``)
wait until a frame is consumed; live ones (``live``, ``connection``, ``http`` …) don't. Other
packages add URL schemes by entry points of the group ``streamseg.sources``: see ``plugin``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from streamseg.config import SourceConfig, assign_source_names, to_source_config
from streamseg.config.plugins import find_plugins
from streamseg.errors import ConfigError, NoFramesError, SourceError, redact_address
from streamseg.sources.base import Source, SourceControl, SourceReport
from streamseg.sources.connection import create_live_source, is_live_url
from streamseg.sources.image_file import IMAGE_EXTENSIONS
from streamseg.sources.image_sequence import ImageSequenceSource
from streamseg.sources.inputs import (
    Input,
    assign_output_folders,
    expand_inputs,
    find_images,
    find_inputs,
    is_url,
)
from streamseg.sources.live import LiveSource
from streamseg.sources.pattern import TEST_SCHEME, TestPattern
from streamseg.sources.plugin import find_source_plugin
from streamseg.sources.video_file import VideoFileSource

__all__ = [
    "ImageSequenceSource",
    "Input",
    "LiveSource",
    "Source",
    "SourceControl",
    "SourceReport",
    "TestPattern",
    "VideoFileSource",
    "assign_output_folders",
    "expand_inputs",
    "find_inputs",
    "open_source",
]

LIVE_ONLY = (
    *("transport", "open_timeout", "stall_after", "max_attempts", "user"),
    *("password_env", "password_file", "hosts", "input"),
)


def open_source(config: SourceConfig | str | os.PathLike[str], **options: Any) -> Source:
    """Open a source and check it; no file or connection stays open until ``frames()`` is called.

    Args:
        config: config of the source, or its URL or path.
        **options: fields of :class:`streamseg.config.SourceConfig`, such as ``start=2.0``.

    Raises:
        ConfigError: a value of the config or of a ``test:`` URL is invalid or belongs to another
            kind of source, or a plug-in can't be imported.
        NoFramesError: nothing in it can be decoded.
        TooLargeError: its frames have more than ``max_pixels``.
        SourceError: it doesn't exist, can't be read, or is of an unknown kind.
    """
    checked = to_source_config(config, **options)
    try:
        return _open(checked)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SourceError(f"{redact_address(checked.url)[:200]}: can't be read: {reason}") from None


def _open(config: SourceConfig) -> Source:
    name = assign_source_names([(config.name, config.url)])[0]
    if not is_live_url(config.url):
        _check_recorded(config)
    if config.url.startswith(TEST_SCHEME):
        return TestPattern(name, config)
    if is_live_url(config.url):
        return create_live_source(name, config)
    url = redact_address(config.url)
    if is_url(config.url):
        plugin = find_source_plugin(name, config)
        if plugin is not None:
            return plugin
        schemes = ["rtsp", "rtmp", "http", "udp", TEST_SCHEME, *find_plugins("streamseg.sources")]
        raise SourceError(f"{url}: can't be opened; known are {', '.join(schemes)}")
    path = Path(config.url)
    images = find_images(config.url)
    if images:
        return ImageSequenceSource(name, images, config)
    if path.is_dir():
        raise NoFramesError(
            f"{url}: the folder has no images; known are {', '.join(IMAGE_EXTENSIONS)}"
        )
    if not path.exists():
        raise SourceError(f"{url}: there is no such file, and no image matches it")
    if not path.is_file():
        raise SourceError(f"{url}: isn't a file or a folder")
    return VideoFileSource(name, path, config)


def _check_recorded(config: SourceConfig) -> None:
    """Refuse options of live sources, which would be ignored."""
    for option in LIVE_ONLY:
        if getattr(config, option) != getattr(SourceConfig(url="-"), option):
            raise ConfigError(f"{redact_address(config.url)}: {option} is for live sources only")
