"""Panoptic quality of files: JSONs and folders of PNGs in COCO's panoptic format.

Ids of images may be numbers or text, and other values may be spelt as in a dataset; see
:mod:`streamseg.datasets.normalization`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from msgspec import Meta

from streamseg.datasets.coco_file import read_json
from streamseg.datasets.coco_panoptic import PICTURE_READERS, SEGMENT_READERS, png_name
from streamseg.datasets.filenames import FileFinder
from streamseg.datasets.label_maps import load_labels
from streamseg.datasets.normalization import (
    Reader,
    as_written,
    canonical_entry,
    canonical_flag,
    canonical_id,
)
from streamseg.datasets.problems import Fault, Id
from streamseg.datasets.schema import Entry, EntryId, FileName, Flag, convert_entry
from streamseg.errors import DataError
from streamseg.evaluation.panoptic import (
    Category,
    PanopticCount,
    PanopticMap,
    PanopticScores,
    SegmentInfo,
)

_Whole: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_CATEGORY_READERS = {"id": canonical_id, "name": as_written, "isthing": canonical_flag}
_IMAGE_READERS = {"id": canonical_id, "file_name": as_written}


class _SegmentEntry(Entry, frozen=True, kw_only=True):
    """A member of ``segments_info``; the area is used in the truth only."""

    id: _Whole
    category_id: _Whole
    iscrowd: Flag = 0
    area: float | None = None


class _PictureEntry(Entry, frozen=True, kw_only=True):
    """A member of ``annotations``."""

    image_id: EntryId
    file_name: FileName | None = None
    segments_info: list[Any]


class _ImageEntry(Entry, frozen=True, kw_only=True):
    """A member of ``images``, which names the PNG where ``annotations`` doesn't."""

    id: EntryId
    file_name: FileName


class _CategoryEntry(Entry, frozen=True, kw_only=True):
    """A member of ``categories``; one that doesn't say whether it ``isthing`` is one."""

    id: _Whole
    name: str
    isthing: Flag = True


EntryT = TypeVar("EntryT", bound=Entry)


@dataclass(frozen=True, slots=True)
class _Picture:
    """One image's PNG and what its segments are."""

    image_id: Id
    png: Path
    segments: Sequence[SegmentInfo]


def panoptic_quality(
    truth: Path, truth_segments: Path, results: Path, result_segments: Path
) -> PanopticScores:
    """Compare two JSONs and folders of PNGs in COCO's panoptic format.

    Results of images that the truth hasn't are left out.

    Raises:
        DataError: a file can't be read, PNG and JSON don't agree, a category isn't in the truth,
            or an image has no result; the message says which.
    """
    there, given = _read(truth), _read(results)
    categories = [
        Category(each.id, each.name, bool(each.isthing))
        for each in _entries(truth, there, "categories", _CATEGORY_READERS, _CategoryEntry)
    ]
    expected = _pictures(truth, there, truth_segments)
    found = {each.image_id: each for each in _pictures(results, given, result_segments)}
    known = {category.id for category in categories}
    count = PanopticCount(categories)
    for picture in expected:
        if picture.image_id not in found:
            raise DataError(f"{results}: there is no result for image {picture.image_id}")
        other = found[picture.image_id]
        _check_categories(picture, known, truth)
        _check_categories(other, known, results)
        count.add(_load_map(picture), _load_map(other))
    return count.scores()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        raw = read_json(path)
    except DataError as error:
        if ": isn't JSON: " not in str(error):
            raise
        raise DataError(str(error).replace("isn't JSON", "isn't a panoptic JSON", 1)) from None
    if not isinstance(raw, dict):
        raise DataError(f"{path}: isn't a panoptic JSON: it holds no object with annotations")
    return raw


def _entries(
    path: Path,
    raw: Mapping[str, Any],
    key: str,
    readers: Mapping[str, Reader],
    schema: type[EntryT],
) -> list[EntryT]:
    """The members of one of the file's lists.

    Raises:
        DataError: there is no such list, or a member isn't what it should be.
    """
    if not isinstance(raw.get(key), list):
        raise DataError(f"{path}: isn't a panoptic JSON: {key} must be a list")
    return _converted(path, raw[key], key, readers, schema)


def _converted(
    path: Path,
    members: Iterable[Any],
    where: str,
    readers: Mapping[str, Reader],
    schema: type[EntryT],
) -> list[EntryT]:
    converted = []
    for position, member in enumerate(members):
        entry = convert_entry(canonical_entry(member, readers), schema)
        if isinstance(entry, str):
            raise DataError(f"{path}: isn't a panoptic JSON: {where}[{position}]{entry}")
        converted.append(entry)
    return converted


def _pictures(path: Path, raw: Mapping[str, Any], folder: Path) -> list[_Picture]:
    """The entry of each image, with its PNG."""
    entries = _entries(path, raw, "annotations", PICTURE_READERS, _PictureEntry)
    names = _png_names(path, raw, entries)
    files = FileFinder(folder, folder).find(names)
    pictures = []
    for position, (entry, name) in enumerate(zip(entries, names, strict=True)):
        png = files[name]
        if isinstance(png, Fault):
            raise DataError(f"{path}: image {entry.image_id}: {png.what}")
        where = f"annotations[{position}].segments_info"
        segments = [
            SegmentInfo(each.id, each.category_id, bool(each.iscrowd), each.area)
            for each in _converted(path, entry.segments_info, where, SEGMENT_READERS, _SegmentEntry)
        ]
        pictures.append(_Picture(entry.image_id, png, segments))
    return pictures


def _png_names(path: Path, raw: Mapping[str, Any], entries: Sequence[_PictureEntry]) -> list[str]:
    """The name of each entry's PNG: its own, or that of its image with ``.png``."""
    images: dict[Id, str] = {}
    if any(entry.file_name is None for entry in entries):
        listed = _entries(path, raw, "images", _IMAGE_READERS, _ImageEntry)
        images = {image.id: image.file_name for image in listed}
    names = []
    for entry in entries:
        name = entry.file_name or images.get(entry.image_id)
        if name is None:
            raise DataError(f"{path}: image {entry.image_id}: its entry has no file_name")
        names.append(png_name(name))
    return names


def _check_categories(picture: _Picture, known: set[int], path: Path) -> None:
    for segment in picture.segments:
        if segment.category_id not in known:
            raise DataError(
                f"{path}: image {picture.image_id}: segment {segment.id} is of category "
                f"{segment.category_id}, which the truth hasn't"
            )


def _load_map(picture: _Picture) -> PanopticMap:
    return PanopticMap(load_labels(picture.png), picture.segments, str(picture.png))
