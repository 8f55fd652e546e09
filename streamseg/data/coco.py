"""COCO's instance JSON: polygons, run lengths, crowds, and boxes without a mask.

Format: https://cocodataset.org/#format-data. ``segmentation`` may be missing, null or empty, which
all say that only the box is annotated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from streamseg.data.dataset import Annotation, Dataset
from streamseg.data.entries import (
    AnnotationFile,
    Box,
    Entry,
    Flag,
    Id,
    area_faults,
    box_faults,
    convert_entries,
    polygon_faults,
    read_file,
    to_corners,
    unique,
)
from streamseg.data.findings import Findings
from streamseg.data.polygons import compress, rasterise
from streamseg.errors import MaskError
from streamseg.masks import RLE, Mask, Polygon, Size
from streamseg.recipe import CocoData

_Run: TypeAlias = Annotated[int, Meta(ge=0)]


class _Runs(msgspec.Struct, frozen=True):
    """A run-length encoding; counts are compressed if they are text."""

    size: tuple[int, int]
    counts: str | list[_Run]


class _AnnotationEntry(Entry, frozen=True, kw_only=True):
    """A member of ``annotations``; the box is x, y, width, height."""

    image_id: Id
    category_id: Id
    bbox: Box
    segmentation: list[list[float]] | _Runs | None = None
    iscrowd: Flag = 0
    area: float | None = None


def read_coco(config: CocoData, root: Path, findings: Findings) -> Dataset:
    """What can be read of a dataset in COCO's instance JSON; no picture is opened.

    Args:
        config: where it is.
        root: the folder that its paths are relative to.
        findings: where everything that is wrong with it goes.

    Raises:
        DataError: the file can't be read, or isn't an annotation file.
        ConfigError: ``annotated`` names a category that there isn't.
    """
    file = read_file(root / config.annotations, findings)
    annotations = _read_annotations(file, findings)
    return file.to_dataset(config, root, findings.dataset, annotations)


def _read_annotations(file: AnnotationFile, findings: Findings) -> dict[int, list[Annotation]]:
    """The sound annotations of each image, by its id."""
    annotations = defaultdict(list)
    converted = convert_entries(file.annotations, "annotations", _AnnotationEntry, findings)
    for entry in unique(converted, "annotation", findings):
        faults = list(_faults(entry, file))
        for fault in faults:
            findings.add(fault, entry.image_id, entry.id)
        if not faults and entry.image_id in file.images:
            size = file.images[entry.image_id].size
            annotations[entry.image_id].append(_to_annotation(entry, size))
    return annotations


def _faults(entry: _AnnotationEntry, file: AnnotationFile) -> Iterator[str]:
    yield from file.image_faults(entry.image_id)
    yield from file.category_faults(entry.category_id)
    yield from area_faults(entry.area)
    if entry.image_id in file.images:
        yield from _place_faults(entry, file.images[entry.image_id].size)


def _place_faults(entry: _AnnotationEntry, size: Size) -> Iterator[str]:
    """What is wrong with where an annotation says that something is."""
    yield from box_faults(entry.bbox, size)
    if isinstance(entry.segmentation, _Runs):
        yield from _run_faults(entry.segmentation, size)
    else:
        for polygon in entry.segmentation or ():
            yield from polygon_faults(polygon, size)


def _run_faults(runs: _Runs, size: Size) -> Iterator[str]:
    if runs.size != size:
        height, width = runs.size
        yield f"run lengths of {width} x {height} in a picture of {size[1]} x {size[0]}"
    elif isinstance(runs.counts, list):
        if sum(runs.counts) != size[0] * size[1]:
            yield f"run lengths of {sum(runs.counts)} pixels in a picture of {size[0] * size[1]}"
    else:
        try:
            Mask.from_rle(runs.counts, size)
        except MaskError as error:
            yield str(error)


def _to_annotation(entry: _AnnotationEntry, size: Size) -> Annotation:
    segmentation = _to_segmentation(entry.segmentation, size)
    area = _count(segmentation, entry.bbox, size) if entry.area is None else entry.area
    return Annotation(
        id=entry.id,
        category_id=entry.category_id,
        box=to_corners(entry.bbox),
        segmentation=segmentation,
        crowd=bool(entry.iscrowd),
        area=area,
    )


def _to_segmentation(
    given: list[Polygon] | _Runs | None, size: Size
) -> tuple[Polygon, ...] | RLE | None:
    if not isinstance(given, _Runs):
        return tuple(given) if given else None
    if isinstance(given.counts, str):
        return RLE(size=list(size), counts=given.counts)
    return compress(given.counts, size)


def _count(segmentation: tuple[Polygon, ...] | RLE | None, box: Box, size: Size) -> float:
    """The area of what is annotated, in pixels, where the dataset doesn't say it."""
    if segmentation is None:
        return box[2] * box[3]
    return float(Mask.from_rle(rasterise(segmentation, size)["counts"], size).area)
