"""COCO's average precision and recall of boxes and masks (Lin et al., "Microsoft COCO", 2014).

All numbers are fractions of one. A number that the truth has nothing for (no small objects, no
instance of a class) is None: such a class isn't in any mean, as in COCO, where it is -1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from streamseg.evaluation.coco_backends import Accumulated, Backend, accumulate
from streamseg.evaluation.coco_rows import CocoRow, Comparison, On, compare

AREAS = ("all", "small", "medium", "large")  # up to 32 x 32 pixels, up to 96 x 96, above
MOST = (1, 10, 100)  # detections an image
IOU_50, IOU_75 = 0, 5  # where they are in .5, .55, … .95


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How one class is found.

    Attributes:
        category_id: the dataset's.
        name: the category's.
        ap: mean over IoU .5 to .95; None where the truth has no instance.
        ap50: at IoU .5; likewise.
        truths: annotated instances, without crowds and without boxes where masks are compared.
    """

    category_id: int
    name: str
    ap: float | None
    ap50: float | None
    truths: int


@dataclass(frozen=True, slots=True, eq=False)
class PrecisionRecall:
    """Precision that is reached at each recall, the mean over classes; all float64 (101,).

    Attributes:
        recall: 0 to 1.
        at50: precision where IoU .5 is enough.
        at75: precision where .75 is.
        mean: over IoU .5 to .95; its mean is AP.
    """

    recall: npt.NDArray[np.float64]
    at50: npt.NDArray[np.float64]
    at75: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CocoScores:
    """COCO's twelve numbers and what is behind them.

    Attributes:
        on: what overlaps were computed on.
        ap: mean over classes and IoU .5 to .95, at most 100 detections an image.
        ap50: at IoU .5.
        ap75: at IoU .75.
        ap_small: of objects up to 32 x 32 pixels.
        ap_medium: up to 96 x 96.
        ap_large: above.
        ar1: recall with one detection an image.
        ar10: with ten.
        ar100: with a hundred.
        ar_small: of objects up to 32 x 32 pixels.
        ar_medium: up to 96 x 96.
        ar_large: above.
        classes: every class, ids ascending.
        curves: None where the truth has no instance at all.
        images: how many the truth has.
        backend: which program computed it.
    """

    on: On
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    classes: tuple[ClassScores, ...]
    curves: PrecisionRecall | None
    images: int
    backend: Backend


def evaluate_coco(
    truth: CocoRow,
    results: Sequence[CocoRow],
    on: On,
    backend: Literal["auto"] | Backend = "auto",
) -> CocoScores:
    """How good results are, by COCO's measure.

    Args:
        truth: a COCO dict: ``images``, ``annotations``, ``categories``. Categories that aren't
            listed are left out on both sides. Where masks are compared, an annotation without a
            segmentation is a region whose results don't count, as in a crowd.
        results: COCO's: ``image_id``, ``category_id``, ``score``, and ``bbox`` or
            ``segmentation``, whichever is compared.
        on: what overlaps are computed on.
        backend: ``auto`` is the quickest that is installed.

    Raises:
        DataError: truth or results aren't what they should be; the row is named.
        StreamsegError: the backend isn't installed.
    """
    comparison = compare(truth, results, on)
    summed = accumulate(comparison, backend)
    return CocoScores(
        on=on,
        ap=_precision(summed),
        ap50=_precision(summed, iou=IOU_50),
        ap75=_precision(summed, iou=IOU_75),
        ap_small=_precision(summed, area="small"),
        ap_medium=_precision(summed, area="medium"),
        ap_large=_precision(summed, area="large"),
        ar1=_recall(summed, most=1),
        ar10=_recall(summed, most=10),
        ar100=_recall(summed),
        ar_small=_recall(summed, area="small"),
        ar_medium=_recall(summed, area="medium"),
        ar_large=_recall(summed, area="large"),
        classes=_classes(comparison, summed),
        curves=_curves(summed),
        images=len(comparison.sizes),
        backend=summed.backend,
    )


def _precision(
    summed: Accumulated, *, iou: int | None = None, area: str = "all", category: int | None = None
) -> float | None:
    """The mean precision at one IoU or all, of one category (its place) or all."""
    return _mean(
        summed.precision[
            slice(None) if iou is None else iou,
            ...,
            slice(None) if category is None else category,
            AREAS.index(area),
            -1,
        ]
    )


def _recall(summed: Accumulated, *, area: str = "all", most: int = 100) -> float | None:
    return _mean(summed.recall[..., AREAS.index(area), MOST.index(most)])


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _classes(comparison: Comparison, summed: Accumulated) -> tuple[ClassScores, ...]:
    truths = Counter(row.category_id for row in comparison.truth if not row.ignore)
    return tuple(
        ClassScores(
            category_id,
            name,
            _precision(summed, category=place),
            _precision(summed, iou=IOU_50, category=place),
            truths[category_id],
        )
        for place, (category_id, name) in enumerate(comparison.names.items())
    )


def _curves(summed: Accumulated) -> PrecisionRecall | None:
    precision = summed.precision[:, :, :, AREAS.index("all"), -1]
    precision = precision[:, :, (precision > -1).all(axis=(0, 1))]  # classes that are there
    if not precision.size:
        return None
    by_iou = precision.mean(axis=2)
    return PrecisionRecall(
        np.linspace(0, 1, 101), by_iou[IOU_50], by_iou[IOU_75], by_iou.mean(axis=0)
    )
