"""Row indexing of columnar structures: numbers, slices, index arrays and boolean arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamseg.errors import ArgumentError, RowError
from streamseg.structures.arrays import IntArray


def row_index(rows: slice | npt.NDArray[Any] | Sequence[int], count: int) -> IntArray:
    """Convert a slice, index array or boolean array to row indices, int64.

    Raises:
        RowError: a row does not exist.
        ArgumentError: ``rows`` has another type.
    """
    if isinstance(rows, slice):
        return np.arange(count)[rows]
    try:
        index = np.asarray(rows)
        index = index if index.size else index.astype(np.int64)
        if index.ndim != 1 or index.dtype.kind not in "biu":
            raise ArgumentError(
                "rows are selected by a number, a slice, or a list of numbers or booleans, "
                f"not {type(rows).__name__}"
            )
        selected: IntArray = np.arange(count)[index]
    except IndexError as error:
        raise RowError(f"there are {count} rows: {error}") from None
    return selected


def row_number(row: int | np.integer[Any], count: int) -> int:
    """Return the index of a row, from 0; negative numbers count from the end.

    Raises:
        RowError: the row does not exist.
    """
    if not -count <= row < count:
        raise RowError(f"there is no row {row}: there are {count}")
    return int(row) % count
