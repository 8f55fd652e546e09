"""Detections of one frame, prepared for tracking: bounds with variances, and sampled masks.

A side of a mask that touches another mask or the border of the frame is an occlusion boundary: the
object may continue behind it. Its position gets a larger variance, so that it hardly changes the
track. This is specific to this project.

Everything is columnar. A box is given by its ``bounds``, float64 (2, 2) ``[[x1, x2], [y1, y2]]``:
axis, then lower and upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from streamseg.structures.arrays import DoubleArray
from streamseg.structures.masks import BoolArray, IntArray, Masks, Size, box_iou
from streamseg.structures.results import Instances

BOUND_STD = 0.15
"""Standard deviation of a visible bound, relative to the object size."""
OCCLUDED_STD = 0.3
"""Additional standard deviation of a completely occluded bound, relative to the object size."""
GRID_SIZE = 24
"""Masks are sampled on a grid of ``GRID_SIZE`` x ``GRID_SIZE`` points inside their boxes."""
SIDE_SAMPLES = 9
"""Number of points at which each side of a box is tested for occlusion."""
OCCLUDER_DISTANCE = 0.05
"""Distance of these points from the side, relative to the object size."""
MIN_EXTENT = 2.0
"""Minimum width and height of a box, in pixels."""

GRID = (np.arange(GRID_SIZE) + 0.5) / GRID_SIZE
SIDE_GRID = (np.arange(SIDE_SAMPLES) + 0.5) / SIDE_SAMPLES
SIDE_POINTS = 4 * SIDE_SAMPLES


@dataclass(frozen=True, slots=True)
class Detections:
    """N detections of one frame.

    Attributes:
        bounds: float64 (N, 2, 2), ``[[x1, x2], [y1, y2]]`` in pixels.
        variances: float64 (N, 2, 2), variances of the bounds in px².
        masks: bool (N, GRID_SIZE, GRID_SIZE), masks sampled inside their boxes; row, column.
        scores: float32 (N,), 0 to 1.
        labels: int64 (N,), category ids.
        features: float64 (N, D), appearance features of unit length; D is 0 without features.
    """

    bounds: DoubleArray
    variances: DoubleArray
    masks: BoolArray
    scores: npt.NDArray[np.float32]
    labels: IntArray
    features: DoubleArray

    @classmethod
    def from_instances(cls, instances: Instances, *, use_masks: bool) -> Detections:
        """Prepare the instances of a frame; without ``use_masks`` their boxes count as masks."""
        bounds = instances.boxes.astype(np.float64).reshape(-1, 2, 2).transpose(0, 2, 1)
        bounds[:, :, 1] = np.maximum(bounds[:, :, 1], bounds[:, :, 0] + MIN_EXTENT)
        is_box = instances.masks.from_box if use_masks else np.ones(len(instances), np.bool_)
        masks = _sample_masks(instances.masks, bounds, is_box)
        # The box of a detector includes hidden parts of the object; that of a mask does not.
        occluded = np.where(is_box[:, None, None], 0, _occluded_fractions(bounds, masks))
        occluded = np.maximum(occluded, _is_on_border(bounds, instances.size))
        std = (BOUND_STD + OCCLUDED_STD * occluded) * box_sizes(bounds)[:, None, None]
        features = np.zeros((len(bounds), 0))
        if instances.features is not None:
            features = normalize_rows(instances.features)
        return cls(bounds, std**2, masks, instances.scores, instances.labels, features)

    def __len__(self) -> int:
        return len(self.bounds)

    def select(self, rows: npt.NDArray[Any]) -> Detections:
        """Return the detections of an index or boolean array."""
        return Detections(*(getattr(self, column.name)[rows] for column in fields(self)))


def box_sizes(bounds: DoubleArray) -> DoubleArray:
    """Return the square roots of the box areas in pixels, float64 (N,)."""
    return np.asarray(np.sqrt((bounds[:, :, 1] - bounds[:, :, 0]).prod(axis=1)))


def bounds_iou(a: DoubleArray, b: DoubleArray) -> DoubleArray:
    """Return the IoU (T, N) of boxes given by bounds (T, 2, 2) and (N, 2, 2)."""
    return box_iou(*(bounds.transpose(0, 2, 1).reshape(-1, 4) for bounds in (a, b)))


def lookup_masks(masks: BoolArray, bounds: DoubleArray, points: DoubleArray) -> BoolArray:
    """Return the values of P sampled masks on K x K points, bool (P, K, K).

    Args:
        masks: bool (P, GRID_SIZE, GRID_SIZE).
        bounds: float64 (P, 2, 2), their boxes.
        points: float64 (P, 2, K), x and y coordinates inside the boxes.
    """
    x, y = _cell_indices(bounds, points).transpose(1, 0, 2)
    rows = np.arange(len(masks))[:, None] * GRID_SIZE + y
    return np.asarray(masks.ravel()[rows[:, :, None] * GRID_SIZE + x[:, None, :]])


def _cell_indices(bounds: DoubleArray, points: DoubleArray) -> IntArray:
    """Return the grid indices of coordinates inside their boxes."""
    relative = (points - bounds[..., :1]) / (bounds[..., 1:] - bounds[..., :1])
    return np.minimum((relative * GRID_SIZE).astype(np.int64), GRID_SIZE - 1)


def _sample_masks(masks: Masks, bounds: DoubleArray, is_box: BoolArray) -> BoolArray:
    """Sample masks inside their boxes, bool (N, GRID_SIZE, GRID_SIZE); a box is all true."""
    sampled = np.ones((len(masks), GRID_SIZE, GRID_SIZE), np.bool_)
    if is_box.all():
        return sampled
    points = bounds[:, :, :1] + GRID * (bounds[:, :, 1:] - bounds[:, :, :1])
    corners, ends = masks.windows[:, :2, None], masks.windows[:, 2:, None]
    pixels = np.floor(points).astype(np.int64)
    outside = (pixels < corners) | (pixels >= ends)
    pixels = np.maximum(np.minimum(pixels, ends - 1), corners) - corners
    for row in np.flatnonzero(~is_box & (ends > corners).all(axis=(1, 2))):
        x, y = pixels[row]
        sampled[row] = masks.crops[row][y[:, None], x]
        sampled[row, outside[row, 1]] = False
        sampled[row][:, outside[row, 0]] = False
    return sampled


def _occluded_fractions(bounds: DoubleArray, masks: BoolArray) -> DoubleArray:
    """Return the fraction of each box side that touches another mask, float64 (N, 2, 2)."""
    count = len(bounds)
    distance = np.maximum(OCCLUDER_DISTANCE * box_sizes(bounds), MIN_EXTENT)[:, None, None]
    along = bounds[:, :, :1] + SIDE_GRID * (bounds[:, :, 1:] - bounds[:, :, :1])
    across = bounds + distance * (-1, 1)
    # Points outside the left, right, upper and lower side: (box, x or y, axis, side, point).
    side_points = np.empty((count, 2, 2, 2, SIDE_SAMPLES))
    side_points[:, 0, 0], side_points[:, 0, 1] = across[:, 0, :, None], along[:, 0, None]
    side_points[:, 1, 0], side_points[:, 1, 1] = along[:, 1, None], across[:, 1, :, None]
    points = side_points.reshape(count, 2, SIDE_POINTS)
    is_near = bounds_iou(across, bounds) > 0  # masks are only compared for these pairs
    box, other = np.nonzero(is_near & ~np.eye(count, dtype=np.bool_))
    inside = (points[box] >= bounds[other, :, :1]) & (points[box] < bounds[other, :, 1:])
    pair, point = np.nonzero(inside.all(axis=1))
    box, other = box[pair], other[pair]
    cells = _cell_indices(bounds[other], points[box, :, point][:, :, None])[:, :, 0]
    masked = masks[other, cells[:, 1], cells[:, 0]]
    covered = np.zeros((count, SIDE_POINTS))
    covered[box[masked], point[masked]] = 1
    return np.asarray(covered.reshape(count, 2, 2, SIDE_SAMPLES).mean(axis=3))


def _is_on_border(bounds: DoubleArray, size: Size) -> BoolArray:
    """Return true for bounds on the border of the frame, bool (N, 2, 2)."""
    limits = np.array(size[::-1])
    return np.stack([bounds[:, :, 0] <= 1, bounds[:, :, 1] >= limits - 1], axis=2)


def normalize_rows(vectors: npt.NDArray[Any]) -> DoubleArray:
    """Scale rows to unit length, float64; zero rows stay zero."""
    rows = vectors.astype(np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
