"""Sources of URL schemes that other packages add by entry points."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from streamseg.config import SourceConfig
from streamseg.config.plugins import Plugin, find_plugins
from streamseg.errors import SourceError, StreamsegError, redact, redact_address
from streamseg.sources.base import (
    LazyFrame,
    SourceControl,
    SourceReport,
    check_pixels,
    deliver_frames,
)
from streamseg.structures.results import Frame, Image


class SourcePlugin(Protocol):
    """Interface of a plug-in source.

    The name of the entry point is the URL scheme, in lower case. It names a class, or another
    callable, that is called with the URL; it should raise ``ConfigError`` if the URL is invalid.

    Attributes:
        live: whether frames that can't be processed in time are dropped; otherwise the source
            waits.
    """

    live: bool

    def frames(self) -> Iterator[tuple[float, Image]]:
        """Yield the presentation time in seconds, ascending, and the image of each frame.

        Images are uint8 (H, W, 3) RGB. A generator is closed when the source is stopped; it should
        yield at least every few seconds, because stopping waits for the next frame.
        """


class PluginSource:
    """Source of a plug-in, with frame selection, limits and a report like any other.

    Args:
        name: name of the source.
        plugin: entry point of the plug-in.
        config: config of the source.

    Attributes:
        name: name of the source.
        live: whether frames may be dropped.
        report: counts of the frames.
        control: stops and pauses the source.

    Raises:
        ConfigError: the plug-in can't be imported, or refuses the URL.
        SourceError: the plug-in can't open the URL.
    """

    def __init__(self, name: str, plugin: Plugin, config: SourceConfig) -> None:
        self.name = name
        self.control = SourceControl()
        self.report = SourceReport()
        self._config = config
        self._origin = f"source plug-in {plugin.name!r} of {plugin.origin}"
        factory = plugin.load()
        try:
            self._implementation: SourcePlugin = factory(config.url)
            self.live = bool(self._implementation.live)
        except StreamsegError:
            raise
        except Exception as error:
            raise self._error(error) from error

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames; see ``Source.frames``.

        Raises:
            SourceError: the plug-in fails or yields something else than times and images.
        """
        self.report = SourceReport()
        return deliver_frames(self.name, self._config, self._read(), self.report, self.control)

    def _read(self) -> Generator[LazyFrame, None, None]:
        frames = self._implementation.frames()
        try:
            for index, (pts, image) in enumerate(frames):
                yield self._lazy_frame(index, pts, image)
        except StreamsegError:
            raise
        except Exception as error:
            raise self._error(error) from error
        finally:
            if isinstance(frames, Generator):
                frames.close()

    def _lazy_frame(self, index: int, pts: Any, image: Any) -> LazyFrame:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise TypeError(f"frame {index} is no uint8 (H, W, 3) array")
        if not isinstance(pts, int | float) or not math.isfinite(pts):
            raise TypeError(f"the time of frame {index} is {pts!r}: it must be finite seconds")
        height, width, _ = image.shape
        check_pixels(self._config.url, width, height, self._config.max_pixels)
        copy = image.copy(order="C")  # the plug-in may use its buffer again
        return LazyFrame(index, 0, float(pts), lambda: (copy, Fraction(1)))

    def _error(self, error: Exception) -> SourceError:
        reason = redact(f"{type(error).__name__}: {error}")
        return SourceError(f"{redact_address(self._config.url)}: {self._origin} failed: {reason}")


def find_source_plugin(name: str, config: SourceConfig) -> PluginSource | None:
    """Return the plug-in source for the URL's scheme, or None if none is installed.

    Raises:
        ConfigError: the plug-in can't be imported, or refuses the URL.
        SourceError: the plug-in can't open the URL.
    """
    scheme = config.url.partition("://")[0].lower()
    plugin = find_plugins("streamseg.sources").get(scheme)
    return None if plugin is None else PluginSource(name, plugin, config)
