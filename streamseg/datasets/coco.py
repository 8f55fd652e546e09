"""COCO's instance JSON: polygons, run lengths, crowds, and boxes without a mask.

Format: https://cocodataset.org/#format-data. ``segmentation`` may be missing, null or empty, which
all say that only the box is annotated. ``bbox`` and ``area`` may be missing where there is a mask,
and ``id`` always: nothing but messages needs it.
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
from streamseg.datasets.dataset import Annotation, Dataset
from streamseg.datasets.entries import (
    AnnotationFile,
    area_faults,
    box_faults,
    is_within,
    read_file,
    to_corners,
)
from streamseg.datasets.findings import Fault, Findings, Id
from streamseg.datasets.polygons import compress, rasterise
from streamseg.datasets.schema import (
    Box,
    Entry,
    EntryId,
    Flag,
    convert_entry,
    fault_of_entry,
    ids_of_entry,
)
from streamseg.datasets.spellings import (
    canonical_box,
    canonical_entry,
    canonical_flag,
    canonical_id,
    canonical_number,
    canonical_segmentation,
)
from streamseg.errors import MaskError
from streamseg.structures.masks import RLE, Mask, Polygon, Size

_Run: TypeAlias = Annotated[int, Meta(ge=0)]
_LEAST_COORDINATES = 6

_READERS = {
    "id": canonical_id,
    "image_id": canonical_id,
    "category_id": canonical_id,
    "bbox": canonical_box,
    "segmentation": canonical_segmentation,
    "iscrowd": canonical_flag,
    "area": canonical_number,
}


class _Runs(msgspec.Struct, frozen=True):
    """A run-length encoding, of the image's size if it has none; compressed if counts are text."""

    counts: str | list[_Run]
    size: tuple[int, int] | None = None


class _AnnotationEntry(Entry, frozen=True, kw_only=True):
    """A member of ``annotations``; the box is x, y, width, height."""

    id: EntryId | None = None
    image_id: EntryId
    category_id: EntryId
    bbox: Box | None = None
    segmentation: list[list[float]] | _Runs | None = None
    iscrowd: Flag = 0
    area: float | None = None


def read_coco(config: CocoData, root: Path, findings: Findings) -> Dataset:
    """What can be read of a dataset in COCO's instance JSON.

    Args:
        config: where it is.
        root: the folder that its paths are relative to.
        findings: where everything that is wrong with it goes.

    Raises:
        DataError: the file can't be read, or isn't an annotation file.
        ConfigError: ``annotated`` names a category that isn't there.
    """
    file = read_file(config, root, findings)
    return file.to_dataset(config, findings.dataset, _read_annotations(file, findings))


def _read_annotations(file: AnnotationFile, findings: Findings) -> dict[Id, list[Annotation]]:
    """The sound annotations of each image, by its id."""
    annotations = defaultdict(list)
    for entry in _numbered(_read_entries(file, findings), findings):
        faults = list(_faults(entry, file))
        for fault in faults:
            findings.add(fault, entry.image_id, entry.id)
        image = file.images.get(entry.image_id)
        if image is not None and not faults:
            category = file.categories[entry.category_id].id
            annotations[image.id].append(_to_annotation(entry, category, image.size))
    return annotations


def _read_entries(file: AnnotationFile, findings: Findings) -> Iterator[_AnnotationEntry]:
    """The annotations that are what they should be; the others become problems."""
    for position, raw in enumerate(file.annotations):
        entry = convert_entry(canonical_entry(raw, _READERS), _AnnotationEntry)
        if isinstance(entry, str):
            fault = fault_of_entry("annotations", position, entry)
            findings.add(fault, *ids_of_entry(raw, "image_id", "id"))
        else:
            image_id = file.resolve_image(entry.image_id)
            yield msgspec.structs.replace(entry, image_id=image_id)


def _numbered(
    entries: Iterator[_AnnotationEntry], findings: Findings
) -> Iterator[_AnnotationEntry]:
    """The annotations with an id each; those without one, or with a taken one, get a free number.

    A copy, with everything the same, is a problem.
    """
    by_id: dict[Id, _AnnotationEntry] = {}
    without: list[_AnnotationEntry] = []
    for entry in entries:
        if entry.id is None:
            without.append(entry)
        elif entry == by_id.setdefault(entry.id, entry):
            if entry is not by_id[entry.id]:
                what = f"the annotation {entry.id} is there twice, the same both times"
                findings.add(Fault("annotation is there twice", what), entry.image_id, entry.id)
        else:
            without.append(entry)
    yield from by_id.values()
    free = (number for number in itertools.count(1) if number not in by_id)
    for entry in without:
        yield msgspec.structs.replace(entry, id=next(free))


def _faults(entry: _AnnotationEntry, file: AnnotationFile) -> Iterator[Fault]:
    yield from file.image_faults(entry.image_id)
    yield from file.category_faults(entry.category_id)
    yield from area_faults(entry.area)
    if entry.image_id in file.images:
        yield from _place_faults(entry, file.images[entry.image_id].size)


