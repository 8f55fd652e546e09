"""Outlines of masks as polygons along pixel borders."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from streamseg.structures.arrays import BoolArray, IntArray


def trace_outlines(crop: BoolArray) -> Iterator[IntArray]:
    """Yield the outer outline of each 4-connected component: corners, int (K, 2) x, y.

    Every corner joins a horizontal and a vertical side. The corners in a row of the pixel grid form
    pairs (first and second, third and fourth, …), which are the horizontal sides; those in a column
    are the vertical sides. Following both alternately gives the outlines.
    """
    corners, by_column = _find_corners(crop)
    partner = np.empty((2, len(corners)), np.int64)
    in_rows = np.arange(len(corners)).reshape(-1, 2)
    in_columns = by_column.reshape(-1, 2)
    for axis, pairs in enumerate((in_rows, in_columns)):
        partner[axis, pairs[:, 0]], partner[axis, pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    visited = np.zeros(len(corners), np.bool_)
    for start in range(len(corners)):
        if visited[start]:
            continue
        ring, current, axis = [], start, 0
        while not visited[current]:
            visited[current] = True
            ring.append(current)
            current, axis = int(partner[axis, current]), 1 - axis
        x, y = corners[start]
        # The pixel to the lower right of the first corner is inside an outer outline.
        if x < crop.shape[1] and y < crop.shape[0] and crop[y, x]:
            yield corners[ring]


def _find_corners(crop: BoolArray) -> tuple[IntArray, IntArray]:
    """Return the corners of all outlines, row by row, int (K, 2) x, y, and their order by column.

    If two pixels touch diagonally, there are two corners at the same point; the first one belongs
    to the side on the left. The order by column is chosen so that the pixels stay separate.
    """
    padded = np.pad(crop, 1).astype(np.int8)
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    single = (upper_left + upper_right + lower_left + lower_right) % 2 == 1
    diagonal = (
        (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    )
    y, x = np.nonzero(single | diagonal)
    times = 1 + diagonal[y, x]
    is_falling = np.repeat(upper_left[y, x] == 1, times)  # diagonal from upper left to lower right
    y, x = np.repeat(y, times), np.repeat(x, times)
    order = np.arange(len(x))
    by_column = np.lexsort((np.where(is_falling, order, -order), y, x))
    return np.stack([x, y], axis=1), by_column
