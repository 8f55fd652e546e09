"""Overlap of masks and boxes: intersections and IoU, without full-frame bitmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamseg.structures.arrays import DoubleArray, IntArray

if TYPE_CHECKING:
    from streamseg.structures.masks import Masks


def box_iou(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> DoubleArray:
    """Return the IoU of boxes (N, 4) and (M, 4) xyxy, float64 (N, M)."""
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersections = np.maximum(high - low, 0).prod(axis=2)
    areas_a = np.maximum(a[:, 2:] - a[:, :2], 0).prod(axis=1)
    areas_b = np.maximum(b[:, 2:] - b[:, :2], 0).prod(axis=1)
    return safe_ratio(intersections, areas_a[:, None] + areas_b[None] - intersections)


def safe_ratio(numerator: DoubleArray, denominator: DoubleArray) -> DoubleArray:
    """Return ``numerator / denominator``, and 0 where the denominator is 0."""
    ratio: DoubleArray = np.divide(
        numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0
    )
    return ratio


def intersection_areas(a: Masks, b: Masks) -> DoubleArray:
    """Return the number of common pixels of each pair, (N, M)."""
    low, high = window_intersections(a, b)
    areas = np.zeros((len(a), len(b)))
    for i, j in np.argwhere((high > low).all(axis=2)):
        areas[i, j] = intersection_area(a, i, b, j, (*low[i, j], *high[i, j]))
    return areas


def window_intersections(a: Masks, b: Masks) -> tuple[IntArray, IntArray]:
    """Return the intersections of the windows of each pair: two corners, (N, M, 2) each."""
    low = np.maximum(a.windows[:, None, :2], b.windows[None, :, :2])
    high = np.minimum(a.windows[:, None, 2:], b.windows[None, :, 2:])
    return low, high


def intersection_area(a: Masks, i: int, b: Masks, j: int, window: tuple[int, int, int, int]) -> int:
    """Return the number of common pixels of row ``i`` of ``a`` and row ``j`` of ``b``.

    Args:
        a: masks of a frame.
        i: row of ``a``.
        b: masks of the same frame.
        j: row of ``b``.
        window: intersection of the windows of both.
    """
    x1, y1, x2, y2 = window
    ax, ay = a.windows[i, :2]
    bx, by = b.windows[j, :2]
    part_a = a.crops[i][y1 - ay : y2 - ay, x1 - ax : x2 - ax]
    part_b = b.crops[j][y1 - by : y2 - by, x1 - bx : x2 - bx]
    return int(np.count_nonzero(part_a & part_b))