def _place_faults(entry: _AnnotationEntry, size: Size) -> Iterator[Fault]:
    """What is wrong with where an annotation says that something is."""
    if entry.bbox is not None:
        yield from box_faults(entry.bbox, size)
    elif entry.segmentation is None:
        yield Fault("neither box nor mask", "it has neither a box nor a mask")
    faults = list(_segmentation_faults(entry.segmentation, size))
    yield from faults
    if entry.bbox is None and entry.segmentation is not None and not faults:
        box = _box_of(_to_segmentation(entry.segmentation, size), size)
        if min(box[2:]) <= 0:
            yield Fault("mask has no area", "the mask has no area")


def _segmentation_faults(segmentation: list[Polygon] | _Runs | None, size: Size) -> Iterator[Fault]:
    if isinstance(segmentation, _Runs):
        yield from _run_faults(segmentation, size)
    elif segmentation is not None:
        for polygon in _without_stray_points(segmentation):
            yield from polygon_faults(polygon, size)


def _without_stray_points(polygons: list[Polygon]) -> list[Polygon]:
    """The polygons but for those of one or two points, which add nothing beside a real one."""
    if not any(len(each) >= _LEAST_COORDINATES for each in polygons):
        return polygons
    return [each for each in polygons if len(each) >= _LEAST_COORDINATES or len(each) % 2]


def polygon_faults(polygon: Polygon, size: Size) -> Iterator[Fault]:
    """What is wrong with a polygon x1, y1, x2, y2, … in an image of ``size``."""
    if len(polygon) % 2:
        what = f"a polygon has an odd number of coordinates, {len(polygon)}"
        yield Fault("polygon has an odd number of coordinates", what)
    elif len(polygon) < _LEAST_COORDINATES:
        what = f"a polygon has fewer than three points, {len(polygon) // 2}"
        yield Fault("polygon has fewer than three points", what)
    elif not all(math.isfinite(number) for number in polygon):
        yield Fault("polygon isn't finite", "a polygon has a number that isn't finite")
    elif not is_within(polygon[0::2], size[1]) or not is_within(polygon[1::2], size[0]):
        # Not merely untidy: the rasteriser's memory grows with the length of the edges.
        what = f"a polygon reaches out of the picture of {size[1]} x {size[0]}"
        yield Fault("polygon reaches out of the image", what)


def _run_faults(runs: _Runs, size: Size) -> Iterator[Fault]:
    reason = "run lengths don't fit the image"
    if runs.size not in (None, size):
        height, width = runs.size
        what = f"run lengths of {width} x {height} in a picture of {size[1]} x {size[0]}"
        yield Fault(reason, what)
    elif isinstance(runs.counts, list):
        if (total := sum(runs.counts)) != size[0] * size[1]:
            what = f"run lengths of {total} pixels in a picture of {size[0] * size[1]}"
            yield Fault(reason, what)
    else:
        try:
            Mask.from_rle(runs.counts, size)
        except MaskError as error:
            yield Fault("run lengths are damaged", str(error))


def _to_annotation(entry: _AnnotationEntry, category: int, size: Size) -> Annotation:
    assert entry.id is not None
    segmentation = _to_segmentation(entry.segmentation, size)
    box = _box_of(segmentation, size) if entry.bbox is None else entry.bbox
    return Annotation(
        id=entry.id,
        category_id=category,
        box=to_corners(box),
        segmentation=segmentation,
        crowd=bool(entry.iscrowd),
        area=_count(segmentation, box, size) if entry.area is None else entry.area,
    )


def _to_segmentation(
    given: list[Polygon] | _Runs | None, size: Size
) -> tuple[Polygon, ...] | RLE | None:
    if not isinstance(given, _Runs):
        return tuple(_without_stray_points(given)) if given else None
    if isinstance(given.counts, str):
        return RLE(size=list(size), counts=given.counts)
    return compress(given.counts, size)


def _box_of(segmentation: tuple[Polygon, ...] | RLE | None, size: Size) -> Box:
    """The tight box of a mask, x, y, width, height: of its corners, or of its pixels."""
    if isinstance(segmentation, tuple):
        xs = [min(max(x, 0.0), size[1]) for polygon in segmentation for x in polygon[0::2]]
        ys = [min(max(y, 0.0), size[0]) for polygon in segmentation for y in polygon[1::2]]
        return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    assert segmentation is not None
    x1, y1, x2, y2 = (float(edge) for edge in Mask.from_rle(segmentation["counts"], size).box)
    return x1, y1, x2 - x1, y2 - y1


def _count(segmentation: tuple[Polygon, ...] | RLE | None, box: Box, size: Size) -> float:
    """The area of what is annotated, in pixels, where the dataset doesn't say it."""
    if segmentation is None:
        return box[2] * box[3]
    return float(Mask.from_rle(rasterise(segmentation, size)["counts"], size).area)
