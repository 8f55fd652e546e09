"""PNGs of labels: which values there are, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamseg.errors import DataError, TooLargeError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_labels
from streamseg.structures.masks import MAX_PIXELS

Labels: TypeAlias = npt.NDArray[np.int32]


def load_labels(path: Path) -> Labels:
    """What each pixel of a PNG says, int32 (H, W); 0 is no object.

    Raises:
        DataError: it can't be read, or is too large.
    """
    try:
        return read_labels(path, MAX_PIXELS)
    except BadImageError as error:
        raise DataError(f"{path}: {error}") from None
    except TooLargeError as error:
        raise DataError(str(error)) from None


def regions(labels: Labels) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """The values but 0 in ``labels``, int32 (H, W).

    Returns:
        The values ascending, int32 (K,); their tight boxes, int64 (K, 4) xyxy, exclusive at the
        right and below; their pixels, int64 (K,).
    """
    # Runs along the rows stand for their pixels: there are far fewer of them to sort.
    begins = np.ones(labels.shape, np.bool_)
    begins[:, 1:] = labels[:, 1:] != labels[:, :-1]
    y, x = np.nonzero(begins)
    lengths = np.diff(np.flatnonzero(begins), append=labels.size)
    values, which = np.unique(labels[y, x], return_inverse=True)
    boxes = np.empty((len(values), 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = max(labels.shape), 0
    for column, edges in enumerate((x, y)):
        np.minimum.at(boxes[:, column], which, edges)
    for column, edges in enumerate((x + lengths, y + 1), start=2):
        np.maximum.at(boxes[:, column], which, edges)
    pixels = np.bincount(which, lengths).astype(np.int64)
    objects = values != 0
    return values[objects], boxes[objects], pixels[objects]
