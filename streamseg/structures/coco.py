"""COCO annotations: conversion of boxes and segmentations (polygons, both kinds of RLE) to masks.

Masks equal those of pycocotools (``frPyObjects``, ``merge``). The input is validated first, because
pycocotools accesses memory out of bounds for run lengths that do not cover the frame, and allocates
memory for each pixel of a polygon outline, even far outside of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from streamseg.errors import ArgumentError, MaskError
from streamseg.structures.arrays import DoubleArray
from streamseg.structures.masks import Masks, Size, check_size

MAX_COORDINATE = 100_000
"""Maximum absolute coordinate of a polygon, in pixels."""
MAX_OUTLINE = 4_000_000
"""Maximum total length of the polygon outlines of one mask, in pixels."""

_MAX_FLOAT = float(np.finfo(np.float32).max)


NOT_TRACKED = -1
"""Track id of untracked instances."""


@dataclass(frozen=True, slots=True, eq=False)
class CocoRow:
    """Parsed row of a COCO file.

    Attributes:
        box: x1, y1, x2, y2 in pixels.
        score: 0 to 1; 1 for annotations.
        category_id: category id of the dataset.
        mask: one mask; ``from_box`` is set if the row has no segmentation.
        track_id: track id, or -1.
    """

    box: tuple[float, ...]
    score: float
    category_id: int
    mask: Masks
    track_id: int


def read_coco_row(row: Any, number: int, size: Size) -> CocoRow:
    """Validate and parse a row of a COCO file.

    Args:
        row: mapping, see :meth:`streamseg.structures.results.Instances.from_coco`.
        number: index of the row, for error messages.
        size: (height, width) of the image.

    Raises:
        ArgumentError: a field is missing or invalid.
        MaskError: the segmentation is not a mask of a frame of ``size``.
    """
    if not isinstance(row, Mapping):
        raise ArgumentError(f"row {number} must be a mapping, not {type(row).__name__}")
    box = None if row.get("bbox") is None else _bbox_to_xyxy(row["bbox"], number)
    if not _is_empty(row.get("segmentation")):
        try:
            mask = mask_from_coco(row["segmentation"], size)
        except MaskError as error:
            raise MaskError(f"row {number}: {error}") from None
        box = tuple(mask.boxes[0].tolist()) if box is None else box
    elif box is not None:
        mask = Masks.from_boxes([box], size)
    else:
        raise ArgumentError(f"row {number} has neither a bbox nor a segmentation")
    score = 1.0 if row.get("score") is None else _parse_number(row["score"], "score", number)
    track = NOT_TRACKED if row.get("track_id") is None else _parse_integer(row, "track_id", number)
    return CocoRow(box, score, _parse_integer(row, "category_id", number), mask, track)


def mask_from_coco(segmentation: Any, size: Size) -> Masks:
    """Convert a COCO segmentation to one mask.

    Args:
        segmentation: polygons, ``[[x1, y1, x2, y2, …], …]`` or a single flat list, or RLE,
            ``{"size": [height, width], "counts": …}``, compressed (str or bytes) or not (list).
        size: (height, width) of the frame.

    Raises:
        MaskError: the segmentation has another form or another frame size.
    """
    if isinstance(segmentation, Mapping):
        return Masks.from_rle([_to_compressed_counts(segmentation, size)], size)
    if isinstance(segmentation, list | tuple | np.ndarray):
        return Masks.from_rle([_encode_polygons(_parse_polygons(segmentation), size)], size)
    raise MaskError(
        "a segmentation must be polygons or run lengths {size, counts}, "
        f"not {type(segmentation).__name__}"
    )


def _is_empty(segmentation: Any) -> bool:
    """Return whether a segmentation is empty: None, ``[]``, ``""`` or ``{}``."""
    return segmentation is None or (
        isinstance(segmentation, str | bytes | list | tuple | dict | np.ndarray)
        and len(segmentation) == 0
    )


def _bbox_to_xyxy(bbox: Any, number: int) -> tuple[float, ...]:
    """Convert a ``bbox`` (x, y, width, height) to x1, y1, x2, y2."""
    values = list(bbox) if isinstance(bbox, list | tuple | np.ndarray) else []
    if len(values) != 4:
        raise ArgumentError(
            f"row {number}: bbox must be x, y, width, height, not {_short_repr(bbox)}"
        )
    x, y, width, height = (_parse_number(value, "bbox", number) for value in values)
    if width < 0 or height < 0:
        raise ArgumentError(f"row {number}: bbox has a negative size: {width:g} x {height:g}")
    return x, y, x + width, y + height


def _parse_number(value: Any, key: str, number: int) -> float:
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not is_real or not abs(value) <= _MAX_FLOAT:
        raise ArgumentError(f"row {number}: {key} must be finite numbers, not {_short_repr(value)}")
    return float(value)


def _parse_integer(row: Mapping[Any, Any], key: str, number: int) -> int:
    value = row.get(key)
    if value is None:
        raise ArgumentError(f"row {number} has no {key}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ArgumentError(f"row {number}: {key} has more than 63 bits")
    if _parse_number(value, key, number) % 1 or not -(2**63) <= value < 2**63:
        raise ArgumentError(f"row {number}: {key} must be a whole number, not {_short_repr(value)}")
    return int(value)


def _parse_polygons(segmentation: Sequence[Any] | npt.NDArray[Any]) -> list[DoubleArray]:
    parts = list(segmentation)
    if all(np.isscalar(part) for part in parts):  # a single polygon
        parts = [parts]
    return [_parse_polygon(part) for part in parts]


def _parse_polygon(values: Any) -> DoubleArray:
    try:
        numbers = np.asarray(values)
    except ValueError:  # lists of different lengths
        numbers = np.empty(0)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or numbers.size < 6 or numbers.size % 2:
        raise MaskError("a polygon must be x1, y1, x2, y2, … of at least three points")
    # Converted first: abs() of the smallest integer overflows.
    corners = numbers.astype(np.float64)
    if not (np.abs(corners) <= MAX_COORDINATE).all():  # also false for NaN
        raise MaskError(f"a polygon has a coordinate that isn't finite or is over {MAX_COORDINATE}")
    return corners


def _encode_polygons(polygons: Sequence[DoubleArray], size: Size) -> bytes:
    height, width = check_size(size)
    steps = [p.reshape(-1, 2) - np.roll(p.reshape(-1, 2), 1, axis=0) for p in polygons]
    outline = sum(float(np.abs(step).max(axis=1).sum()) for step in steps)
    if outline > MAX_OUTLINE:
        raise MaskError(f"polygons have an outline of {outline:.0f} pixels, over {MAX_OUTLINE}")
    parts = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    counts: bytes = coco_mask.merge(parts)["counts"]
    return counts


def _to_compressed_counts(rle: Mapping[Any, Any], size: Size) -> str | bytes:
    height, width = check_size(size)
    if missing := [key for key in ("size", "counts") if key not in rle]:
        raise MaskError(f"run lengths have no {missing[0]!r}")
    given = rle["size"]
    if not isinstance(given, list | tuple | np.ndarray) or list(given) != [height, width]:
        raise MaskError(f"a segmentation of {_short_repr(given)} in a frame of {[height, width]}")
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        return counts
    runs = _check_runs(counts, height * width)
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    text: bytes = encoded["counts"]
    return text


def _check_runs(counts: Any, pixels: int) -> list[int]:
    """Convert uncompressed run lengths to ints whose sum is ``pixels``."""
    try:
        runs = np.asarray(counts)
    except ValueError:  # lists of different lengths
        runs = np.empty(0)
    if not isinstance(counts, list | tuple | np.ndarray) or runs.ndim != 1 or runs.size == 0:
        raise MaskError("counts of run lengths must be a text or a list of numbers")
    if runs.dtype.kind not in "iuf" or not ((runs >= 0) & (runs <= pixels) & (runs % 1 == 0)).all():
        raise MaskError(f"uncompressed run lengths must be whole numbers from 0 to {pixels}")
    total = int(runs.astype(np.int64).sum())
    if total != pixels:
        raise MaskError(f"run lengths of {total} pixels in a frame of {pixels}")
    return [int(run) for run in runs]


def _short_repr(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 40 else type(value).__name__
