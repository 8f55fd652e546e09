"""The synthetic test pattern: moving discs and boxes whose masks and identities are known.

Everything follows from a formula, so :meth:`TestPattern.truth` says what is right at any frame
without rendering the ones before. It is the ground truth of this project's own tests, and a source
for whoever has no camera at hand: ``test:?size=640x360&fps=25&frames=250&objects=6&seed=0``. With
``live=1`` it is a camera: it takes its time, and has no end unless ``frames`` says one.
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
import numpy.typing as npt

from streamseg.config import SourceConfig
from streamseg.errors import ConfigError
from streamseg.sources.base import LazyFrame, SourceControl, SourceReport, check_pixels, deliver
from streamseg.structures.masks import BoolArray, Masks, Size
from streamseg.structures.results import Frame, Image, Instances

SCHEME = "test:"
DISC, BOX = 1, 2
CATEGORIES = {DISC: "disc", BOX: "box"}

_GOLDEN = (math.sqrt(5) - 1) / 2
_MAX_OBJECTS = 1000
_MOST_FRAMES = 10**9
_SQUARE = Fraction(1)


@dataclass(frozen=True, slots=True)
class PatternOptions:
    """What can be said in the query of a ``test:`` url.

    Attributes:
        size: (height, width); written ``640x360``, width first.
        fps: frames a second.
        frames: how many.
        objects: how many move about; a later one hides an earlier one.
        seed: of sizes, places, speeds and the background.
        live: whether frames come when they are due, as from a camera.
    """

    size: Size = (360, 640)
    fps: float = 25.0
    frames: int = 250
    objects: int = 6
    seed: int = 0
    live: bool = False

    @classmethod
    def parse(cls, url: str) -> PatternOptions:
        """The options in ``test:?key=value&…``.

        Raises:
            ConfigError: an unknown or repeated key, or a value that isn't one.
        """
        query = url[len(SCHEME) :]
        if query and not query.startswith("?"):
            raise ConfigError(f"{url}: write the options as {SCHEME}?key=value&key=value")
        try:
            pairs = parse_qsl(query[1:], keep_blank_values=True, strict_parsing=bool(query[1:]))
        except ValueError:
            raise ConfigError(f"{url}: write the options as {SCHEME}?key=value") from None
        options: dict[str, Any] = {}
        for key, text in pairs:
            if key not in _READERS:
                raise ConfigError(f"{url}: {key!r} is unknown; known are {', '.join(_READERS)}")
            if key in options:
                raise ConfigError(f"{url}: {key} is given twice")
            options[key] = _READERS[key](url, key, text)
        if options.get("live"):
            options.setdefault("frames", _MOST_FRAMES)
        return cls(**options)


def _whole(low: int, high: int) -> Callable[[str, str, str], int]:
    def read(url: str, key: str, text: str) -> int:
        if not re.fullmatch(r"\d{1,10}", text) or not low <= int(text) <= high:
            raise ConfigError(f"{url}: {key} must be a whole number from {low} to {high}")
        return int(text)

    return read


def _read_rate(url: str, key: str, text: str) -> float:
    if not re.fullmatch(r"\d{1,4}(\.\d{1,6})?", text) or not 0 < float(text) <= 1000:
        raise ConfigError(f"{url}: {key} must be a number over 0 and up to 1000")
    return float(text)


def _read_size(url: str, key: str, text: str) -> Size:
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not size or not int(size[1]) or not int(size[2]):
        raise ConfigError(f"{url}: {key} must be width x height, such as 640x360")
    return int(size[2]), int(size[1])


_READERS: dict[str, Callable[[str, str, str], Any]] = {
    "size": _read_size,
    "fps": _read_rate,
    "frames": _whole(1, _MOST_FRAMES),
    "objects": _whole(0, _MAX_OBJECTS),
    "seed": _whole(0, 2**32 - 1),
    "live": lambda url, key, text: bool(_whole(0, 1)(url, key, text)),
}


@dataclass(frozen=True, slots=True)
class _Shape:
    """One mover; lengths in pixels, speeds in pixels a frame, places are of its centre."""

    label: int
    half: tuple[float, float]
    begin: tuple[float, float]
    speed: tuple[float, float]
    colour: tuple[int, int, int]


class TestPattern:
    """Moving discs and boxes; a :class:`~streamseg.sources.base.Source`.

    Objects leave the frame at one side and enter it at the other, as somebody else: each pass has
    an identity of its own. Where two overlap, the later one hides the earlier one.

    Raises:
        ConfigError: the url's options are wrong.
        TooLargeError: its frames have more than ``max_pixels``.
    """

    __test__ = False  # for pytest, which takes it for a test because of its name

    def __init__(self, name: str, config: SourceConfig) -> None:
        self.name = name
        self.control = SourceControl()
        self.options = PatternOptions.parse(config.url)
        self.live = self.options.live
        height, width = self.options.size
        check_pixels(config.url, width, height, config.max_pixels)
        self._config = config
        rng = np.random.default_rng(self.options.seed)
        self._shapes = [_make_shape(i, self.options, rng) for i in range(self.options.objects)]
        self._background = _make_background(self.options.size, rng)
        self.report = self._hints()

    def frames(self) -> Generator[Frame, None, None]:
        """See :class:`~streamseg.sources.base.Source`."""
        self.report = self._hints()
        yield from deliver(self.name, self._config, self._pictures(), self.report, self.control)

    def truth(self, index: int) -> Instances:
        """What is visible in a frame: masks without what is hidden, tight boxes, identities."""
        owners = np.zeros(self.options.size, np.int32)
        passes = [self._draw(owners, row, index) for row in range(len(self._shapes))]
        crops, origins, labels, identities = [], [], [], []
        for row, (x1, y1, x2, y2, identity) in enumerate(passes):
            visible = owners[y1:y2, x1:x2] == row + 1
            if visible.any():
                crops.append(visible)
                origins.append((x1, y1))
                labels.append(self._shapes[row].label)
                identities.append(identity)
        masks = Masks.from_crops(crops, origins, self.options.size)
        return Instances(
            boxes=masks.boxes,
            scores=np.ones(len(crops), np.float32),
            labels=np.array(labels, np.int64),
            masks=masks,
            categories=CATEGORIES,
            track_ids=np.array(identities, np.int64),
        )

    def render(self, index: int) -> Image:
        """The frame's pixels, uint8 (H, W, 3) RGB."""
        image = self._background.copy()
        for shape in self._shapes:
            (x1, y1), bitmap, _ = self._place(shape, index)
            image[y1 : y1 + bitmap.shape[0], x1 : x1 + bitmap.shape[1]][bitmap] = shape.colour
        return image

    def _hints(self) -> SourceReport:
        options = self.options
        return SourceReport(
            size=options.size,
            fps=options.fps,
            expected=options.frames,
            duration=options.frames / options.fps,
        )

    def _pictures(self) -> Generator[LazyFrame, None, None]:
        began = time.monotonic()
        for index in range(self.options.frames):
            if self.live:
                self.control.sleep(began + index / self.options.fps - time.monotonic())
            yield LazyFrame(index, 0, index / self.options.fps, partial(self._load, index))

    def _load(self, index: int) -> tuple[Image, Fraction]:
        return self.render(index), _SQUARE

    def _draw(
        self, owners: npt.NDArray[np.int32], row: int, index: int
    ) -> tuple[int, int, int, int, int]:
        """Put a shape's number where it is; where that is, and whose pass it is."""
        (x1, y1), bitmap, lap = self._place(self._shapes[row], index)
        y2, x2 = y1 + bitmap.shape[0], x1 + bitmap.shape[1]
        owners[y1:y2, x1:x2][bitmap] = row + 1
        return x1, y1, x2, y2, 1 + row + lap * len(self._shapes)

    def _place(self, shape: _Shape, index: int) -> tuple[tuple[int, int], BoolArray, int]:
        """Upper left pixel (x, y) and bitmap of what lies in the frame, and which pass it is."""
        centres, laps = [], 0
        for axis, extent in enumerate(reversed(self.options.size)):
            # The way round is the frame and the shape itself, so that it is all out in between.
            way = extent + 2 * shape.half[axis]
            lap, along = divmod(shape.begin[axis] + shape.speed[axis] * index, way)
            centres.append(along - shape.half[axis])
            laps += abs(int(lap))
        origin, bitmap = _rasterise(shape, centres[0], centres[1], self.options.size)
        return origin, bitmap, laps


