"""Truth and results in COCO's form, checked and made alike, as the scorers of COCO take them.

Whoever scores gets rows that are complete: ids from 1 (pycocotools takes a match with id 0 for
none), masks as compressed run lengths whose runs were checked (pycocotools reads uninitialised
memory where they are too short), and the area of what is compared (pycocotools takes a result's
box for it, even where masks are compared).
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

On: TypeAlias = Literal["boxes", "masks"]
Box: TypeAlias = tuple[float, float, float, float]
CocoRow: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One annotated object or one result.

    Attributes:
        image_id: the dataset's.
        category_id: the dataset's.
        shape: what is compared: the box, x, y, width, height in pixels, or the run lengths.
        area: of it in pixels; an annotation's is what the dataset says.
        score: 1 in the truth.
        ignore: whether results that lie in it are neither right nor wrong.
    """

    image_id: int | str
    category_id: int
    shape: Box | RLE
    area: float
    score: float = 1.0
    ignore: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is there beside what was found.

    Attributes:
        on: what overlaps are computed on.
        sizes: (height, width) of each image, by id; (0, 0) where the truth doesn't say.
        names: of each category id, ids ascending.
        truth: what is there.
        found: the results.
    """

    on: On
    sizes: Mapping[int | str, Size]
    names: Mapping[int, str]
    truth: tuple[Row, ...]
    found: tuple[Row, ...]


def compare(truth: CocoRow, results: Sequence[CocoRow], on: On) -> Comparison:
    """Truth (a COCO dict) and results (COCO's) as rows.

    Categories that the truth doesn't list are left out on both sides: a model of 80 classes may be
    measured on a dataset that has one of them. Where masks are compared, an annotation that has
    only a box says that something is there but not what it looks like: results that lie in the box
    are neither right nor wrong, as in a crowd.

    Raises:
        DataError: a row lacks what is compared, its image isn't in the truth, a number isn't
            finite, or a mask isn't one of its image's size.
    """
    sizes = {
        image["id"]: (int(image.get("height", 0)), int(image.get("width", 0)))
        for image in truth["images"]
    }
    names = {c["id"]: str(c["name"]) for c in sorted(truth["categories"], key=lambda c: c["id"])}
    return Comparison(
        on,
        sizes,
        names,
        _rows(truth["annotations"], "annotation", sizes, names, on),
        _rows(results, "result", sizes, names, on),
    )


def _rows(
    given: Sequence[CocoRow],
    kind: Literal["annotation", "result"],
    sizes: Mapping[int | str, Size],
    names: Mapping[int, str],
    on: On,
) -> tuple[Row, ...]:
    by_image: dict[int | str, list[tuple[str, CocoRow]]] = defaultdict(list)
    for number, row in enumerate(given):
        what = f"{kind} {row.get('id', number) if kind == 'annotation' else number}"
        for key in ("image_id", "category_id", *(["score"] if kind == "result" else [])):
            if key not in row:
                raise DataError(f"{what} has no {key}: it isn't a COCO {kind}")
        if row["image_id"] not in sizes:
            raise DataError(f"{what} is of image {row['image_id']!r}, which the truth hasn't")
        if not math.isfinite(row.get("score", 1.0)):
            raise DataError(f"{what} has a score that isn't finite")
        if row["category_id"] in names:
            by_image[row["image_id"]].append((what, row))
    make = _boxed if on == "boxes" else _masked
    return tuple(
        made
        for image_id, of_image in by_image.items()
        for made in make(of_image, sizes[image_id], is_truth=kind == "annotation")
    )


def _boxed(rows: list[tuple[str, CocoRow]], _size: Size, *, is_truth: bool) -> list[Row]:
    boxes = [_box(what, row) for what, row in rows]
    return [
        _row(row, box, box[2] * box[3], is_truth=is_truth)
        for box, (_, row) in zip(boxes, rows, strict=True)
    ]


def _masked(rows: list[tuple[str, CocoRow]], size: Size, *, is_truth: bool) -> list[Row]:
    """The rows of one image, whose run lengths are checked together: it is much quicker."""
    if 0 in size:
        raise DataError(f"image {rows[0][1]['image_id']!r} has no height and width in the truth")
    counts = [_counts(what, row, size, is_truth=is_truth) for what, row in rows]
    try:
        masks = Masks.from_rle(counts, size)
    except MaskError as error:
        raise DataError(f"{_culprit(rows, counts, size)}: {error}") from None
    return [
        _row(row, rle, area, is_truth=is_truth, ignore=not row.get("segmentation"))
        for rle, area, (_, row) in zip(masks.to_rle(), masks.areas.tolist(), rows, strict=True)
    ]


def _row(
    row: CocoRow, shape: Box | RLE, area: float, *, is_truth: bool, ignore: bool = False
) -> Row:
    image_id, category_id = row["image_id"], row["category_id"]
    if not is_truth:
        return Row(image_id, category_id, shape, area, float(row["score"]))
    said = float(row.get("area") or area)
    return Row(image_id, category_id, shape, said, ignore=ignore or bool(row.get("iscrowd")))


def _box(what: str, row: CocoRow) -> Box:
    given = tuple(float(number) for number in row.get("bbox") or ())
    if len(given) != 4 or not all(map(math.isfinite, given)):
        raise DataError(f"{what} has no bbox of four finite numbers: x, y, width, height")
    return given


def _counts(what: str, row: CocoRow, size: Size, *, is_truth: bool) -> str:
    """The mask's compressed counts, not yet checked."""
    segmentation = row.get("segmentation")
    if not segmentation and not is_truth:
        raise DataError(f"{what} has no segmentation: masks can't be compared, boxes can")
    if not segmentation:
        x, y, width, height = _box(what, row)
        return Masks.from_boxes([(x, y, x + width, y + height)], size).counts[0]
    if isinstance(segmentation, Mapping):
        return _from_rle(what, segmentation, size)
    if not all(len(ring) >= 6 and len(ring) % 2 == 0 for ring in segmentation):
        raise DataError(f"{what} has a polygon that isn't three or more pairs x, y")
    merged = coco_mask.merge(coco_mask.frPyObjects(list(map(list, segmentation)), *size))
    return _text(merged["counts"])


def _from_rle(what: str, rle: CocoRow, size: Size) -> str:
    if "counts" not in rle or tuple(rle.get("size", ())) != tuple(size):
        raise DataError(f"{what} has run lengths of {rle.get('size')} in an image of {list(size)}")
    if isinstance(rle["counts"], str | bytes):
        return _text(rle["counts"])
    return _text(coco_mask.frPyObjects(dict(rle), *size)["counts"])


def _text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode("latin-1")


def _culprit(rows: list[tuple[str, CocoRow]], counts: list[str], size: Size) -> str:
    """Which of the rows has the run lengths that can't be."""
    return next(
        what for (what, _), text in zip(rows, counts, strict=True) if not _is_mask(text, size)
    )


def _is_mask(counts: str, size: Size) -> bool:
    try:
        Masks.from_rle([counts], size)
    except MaskError:
        return False
    return True
