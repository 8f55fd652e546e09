"""The outlines of a mask as polygons along the edges of its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]


def outer_rings(crop: BoolArray) -> Iterator[IntArray]:
    """The outer outline of each 4-connected part, int (K, 2) x, y of its corners.

    Every corner of an outline joins one horizontal to one vertical edge. Along a row of the
    corner lattice the corners pair up, first with second, third with fourth: those are the
    horizontal edges; along a column likewise. Walking the two in turn follows the outlines.
    """
    corners, by_column = _corners(crop)
    partner = np.empty((2, len(corners)), np.int64)
    in_rows = np.arange(len(corners)).reshape(-1, 2)
    in_columns = by_column.reshape(-1, 2)
    for axis, pairs in enumerate((in_rows, in_columns)):
        partner[axis, pairs[:, 0]], partner[axis, pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    visited = np.zeros(len(corners), np.bool_)
    for start in range(len(corners)):
        if visited[start]:
            continue
        ring, at, axis = [], start, 0
        while not visited[at]:
            visited[at] = True
            ring.append(at)
            at, axis = int(partner[axis, at]), 1 - axis
        x, y = corners[start]
        # The first corner of a ring in reading order has the ring's inside to its lower right.
        if x < crop.shape[1] and y < crop.shape[0] and crop[y, x]:
            yield corners[ring]


def _corners(crop: BoolArray) -> tuple[IntArray, IntArray]:
    """Corners of all outlines in reading order, int (K, 2) x, y, and the order down the columns.

    Where two pixels touch diagonally, two corners share a place; the first of them takes the edge
    to the left. Which of the two takes the edge upwards decides that the pixels stay apart.
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
    falling = np.repeat(upper_left[y, x] == 1, times)  # filled at the upper left and lower right
    y, x = np.repeat(y, times), np.repeat(x, times)
    order = np.arange(len(x))
    by_column = np.lexsort((np.where(falling, order, -order), y, x))
    return np.stack([x, y], axis=1), by_column
