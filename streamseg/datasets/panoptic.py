"""COCO's panoptic JSON and PNGs: each thing is an instance, the rest is patches of stuff.

Format: https://cocodataset.org/#format-data, "Panoptic Segmentation". A category that doesn't say
whether it ``isthing`` is one. A picture's entry may lack its ``file_name``, which is then the
image's with ``.png``, and its segments may lack ``bbox`` and ``area``, which are then counted in
the PNG. Otherwise the PNGs are not opened: see :func:`~streamseg.datasets.inspection.inspect`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from streamseg.config.training import PanopticData
from streamseg.datasets.dataset import Annotation, Dataset, PngSegment
from streamseg.datasets.entries import (
    AnnotationFile,
    area_faults,
    box_faults,
    read_file,
    to_corners,
)
from streamseg.datasets.filenames import FileFinder
from streamseg.datasets.findings import Fault, Findings, Id
from streamseg.datasets.labels import load_labels, regions
from streamseg.datasets.schema import (
    Box,
    Entry,
    EntryId,
    FileName,
    Flag,
    convert_entry,
    fault_of_entry,
    ids_of_entry,
)
from streamseg.datasets.spellings import (
    as_written,
    canonical_box,
    canonical_entry,
    canonical_flag,
    canonical_id,
    canonical_number,
    canonical_whole,
)
from streamseg.errors import DataError
from streamseg.structures.masks import Size

_Value: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]

PICTURE_READERS = {
    "image_id": canonical_id,
    "file_name": as_written,
    "segments_info": as_written,
}
SEGMENT_READERS = {
    "id": canonical_whole,
    "category_id": canonical_id,
    "bbox": canonical_box,
    "iscrowd": canonical_flag,
    "area": canonical_number,
}


class _SegmentEntry(Entry, frozen=True, kw_only=True):
    """A member of ``segments_info``; the box is x, y, width, height."""

    id: _Value
    category_id: EntryId
    bbox: Box | None = None
    iscrowd: Flag = 0
    area: float | None = None


class _PictureEntry(Entry, frozen=True, kw_only=True):
    """A member of ``annotations``: one picture's segments."""

    image_id: EntryId
    file_name: FileName | None = None
    segments_info: list[Any]


def read_panoptic(config: PanopticData, root: Path, findings: Findings) -> Dataset:
    """What can be read of a panoptic dataset.

    Args:
        config: where it is.
        root: the folder that its paths are relative to.
        findings: where everything that is wrong with it goes.

    Raises:
        DataError: the JSON can't be read, or isn't an annotation file.
        ConfigError: ``annotated`` names a thing that isn't there.
    """
    file = read_file(config, root, findings)
    pictures = _read_pictures(file, findings)
    finder = FileFinder(root / config.segments, root)
    files = finder.find(entry.file_name for entry in pictures.values() if entry.file_name)
    annotations = {}
    for image_id, entry in pictures.items():
        png = files[entry.file_name or ""]
        if isinstance(png, Fault):
            findings.add(png, image_id)
        else:
            size = file.images[image_id].size
            annotations[image_id] = _read_segments(entry, png, size, file, findings)
    for image_id in file.images.keys() - annotations.keys():
        del file.images[image_id]  # what isn't annotated at all would be taken for background
    return file.to_dataset(config, findings.dataset, annotations)


def png_name(file_name: str) -> str:
    """The name of the PNG of segments where an entry doesn't say it, or says its image's name."""
    name = PurePath(file_name)
    return file_name if name.suffix.lower() == ".png" else f"{name.with_suffix('')}.png"


