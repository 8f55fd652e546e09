"""PNG label maps: loading, and the values, boxes and areas of their regions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from streamseg.errors import DataError, TooLargeError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_label_map
from streamseg.structures.masks import MAX_PIXELS

LabelMap: TypeAlias = npt.NDArray[np.int32]


class Regions(NamedTuple):
    """Regions of a label map: the K values other than 0, in ascending order.

    Attributes:
        values: int32 (K,).
        boxes: int64 (K, 4) xyxy, tight, with exclusive right and lower edges.
        areas: int64 (K,), in pixels.
    """

    values: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.int64]
    areas: npt.NDArray[np.int64]


def load_label_map(path: Path) -> LabelMap:
    """Load a PNG as a label map, int32 (H, W); 0 is no object.

    Raises:
        DataError: the PNG can't be read or is too large.
    """
    try:
        return read_label_map(path, MAX_PIXELS)
    except BadImageError as error:
        raise DataError(f"{path}: {error}") from None
    except TooLargeError as error:
        raise DataError(str(error)) from None


def find_regions(labels: LabelMap) -> Regions:
    """Return the regions of ``labels``, int32 (H, W)."""
    # Horizontal runs instead of pixels: there are far fewer of them to sort.
    is_start = np.ones(labels.shape, np.bool_)
    is_start[:, 1:] = labels[:, 1:] != labels[:, :-1]
    y, x = np.nonzero(is_start)
    lengths = np.diff(np.flatnonzero(is_start), append=labels.size)
    values, index = np.unique(labels[y, x], return_inverse=True)
    boxes = np.empty((len(values), 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = max(labels.shape), 0
    for column, edges in enumerate((x, y)):
        np.minimum.at(boxes[:, column], index, edges)
    for column, edges in enumerate((x + lengths, y + 1), start=2):
        np.maximum.at(boxes[:, column], index, edges)
    areas = np.bincount(index, lengths).astype(np.int64)
    is_object = values != 0
    return Regions(values[is_object], boxes[is_object], areas[is_object])
