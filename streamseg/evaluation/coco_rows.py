"""COCO ground truth and predictions, validated and normalized for the scoring libraries.

pycocotools doesn't validate: run lengths that are too short make it read uninitialised memory.
For a prediction it always uses the area of the box. Here run lengths are checked, and every row
has the area of the shape that is compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pycocotools import mask as coco_mask

from streamseg.errors import DataError, MaskError
from streamseg.structures.masks import RLE, Masks, Size

IouType: TypeAlias = Literal["boxes", "masks"]
Box: TypeAlias = tuple[float, float, float, float]
CocoDict: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CocoRow:
    """Annotation or prediction of one object.

    Attributes:
        image_id: the dataset's image id.
        category_id: the dataset's category id.
        shape: the box (x, y, width, height in pixels) or the mask's compressed RLE.
        area: area of ``shape`` in pixels; for an annotation, the dataset's ``area``.
        score: 1 in the ground truth.
        ignore: whether this is a crowd region: predictions in it are neither right nor wrong.
    """

    image_id: int | str
    category_id: int
    shape: Box | RLE
    area: float
    score: float = 1.0
    ignore: bool = False


@dataclass(frozen=True, slots=True)
class CocoInputs:
    """Ground truth and predictions that are scored against each other.

    Attributes:
        iou_type: whether IoU is computed on boxes or masks.
        sizes: (height, width) of each image, by id; (0, 0) if the ground truth has none.
        names: name of each category id, ids ascending.
        ground_truth: the annotations.
        predictions: the predictions.
    """

    iou_type: IouType
    sizes: Mapping[int | str, Size]
    names: Mapping[int, str]
    ground_truth: tuple[CocoRow, ...]
    predictions: tuple[CocoRow, ...]


def normalize_coco(
    ground_truth: CocoDict, predictions: Sequence[CocoDict], iou_type: IouType
) -> CocoInputs:
    """Validate a COCO dict and COCO results and return them as rows.

    Rows of categories that the ground truth doesn't list are left out: a model of 80 classes may
    be evaluated on a dataset with one of them. For masks, an annotation that has only a box
    becomes a crowd region, because the object's mask is unknown.

    Raises:
        DataError: a row lacks the shape to compare, its image isn't in the ground truth, a number
            isn't finite, or a mask doesn't have its image's size.
    """
    sizes = {
        image["id"]: (int(image.get("height", 0)), int(image.get("width", 0)))
        for image in ground_truth["images"]
    }
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    names = {category["id"]: str(category["name"]) for category in categories}
    return CocoInputs(
        iou_type,
        sizes,
        names,
        _normalize_rows(ground_truth["annotations"], "annotation", sizes, names, iou_type),
        _normalize_rows(predictions, "result", sizes, names, iou_type),
    )


def _normalize_rows(
    rows: Sequence[CocoDict],
    kind: Literal["annotation", "result"],
    sizes: Mapping[int | str, Size],
    names: Mapping[int, str],
    iou_type: IouType,
) -> tuple[CocoRow, ...]:
    """Return the rows of listed categories, grouped by image."""
    by_image: dict[int | str, list[tuple[str, CocoDict]]] = defaultdict(list)
    for number, row in enumerate(rows):
        label = f"{kind} {row.get('id', number) if kind == 'annotation' else number}"
        for key in ("image_id", "category_id", *(["score"] if kind == "result" else [])):
            if key not in row:
                raise DataError(f"{label} has no {key}: it isn't a COCO {kind}")
        if row["image_id"] not in sizes:
            raise DataError(f"{label}: image {row['image_id']!r} isn't in the ground truth")
        if not math.isfinite(row.get("score", 1.0)):
            raise DataError(f"{label} has a score that isn't finite")
        if row["category_id"] in names:
            by_image[row["image_id"]].append((label, row))
    normalize = _normalize_boxes if iou_type == "boxes" else _normalize_masks
    return tuple(
        row
        for image_id, labeled in by_image.items()
        for row in normalize(labeled, sizes[image_id], is_truth=kind == "annotation")
    )


def _normalize_boxes(
    rows: list[tuple[str, CocoDict]], _size: Size, *, is_truth: bool
) -> list[CocoRow]:
    normalized = []
    for label, row in rows:
        box = _parse_box(label, row)
        normalized.append(_make_row(row, box, box[2] * box[3], is_truth=is_truth))
    return normalized


def _normalize_masks(
    rows: list[tuple[str, CocoDict]], size: Size, *, is_truth: bool
) -> list[CocoRow]:
    """Return the rows of one image; its run lengths are checked together, which is faster."""
    if 0 in size:
        image_id = rows[0][1]["image_id"]
        raise DataError(f"image {image_id!r} has no height and width in the ground truth")
    counts = [_parse_counts(label, row, size, is_truth=is_truth) for label, row in rows]
    try:
        masks = Masks.from_rle(counts, size)
    except MaskError as error:
        invalid = next(n for n, each in enumerate(counts) if not _is_valid_rle(each, size))
        raise DataError(f"{rows[invalid][0]}: {error}") from None
    return [
        _make_row(row, rle, area, is_truth=is_truth, ignore=not row.get("segmentation"))
        for rle, area, (_, row) in zip(masks.to_rle(), masks.areas.tolist(), rows, strict=True)
    ]


def _make_row(
    row: CocoDict, shape: Box | RLE, area: float, *, is_truth: bool, ignore: bool = False
) -> CocoRow:
    image_id, category_id = row["image_id"], row["category_id"]
    if not is_truth:
        return CocoRow(image_id, category_id, shape, area, float(row["score"]))
    annotated_area = float(row.get("area") or area)
    ignore = ignore or bool(row.get("iscrowd"))
    return CocoRow(image_id, category_id, shape, annotated_area, ignore=ignore)


def _parse_box(label: str, row: CocoDict) -> Box:
    box = tuple(float(number) for number in row.get("bbox") or ())
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise DataError(f"{label} has no bbox of four finite numbers: x, y, width, height")
    return box


def _parse_counts(label: str, row: CocoDict, size: Size, *, is_truth: bool) -> str:
    """Return a row's mask as compressed counts, whose run lengths aren't checked yet."""
    segmentation = row.get("segmentation")
    if not segmentation:
        if not is_truth:
            raise DataError(f"{label} has no segmentation: only its box can be scored")
        x, y, width, height = _parse_box(label, row)
        return Masks.from_boxes([(x, y, x + width, y + height)], size).counts[0]
    if isinstance(segmentation, Mapping):
        if "counts" not in segmentation or tuple(segmentation.get("size", ())) != tuple(size):
            raise DataError(
                f"{label} has run lengths of size {segmentation.get('size')} in an image of "
                f"size {list(size)}"
            )
        counts = segmentation["counts"]
        if not isinstance(counts, str | bytes):
            counts = coco_mask.frPyObjects(dict(segmentation), *size)["counts"]
    else:
        if not all(len(ring) >= 6 and len(ring) % 2 == 0 for ring in segmentation):
            raise DataError(f"{label} has a polygon that isn't three or more pairs x, y")
        polygons = coco_mask.frPyObjects(list(map(list, segmentation)), *size)
        counts = coco_mask.merge(polygons)["counts"]
    return counts if isinstance(counts, str) else counts.decode("latin-1")


def _is_valid_rle(counts: str, size: Size) -> bool:
    try:
        Masks.from_rle([counts], size)
    except MaskError:
        return False
    return True