def _read_pictures(file: AnnotationFile, findings: Findings) -> dict[Id, _PictureEntry]:
    """The entry of each usable image that has exactly one, with its ``file_name``."""
    entries: dict[Id, _PictureEntry] = {}
    mentioned: set[Id] = set()
    twice: set[Id] = set()
    for position, raw in enumerate(file.annotations):
        entry = convert_entry(canonical_entry(raw, PICTURE_READERS), _PictureEntry)
        if isinstance(entry, str):
            (number,) = ids_of_entry(raw, "image_id")
            mentioned |= set() if number is None else {file.resolve_image(number)}
            findings.add(fault_of_entry("annotations", position, entry), number)
            continue
        image_id = file.resolve_image(entry.image_id)
        for fault in file.image_faults(image_id):
            findings.add(fault, image_id)
        if image_id in mentioned:
            what = "it has two entries in annotations"
            findings.add(Fault("image has two entries in annotations", what), image_id)
            twice.add(image_id)
        elif image_id in file.images:
            name = png_name(entry.file_name or file.images[image_id].path.name)
            entries[image_id] = msgspec.structs.replace(entry, file_name=name)
        mentioned.add(image_id)
    for image_id in (each for each in file.images if each not in mentioned):
        what = "it has no entry in annotations"
        findings.add(Fault("image has no entry in annotations", what), image_id)
    return {image_id: entry for image_id, entry in entries.items() if image_id not in twice}


def _read_segments(
    entry: _PictureEntry, png: Path, size: Size, file: AnnotationFile, findings: Findings
) -> list[Annotation]:
    """The sound segments of a picture."""
    counted = _CountedSegments(png)
    sound = []
    for segment in _unique_segments(entry, findings):
        faults = [*file.category_faults(segment.category_id), *area_faults(segment.area)]
        try:
            box, area = counted.place_of(segment)
        except DataError as error:
            faults.append(Fault("PNG of segments can't be used", str(error)))
        else:
            faults += box_faults(box, size)
        for fault in faults:
            findings.add(fault, entry.image_id, segment.id)
        if not faults:
            made = Annotation(
                id=segment.id,
                category_id=file.categories[segment.category_id].id,
                box=to_corners(box),
                segmentation=PngSegment(png, segment.id),
                crowd=bool(segment.iscrowd),
                area=area,
            )
            sound.append(made)
    return sound


def _unique_segments(entry: _PictureEntry, findings: Findings) -> Iterator[_SegmentEntry]:
    """The readable segments of a picture whose id comes for the first time."""
    seen: set[int] = set()
    for position, raw in enumerate(entry.segments_info):
        segment = convert_entry(canonical_entry(raw, SEGMENT_READERS), _SegmentEntry)
        if isinstance(segment, str):
            fault = fault_of_entry("segments_info", position, segment)
            findings.add(fault, entry.image_id, *ids_of_entry(raw, "id"))
        elif segment.id in seen:
            what = f"the segment id {segment.id} is given twice"
            findings.add(Fault("segment id is given twice", what), entry.image_id, segment.id)
        else:
            seen.add(segment.id)
            yield segment


class _CountedSegments:
    """Boxes and areas of a PNG's segments, counted when the first one is asked for."""

    def __init__(self, png: Path) -> None:
        self._png = png
        self._counted: dict[int, tuple[Box, float]] | None = None

    def place_of(self, segment: _SegmentEntry) -> tuple[Box, float]:
        """A segment's box and area, counted where the JSON doesn't say them.

        Raises:
            DataError: the PNG can't be read, or has no pixel of the segment.
        """
        if segment.bbox is not None and segment.area is not None:
            return segment.bbox, segment.area
        if self._counted is None:
            self._counted = _count(self._png)
        if segment.id not in self._counted:
            raise DataError(f"the segment has no pixels in {self._png}")
        box, area = self._counted[segment.id]
        return (
            box if segment.bbox is None else segment.bbox,
            area if segment.area is None else segment.area,
        )


def _count(png: Path) -> dict[int, tuple[Box, float]]:
    """The box x, y, width, height and the pixels of each value in a PNG."""
    rows = zip(*(each.tolist() for each in regions(load_labels(png))), strict=True)
    return {
        value: ((float(x1), float(y1), float(x2 - x1), float(y2 - y1)), float(area))
        for value, (x1, y1, x2, y2), area in rows
    }