def _rasterise(shape: _Shape, x: float, y: float, size: Size) -> tuple[tuple[int, int], BoolArray]:
    """The pixels whose centres lie in the shape, cut to the frame."""
    height, width = size
    x1, x2 = (int(e) for e in np.clip((x - shape.half[0], x + shape.half[0] + 1), 0, width))
    y1, y2 = (int(e) for e in np.clip((y - shape.half[1], y + shape.half[1] + 1), 0, height))
    across = (np.arange(x1, x2) + 0.5 - x) / shape.half[0]
    down = (np.arange(y1, y2) + 0.5 - y)[:, None] / shape.half[1]
    if shape.label == DISC:
        inside = across**2 + down**2 <= 1
    else:
        inside = (abs(across) <= 1) & (abs(down) <= 1)
    return (x1, y1), inside


def _make_shape(row: int, options: PatternOptions, rng: np.random.Generator) -> _Shape:
    height, width = options.size
    short = min(height, width)
    radius = short * rng.uniform(0.06, 0.16)
    label = DISC if row % 2 == 0 else BOX
    stretch = 1.0 if label == DISC else rng.uniform(0.6, 1.6)
    half = (max(radius * stretch, 1.0), max(radius, 1.0))
    begin = (rng.uniform(0, width + 2 * half[0]), rng.uniform(0, height + 2 * half[1]))
    heading = rng.uniform(0, 2 * math.pi)
    pace = short * rng.uniform(0.08, 0.3) / options.fps
    red, green, blue = colorsys.hsv_to_rgb(row * _GOLDEN % 1, 0.9 - 0.4 * (row // 8 % 2), 0.95)
    return _Shape(
        label=label,
        half=half,
        begin=begin,
        speed=(pace * math.cos(heading), pace * math.sin(heading)),
        colour=(round(red * 255), round(green * 255), round(blue * 255)),
    )


def _make_background(size: Size, rng: np.random.Generator) -> Image:
    """Grey waves with some grain, so that there is texture but nothing looks like an object."""
    height, width = size
    y, x = np.ogrid[:height, :width]
    waves = 100 + 25 * np.sin(x / 23) * np.cos(y / 31)
    grain = rng.integers(-12, 13, size)
    grey = (waves + grain).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
