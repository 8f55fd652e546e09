"""Tracks of one stream: state, prediction and correction by a Kalman filter.

Each bound of a box moves with constant velocity and white-noise acceleration (Bewley et al.,
"Simple Online and Realtime Tracking", ICIP 2016, section 3.2; Bar-Shalom et al., "Estimation with
Applications to Tracking and Navigation", 2001, section 6.2.2). Times are seconds and lengths are
relative to the object size (the square root of its box area), so the filter depends neither on
the frame rate nor on the resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from streamseg.errors import StreamsegError
from streamseg.structures.arrays import DoubleArray
from streamseg.structures.masks import BoolArray, IntArray
from streamseg.structures.results import NOT_TRACKED
from streamseg.tracking.detections import (
    MIN_EXTENT,
    Detections,
    box_sizes,
    normalize_rows,
)

ACCELERATION = 0.3
"""Spectral density of the acceleration, in sizes/s² per √Hz."""
BOUND_DRIFT = 0.1
"""Independent drift of each bound (gait, rotation, approach), in sizes per √s."""
INITIAL_SPEED_STD = 1.5
"""Standard deviation of the velocity of a new track, in sizes/s."""
APPEARANCE_MOMENTUM = 0.9
"""Weight of the previous appearance in the running mean (BoT-SORT, section 3.3)."""

BOUNDS = np.arange(2)


@dataclass(slots=True)
class Tracks:
    """T tracks of one stream.

    Attributes:
        states: float64 (T, 2, 3), per axis: lower bound, upper bound (px), velocity (px/s).
        covariances: float64 (T, 2, 3, 3), covariances of the states.
        masks: bool (T, GRID_SIZE, GRID_SIZE), latest sampled masks.
        labels: int64 (T,), latest category ids.
        features: float64 (T, D), running mean of the appearance, of unit length or zero.
        ids: int64 (T,), track ids, -1 until a track is confirmed.
        hits: int64 (T,), number of matched detections.
        frames_since_hit: int64 (T,), updates since the latest match.
        seconds_since_hit: float64 (T,), time since the latest match.
    """

    states: DoubleArray
    covariances: DoubleArray
    masks: BoolArray
    labels: IntArray
    features: DoubleArray
    ids: IntArray
    hits: IntArray
    frames_since_hit: IntArray
    seconds_since_hit: DoubleArray

    @classmethod
    def start(cls, detections: Detections) -> Tracks:
        """Start a track for each detection, with zero velocity of large variance."""
        count = len(detections)
        states = np.zeros((count, 2, 3))
        states[:, :, :2] = detections.bounds
        covariances = np.zeros((count, 2, 3, 3))
        covariances[:, :, BOUNDS, BOUNDS] = detections.variances
        covariances[:, :, 2, 2] = (INITIAL_SPEED_STD * box_sizes(detections.bounds)[:, None]) ** 2
        return cls(
            states,
            covariances,
            detections.masks,
            detections.labels,
            detections.features,
            ids=np.full(count, NOT_TRACKED),
            hits=np.ones(count, np.int64),
            frames_since_hit=np.zeros(count, np.int64),
            seconds_since_hit=np.zeros(count),
        )

    @property
    def bounds(self) -> DoubleArray:
        """Bounds of the boxes, float64 (T, 2, 2), ``[[x1, x2], [y1, y2]]``."""
        return self.states[:, :, :2]

    def select(self, rows: npt.NDArray[Any]) -> Tracks:
        """Return the tracks of an index or boolean array."""
        return Tracks(*(getattr(self, column.name)[rows] for column in fields(self)))

    def concatenate(self, other: Tracks) -> Tracks:
        """Return these tracks followed by others."""
        names = [column.name for column in fields(self)]
        return Tracks(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))

    def predict(self, seconds: float) -> Tracks:
        """Predict the tracks ``seconds`` later (prediction step of the Kalman filter)."""
        transition = np.eye(3)
        transition[BOUNDS, 2] = seconds
        # Integrated white-noise acceleration, common to both bounds, and drift of each bound.
        position, cross, drift = seconds**3 / 3, seconds**2 / 2, BOUND_DRIFT**2 * seconds
        common = np.array(
            [[position, position, cross], [position, position, cross], [cross, cross, seconds]]
        )
        process_noise = ACCELERATION**2 * common + np.diag([drift, drift, 0.0])
        states = self.states @ transition.T
        centers = states[:, :, :2].mean(axis=2)
        states[:, :, 0] = np.minimum(states[:, :, 0], centers - MIN_EXTENT / 2)
        states[:, :, 1] = np.maximum(states[:, :, 1], centers + MIN_EXTENT / 2)
        scaled_noise = box_sizes(self.bounds)[:, None, None, None] ** 2 * process_noise
        return replace(
            self,
            states=states,
            covariances=transition @ self.covariances @ transition.T + scaled_noise,
            frames_since_hit=self.frames_since_hit + 1,
            seconds_since_hit=self.seconds_since_hit + seconds,
        )

    def correct(self, rows: IntArray, detections: Detections) -> None:
        """Correct the tracks ``rows`` by their detections, in place (Kalman update)."""
        covariances = self.covariances[rows]
        innovation_covariances = covariances[:, :, :2, :2].copy()
        innovation_covariances[:, :, BOUNDS, BOUNDS] += detections.variances
        gains = covariances[:, :, :, :2] @ np.linalg.inv(innovation_covariances)
        innovation = detections.bounds - self.bounds[rows]
        self.states[rows] += (gains @ innovation[..., None])[..., 0]
        self.covariances[rows] = covariances - gains @ covariances[:, :, :2, :]
        self.masks[rows] = detections.masks
        self.labels[rows] = detections.labels
        previous = APPEARANCE_MOMENTUM * self.features[rows]
        self.features[rows] = normalize_rows(
            previous + (1 - APPEARANCE_MOMENTUM) * detections.features
        )
        self.hits[rows] += 1
        self.frames_since_hit[rows] = 0
        self.seconds_since_hit[rows] = 0


def match_feature_lengths(tracks: Tracks, detections: Detections) -> tuple[Tracks, Detections]:
    """Replace missing features by zeros, so that tracks and detections have the same length.

    Raises:
        StreamsegError: the length of the features has changed.
    """
    known, given = tracks.features.shape[1], detections.features.shape[1]
    if known and given and known != given:
        raise StreamsegError(
            f"appearance features have length {given}, after length {known}: keep it constant"
        )
    if given < known:
        return tracks, replace(detections, features=np.zeros((len(detections), known)))
    if known < given:
        return replace(tracks, features=np.zeros((len(tracks.ids), given))), detections
    return tracks, detections
