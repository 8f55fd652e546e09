"""Confusion matrix of classes: ground truth and predictions matched by IoU, regardless of class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from streamseg.evaluation.coco_rows import CocoDict, CocoRow, IouType, normalize_coco
from streamseg.structures.masks import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class ConfusionMatrix:
    """Counts of the predicted class of each annotated object.

    Attributes:
        names: names of the C classes, in the order of their category ids.
        counts: int64 (C + 1, C + 1): annotated class in rows, predicted class in columns. The last
            row counts predictions without an object, the last column objects that were missed.
        on: whether IoU is computed on boxes or masks.
        score: minimum score of the predictions.
        iou: minimum IoU of a match.
    """

    names: tuple[str, ...]
    counts: IntArray
    on: IouType
    score: float
    iou: float


def compute_confusion_matrix(
    ground_truth: CocoDict,
    predictions: Sequence[CocoDict],
    iou_type: IouType,
    score: float = 0.5,
    iou: float = 0.5,
) -> ConfusionMatrix:
    """Return the confusion matrix; pairs are matched in descending order of their IoU.

    An unmatched prediction doesn't count if a crowd region of any class covers ``iou`` of its area.

    Args:
        ground_truth: COCO dict, as in :func:`streamseg.evaluation.evaluate_coco`.
        predictions: COCO results, as there.
        iou_type: whether IoU is computed on boxes or masks.
        score: minimum score; predictions below are left out.
        iou: minimum IoU of a match.

    Raises:
        DataError: a row of ground truth or predictions is invalid; the message names it.
    """
    inputs = normalize_coco(ground_truth, predictions, iou_type)
    index = {category_id: number for number, category_id in enumerate(inputs.names)}
    none = len(index)
    counts = np.zeros((none + 1, none + 1), np.int64)
    annotated = _group_by_image(inputs.ground_truth)
    predicted = _group_by_image(row for row in inputs.predictions if row.score >= score)
    for image_id in inputs.sizes:
        for truth, prediction in _match_image(annotated[image_id], predicted[image_id], iou):
            row = none if truth is None else index[truth.category_id]
            column = none if prediction is None else index[prediction.category_id]
            counts[row, column] += 1
    return ConfusionMatrix(tuple(inputs.names.values()), counts, iou_type, score, iou)


def _group_by_image(rows: Iterable[CocoRow]) -> defaultdict[int | str, list[CocoRow]]:
    groups: defaultdict[int | str, list[CocoRow]] = defaultdict(list)
    for row in rows:
        groups[row.image_id].append(row)
    return groups


def _match_image(
    annotated: list[CocoRow], predicted: list[CocoRow], iou: float
) -> list[tuple[CocoRow | None, CocoRow | None]]:
    """Return the pairs (object, prediction) of one image; None for a missing partner."""
    objects = [row for row in annotated if not row.ignore]
    crowds = [row for row in annotated if row.ignore]
    ranked = sorted(predicted, key=lambda row: -row.score)  # the higher score wins equal IoUs
    matches = _match_greedily(_compute_ious(objects, ranked), iou)
    in_crowd = np.any(_compute_ious(crowds, ranked) >= iou, axis=0).tolist()
    matched = set(matches.values())
    return [
        *((row, ranked[matches[i]] if i in matches else None) for i, row in enumerate(objects)),
        *((None, r) for j, r in enumerate(ranked) if j not in matched and not in_crowd[j]),
    ]


def _compute_ious(annotated: list[CocoRow], predicted: list[CocoRow]) -> npt.NDArray[np.float64]:
    """Return float64 (G, N): IoU, or for crowds the fraction of the prediction inside."""
    if not annotated or not predicted:
        return np.zeros((len(annotated), len(predicted)))
    is_crowd = [int(row.ignore) for row in annotated]
    shapes = [
        [list(row.shape) if isinstance(row.shape, tuple) else row.shape for row in rows]
        for rows in (predicted, annotated)
    ]
    return np.asarray(coco_mask.iou(*shapes, is_crowd), np.float64).T


def _match_greedily(ious: npt.NDArray[np.float64], min_iou: float) -> dict[int, int]:
    """Return the column that each row is matched to, assigned in descending order of IoU."""
    matches: dict[int, int] = {}
    matched_columns: set[int] = set()
    rows, columns = np.nonzero(ious >= min_iou)
    # Equal IoUs are ordered by column, and columns by score.
    order = np.lexsort((columns, -ious[rows, columns]))
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in matches and column not in matched_columns:
            matches[row] = column
            matched_columns.add(column)
    return matches
