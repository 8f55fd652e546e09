"""NumPy array types, frame sizes, and validation of both."""

from __future__ import annotations

import operator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamseg.errors import MaskError

BoolArray: TypeAlias = npt.NDArray[np.bool_]
FloatArray: TypeAlias = npt.NDArray[np.float32]
DoubleArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

MAX_PIXELS = 64_000_000
"""Maximum number of pixels of a frame; checked before memory is allocated."""


def check_size(size: Size, max_pixels: int = MAX_PIXELS) -> Size:
    """Return ``size`` as two positive ints whose product is at most ``max_pixels``.

    Raises:
        MaskError: the size is invalid or too large.
    """
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise MaskError(f"a size must be (height, width) in pixels, not {size!r}"[:120]) from None
    if height < 1 or width < 1 or height * width > max_pixels:
        raise MaskError(f"a frame of {height} x {width} pixels is empty or over {max_pixels}")
    return height, width


def to_numbers(name: str, values: npt.ArrayLike, columns: int, kinds: str) -> npt.NDArray[Any]:
    """Convert values to an array (N, columns).

    Args:
        name: name of the values, for error messages.
        values: numbers; floats are accepted as integers if they are whole.
        columns: number of columns.
        kinds: allowed ``dtype.kind`` characters: ``iu`` for integers, ``iuf`` for any numbers.

    Raises:
        MaskError: the values are no numbers of this kind, or have another shape.
    """
    try:
        numbers = np.asarray(values)
        if numbers.size == 0:
            return np.zeros((0, columns), np.int64)
        if numbers.dtype.kind not in kinds and not (numbers % 1 == 0).all():
            raise MaskError(f"{name} must be whole numbers, not {numbers.dtype}")
        return numbers.reshape(-1, columns).astype(np.int64 if kinds == "iu" else numbers.dtype)
    except (TypeError, ValueError) as error:
        if isinstance(error, MaskError):
            raise
        raise MaskError(f"{name} must be numbers, (N, {columns})") from None
