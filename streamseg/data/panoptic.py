"""COCO's panoptic JSON and PNGs: each thing is an instance, the rest is patches of stuff.

Format: https://cocodataset.org/#format-data, "Panoptic Segmentation". A category that doesn't say
whether it ``isthing`` is one. The PNGs are opened by a thorough reading only: that every one is
what the JSON says takes as long as decoding them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from streamseg.data.dataset import Annotation, Dataset, PngSegment
from streamseg.data.entries import (
    AnnotationFile,
    Box,
    Entry,
    FileName,
    Flag,
    Id,
    area_faults,
    box_faults,
    convert_entries,
    read_file,
    to_corners,
    unique,
    whole_numbers,
)
from streamseg.data.findings import Findings
from streamseg.data.labels import load_labels, regions
from streamseg.errors import DataError
from streamseg.masks import Size
from streamseg.recipe import PanopticData


class _SegmentEntry(Entry, frozen=True, kw_only=True):
    """A member of ``segments_info``; the box is x, y, width, height."""

    category_id: Id
    bbox: Box
    iscrowd: Flag = 0
    area: float | None = None


class _PictureEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A member of ``annotations``: one picture's segments."""

    image_id: Id
    file_name: FileName
    segments_info: list[Any]


def read_panoptic(
    config: PanopticData, root: Path, findings: Findings, *, thorough: bool
) -> Dataset:
    """What can be read of a panoptic dataset; no picture is opened.

    Args:
        config: where it is.
        root: the folder that its paths are relative to.
        findings: where everything that is wrong with it goes.
        thorough: open the PNGs, too, and compare them with the JSON.

    Raises:
        DataError: the JSON can't be read, or isn't an annotation file.
        ConfigError: ``annotated`` names a thing that there isn't.
    """
    file = read_file(root / config.annotations, findings)
    annotations = {}
    for entry in _read_pictures(file, findings):
        png, size = root / config.segments / entry.file_name, file.images[entry.image_id].size
        segments = _read_segments(entry, size, file, findings)
        annotations[entry.image_id] = [_to_annotation(segment, png) for segment in segments]
        if thorough:
            _check_png(entry, png, size, findings)
    for number in sorted(file.images.keys() - whole_numbers(file.annotations, "image_id")):
        findings.add("it has no entry in annotations", number)
    return file.to_dataset(config, root, findings.dataset, annotations)


def _read_pictures(file: AnnotationFile, findings: Findings) -> Iterator[_PictureEntry]:
    """The entries of images that there are, one an image."""
    seen: set[int] = set()
    for entry in convert_entries(file.annotations, "annotations", _PictureEntry, findings):
        for fault in file.image_faults(entry.image_id):
            findings.add(fault, entry.image_id)
        if entry.image_id in seen:
            findings.add("it has two entries in annotations", entry.image_id)
        elif entry.image_id in file.images:
            yield entry
        seen.add(entry.image_id)


def _read_segments(
    entry: _PictureEntry, size: Size, file: AnnotationFile, findings: Findings
) -> list[_SegmentEntry]:
    """The sound segments of a picture."""
    image = entry.image_id
    converted = convert_entries(
        entry.segments_info, "segments_info", _SegmentEntry, findings, image
    )
    sound = []
    for segment in unique(converted, "segment", findings, image):
        faults = list(_faults(segment, size, file))
        for fault in faults:
            findings.add(fault, image, segment.id)
        if not faults:
            sound.append(segment)
    return sound


def _faults(segment: _SegmentEntry, size: Size, file: AnnotationFile) -> Iterator[str]:
    yield from file.category_faults(segment.category_id)
    yield from box_faults(segment.bbox, size)
    yield from area_faults(segment.area)


def _check_png(entry: _PictureEntry, png: Path, size: Size, findings: Findings) -> None:
    """Compare what a PNG holds with the segments that the JSON says are in it."""
    try:
        labels = load_labels(png)
    except DataError as error:
        findings.add(str(error), entry.image_id)
        return
    if labels.shape != size:
        found = f"{labels.shape[1]} x {labels.shape[0]}"
        findings.add(f"{png} is {found}, the picture {size[1]} x {size[0]}", entry.image_id)
    present = {int(value) for value in regions(labels)[0]}
    said = whole_numbers(entry.segments_info, "id")
    for value in sorted(present - said):
        findings.add(f"{png} has pixels of {value}, which no segment is", entry.image_id)
    for value in sorted(said - present):
        findings.add(f"the segment has no pixels in {png}", entry.image_id, value)


def _to_annotation(segment: _SegmentEntry, png: Path) -> Annotation:
    return Annotation(
        id=segment.id,
        category_id=segment.category_id,
        box=to_corners(segment.bbox),
        segmentation=PngSegment(png, segment.id),
        crowd=bool(segment.iscrowd),
        area=_count(segment.id, png) if segment.area is None else segment.area,
    )


def _count(value: int, png: Path) -> float:
    """The pixels of a segment whose area the JSON doesn't say."""
    return float((load_labels(png) == value).sum())
