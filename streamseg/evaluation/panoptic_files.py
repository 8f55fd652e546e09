"""Panoptic quality of result files in COCO's panoptic format: a JSON file and a folder of PNGs.

Values are normalized as those of datasets are: image ids may be numbers or text, for example.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from msgspec import Meta

from streamseg.datasets.coco_file import read_json
from streamseg.datasets.coco_panoptic import (
    IMAGE_SEGMENTS_NORMALIZERS,
    SEGMENT_NORMALIZERS,
    segment_png_name,
)
from streamseg.datasets.filenames import FileFinder
from streamseg.datasets.label_maps import load_label_map
from streamseg.datasets.normalization import (
    Normalizer,
    keep_value,
    normalize_entry,
    normalize_flag,
    normalize_id,
)
from streamseg.datasets.problems import Fault, Id
from streamseg.datasets.schema import Entry, EntryId, FileName, Flag, convert_entry
from streamseg.errors import DataError
from streamseg.evaluation.panoptic_quality import (
    PanopticCategory,
    PanopticEvaluator,
    PanopticMap,
    PanopticScores,
    SegmentInfo,
)

_Integer: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_CATEGORY_READERS = {"id": normalize_id, "name": keep_value, "isthing": normalize_flag}
_IMAGE_READERS = {"id": normalize_id, "file_name": keep_value}


class _SegmentEntry(Entry, frozen=True, kw_only=True):
    """Member of ``segments_info``; the area is used in ground truth only."""

    id: _Integer
    category_id: _Integer
    iscrowd: Flag = 0
    area: float | None = None


class _AnnotationEntry(Entry, frozen=True, kw_only=True):
    """Member of ``annotations``: the segments of one image."""

    image_id: EntryId
    file_name: FileName | None = None
    segments_info: list[Any]


class _ImageEntry(Entry, frozen=True, kw_only=True):
    """Member of ``images``; its file name is used if the annotation has none."""

    id: EntryId
    file_name: FileName


class _CategoryEntry(Entry, frozen=True, kw_only=True):
    """Member of ``categories``; without ``isthing`` it is a thing."""

    id: _Integer
    name: str
    isthing: Flag = True


EntryT = TypeVar("EntryT", bound=Entry)


@dataclass(frozen=True, slots=True)
class _Annotation:
    """PNG and segments of one image."""

    image_id: Id
    png: Path
    segments: Sequence[SegmentInfo]


def evaluate_panoptic(
    truth: Path, truth_segments: Path, results: Path, result_segments: Path
) -> PanopticScores:
    """Return the panoptic quality of results in COCO's panoptic format.

    Results of images that aren't in the ground truth are left out.

    Args:
        truth: JSON file of the ground truth.
        truth_segments: folder of its PNGs.
        results: JSON file of the results.
        result_segments: folder of their PNGs.

    Raises:
        DataError: a file can't be read, a PNG doesn't agree with the JSON, a category isn't in the
            ground truth, or an image has no result.
    """
    truth_content, results_content = _read_content(truth), _read_content(results)
    categories = [
        PanopticCategory(entry.id, entry.name, bool(entry.isthing))
        for entry in _convert_list(
            truth, truth_content, "categories", _CATEGORY_READERS, _CategoryEntry
        )
    ]
    annotations = _read_annotations(truth, truth_content, truth_segments)
    predictions = {
        each.image_id: each for each in _read_annotations(results, results_content, result_segments)
    }
    known = {category.id for category in categories}
    evaluator = PanopticEvaluator(categories)
    for annotation in annotations:
        prediction = predictions.get(annotation.image_id)
        if prediction is None:
            raise DataError(f"{results}: there is no result for image {annotation.image_id}")
        _check_categories(annotation, known, truth)
        _check_categories(prediction, known, results)
        evaluator.add(_load_map(annotation), _load_map(prediction))
    return evaluator.scores()


def _read_content(path: Path) -> Mapping[str, Any]:
    try:
        raw = read_json(path)
    except DataError as error:
        if ": isn't JSON: " not in str(error):
            raise
        raise DataError(str(error).replace("isn't JSON", "isn't a panoptic JSON", 1)) from None
    if not isinstance(raw, dict):
        raise DataError(f"{path}: isn't a panoptic JSON: it must be an object with annotations")
    return raw


def _convert_list(
    path: Path,
    raw: Mapping[str, Any],
    key: str,
    normalizers: Mapping[str, Normalizer],
    schema: type[EntryT],
) -> list[EntryT]:
    """Return the members of one of the file's lists as entries.

    Raises:
        DataError: the list is missing, or a member is invalid.
    """
    if not isinstance(raw.get(key), list):
        raise DataError(f"{path}: isn't a panoptic JSON: {key} must be a list")
    return _convert_members(path, raw[key], key, normalizers, schema)


def _convert_members(
    path: Path,
    members: Iterable[Any],
    where: str,
    normalizers: Mapping[str, Normalizer],
    schema: type[EntryT],
) -> list[EntryT]:
    converted = []
    for position, member in enumerate(members):
        entry = convert_entry(normalize_entry(member, normalizers), schema)
        if isinstance(entry, str):
            raise DataError(f"{path}: isn't a panoptic JSON: {where}[{position}]{entry}")
        converted.append(entry)
    return converted


def _read_annotations(path: Path, raw: Mapping[str, Any], folder: Path) -> list[_Annotation]:
    """Return the segments and the PNG of each image."""
    entries = _convert_list(path, raw, "annotations", IMAGE_SEGMENTS_NORMALIZERS, _AnnotationEntry)
    names = _find_png_names(path, raw, entries)
    files = FileFinder(folder, folder).find(names)
    annotations = []
    for position, (entry, name) in enumerate(zip(entries, names, strict=True)):
        png = files[name]
        if isinstance(png, Fault):
            raise DataError(f"{path}: image {entry.image_id}: {png.message}")
        where = f"annotations[{position}].segments_info"
        segments = [
            SegmentInfo(each.id, each.category_id, bool(each.iscrowd), each.area)
            for each in _convert_members(
                path, entry.segments_info, where, SEGMENT_NORMALIZERS, _SegmentEntry
            )
        ]
        annotations.append(_Annotation(entry.image_id, png, segments))
    return annotations


def _find_png_names(
    path: Path, raw: Mapping[str, Any], entries: Sequence[_AnnotationEntry]
) -> list[str]:
    """Return the file name of each entry's PNG: its own, or its image's with ``.png``."""
    images: dict[Id, str] = {}
    if any(entry.file_name is None for entry in entries):
        listed = _convert_list(path, raw, "images", _IMAGE_READERS, _ImageEntry)
        images = {image.id: image.file_name for image in listed}
    names = []
    for entry in entries:
        name = entry.file_name or images.get(entry.image_id)
        if name is None:
            raise DataError(f"{path}: image {entry.image_id}: its entry has no file_name")
        names.append(segment_png_name(name))
    return names


def _check_categories(annotation: _Annotation, known: set[int], path: Path) -> None:
    for segment in annotation.segments:
        if segment.category_id not in known:
            raise DataError(
                f"{path}: image {annotation.image_id}: segment {segment.id} has category "
                f"{segment.category_id}, which isn't in the ground truth"
            )


def _load_map(annotation: _Annotation) -> PanopticMap:
    return PanopticMap(load_label_map(annotation.png), annotation.segments, str(annotation.png))
