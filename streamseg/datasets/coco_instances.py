"""COCO instance JSON: polygons, run lengths, crowds, and boxes without a mask.

Format: https://cocodataset.org/#format-data. A missing, null or empty ``segmentation`` means that
only the box is annotated. ``bbox`` and ``area`` may be missing if there is a mask. ``id`` may be
missing, because only messages use it.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from streamseg.config.training import CocoData
from streamseg.datasets.coco_file import (
    AnnotationFile,
    check_area,
    check_box,
    is_within,
    read_annotation_file,
    xywh_to_xyxy,
)
from streamseg.datasets.dataset import Annotation, Dataset
from streamseg.datasets.normalization import (
    normalize_box,
    normalize_entry,
    normalize_flag,
    normalize_id,
    normalize_number,
    normalize_segmentation,
)
from streamseg.datasets.problems import Fault, Id, ProblemReport
from streamseg.datasets.rasterization import compress_run_lengths, encode_segmentation
from streamseg.datasets.schema import (
    Box,
    Entry,
    EntryId,
    Flag,
    convert_entry,
    make_entry_fault,
    read_entry_ids,
)
from streamseg.errors import MaskError
from streamseg.structures.masks import RLE, Mask, Polygon, Size

_RunLength: TypeAlias = Annotated[int, Meta(ge=0)]
_MIN_COORDINATES = 6

_NORMALIZERS = {
    "id": normalize_id,
    "image_id": normalize_id,
    "category_id": normalize_id,
    "bbox": normalize_box,
    "segmentation": normalize_segmentation,
    "iscrowd": normalize_flag,
    "area": normalize_number,
}


class _RleEntry(msgspec.Struct, frozen=True):
    """Run lengths, compressed if ``counts`` is text; without ``size``, the image's size applies."""

    counts: str | list[_RunLength]
    size: tuple[int, int] | None = None


class _AnnotationEntry(Entry, frozen=True, kw_only=True):
    """Entry of ``annotations``; the box is x, y, width, height."""

    id: EntryId | None = None
    image_id: EntryId
    category_id: EntryId
    bbox: Box | None = None
    segmentation: list[list[float]] | _RleEntry | None = None
    iscrowd: Flag = 0
    area: float | None = None


def read_coco(config: CocoData, root: Path, report: ProblemReport) -> Dataset:
    """Read a dataset in COCO instance format, without the images and annotations with problems.

    Args:
        config: section of the config with the paths.
        root: the folder that the paths are relative to.
        report: collects the problems.

    Raises:
        DataError: the file can't be read or isn't a COCO annotation file.
        ConfigError: ``annotated`` contains a name that is not a category.
    """
    file = read_annotation_file(config, root, report)
    annotations: dict[Id, list[Annotation]] = defaultdict(list)
    for entry in _assign_ids(_convert_entries(file, report), report):
        faults = list(_check_entry(entry, file))
        for fault in faults:
            report.add(fault, entry.image_id, entry.id)
        image = file.images.get(entry.image_id)
        if image is not None and not faults:
            category_id = file.categories[entry.category_id].id
            annotations[image.id].append(_to_annotation(entry, category_id, image.size))
    return file.to_dataset(config, report.dataset, annotations)


def check_polygon(polygon: Polygon, size: Size) -> Iterator[Fault]:
    """Yield a fault if a polygon x1, y1, x2, y2, … is invalid in an image of ``size``."""
    if len(polygon) % 2:
        message = f"a polygon has an odd number of coordinates, {len(polygon)}"
        yield Fault("polygon has an odd number of coordinates", message)
    elif len(polygon) < _MIN_COORDINATES:
        message = f"a polygon has fewer than three points, {len(polygon) // 2}"
        yield Fault("polygon has fewer than three points", message)
    elif not all(math.isfinite(number) for number in polygon):
        yield Fault("polygon isn't finite", "a polygon has a number that isn't finite")
    elif not is_within(polygon[0::2], size[1]) or not is_within(polygon[1::2], size[0]):
        # The rasterizer's memory use grows with the length of the edges.
        message = f"a polygon reaches out of the image of {size[1]} x {size[0]}"
        yield Fault("polygon reaches out of the image", message)


def _convert_entries(file: AnnotationFile, report: ProblemReport) -> Iterator[_AnnotationEntry]:
    """Yield the valid entries of ``annotations`` with resolved image ids; report the others."""
    for index, raw in enumerate(file.annotations):
        entry = convert_entry(normalize_entry(raw, _NORMALIZERS), _AnnotationEntry)
        if isinstance(entry, str):
            fault = make_entry_fault("annotations", index, entry)
            report.add(fault, *read_entry_ids(raw, "image_id", "id"))
        else:
            image_id = file.resolve_image_id(entry.image_id)
            yield msgspec.structs.replace(entry, image_id=image_id)


