"""COCO panoptic JSON and PNGs: things become instances, stuff becomes stuff regions.

Format: https://cocodataset.org/#format-data, "Panoptic Segmentation". A category without
``isthing`` is a thing. An image's entry without ``file_name`` uses the image's name with ``.png``.
Segments without ``bbox`` or ``area`` get those of their pixels, for which the PNG is read; other
PNGs are not opened here, but by :func:`~streamseg.datasets.validation.find_file_problems`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from streamseg.config.training import PanopticData
from streamseg.datasets.coco_file import (
    AnnotationFile,
    check_area,
    check_box,
    read_annotation_file,
    xywh_to_xyxy,
)
from streamseg.datasets.dataset import Annotation, Dataset, PngSegment
from streamseg.datasets.filenames import FileFinder
from streamseg.datasets.label_maps import find_regions, load_label_map
from streamseg.datasets.normalization import (
    keep_value,
    normalize_box,
    normalize_entry,
    normalize_flag,
    normalize_id,
    normalize_integer,
    normalize_number,
)
from streamseg.datasets.problems import Fault, Id, ProblemReport
from streamseg.datasets.schema import (
    Box,
    Entry,
    EntryId,
    FileName,
    Flag,
    convert_entry,
    make_entry_fault,
    read_entry_ids,
)
from streamseg.errors import DataError
from streamseg.structures.masks import Size

_SegmentId: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]

IMAGE_SEGMENTS_NORMALIZERS = {
    "image_id": normalize_id,
    "file_name": keep_value,
    "segments_info": keep_value,
}
SEGMENT_NORMALIZERS = {
    "id": normalize_integer,
    "category_id": normalize_id,
    "bbox": normalize_box,
    "iscrowd": normalize_flag,
    "area": normalize_number,
}


class _SegmentEntry(Entry, frozen=True, kw_only=True):
    """Entry of ``segments_info``; the box is x, y, width, height."""

    id: _SegmentId
    category_id: EntryId
    bbox: Box | None = None
    iscrowd: Flag = 0
    area: float | None = None


class _ImageSegmentsEntry(Entry, frozen=True, kw_only=True):
    """Entry of ``annotations``: the segments of one image."""

    image_id: EntryId
    file_name: FileName | None = None
    segments_info: list[Any]


def read_panoptic(config: PanopticData, root: Path, report: ProblemReport) -> Dataset:
    """Read a dataset in COCO panoptic format, without the images and segments with problems.

    Args:
        config: section of the config with the paths.
        root: the folder that the paths are relative to.
        report: collects the problems.

    Raises:
        DataError: the JSON can't be read or isn't a COCO annotation file.
        ConfigError: ``annotated`` contains a name that is not a thing category.
    """
    file = read_annotation_file(config, root, report)
    entries = _convert_entries(file, report)
    finder = FileFinder(root / config.segments, root)
    pngs = finder.find(entry.file_name for entry in entries.values() if entry.file_name)
    annotations = {}
    for image_id, entry in entries.items():
        png = pngs[entry.file_name or ""]
        if isinstance(png, Fault):
            report.add(png, image_id)
        else:
            size = file.images[image_id].size
            annotations[image_id] = _read_segments(entry, png, size, file, report)
    for image_id in file.images.keys() - annotations.keys():
        del file.images[image_id]  # without annotations, all of it would count as background
    return file.to_dataset(config, report.dataset, annotations)


def segment_png_name(file_name: str) -> str:
    """Return the name of the PNG: ``file_name`` itself if it is one, else with ``.png``."""
    name = PurePath(file_name)
    return file_name if name.suffix.lower() == ".png" else f"{name.with_suffix('')}.png"


def _convert_entries(file: AnnotationFile, report: ProblemReport) -> dict[Id, _ImageSegmentsEntry]:
    """Return the entry of each valid image that has exactly one, with its ``file_name`` set."""
    entries: dict[Id, _ImageSegmentsEntry] = {}
    ids_with_entry: set[Id] = set()
    duplicates: set[Id] = set()
    for index, raw in enumerate(file.annotations):
        entry = convert_entry(normalize_entry(raw, IMAGE_SEGMENTS_NORMALIZERS), _ImageSegmentsEntry)
        if isinstance(entry, str):
            (raw_id,) = read_entry_ids(raw, "image_id")
            if raw_id is not None:
                ids_with_entry.add(file.resolve_image_id(raw_id))
            report.add(make_entry_fault("annotations", index, entry), raw_id)
            continue
        image_id = file.resolve_image_id(entry.image_id)
        for fault in file.check_image_id(image_id):
            report.add(fault, image_id)
        if image_id in ids_with_entry:
            message = "it has two entries in annotations"
            report.add(Fault("image has two entries in annotations", message), image_id)
            duplicates.add(image_id)
        elif image_id in file.images:
            name = segment_png_name(entry.file_name or file.images[image_id].path.name)
            entries[image_id] = msgspec.structs.replace(entry, file_name=name)
        ids_with_entry.add(image_id)
    for image_id in (each for each in file.images if each not in ids_with_entry):
        message = "it has no entry in annotations"
        report.add(Fault("image has no entry in annotations", message), image_id)
    return {image_id: entry for image_id, entry in entries.items() if image_id not in duplicates}


def _read_segments(
    entry: _ImageSegmentsEntry, png: Path, size: Size, file: AnnotationFile, report: ProblemReport
) -> list[Annotation]:
    """Return the valid segments of an image as annotations."""
    geometry = _SegmentGeometry(png)
    annotations = []
    for segment in _convert_segments(entry, report):
        faults = [*file.check_category_id(segment.category_id), *check_area(segment.area)]
        try:
            box, area = geometry.get_box_and_area(segment)
        except DataError as error:
            faults.append(Fault("PNG of segments can't be used", str(error)))
        else:
            faults += check_box(box, size)
        for fault in faults:
            report.add(fault, entry.image_id, segment.id)
        if not faults:
            annotation = Annotation(
                id=segment.id,
                category_id=file.categories[segment.category_id].id,
                box=xywh_to_xyxy(box),
                segmentation=PngSegment(png, segment.id),
                crowd=bool(segment.iscrowd),
                area=area,
            )
            annotations.append(annotation)
    return annotations


def _convert_segments(entry: _ImageSegmentsEntry, report: ProblemReport) -> Iterator[_SegmentEntry]:
    """Yield the valid entries of ``segments_info``; repeated ids are problems."""
    seen_ids: set[int] = set()
    for index, raw in enumerate(entry.segments_info):
        segment = convert_entry(normalize_entry(raw, SEGMENT_NORMALIZERS), _SegmentEntry)
        if isinstance(segment, str):
            fault = make_entry_fault("segments_info", index, segment)
            report.add(fault, entry.image_id, *read_entry_ids(raw, "id"))
        elif segment.id in seen_ids:
            message = f"the segment id {segment.id} is given twice"
            report.add(Fault("segment id is given twice", message), entry.image_id, segment.id)
        else:
            seen_ids.add(segment.id)
            yield segment


class _SegmentGeometry:
    """Boxes and areas of the segments in a PNG, which is read on first use."""

    def __init__(self, png: Path) -> None:
        self._png = png
        self._regions: dict[int, tuple[Box, float]] | None = None

    def get_box_and_area(self, segment: _SegmentEntry) -> tuple[Box, float]:
        """Return box (x, y, width, height) and area from the JSON, or from the PNG if missing.

        Raises:
            DataError: the PNG can't be read or has no pixels of the segment.
        """
        if segment.bbox is not None and segment.area is not None:
            return segment.bbox, segment.area
        if self._regions is None:
            regions = find_regions(load_label_map(self._png))
            rows = zip(*(column.tolist() for column in regions), strict=True)
            self._regions = {
                value: ((float(x1), float(y1), float(x2 - x1), float(y2 - y1)), float(area))
                for value, (x1, y1, x2, y2), area in rows
            }
        if segment.id not in self._regions:
            raise DataError(f"the segment has no pixels in {self._png}")
        box, area = self._regions[segment.id]
        return (
            box if segment.bbox is None else segment.bbox,
            area if segment.area is None else segment.area,
        )
