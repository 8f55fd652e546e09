"""What is taken for what: truth and results matched by overlap alone, whatever their classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from streamseg.evaluation.coco_rows import CocoRow, On, Row, compare
from streamseg.structures.masks import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class ConfusionMatrix:
    """How often each class was taken for each.

    Attributes:
        names: of the C classes, in the order of their category ids.
        counts: int64 (C + 1, C + 1): what is there down, what was found across. The last row is
            what was found where nothing is, the last column what was missed.
        on: what overlaps were computed on.
        score: results below it weren't looked at.
        iou: overlap from which two are the same object.
    """

    names: tuple[str, ...]
    counts: IntArray
    on: On
    score: float
    iou: float


def confusion(
    truth: CocoRow, results: Sequence[CocoRow], on: On, score: float = 0.5, iou: float = 0.5
) -> ConfusionMatrix:
    """Match what is there to what was found, the largest overlaps first, regardless of class.

    An unmatched result is left out where a crowd of whatever class covers ``iou`` of its area.

    Args:
        truth: as :func:`streamseg.evaluation.evaluate_coco` takes it.
        results: likewise.
        on: what overlaps are computed on.
        score: results below it are left out.
        iou: overlap from which two are the same object.

    Raises:
        DataError: truth or results aren't what they should be; the row is named.
    """
    comparison = compare(truth, results, on)
    place = {category_id: number for number, category_id in enumerate(comparison.names)}
    nothing = len(place)
    counts = np.zeros((nothing + 1, nothing + 1), np.int64)
    there = _by_image(comparison.truth)
    found = _by_image(row for row in comparison.found if row.score >= score)
    for image_id in comparison.sizes:
        for one, other in _pairs(there[image_id], found[image_id], iou):
            row = nothing if one is None else place[one.category_id]
            column = nothing if other is None else place[other.category_id]
            counts[row, column] += 1
    return ConfusionMatrix(tuple(comparison.names.values()), counts, on, score, iou)


def _by_image(rows: Iterable[Row]) -> defaultdict[int | str, list[Row]]:
    grouped: defaultdict[int | str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row.image_id].append(row)
    return grouped


def _pairs(there: list[Row], found: list[Row], iou: float) -> list[tuple[Row | None, Row | None]]:
    """What belongs together in one image; None stands for nothing."""
    real, crowds = [r for r in there if not r.ignore], [r for r in there if r.ignore]
    ranked = sorted(found, key=lambda row: -row.score)  # of equal overlaps, the surer first
    matched = _greedy(_overlaps(real, ranked), iou)
    in_crowd = np.any(_overlaps(crowds, ranked) >= iou, axis=0).tolist()
    taken = set(matched.values())
    return [
        *((row, ranked[matched[i]] if i in matched else None) for i, row in enumerate(real)),
        *((None, r) for j, r in enumerate(ranked) if j not in taken and not in_crowd[j]),
    ]


def _overlaps(there: list[Row], found: list[Row]) -> npt.NDArray[np.float64]:
    """Float64 (G, N): IoU, and what part of a result a crowd covers."""
    if not there or not found:
        return np.zeros((len(there), len(found)))
    crowd = [int(row.ignore) for row in there]
    shapes = [[_shape(row) for row in rows] for rows in (found, there)]
    return np.asarray(coco_mask.iou(*shapes, crowd), np.float64).T


def _shape(row: Row) -> object:
    return list(row.shape) if isinstance(row.shape, tuple) else row.shape


def _greedy(overlaps: npt.NDArray[np.float64], least: float) -> dict[int, int]:
    """Which column each row is matched to, the largest overlaps first."""
    matched: dict[int, int] = {}
    taken: set[int] = set()
    rows, columns = np.nonzero(overlaps >= least)
    # Pairs of equal overlap go by column, and columns by score.
    order = np.lexsort((columns, -overlaps[rows, columns]))
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in matched and column not in taken:
            matched[row] = column
            taken.add(column)
    return matched