def _assign_ids(
    entries: Iterator[_AnnotationEntry], report: ProblemReport
) -> Iterator[_AnnotationEntry]:
    """Yield the entries, each with a unique id.

    Entries without an id, or with one that another entry has, get the lowest unused number from 1.
    An identical copy of an entry is a problem.
    """
    by_id: dict[Id, _AnnotationEntry] = {}
    without_id: list[_AnnotationEntry] = []
    for entry in entries:
        if entry.id is None:
            without_id.append(entry)
        elif entry == by_id.setdefault(entry.id, entry):
            if entry is not by_id[entry.id]:
                message = f"the annotation {entry.id} is there twice, the same both times"
                report.add(Fault("annotation is there twice", message), entry.image_id, entry.id)
        else:
            without_id.append(entry)
    yield from by_id.values()
    unused_ids = (number for number in itertools.count(1) if number not in by_id)
    for entry in without_id:
        yield msgspec.structs.replace(entry, id=next(unused_ids))


def _check_entry(entry: _AnnotationEntry, file: AnnotationFile) -> Iterator[Fault]:
    """Yield the faults of an annotation; its geometry is checked only if the image is valid."""
    yield from file.check_image_id(entry.image_id)
    yield from file.check_category_id(entry.category_id)
    yield from check_area(entry.area)
    if entry.image_id in file.images:
        yield from _check_geometry(entry, file.images[entry.image_id].size)


def _check_geometry(entry: _AnnotationEntry, size: Size) -> Iterator[Fault]:
    """Yield the faults of an annotation's box and mask."""
    if entry.bbox is not None:
        yield from check_box(entry.bbox, size)
    elif entry.segmentation is None:
        yield Fault("neither box nor mask", "it has neither a box nor a mask")
    faults: list[Fault] = []
    if isinstance(entry.segmentation, _RleEntry):
        faults += _check_run_lengths(entry.segmentation, size)
    elif entry.segmentation is not None:
        for polygon in _drop_stray_points(entry.segmentation):
            faults += check_polygon(polygon, size)
    yield from faults
    if entry.bbox is None and entry.segmentation is not None and not faults:
        box = _compute_box(_to_segmentation(entry.segmentation, size), size)
        if min(box[2:]) <= 0:
            yield Fault("mask has no area", "the mask has no area")


def _drop_stray_points(polygons: list[Polygon]) -> list[Polygon]:
    """Return the polygons without those of one or two points, if there is a valid one.

    Annotation tools leave such points behind; they don't add pixels to the mask.
    """
    if not any(len(each) >= _MIN_COORDINATES for each in polygons):
        return polygons
    return [each for each in polygons if len(each) >= _MIN_COORDINATES or len(each) % 2]


def _check_run_lengths(rle: _RleEntry, size: Size) -> Iterator[Fault]:
    """Yield a fault if run lengths are damaged or don't fit an image of ``size``."""
    reason = "run lengths don't fit the image"
    if rle.size not in (None, size):
        height, width = rle.size
        message = f"run lengths of {width} x {height} in an image of {size[1]} x {size[0]}"
        yield Fault(reason, message)
    elif isinstance(rle.counts, list):
        if (total := sum(rle.counts)) != size[0] * size[1]:
            message = f"run lengths of {total} pixels in an image of {size[0] * size[1]}"
            yield Fault(reason, message)
    else:
        try:
            Mask.from_rle(rle.counts, size)
        except MaskError as error:
            yield Fault("run lengths are damaged", str(error))


def _to_annotation(entry: _AnnotationEntry, category_id: int, size: Size) -> Annotation:
    """Convert a valid entry; a missing box or area is computed from the mask."""
    assert entry.id is not None
    segmentation = _to_segmentation(entry.segmentation, size)
    box = _compute_box(segmentation, size) if entry.bbox is None else entry.bbox
    return Annotation(
        id=entry.id,
        category_id=category_id,
        box=xywh_to_xyxy(box),
        segmentation=segmentation,
        crowd=bool(entry.iscrowd),
        area=_compute_area(segmentation, box, size) if entry.area is None else entry.area,
    )


def _to_segmentation(
    entry: list[Polygon] | _RleEntry | None, size: Size
) -> tuple[Polygon, ...] | RLE | None:
    if not isinstance(entry, _RleEntry):
        return tuple(_drop_stray_points(entry)) if entry else None
    if isinstance(entry.counts, str):
        return RLE(size=list(size), counts=entry.counts)
    return compress_run_lengths(entry.counts, size)


def _compute_box(segmentation: tuple[Polygon, ...] | RLE | None, size: Size) -> Box:
    """Return the tight box (x, y, width, height) of polygon corners or of mask pixels."""
    if isinstance(segmentation, tuple):
        xs = [min(max(x, 0.0), size[1]) for polygon in segmentation for x in polygon[0::2]]
        ys = [min(max(y, 0.0), size[0]) for polygon in segmentation for y in polygon[1::2]]
        return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    assert segmentation is not None
    x1, y1, x2, y2 = (float(edge) for edge in Mask.from_rle(segmentation["counts"], size).box)
    return x1, y1, x2 - x1, y2 - y1


def _compute_area(segmentation: tuple[Polygon, ...] | RLE | None, box: Box, size: Size) -> float:
    """Return the area of the mask in pixels, or of the box if there is no mask."""
    if segmentation is None:
        return box[2] * box[3]
    return float(Mask.from_rle(encode_segmentation(segmentation, size)["counts"], size).area)
