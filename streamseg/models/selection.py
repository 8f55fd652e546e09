"""Which detections come out: a frame's thresholds, applied here and nowhere else.

They come after the constants of a family's published post-processing. What a box, a score and a
label decide is decided first, so that no mask is computed for an object that isn't wanted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamseg.config import Thresholds
from streamseg.errors import UsageError
from streamseg.masks import BoolArray, FloatArray, IntArray
from streamseg.types import Instances


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Thresholds, worked out for the categories of one model.

    Attributes:
        thresholds: as they were given.
        least_scores: float32, the least score by category id; infinite for those not kept.
    """

    thresholds: Thresholds
    least_scores: FloatArray

    @classmethod
    def of(cls, thresholds: Thresholds, categories: Mapping[int, str]) -> Selection:
        """Work ``thresholds`` out for a model of these ``categories``.

        Raises:
            UsageError: they name a class that the model doesn't know.
        """
        known = list(categories.values())
        _check_names("classes", thresholds.classes, known)
        _check_names("score_by_class", thresholds.score_by_class, known)
        # A network may have outputs for ids that the dataset doesn't use: they have no name.
        rest = np.inf if thresholds.classes else thresholds.score
        least = np.full(max(categories) + 1, rest, np.float32)
        for category_id, name in categories.items():
            if not thresholds.classes or name in thresholds.classes:
                least[category_id] = thresholds.score_by_class.get(name, thresholds.score)
        return cls(thresholds, least)

    @property
    def least_score(self) -> float:
        """No detection with a lower score can come out."""
        return float(self.least_scores.min())

    def rows(self, boxes: FloatArray, scores: FloatArray, labels: IntArray) -> IntArray:
        """Which detections deserve a mask, in their order.

        Args:
            boxes: float32 (N, 4) xyxy, pixels of the frame.
            scores: float32 (N,), descending.
            labels: int64 (N,), category ids.

        Returns:
            int64 (K,), row numbers.
        """
        kept = scores >= self.least_scores[labels]
        if self.thresholds.region:
            kept &= _inside((boxes[:, :2] + boxes[:, 2:]) / 2, self.thresholds.region)
        rows = np.flatnonzero(kept)
        # Where masks can still fall for their area, who is among the best isn't known yet.
        return rows if self.thresholds.min_area else rows[: self.thresholds.max_instances]

    def finish(self, instances: Instances) -> Instances:
        """What only the masks decide: the least area, and the best of those that have it."""
        if not self.thresholds.min_area:
            return instances
        large = np.flatnonzero(instances.masks.areas >= self.thresholds.min_area)
        return instances[large[: self.thresholds.max_instances]]


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
