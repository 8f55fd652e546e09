"""Synthetic test pattern: moving discs and boxes with known masks and track ids.

Every frame is a function of its index, so :meth:`TestPattern.ground_truth` computes that of any
frame without rendering those before it. The pattern is used in tests, and as a source if no
camera is at hand: ``test:?size=640x360&fps=25&frames=250&objects=6&seed=0``. With ``live=1`` it
behaves like a camera: frames arrive in real time, without an end unless ``frames`` is given.
"""

from __future__ import annotations

import colorsys
import math
import re
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from streamseg.config import SourceConfig
from streamseg.errors import ConfigError
from streamseg.sources.base import (
    LazyFrame,
    SourceControl,
    SourceReport,
    check_pixels,
    deliver_frames,
)
from streamseg.structures.masks import BoolArray, Masks, Size
from streamseg.structures.results import Frame, Image, Instances

TEST_SCHEME = "test:"
DISC, BOX = 1, 2
CATEGORIES = {DISC: "disc", BOX: "box"}

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_MAX_OBJECTS = 1000
_MAX_FRAMES = 10**9
_SQUARE_PIXELS = Fraction(1)


@dataclass(frozen=True, slots=True)
class PatternOptions:
    """Options in the query of a ``test:`` URL.

    Attributes:
        size: (height, width); written with the width first in the URL: ``640x360``.
        fps: frames per second.
        frames: number of frames.
        objects: number of objects; later ones occlude earlier ones.
        seed: random seed of the sizes, positions, speeds and the background.
        live: whether frames arrive in real time, as from a camera.
    """

    size: Size = (360, 640)
    fps: float = 25.0
    frames: int = 250
    objects: int = 6
    seed: int = 0
    live: bool = False

    @classmethod
    def parse(cls, url: str) -> PatternOptions:
        """Parse the options in ``test:?key=value&…``.

        Raises:
            ConfigError: a key is unknown or repeated, or a value is invalid.
        """
        query = url[len(TEST_SCHEME) :]
        if query and not query.startswith("?"):
            raise ConfigError(f"{url}: write the options as {TEST_SCHEME}?key=value&key=value")
        try:
            pairs = parse_qsl(query[1:], keep_blank_values=True, strict_parsing=bool(query[1:]))
        except ValueError:
            raise ConfigError(f"{url}: write the options as {TEST_SCHEME}?key=value") from None
        options: dict[str, Any] = {}
        for key, text in pairs:
            if key not in _OPTION_PARSERS:
                raise ConfigError(
                    f"{url}: {key!r} is unknown; known are {', '.join(_OPTION_PARSERS)}"
                )
            if key in options:
                raise ConfigError(f"{url}: {key} is given twice")
            options[key] = _OPTION_PARSERS[key](url, key, text)
        if options.get("live"):
            options.setdefault("frames", _MAX_FRAMES)
        return cls(**options)


def _integer_parser(low: int, high: int) -> Callable[[str, str, str], int]:
    """Return a parser of integers from ``low`` to ``high``."""

    def parse(url: str, key: str, text: str) -> int:
        if not re.fullmatch(r"\d{1,10}", text) or not low <= int(text) <= high:
            raise ConfigError(f"{url}: {key} must be a whole number from {low} to {high}")
        return int(text)

    return parse


def _parse_rate(url: str, key: str, text: str) -> float:
    if not re.fullmatch(r"\d{1,4}(\.\d{1,6})?", text) or not 0 < float(text) <= 1000:
        raise ConfigError(f"{url}: {key} must be a number over 0 and up to 1000")
    return float(text)


def _parse_size(url: str, key: str, text: str) -> Size:
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not size or not int(size[1]) or not int(size[2]):
        raise ConfigError(f"{url}: {key} must be width x height, such as 640x360")
    return int(size[2]), int(size[1])


_OPTION_PARSERS: dict[str, Callable[[str, str, str], Any]] = {
    "size": _parse_size,
    "fps": _parse_rate,
    "frames": _integer_parser(1, _MAX_FRAMES),
    "objects": _integer_parser(0, _MAX_OBJECTS),
    "seed": _integer_parser(0, 2**32 - 1),
    "live": lambda url, key, text: bool(_integer_parser(0, 1)(url, key, text)),
}


@dataclass(frozen=True, slots=True)
class _Shape:
    """Moving disc or box.

    Attributes:
        label: ``DISC`` or ``BOX``.
        half_size: half of width and height, in pixels.
        start: (x, y) of the center in frame 0, in pixels.
        speed: (x, y) in pixels per frame.
        color: RGB.
    """

    label: int
    half_size: tuple[float, float]
    start: tuple[float, float]
    speed: tuple[float, float]
    color: tuple[int, int, int]


