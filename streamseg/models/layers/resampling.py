"""Maps resized and thresholded inside a window, with the pixels of resizing them whole.

Some networks give each object a map of the whole image. The textbook way resizes every one of them
to the frame. But bilinear resizing makes an output from two inputs of each axis, so what is above
a threshold lies around the inputs that are: only that window is made here, as a product of the
map's part with one small matrix for each axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from streamseg.structures.masks import BoolArray, IntArray

_MARGIN = 5e-7
"""More than the order of operations can change a value between 0 and 1."""


@dataclass(frozen=True, slots=True, eq=False)
class AxisWeights:
    """What each output of a resized axis is made from.

    Attributes:
        weights: float32 (outputs, inputs); few of a row aren't zero, and these are neighbours.
        first: int64 (outputs,), the first input with a weight; it never decreases.
        last: int64 (outputs,), the last one, likewise.
    """

    weights: Tensor
    first: IntArray
    last: IntArray

    @classmethod
    def of(cls, weights: Tensor) -> AxisWeights:
        """With the neighbours found; every row must have a weight."""
        used = weights.numpy() != 0
        last = used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
        return cls(weights, used.argmax(axis=1).astype(np.int64), last.astype(np.int64))

    def around(self, start: int, stop: int) -> tuple[slice, slice]:
        """The outputs that the inputs from ``start`` to ``stop`` have a part in.

        Returns:
            These outputs, and all the inputs that they are made from.
        """
        begin = int(np.searchsorted(self.last, start))
        end = int(np.searchsorted(self.first, stop))
        if end <= begin:
            return slice(begin, begin), slice(start, start)
        return slice(begin, end), slice(int(self.first[begin]), int(self.last[end - 1]) + 1)


@lru_cache(maxsize=16)
def bilinear(inputs: int, outputs: int) -> AxisWeights:
    """Of ``interpolate(mode="bilinear", align_corners=False)`` along one axis."""
    return AxisWeights.of(_weights(inputs, outputs))


@lru_cache(maxsize=16)
def bilinear_twice(inputs: int, enlarged: int, cut: int, outputs: int) -> AxisWeights:
    """Of resizing to ``enlarged``, keeping the first ``cut`` and resizing these to ``outputs``."""
    return AxisWeights.of(_weights(cut, outputs) @ _weights(inputs, enlarged)[:cut])


def resized_above(
    values: Tensor,
    rows: AxisWeights,
    columns: AxisWeights,
    threshold: float,
    whole: Callable[[], Tensor],
) -> tuple[BoolArray, tuple[int, int]]:
    """The pixels above ``threshold`` of a map that is resized.

    Args:
        values: float32 (h, w), in 0 to 1, on the CPU.
        rows: how the first axis is resized.
        columns: how the second axis is resized.
        threshold: pixels above it are inside.
        whole: resizes the map as a whole, float32 (H, W). It is asked where a pixel comes so close
            to the threshold that the order of operations could decide.

    Returns:
        bool crop of (H, W), and the x, y of its upper left pixel.
    """
    top, left, bottom, right = _extent(values > threshold)
    out_rows, in_rows = rows.around(top, bottom)
    out_columns, in_columns = columns.around(left, right)
    wide = values[in_rows, in_columns] @ columns.weights[out_columns, in_columns].T
    pixels = (rows.weights[out_rows, in_rows] @ wide).numpy()
    inside: BoolArray = pixels > threshold + _MARGIN
    if np.count_nonzero(inside) != np.count_nonzero(pixels > threshold - _MARGIN):
        inside = whole()[out_rows, out_columns].numpy() > threshold
    return inside, (out_columns.start, out_rows.start)


def _extent(inside: Tensor) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of what is true in (h, w), exclusive; zeros where nothing is."""
    rows, columns = inside.any(dim=1).nonzero(), inside.any(dim=0).nonzero()
    if len(rows) == 0:
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _weights(inputs: int, outputs: int) -> Tensor:
    """float32 (outputs, inputs), from torch itself: what becomes of each input alone."""
    alone = torch.eye(inputs)[None]  # channels are the inputs
    return interpolate(alone, outputs, mode="linear", align_corners=False)[0].T.contiguous()
