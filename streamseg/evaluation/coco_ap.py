"""COCO average precision and recall of boxes and masks (Lin et al., "Microsoft COCO", 2014).

All scores are fractions of one. A score without any ground truth (no small objects, no instance of
a class) is None and left out of means; COCO writes -1 for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from streamseg.evaluation.coco_backends import AccumulatedScores, Backend, accumulate_scores
from streamseg.evaluation.coco_rows import CocoDict, CocoInputs, IouType, normalize_coco

AREAS = ("all", "small", "medium", "large")
"""COCO's area ranges: small is up to 32 x 32 pixels, medium up to 96 x 96."""
MAX_DETECTIONS = (1, 10, 100)
"""COCO's limits of detections per image."""
IOU_50, IOU_75 = 0, 5
"""Indices of IoU .50 and .75 in COCO's thresholds .50, .55, … .95."""


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Average precision of one class.

    Attributes:
        category_id: the dataset's category id.
        name: the category's name.
        ap: mean over IoU .50 to .95; None without ground truth.
        ap50: at IoU .50; None without ground truth.
        truths: annotated instances that count: no crowds, and for masks none with only a box.
    """

    category_id: int
    name: str
    ap: float | None
    ap50: float | None
    truths: int


@dataclass(frozen=True, slots=True, eq=False)
class PrecisionRecall:
    """Precision-recall curves, the mean over classes; all float64 (101,).

    Attributes:
        recall: 0 to 1.
        at50: precision at IoU .50.
        at75: precision at IoU .75.
        mean: precision averaged over IoU .50 to .95; its mean is AP.
    """

    recall: npt.NDArray[np.float64]
    at50: npt.NDArray[np.float64]
    at75: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CocoScores:
    """COCO's twelve scores, scores per class and precision-recall curves.

    Attributes:
        on: whether IoU is computed on boxes or masks.
        ap: mean over classes and IoU .50 to .95, at most 100 detections per image.
        ap50: at IoU .50.
        ap75: at IoU .75.
        ap_small: of objects up to 32 x 32 pixels.
        ap_medium: up to 96 x 96.
        ap_large: above.
        ar1: recall with one detection per image.
        ar10: with 10.
        ar100: with 100.
        ar_small: of objects up to 32 x 32 pixels.
        ar_medium: up to 96 x 96.
        ar_large: above.
        classes: scores of every class, ids ascending.
        curves: None if there is no ground truth at all.
        images: number of images in the ground truth.
        backend: the library that computed the scores.
    """

    on: IouType
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
    ground_truth: CocoDict,
    predictions: Sequence[CocoDict],
    iou_type: IouType,
    backend: Literal["auto"] | Backend = "auto",
) -> CocoScores:
    """Return COCO's scores of predictions.

    Args:
        ground_truth: a COCO dict: ``images``, ``annotations``, ``categories``. Rows of categories
            that aren't listed are left out, in the predictions too. For masks, an annotation
            without a segmentation is treated as a crowd region: predictions in it don't count.
        predictions: COCO results: ``image_id``, ``category_id``, ``score``, and ``bbox`` or
            ``segmentation`` according to ``iou_type``.
        iou_type: whether IoU is computed on boxes or masks.
        backend: ``auto`` is the fastest that is installed.

    Raises:
        DataError: a row of ground truth or predictions is invalid; the message names it.
        StreamsegError: the backend isn't installed.
    """
    inputs = normalize_coco(ground_truth, predictions, iou_type)
    accumulated = accumulate_scores(inputs, backend)
    return CocoScores(
        on=iou_type,
        ap=_mean_precision(accumulated),
        ap50=_mean_precision(accumulated, iou=IOU_50),
        ap75=_mean_precision(accumulated, iou=IOU_75),
        ap_small=_mean_precision(accumulated, area="small"),
        ap_medium=_mean_precision(accumulated, area="medium"),
        ap_large=_mean_precision(accumulated, area="large"),
        ar1=_mean_recall(accumulated, max_detections=1),
        ar10=_mean_recall(accumulated, max_detections=10),
        ar100=_mean_recall(accumulated),
        ar_small=_mean_recall(accumulated, area="small"),
        ar_medium=_mean_recall(accumulated, area="medium"),
        ar_large=_mean_recall(accumulated, area="large"),
        classes=_class_scores(inputs, accumulated),
        curves=_precision_recall_curves(accumulated),
        images=len(inputs.sizes),
        backend=accumulated.backend,
    )


def _mean_precision(
    accumulated: AccumulatedScores,
    *,
    iou: int | None = None,
    area: str = "all",
    category: int | None = None,
) -> float | None:
    """Return the mean precision at one IoU (index) or all, of one category (index) or all."""
    ious = slice(None) if iou is None else iou
    categories = slice(None) if category is None else category
    return _mean(accumulated.precision[ious, ..., categories, AREAS.index(area), -1])


def _mean_recall(
    accumulated: AccumulatedScores, *, area: str = "all", max_detections: int = 100
) -> float | None:
    limit = MAX_DETECTIONS.index(max_detections)
    return _mean(accumulated.recall[..., AREAS.index(area), limit])


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """Return the mean of the values that have ground truth; those without are -1."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def _class_scores(inputs: CocoInputs, accumulated: AccumulatedScores) -> tuple[ClassScores, ...]:
    counts = Counter(row.category_id for row in inputs.ground_truth if not row.ignore)
    return tuple(
        ClassScores(
            category_id,
            name,
            _mean_precision(accumulated, category=index),
            _mean_precision(accumulated, iou=IOU_50, category=index),
            counts[category_id],
        )
        for index, (category_id, name) in enumerate(inputs.names.items())
    )


def _precision_recall_curves(accumulated: AccumulatedScores) -> PrecisionRecall | None:
    precision = accumulated.precision[:, :, :, AREAS.index("all"), -1]
    precision = precision[:, :, (precision > -1).all(axis=(0, 1))]  # classes with ground truth
    if not precision.size:
        return None
    by_iou = precision.mean(axis=2)
    return PrecisionRecall(
        np.linspace(0, 1, 101), by_iou[IOU_50], by_iou[IOU_75], by_iou.mean(axis=0)
    )
