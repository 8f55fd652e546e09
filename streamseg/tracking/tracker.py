"""Multi-object tracker: assigns track ids to the instances of one stream.

Each update predicts the tracks (``tracks``), compensates for camera motion, matches tracks and
detections in rounds (``association``), corrects the matched tracks and starts new ones. The rounds
follow ByteTrack (Zhang et al., ECCV 2022, section 3): detections with high scores are matched
first; those with low scores only continue tracks that were matched in the previous frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from streamseg.errors import ArgumentError, ConfigError, StreamsegError
from streamseg.structures.masks import IntArray
from streamseg.structures.results import NOT_TRACKED, Instances, is_number
from streamseg.tracking.association import (
    assign_pairs,
    estimate_camera_shift,
    match_across_classes,
    score_pairs,
)
from streamseg.tracking.detections import Detections
from streamseg.tracking.tracks import Tracks, match_feature_lengths

CLOCK_TOLERANCE = 1e-6
"""Tolerance for differences of floating-point times, in seconds."""


@dataclass(frozen=True, slots=True)
class TrackerSettings:
    """Settings of a :class:`Tracker`, which takes the same keyword arguments.

    The default thresholds are those of ByteTrack (section 4.1, ``track_thresh`` and 0.1 more).

    Attributes:
        lost_track_seconds: time for which a track is kept without a detection, in seconds.
        min_hits: number of consecutive frames with a detection until a new track gets its id; the
            id of its instances is -1 before. Tracks of the first frame get their ids at once, as
            in ByteTrack.
        high_score_threshold: minimum score of the detections that are matched first, with any
            track; weaker ones only continue a track that was matched in the previous frame.
        new_track_threshold: minimum score of a detection that starts a track.
        use_masks: whether to compare masks; otherwise only boxes are used.
        across_classes: whether a detection without a track of its own class may continue an
            unmatched track of another class at the same place.
    """

    lost_track_seconds: float = 2.0
    min_hits: int = 2
    high_score_threshold: float = 0.6
    new_track_threshold: float = 0.7
    use_masks: bool = True
    across_classes: bool = False

    def __post_init__(self) -> None:
        for name in ("lost_track_seconds", "high_score_threshold", "new_track_threshold"):
            value = getattr(self, name)
            if not is_number(value):
                raise ConfigError(f"{name} must be a number, not {value!r}")
        if not (math.isfinite(self.lost_track_seconds) and self.lost_track_seconds >= 0):
            raise ConfigError(
                f"lost_track_seconds must be finite and at least 0, not {self.lost_track_seconds}"
            )
        if not is_number(self.min_hits) or self.min_hits % 1 or self.min_hits < 1:
            raise ConfigError(f"min_hits must be a whole number from 1, not {self.min_hits!r}")
        if not 0 <= self.high_score_threshold <= self.new_track_threshold <= 1:
            raise ConfigError(
                "0 <= high_score_threshold <= new_track_threshold <= 1 must hold, not "
                f"{self.high_score_threshold} and {self.new_track_threshold}"
            )
        if not isinstance(self.use_masks, bool):
            raise ConfigError(f"use_masks must be true or false, not {self.use_masks!r}")


class Tracker:
    """Multi-object tracker of one stream.

    The tracker is deterministic. Track ids start at 1 and are never reused. Objects of different
    classes are different tracks, unless ``across_classes`` is set.

        tracker = Tracker(lost_track_seconds=2.0)
        for frame in source.frames():
            instances = model.predict([frame.image])[0]
            instances = tracker.update(instances, pts=frame.pts)
            print(instances.track_ids)
    """

    def __init__(
        self,
        lost_track_seconds: float = 2.0,
        *,
        min_hits: int = 2,
        high_score_threshold: float = 0.6,
        new_track_threshold: float = 0.7,
        use_masks: bool = True,
        across_classes: bool = False,
    ) -> None:
        """Create a tracker; the arguments are those of :class:`TrackerSettings`.

        Raises:
            ConfigError: a setting is out of range.
        """
        self.settings = TrackerSettings(
            lost_track_seconds,
            min_hits,
            high_score_threshold,
            new_track_threshold,
            use_masks,
            across_classes,
        )
        self._tracks: Tracks | None = None
        self._pts = 0.0
        self._next_id = 1

    @property
    def known_ids(self) -> IntArray:
        """Ids of the tracks that may still be continued, int64 (T,)."""
        if self._tracks is None:
            return np.zeros(0, np.int64)
        return np.asarray(self._tracks.ids[self._tracks.ids != NOT_TRACKED])

    def update(self, instances: Instances, pts: float) -> Instances:
        """Track the instances of the next frame.

        Args:
            instances: instances of the frame. A row without a mask is represented by its box.
            pts: time of the frame in seconds; the intervals may vary. Times that do not increase
                count as the time of the previous frame, and the clock continues from there.

        Returns:
            The same rows in the same order, with ``track_ids``.

        Raises:
            StreamsegError: ``pts`` is not finite, or the length of the features has changed.
            ArgumentError: an argument has another type.
        """
        if not isinstance(instances, Instances):
            raise ArgumentError(f"instances must be Instances, not {type(instances).__name__}")
        if not is_number(pts):
            raise ArgumentError(f"pts must be seconds, not {pts!r}")
        if not math.isfinite(pts):
            raise StreamsegError(f"a frame at {pts} s can't be tracked: its time must be finite")
        detections = Detections.from_instances(instances, use_masks=self.settings.use_masks)
        if self._tracks is None:
            tracks = Tracks.start(detections.select(np.zeros(len(detections), np.bool_)))
            hits_needed = 1
        else:
            tracks = self._tracks.predict(max(pts - self._pts, 0.0))
            tracks = tracks.select(
                tracks.seconds_since_hit <= self.settings.lost_track_seconds + CLOCK_TOLERANCE
            )
            hits_needed = self.settings.min_hits
        self._pts = pts
        tracks, detections = match_feature_lengths(tracks, detections)
        tracks.states[:, :, :2] += estimate_camera_shift(tracks, detections)[:, None]
        rows, matched = self._match(tracks, detections)
        tracks.correct(rows, detections.select(matched))
        starts_track = detections.scores >= self.settings.new_track_threshold
        starts_track[matched] = False
        started = Tracks.start(detections.select(starts_track))
        for group in (tracks, started):
            self._confirm(group, hits_needed)
        ids = np.full(len(detections), NOT_TRACKED)
        ids[matched], ids[starts_track] = tracks.ids[rows], started.ids
        # Unconfirmed tracks are dropped as soon as they are not matched.
        is_kept = (tracks.ids != NOT_TRACKED) | (tracks.frames_since_hit == 0)
        self._tracks = tracks.select(is_kept).concatenate(started)
        return instances.with_track_ids(ids)

    def _match(self, tracks: Tracks, detections: Detections) -> tuple[IntArray, IntArray]:
        """Match tracks and detections in rounds and return the rows of both."""
        scores = score_pairs(tracks, detections)
        is_confirmed = tracks.ids != NOT_TRACKED
        is_recent = tracks.frames_since_hit == 1
        is_high_score = detections.scores >= self.settings.high_score_threshold
        first = assign_pairs(scores, is_confirmed, is_high_score)
        is_confirmed[first[0]] = False
        second = assign_pairs(scores, is_confirmed & is_recent, ~is_high_score)
        is_high_score[first[1]] = False
        third = assign_pairs(scores, tracks.ids == NOT_TRACKED, is_high_score)
        rounds = [first, second, third]
        if self.settings.across_classes:
            rounds.append(match_across_classes(tracks, detections, np.concatenate(rounds, axis=1)))
        rows, matched = np.concatenate(rounds, axis=1)
        return rows, matched

    def _confirm(self, tracks: Tracks, hits_needed: int) -> None:
        """Assign ids to the tracks that have enough hits."""
        confirmed = np.flatnonzero((tracks.ids == NOT_TRACKED) & (tracks.hits >= hits_needed))
        tracks.ids[confirmed] = self._next_id + np.arange(len(confirmed))
        self._next_id += len(confirmed)
