"""Resizing and thresholding of mask maps inside a window, identical to resizing whole maps.

Some networks predict a map of the whole image for each object, which the usual implementation
resizes to the frame. Bilinear resizing computes an output from two inputs of each axis, so outputs
above the threshold lie near inputs above it: only that window is computed, as the product of a
part of the map with one small matrix per axis.
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
"""Upper bound of the rounding error of a value between 0 and 1."""


@dataclass(frozen=True, slots=True, eq=False)
class AxisWeights:
    """Weights of the inputs in each output of a resized axis.

    Attributes:
        weights: float32 (outputs, inputs); the nonzero ones of a row are adjacent.
        first: int64 (outputs,), first input with a weight, ascending.
        last: int64 (outputs,), last input with a weight, ascending.
    """

    weights: Tensor
    first: IntArray
    last: IntArray

    @classmethod
    def from_matrix(cls, weights: Tensor) -> AxisWeights:
        """Find the first and last inputs; each row must have a nonzero weight."""
        used = weights.numpy() != 0
        last = used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
        return cls(weights, used.argmax(axis=1).astype(np.int64), last.astype(np.int64))

    def around(self, start: int, stop: int) -> tuple[slice, slice]:
        """Return the outputs affected by the inputs from ``start`` to ``stop``.

        Returns:
            These outputs, and all inputs that they depend on.
        """
        begin = int(np.searchsorted(self.last, start))
        end = int(np.searchsorted(self.first, stop))
        if end <= begin:
            return slice(begin, begin), slice(start, start)
        return slice(begin, end), slice(int(self.first[begin]), int(self.last[end - 1]) + 1)


@lru_cache(maxsize=16)
def bilinear(inputs: int, outputs: int) -> AxisWeights:
    """Return the weights of ``interpolate(mode="bilinear", align_corners=False)`` for an axis."""
    return AxisWeights.from_matrix(_weights(inputs, outputs))


@lru_cache(maxsize=16)
def bilinear_twice(inputs: int, enlarged: int, cut: int, outputs: int) -> AxisWeights:
    """Return the weights of resizing to ``enlarged``, cropping to ``cut`` and resizing again."""
    return AxisWeights.from_matrix(_weights(cut, outputs) @ _weights(inputs, enlarged)[:cut])


def resize_and_threshold(
    values: Tensor,
    rows: AxisWeights,
    columns: AxisWeights,
    threshold: float,
    whole: Callable[[], Tensor],
) -> tuple[BoolArray, tuple[int, int]]:
    """Return the pixels of a resized map that are above the threshold.

    Args:
        values: float32 (h, w), 0 to 1, on the CPU.
        rows: weights of the first axis.
        columns: weights of the second axis.
        threshold: threshold.
        whole: resizes the whole map, float32 (H, W); called if a pixel is so close to the threshold
            that rounding could decide.

    Returns:
        Boolean crop of (H, W), and x, y of its upper left pixel.
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
    """Return (top, left, bottom, right), exclusive, of the true pixels; zeros without any."""
    rows, columns = inside.any(dim=1).nonzero(), inside.any(dim=0).nonzero()
    if len(rows) == 0:
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _weights(inputs: int, outputs: int) -> Tensor:
    """Compute float32 (outputs, inputs) by resizing each unit vector with torch."""
    units = torch.eye(inputs)[None]  # channels are the inputs
    return interpolate(units, outputs, mode="linear", align_corners=False)[0].T.contiguous()
