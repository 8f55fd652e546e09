"""Benchmark of masks made from maps of the whole image (YOLACT, SOLO).

The baseline, the authors' method, resizes every map to the frame and thresholds it there; streamseg
resizes only the window that contains the object. Both start from the same maps, and their masks are
compared pixel by pixel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from streamseg.bench.postprocess import SIZE, THRESHOLD, make_scene
from streamseg.models.solo.segmenter import SoftMasks
from streamseg.models.yolact.segmenter import PrototypeMasks, crop_masks
from streamseg.structures.masks import Masks

YOLACT_GRID = 138
SOLO_SHAPE, SOLO_GRID = (750, 1333), (192, 336)
"""Shapes of the prepared image and of the maps for a 1080p frame, at the default input size."""


@dataclass(frozen=True, slots=True)
class MapsRow:
    """Result of one model family at 1080p; times are medians in milliseconds.

    Attributes:
        family: model family.
        instances: number of instances.
        baseline_ms: time to resize every map to the frame.
        streamseg_ms: time to resize every map in the window of its object.
        ratio: median over the rounds of the baseline's time divided by streamseg's.
        differing: number of pixels that differ, over all masks.
    """

    family: str
    instances: int
    baseline_ms: float
    streamseg_ms: float
    ratio: float
    differing: int


def measure_maps(instances: int, rounds: int) -> list[MapsRow]:
    """Measure interleaved rounds of both methods for each family, with all threads of torch."""
    return [
        _compare("yolact", instances, rounds, *_yolact_methods(instances)),
        _compare("solov2", instances, rounds, *_solo_methods(instances)),
    ]


def _yolact_methods(instances: int) -> tuple[Callable[[], Tensor], Callable[[], Masks]]:
    _, boxes = make_scene(instances)
    relative = boxes / torch.tensor([SIZE[1], SIZE[0]] * 2)
    draws = torch.Generator().manual_seed(instances)
    coarse = torch.randn(1, 32, 12, 12, generator=draws)
    prototypes = interpolate(coarse, (YOLACT_GRID, YOLACT_GRID), mode="bicubic")[0].relu()
    coefficients = torch.rand(instances, 32, generator=draws) * 2 - 0.8
    masks = PrototypeMasks(prototypes, coefficients, relative)

    def baseline() -> Tensor:
        maps = crop_masks(prototypes, coefficients, relative)[None]
        return interpolate(maps, SIZE, mode="bilinear", align_corners=False)[0] > THRESHOLD

    return baseline, lambda: masks.masks(SIZE, THRESHOLD)


def _solo_methods(instances: int) -> tuple[Callable[[], Tensor], Callable[[], Masks]]:
    _, boxes = make_scene(instances)
    x1, y1, x2, y2 = (boxes * (SOLO_SHAPE[0] / SIZE[0] / 4)).T[:, :, None, None]
    y = torch.arange(SOLO_GRID[0])[:, None]
    x = torch.arange(SOLO_GRID[1])
    across, down = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
    maps = torch.sigmoid(8 * (1 - across**2 - down**2))
    masks = SoftMasks(maps, SOLO_SHAPE)

    def baseline() -> Tensor:
        large = (4 * SOLO_GRID[0], 4 * SOLO_GRID[1])
        shown = interpolate(maps[None], large, mode="bilinear", align_corners=False)
        shown = shown[:, :, : SOLO_SHAPE[0], : SOLO_SHAPE[1]]
        return interpolate(shown, SIZE, mode="bilinear", align_corners=False)[0] > THRESHOLD

    return baseline, lambda: masks.masks(SIZE, THRESHOLD)


def _compare(
    family: str,
    instances: int,
    rounds: int,
    baseline: Callable[[], Tensor],
    streamseg: Callable[[], Masks],
) -> MapsRow:
    times = []
    for _ in range(rounds + 1):  # the first is a warm-up
        start = time.perf_counter()
        old = baseline()
        between = time.perf_counter()
        new = streamseg()
        times.append((between - start, time.perf_counter() - between))
    return MapsRow(
        family,
        instances,
        median(a for a, _ in times[1:]) * 1000,
        median(b for _, b in times[1:]) * 1000,
        median(a / b for a, b in times[1:]),
        int(np.count_nonzero(new.to_arrays() != old.numpy())),
    )