class TestPattern:
    """Moving discs and boxes; a :class:`~streamseg.sources.base.Source`.

    Objects leave the frame at one side and enter it at the opposite one with a new track id. Where
    objects overlap, later ones occlude earlier ones.

    Raises:
        ConfigError: an option in the URL is unknown or invalid.
        TooLargeError: the frames have more than ``max_pixels``.
    """

    __test__ = False  # pytest would collect it as a test because of its name

    def __init__(self, name: str, config: SourceConfig) -> None:
        self.name = name
        self.control = SourceControl()
        self.options = PatternOptions.parse(config.url)
        self.live = self.options.live
        height, width = self.options.size
        check_pixels(config.url, width, height, config.max_pixels)
        self._config = config
        rng = np.random.default_rng(self.options.seed)
        self._shapes = [_create_shape(i, self.options, rng) for i in range(self.options.objects)]
        self._background = _create_background(self.options.size, rng)
        self.report = self._create_report()

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames; see :class:`~streamseg.sources.base.Source`."""
        self.report = self._create_report()
        yield from deliver_frames(
            self.name, self._config, self._lazy_frames(), self.report, self.control
        )

    def ground_truth(self, index: int) -> Instances:
        """Return the ground truth of a frame: visible masks, tight boxes and track ids."""
        owners = np.zeros(self.options.size, np.int32)
        bounds, track_ids = [], []
        for row, shape in enumerate(self._shapes):
            (x1, y1), bitmap, crossings = self._locate(shape, index)
            y2, x2 = y1 + bitmap.shape[0], x1 + bitmap.shape[1]
            owners[y1:y2, x1:x2][bitmap] = row + 1
            bounds.append((x1, y1, x2, y2))
            track_ids.append(1 + row + crossings * len(self._shapes))
        crops, origins, visible_rows = [], [], []
        for row, (x1, y1, x2, y2) in enumerate(bounds):
            visible = owners[y1:y2, x1:x2] == row + 1
            if visible.any():
                crops.append(visible)
                origins.append((x1, y1))
                visible_rows.append(row)
        masks = Masks.from_crops(crops, origins, self.options.size)
        return Instances(
            boxes=masks.boxes,
            scores=np.ones(len(crops), np.float32),
            labels=np.array([self._shapes[row].label for row in visible_rows], np.int64),
            masks=masks,
            categories=CATEGORIES,
            track_ids=np.array([track_ids[row] for row in visible_rows], np.int64),
        )

    def render(self, index: int) -> Image:
        """Render a frame: uint8 (H, W, 3) RGB."""
        image = self._background.copy()
        for shape in self._shapes:
            (x1, y1), bitmap, _ = self._locate(shape, index)
            image[y1 : y1 + bitmap.shape[0], x1 : x1 + bitmap.shape[1]][bitmap] = shape.color
        return image

    def _create_report(self) -> SourceReport:
        options = self.options
        return SourceReport(
            size=options.size,
            fps=options.fps,
            expected=options.frames,
            duration=options.frames / options.fps,
        )

    def _lazy_frames(self) -> Generator[LazyFrame, None, None]:
        start = time.monotonic()
        for index in range(self.options.frames):
            if self.live:
                self.control.sleep(start + index / self.options.fps - time.monotonic())
            yield LazyFrame(index, 0, index / self.options.fps, partial(self._load, index))

    def _load(self, index: int) -> tuple[Image, Fraction]:
        return self.render(index), _SQUARE_PIXELS

    def _locate(self, shape: _Shape, index: int) -> tuple[tuple[int, int], BoolArray, int]:
        """Return position and bitmap of a shape in a frame.

        Returns:
            (x, y) of its upper left pixel; its bitmap within the frame, bool, may be empty; and the
            number of times that it has left the frame before.
        """
        center, crossings = [], 0
        for axis, extent in enumerate(reversed(self.options.size)):
            # A cycle includes the shape's own size, so that it disappears before it returns.
            cycle = extent + 2 * shape.half_size[axis]
            cycles, position = divmod(shape.start[axis] + shape.speed[axis] * index, cycle)
            center.append(position - shape.half_size[axis])
            crossings += abs(int(cycles))
        origin, bitmap = _rasterize(shape, center[0], center[1], self.options.size)
        return origin, bitmap, crossings


def _rasterize(shape: _Shape, x: float, y: float, size: Size) -> tuple[tuple[int, int], BoolArray]:
    """Return the bitmap of the pixels whose centers lie in the shape, and its origin (x, y).

    Args:
        shape: shape to rasterize.
        x: of its center.
        y: of its center.
        size: (height, width) to which it is clipped.
    """
    (half_width, half_height), (height, width) = shape.half_size, size
    x1, x2 = (int(e) for e in np.clip((x - half_width, x + half_width + 1), 0, width))
    y1, y2 = (int(e) for e in np.clip((y - half_height, y + half_height + 1), 0, height))
    dx = (np.arange(x1, x2) + 0.5 - x) / half_width
    dy = (np.arange(y1, y2) + 0.5 - y)[:, None] / half_height
    if shape.label == DISC:
        return (x1, y1), dx**2 + dy**2 <= 1
    return (x1, y1), (abs(dx) <= 1) & (abs(dy) <= 1)


def _create_shape(row: int, options: PatternOptions, rng: np.random.Generator) -> _Shape:
    """Draw a random size, position and speed; label and hue depend on ``row`` alone."""
    height, width = options.size
    short_side = min(height, width)
    radius = short_side * rng.uniform(0.06, 0.16)
    label = DISC if row % 2 == 0 else BOX
    aspect = 1.0 if label == DISC else rng.uniform(0.6, 1.6)
    half_size = (max(radius * aspect, 1.0), max(radius, 1.0))
    start = (rng.uniform(0, width + 2 * half_size[0]), rng.uniform(0, height + 2 * half_size[1]))
    direction = rng.uniform(0, 2 * math.pi)
    speed = short_side * rng.uniform(0.08, 0.3) / options.fps
    red, green, blue = colorsys.hsv_to_rgb(
        row * _GOLDEN_RATIO % 1, 0.9 - 0.4 * (row // 8 % 2), 0.95
    )
    return _Shape(
        label=label,
        half_size=half_size,
        start=start,
        speed=(speed * math.cos(direction), speed * math.sin(direction)),
        color=(round(red * 255), round(green * 255), round(blue * 255)),
    )


def _create_background(size: Size, rng: np.random.Generator) -> Image:
    """Return a gray texture of waves and noise, uint8 (H, W, 3), that resembles no object."""
    height, width = size
    y, x = np.ogrid[:height, :width]
    waves = 100 + 25 * np.sin(x / 23) * np.cos(y / 31)
    noise = rng.integers(-12, 13, size)
    gray = (waves + noise).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)
