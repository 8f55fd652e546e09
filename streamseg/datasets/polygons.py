"""Polygons and COCO's uncompressed run lengths as compressed ones.

The rasteriser is pycocotools', so that masks are, pixel by pixel, those that everybody who works
with COCO trains on and is measured with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycocotools import mask as coco_mask

from streamseg.structures.masks import RLE, Polygon, Size


def rasterise(segmentation: tuple[Polygon, ...] | RLE, size: Size) -> RLE:
    """The union of polygons as run lengths; run lengths come back as they are.

    The polygons must have been checked: see :func:`~streamseg.datasets.coco.polygon_faults`.
    """
    if not isinstance(segmentation, tuple):
        return segmentation
    return _to_rle(coco_mask.merge(coco_mask.frPyObjects(list(segmentation), *size)))


def compress(runs: Sequence[int], size: Size) -> RLE:
    """Run lengths that begin with zeros, column by column, and sum to the pixels of ``size``."""
    return _to_rle(coco_mask.frPyObjects({"size": list(size), "counts": list(runs)}, *size))


def _to_rle(encoded: dict[str, Any]) -> RLE:
    return RLE(size=list(encoded["size"]), counts=encoded["counts"].decode("ascii"))
