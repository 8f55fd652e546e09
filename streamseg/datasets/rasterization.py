"""Conversion of polygons and uncompressed run lengths to compressed COCO run lengths.

Masks are equal, pixel by pixel, to those of other tools, which use the same rasterizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycocotools import mask as coco_mask

from streamseg.structures.masks import RLE, Polygon, Size


def encode_segmentation(segmentation: tuple[Polygon, ...] | RLE, size: Size) -> RLE:
    """Return polygons as the run lengths of their union; return run lengths unchanged.

    Polygons must be valid: see :func:`~streamseg.datasets.coco_instances.check_polygon`.
    """
    if not isinstance(segmentation, tuple):
        return segmentation
    return _to_rle(coco_mask.merge(coco_mask.frPyObjects(list(segmentation), *size)))


def compress_run_lengths(runs: Sequence[int], size: Size) -> RLE:
    """Compress run lengths.

    Args:
        runs: alternating runs of zeros and ones in column-major order, zeros first; their sum is
            the number of pixels of ``size``.
        size: (height, width) of the image.
    """
    return _to_rle(coco_mask.frPyObjects({"size": list(size), "counts": list(runs)}, *size))


def _to_rle(encoded: dict[str, Any]) -> RLE:
    return RLE(size=list(encoded["size"]), counts=encoded["counts"].decode("ascii"))
