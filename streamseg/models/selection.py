"""Selection of detections by the thresholds of a frame.

The thresholds apply after the constants of a family's published postprocessing. Boxes, scores and
labels are checked first, so that no mask is computed for a detection that is excluded.
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
    """Thresholds resolved for the categories of one model.

    Attributes:
        thresholds: the thresholds.
        category_ids: int64 (C,), ascending.
        min_scores: float32 (C,), minimum score of each category; infinite for excluded ones.
        min_other_score: minimum score of outputs without a category, such as COCO's unused ids.
    """

    thresholds: Thresholds
    category_ids: IntArray
    min_scores: FloatArray
    min_other_score: float

    @classmethod
    def from_thresholds(cls, thresholds: Thresholds, categories: Mapping[int, str]) -> Selection:
        """Resolve thresholds for the categories of a model.

        Raises:
            UsageError: the model has no class of a name in them.
        """
        known = list(categories.values())
        _check_names("classes", thresholds.classes, known)
        _check_names("score_by_class", thresholds.score_by_class, known)
        category_ids = sorted(categories)
        min_scores = [
            thresholds.score_by_class.get(categories[each], thresholds.score)
            if not thresholds.classes or categories[each] in thresholds.classes
            else math.inf
            for each in category_ids
        ]
        others = math.inf if thresholds.classes else thresholds.score
        return cls(
            thresholds,
            np.array(category_ids, np.int64),
            np.array(min_scores, np.float32),
            others,
        )

    @property
    def min_score(self) -> float:
        """Lowest minimum score of all categories."""
        return float(min(*self.min_scores.tolist(), self.min_other_score))

    def select_rows(
        self, boxes: FloatArray | None, scores: FloatArray, labels: IntArray
    ) -> IntArray:
        """Return the rows of the detections for which masks are computed, in order.

        Args:
            boxes: float32 (N, 4) xyxy, pixels of the frame; None if they follow from the masks.
            scores: float32 (N,), descending.
            labels: int64 (N,), category ids.

        Returns:
            int64 (K,).
        """
        at = np.searchsorted(self.category_ids, labels).clip(max=len(self.category_ids) - 1)
        known = self.category_ids[at] == labels
        kept = scores >= np.where(known, self.min_scores[at], self.min_other_score)
        if boxes is not None:
            kept &= self._in_region(boxes)
        rows = np.flatnonzero(kept)
        # If masks can still be excluded, the best max_instances are not known yet.
        undecided = (
            self.thresholds.min_area
            or self.class_agnostic_iou is not None
            or (self.thresholds.region and boxes is None)
        )
        return rows if undecided else rows[: self.thresholds.max_instances]

    @property
    def class_agnostic_iou(self) -> float | None:
        """IoU above which the worse of two instances is dropped; None if ``auto`` is unresolved."""
        iou = self.thresholds.class_agnostic_iou
        return None if iou == "auto" else iou

    def apply_to_masks(self, instances: Instances) -> Instances:
        """Apply the thresholds that depend on masks.

        These are region, minimum area, suppression across classes, and then the maximum number.
        """
        iou = self.class_agnostic_iou
        if not (self.thresholds.min_area or self.thresholds.region or iou is not None):
            return instances
        kept = self._in_region(instances.boxes)
        if self.thresholds.min_area:
            kept &= instances.masks.areas >= self.thresholds.min_area
        instances = instances[np.flatnonzero(kept)]
        if iou is not None:
            instances = instances[suppress_overlaps(instances, iou)]
        return instances[: self.thresholds.max_instances]

    def _in_region(self, boxes: FloatArray) -> BoolArray:
        """Return which boxes, bool (N,), have their center in the region, if there is one."""
        if not self.thresholds.region:
            return np.ones(len(boxes), np.bool_)
        return _inside((boxes[:, :2] + boxes[:, 2:]) / 2, self.thresholds.region)


def suppress_overlaps(instances: Instances, iou: float) -> IntArray:
    """Return the rows that remain after class-agnostic non-maximum suppression.

    A row is dropped if a remaining better row overlaps it by more than ``iou``. Masks are compared,
    or boxes if one of the two rows has no mask.

    Args:
        instances: instances in descending order of scores.
        iou: threshold of the intersection over union.

    Returns:
        int64 (K,).
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


def validate_thresholds(thresholds: Thresholds) -> Thresholds:
    """Validate thresholds, which ``Thresholds(…)`` doesn't, and return them.

    Raises:
        ArgumentError: the argument has another type, or a value is invalid.
    """
    if not isinstance(thresholds, Thresholds):
        raise ArgumentError(f"thresholds must be Thresholds, not {type(thresholds).__name__}")
    try:
        return msgspec.convert(msgspec.structs.asdict(thresholds), Thresholds)
    except msgspec.ValidationError as error:
        raise ArgumentError(f"thresholds: {error}") from None


def _inside(points: npt.NDArray[Any], polygon: Sequence[tuple[float, float]]) -> BoolArray:
    """Return which points (N, 2), x and y, lie inside a polygon, by the even-odd rule."""
    corners = np.array(polygon, np.float64)
    x1, y1 = corners.T
    x2, y2 = np.roll(corners, -1, axis=0).T
    x, y = points.astype(np.float64).T[:, :, None]
    spans = (y1 <= y) != (y2 <= y)
    rise = np.where(y1 == y2, 1.0, y2 - y1)  # horizontal edges span nothing
    crossed = spans & (x < x1 + (y - y1) / rise * (x2 - x1))
    inside: BoolArray = crossed.sum(axis=1) % 2 == 1
    return inside


def _check_names(field: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else _listed(known)
            raise UsageError(f"{field}: the model has no class {name!r}; {hint}")


def _listed(known: Sequence[str]) -> str:
    shown = ", ".join(known[:5])
    return f"its classes are {shown}" + (f" and {len(known) - 5} more" if len(known) > 5 else "")
