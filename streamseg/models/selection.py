"""Which detections come out: a frame's thresholds, applied here and nowhere else.

They come after the constants of a family's published post-processing. What a box, a score and a
label decide is decided first, so that no mask is computed for an object that isn't wanted.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamseg.config import Thresholds
from streamseg.errors import ArgumentError, UsageError
from streamseg.structures.masks import BoolArray, FloatArray, IntArray, box_iou
from streamseg.structures.results import Instances


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Thresholds, worked out for the categories of one model.

    Attributes:
        thresholds: as they were given.
        category_ids: int64 (C,), ascending.
        least_scores: float32 (C,), the least score of each; infinite for those not kept.
        least_of_others: that of an output which stands for no category, as COCO's unused ids do.
    """

    thresholds: Thresholds
    category_ids: IntArray
    least_scores: FloatArray
    least_of_others: float

    @classmethod
    def of(cls, thresholds: Thresholds, categories: Mapping[int, str]) -> Selection:
        """Work ``thresholds`` out for a model of these ``categories``.

        Raises:
            UsageError: they name a class that the model doesn't know.
        """
        known = list(categories.values())
        _check_names("classes", thresholds.classes, known)
        _check_names("score_by_class", thresholds.score_by_class, known)
        numbers = sorted(categories)
        least = [
            thresholds.score_by_class.get(categories[number], thresholds.score)
            if not thresholds.classes or categories[number] in thresholds.classes
            else math.inf
            for number in numbers
        ]
        others = math.inf if thresholds.classes else thresholds.score
        return cls(thresholds, np.array(numbers, np.int64), np.array(least, np.float32), others)

    @property
    def least_score(self) -> float:
        """No detection with a lower score can come out."""
        return float(min(*self.least_scores.tolist(), self.least_of_others))

    def rows(self, boxes: FloatArray | None, scores: FloatArray, labels: IntArray) -> IntArray:
        """Which detections deserve a mask, in their order.

        Args:
            boxes: float32 (N, 4) xyxy, pixels of the frame; None where the masks will tell.
            scores: float32 (N,), descending.
            labels: int64 (N,), category ids.

        Returns:
            int64 (K,), row numbers.
        """
        at = np.searchsorted(self.category_ids, labels).clip(max=len(self.category_ids) - 1)
        known = self.category_ids[at] == labels
        kept = scores >= np.where(known, self.least_scores[at], self.least_of_others)
        if boxes is not None:
            kept &= self._in_region(boxes)
        rows = np.flatnonzero(kept)
        # Where masks can still fall for what they are, who is among the best isn't known yet.
        undecided = (
            self.thresholds.min_area
            or self.class_agnostic_iou is not None
            or (self.thresholds.region and boxes is None)
        )
        return rows if undecided else rows[: self.thresholds.max_instances]

    @property
    def class_agnostic_iou(self) -> float | None:
        """The overlap above which the worse of two rows goes; None where ``auto`` is unresolved."""
        iou = self.thresholds.class_agnostic_iou
        return None if iou == "auto" else iou

    def finish(self, instances: Instances) -> Instances:
        """Apply what only the masks decide.

        That is region, least area, suppression across classes, and the best of what is left.
        """
        iou = self.class_agnostic_iou
        if not (self.thresholds.min_area or self.thresholds.region or iou is not None):
            return instances
        kept = self._in_region(instances.boxes)
        if self.thresholds.min_area:
            kept &= instances.masks.areas >= self.thresholds.min_area
        instances = instances[np.flatnonzero(kept)]
        if iou is not None:
            instances = instances[unsuppressed(instances, iou)]
        return instances[: self.thresholds.max_instances]

    def _in_region(self, boxes: FloatArray) -> BoolArray:
        """Which boxes have their centres in the region, where there is one."""
        if not self.thresholds.region:
            return np.ones(len(boxes), np.bool_)
        return _inside((boxes[:, :2] + boxes[:, 2:]) / 2, self.thresholds.region)


def unsuppressed(instances: Instances, iou: float) -> IntArray:
    """Return the rows that no better row overlaps by more than ``iou``, whatever their classes.

    Greedy, as non-maximum suppression is: a suppressed row suppresses no other. Masks are compared,
    and boxes where one of the two rows has no mask.

    Args:
        instances: best score first.
        iou: intersection over union.

    Returns:
        int64 (K,), row numbers.
    """
    boxed = np.flatnonzero(instances.masks.from_box)
    pairs = set(instances.masks.overlapping_pairs(iou))
    if len(boxed):
        pairs = {pair for pair in pairs if not np.isin(pair, boxed).any()}
        overlaps = box_iou(instances.boxes, instances.boxes) > iou
        pairs |= {(i, j) for i, j in np.argwhere(np.triu(overlaps, 1)) if {i, j} & set(boxed)}
    kept = np.ones(len(instances), np.bool_)
    for better, worse in sorted(pairs):
        if kept[better]:
            kept[worse] = False
    return np.flatnonzero(kept)


def checked_thresholds(thresholds: Thresholds) -> Thresholds:
    """Return ``thresholds``, whose constructor doesn't check its arguments.

    Raises:
        ArgumentError: they aren't Thresholds, or a value is impossible.
    """
    if not isinstance(thresholds, Thresholds):
        raise ArgumentError(f"thresholds must be Thresholds, not {type(thresholds).__name__}")
    try:
        return msgspec.convert(msgspec.structs.asdict(thresholds), Thresholds)
    except msgspec.ValidationError as error:
        raise ArgumentError(f"thresholds: {error}") from None


def _inside(points: npt.NDArray[Any], polygon: Sequence[tuple[float, float]]) -> BoolArray:
    """Whether points, (N, 2) x, y, lie inside a polygon, by the even-odd rule."""
    corners = np.array(polygon, np.float64)
    x1, y1 = corners.T
    x2, y2 = np.roll(corners, -1, axis=0).T
    x, y = points.astype(np.float64).T[:, :, None]
    spans = (y1 <= y) != (y2 <= y)
    rise = np.where(y1 == y2, 1.0, y2 - y1)  # level edges span nothing
    crossed = spans & (x < x1 + (y - y1) / rise * (x2 - x1))
    inside: BoolArray = crossed.sum(axis=1) % 2 == 1
    return inside


def _check_names(field: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else _listed(known)
            raise UsageError(f"{field}: the model knows no class {name!r}; {hint}")


def _listed(known: Sequence[str]) -> str:
    shown = ", ".join(known[:5])
    return f"it knows {shown}" + (f" and {len(known) - 5} more" if len(known) > 5 else "")
