"""Identities that last: which of this frame's instances are the objects of the frames before.

Each track is an object with a full extent, of which a frame shows as much as nothing hides. So an
edge of a mask that lies against another mask, or on the border of the frame, is known to be the
other's edge: it hardly counts when the track's box is corrected. That, which needs masks, is what
carries identities through crowds where trackers of boxes lose them; it is this project's own.
The rest is known art:

* boxes move at constant velocity with white-noise acceleration: a Kalman filter (Bewley et al.,
  "Simple Online and Realtime Tracking", ICIP 2016, section 3.2; Bar-Shalom et al., "Estimation
  with Applications to Tracking and Navigation", 2001, section 6.2.2), in seconds and in units of
  the object's own size, so that neither the frame rate nor the resolution matters;
* when most objects are off by the same shift, that is the camera's, and all tracks follow it (no
  picture is needed for that, unlike BoT-SORT's section 3.2);
* masks are compared where the motion predicts them, and boxes after growing both (C-BIoU: Yang et
  al., "Hard to Track Objects with Irregular Motions and Similar Appearances?", WACV 2023,
  section 3.2);
* pairs are assigned optimally, confident detections first; the weak may only continue tracks that
  were just seen (ByteTrack: Zhang et al., ECCV 2022, section 3); of two tracks that a detection
  fits alike, the one seen last frame has it (as in DeepSORT's cascade: Wojke et al., ICIP 2017,
  section 2.3);
* appearance, if the model gives any, is a running mean of unit vectors, compared by cosine
  (BoT-SORT: Aharon et al., 2022, section 3.3).

Everything is columnar: T tracks and N detections are arrays of T and N rows. A box's two axes are
handled alike, so positions are (…, 2 axes, 2 edges) throughout: ``[[x1, x2], [y1, y2]]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from streamseg.errors import ArgumentError, ConfigError, StreamsegError
from streamseg.structures.masks import BoolArray, IntArray, Masks, Size, box_iou
from streamseg.structures.results import NOT_TRACKED, Instances, is_number

Reals: TypeAlias = npt.NDArray[np.float64]

# The motion of objects. Lengths are in units of the object's size, the root of its box's area.
ACCELERATION = 0.3  # sizes/s² per √Hz: how suddenly velocities change
STRETCH = 0.1  # sizes per √s: how suddenly an edge moves by itself (gait, turning, approach)
FIRST_SPEED = 1.5  # sizes/s: how fast an object may be when it is first seen
EDGE_NOISE = 0.15  # sizes: how far a visible edge is from where the object ends
HIDDEN_EDGE_NOISE = 0.3  # sizes: added where an edge is wholly another mask's or the frame's

# The likeness of a track and a detection, from 0 to 1: the mean of mask and buffered box overlap.
BUFFER = 0.4  # of its width and height, by which a box grows on each side
LEAST_LIKE_SEEN = 0.2  # for a track that was seen in the last frame
LEAST_LIKE_LOST = 0.1  # for one that wasn't: its prediction is less exact
LEAST_LIKE_OTHER = 0.6  # for a detection of another class: it must be where the track is
SEEN_BONUS = 0.1  # the claim of a seen track over that of a lost one
APPEARANCE_WEIGHT = 0.5  # what the cosine adds to or takes from the worth of a pair, at most
APPEARANCE_MEMORY = 0.9  # how much of its mean appearance a track keeps at each sight

SHIFT_TOLERANCE = 0.15  # sizes: how closely an object follows the camera's motion
AGAINST_NONE = 2  # times as many objects must have moved so as are where they were expected
LEAST_VOTES = 3  # objects that must move together before the camera is held to have moved

SAMPLES = 24  # a mask is compared on a lattice of so many points squared
EDGE_SAMPLES = 9  # an edge is looked at in so many places
EDGE_DISTANCE = 0.05  # sizes: how far outside an edge another mask counts as lying against it
LEAST_EXTENT = 2.0  # pixels: no box is thinner, so that nothing divides by zero
CLOCK_NOISE = 1e-6  # s: differences of floating-point times aren't exact

EDGES = np.arange(2)
LATTICE = (np.arange(SAMPLES) + 0.5) / SAMPLES
POINTS = 4 * EDGE_SAMPLES
EDGE_LATTICE = (np.arange(EDGE_SAMPLES) + 0.5) / EDGE_SAMPLES


@dataclass(frozen=True, slots=True)
class TrackerSettings:
    """What can be chosen; :class:`Tracker` takes the same by keyword.

    The two scores are those of ByteTrack (its section 4.1, ``track_thresh`` and a tenth more).

    Attributes:
        lost_track_seconds: seconds that an identity outlives its object's disappearance.
        min_hits: frames in a row before a new object gets an identity; -1 until then. What is in
            the stream's first frame isn't new and gets one at once, as in ByteTrack.
        high_score_threshold: minimum score of the detections that are matched first, with any
            track; weaker ones only continue a track that was matched in the frame before.
        new_track_threshold: detections with this score or more can begin a track.
        use_masks: compare masks; otherwise boxes stand for them, as in a tracker of boxes.
        across_classes: a detection that continues no track of its own category may continue one
            of another category that is at the same place and has no other detection.
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
                f"lost_track_seconds must be seconds, 0 or more, not {self.lost_track_seconds}"
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
    """Identities for the instances of one stream, frame by frame.

    Deterministic: the same frames give the same identities. Identities are counted from 1 and
    never used twice. Objects of different categories are never one track, unless the settings say
    ``across_classes``.
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
        """Settings as in :class:`TrackerSettings`; ConfigError for an impossible one."""
        self.settings = TrackerSettings(
            lost_track_seconds,
            min_hits,
            high_score_threshold,
            new_track_threshold,
            use_masks,
            across_classes,
        )
        self._tracks: _Tracks | None = None
        self._pts = 0.0
        self._next_id = 1

    @property
    def known_ids(self) -> IntArray:
        """Identities that may still be continued, int64 (T,)."""
        if self._tracks is None:
            return np.zeros(0, np.int64)
        return np.asarray(self._tracks.ids[self._tracks.ids != NOT_TRACKED])

    def update(self, instances: Instances, pts: float) -> Instances:
        """The same rows in the same order, boxes and masks untouched, with ``track_ids`` filled in.

        Args:
            instances: what was found in the frame. A row without a mask counts as its box.
            pts: when, in seconds. Frames may be any time apart. A frame that isn't later than
                the one before (equal or earlier pts) is taken to be of the same moment, and time
                goes on from there.

        Raises:
            StreamsegError: ``pts`` isn't finite, or the features changed their length.
            ArgumentError: an argument is of another type.
        """
        if not isinstance(instances, Instances):
            raise ArgumentError(f"instances must be Instances, not {type(instances).__name__}")
        if not is_number(pts):
            raise ArgumentError(f"pts must be seconds, not {pts!r}")
        if not math.isfinite(pts):
            raise StreamsegError(f"a frame at {pts} s can't be tracked: its time isn't finite")
        found = _Detections.of(instances, use_masks=self.settings.use_masks)
        if self._tracks is None:
            tracks = _Tracks.begun_by(found.only(np.zeros(len(found), np.bool_)))
            hits_needed = 1
        else:
            tracks = self._tracks.after(max(pts - self._pts, 0.0))
            tracks = tracks.only(
                tracks.unseen_for <= self.settings.lost_track_seconds + CLOCK_NOISE
            )
            hits_needed = self.settings.min_hits
        self._pts = pts
        tracks, found = _of_one_length(tracks, found)
        tracks.states[:, :, :2] += _camera_shift(tracks, found)[:, None]
        rows, matched = self._match(tracks, found)
        tracks.see(rows, found.only(matched))
        strong = found.scores >= self.settings.new_track_threshold
        strong[matched] = False
        begun = _Tracks.begun_by(found.only(strong))
        for group in (tracks, begun):
            self._name(group, hits_needed)
        ids = np.full(len(found), NOT_TRACKED)
        ids[matched], ids[strong] = tracks.ids[rows], begun.ids
        # What is gone again before it got an identity was no object.
        lasting = (tracks.ids != NOT_TRACKED) | (tracks.frames_unseen == 0)
        self._tracks = tracks.only(lasting).joined(begun)
        return instances.with_track_ids(ids)

    def _match(self, tracks: _Tracks, found: _Detections) -> tuple[IntArray, IntArray]:
        """Rows of tracks and rows of detections that are one object, from three rounds or four."""
        worth = _worth(tracks, found)
        named = tracks.ids != NOT_TRACKED
        just_seen = tracks.frames_unseen == 1
        confident = found.scores >= self.settings.high_score_threshold
        first = _assign(worth, named, confident)
        named[first[0]] = False
        second = _assign(worth, named & just_seen, ~confident)
        confident[first[1]] = False
        third = _assign(worth, tracks.ids == NOT_TRACKED, confident)
        rounds = [first, second, third]
        if self.settings.across_classes:
            rounds.append(_match_across_classes(tracks, found, np.concatenate(rounds, axis=1)))
        rows, matched = np.concatenate(rounds, axis=1)
        return rows, matched

    def _name(self, tracks: _Tracks, hits_needed: int) -> None:
        """Give identities to the tracks that have been seen often enough."""
        due = np.flatnonzero((tracks.ids == NOT_TRACKED) & (tracks.hits >= hits_needed))
        tracks.ids[due] = self._next_id + np.arange(len(due))
        self._next_id += len(due)


@dataclass(frozen=True, slots=True)
class _Detections:
    """What a frame shows, as the tracker needs it.

    Attributes:
        edges: float64 (N, 2, 2), ``[[x1, x2], [y1, y2]]``.
        noise: float64 (N, 2, 2), the variance of each edge, px².
        shapes: bool (N, SAMPLES, SAMPLES), the mask in its box, rows first.
        scores: float32 (N,).
        labels: int64 (N,).
        features: float64 (N, D) of unit length; D is 0 if the model gives none.
    """

    edges: Reals
    noise: Reals
    shapes: BoolArray
    scores: npt.NDArray[np.float32]
    labels: IntArray
    features: Reals

    @classmethod
    def of(cls, instances: Instances, *, use_masks: bool) -> _Detections:
        edges = instances.boxes.astype(np.float64).reshape(-1, 2, 2).transpose(0, 2, 1)
        edges[:, :, 1] = np.maximum(edges[:, :, 1], edges[:, :, 0] + LEAST_EXTENT)
        boxed = instances.masks.from_box if use_masks else np.ones(len(instances), np.bool_)
        shapes = _sample(instances.masks, edges, boxed)
        # A detector's box spans what is hidden too; a mask ends where something else begins.
        hidden = np.where(boxed[:, None, None], 0, _hidden(edges, shapes))
        hidden = np.maximum(hidden, _on_border(edges, instances.size))
        deviation = (EDGE_NOISE + HIDDEN_EDGE_NOISE * hidden) * _sizes(edges)[:, None, None]
        given = instances.features
        features = np.zeros((len(edges), 0)) if given is None else _unit(given)
        return cls(edges, deviation**2, shapes, instances.scores, instances.labels, features)

    def __len__(self) -> int:
        return len(self.edges)

    def only(self, rows: npt.NDArray[Any]) -> _Detections:
        return _Detections(*(getattr(self, column.name)[rows] for column in fields(self)))


@dataclass(slots=True)
class _Tracks:
    """The objects known so far.

    Attributes:
        states: float64 (T, 2, 3), for each axis: lower edge, upper edge (px), velocity (px/s).
        covariances: float64 (T, 2, 3, 3) of the states.
        shapes: bool (T, SAMPLES, SAMPLES), the mask as last seen.
        labels: int64 (T,), as last seen.
        features: float64 (T, D), the mean appearance, of unit length or zero.
        ids: int64 (T,), -1 until there have been enough hits.
        hits: int64 (T,), sights.
        frames_unseen: int64 (T,), updates since the last sight.
        unseen_for: float64 (T,), seconds since the last sight.
    """

    states: Reals
    covariances: Reals
    shapes: BoolArray
    labels: IntArray
    features: Reals
    ids: IntArray
    hits: IntArray
    frames_unseen: IntArray
    unseen_for: Reals

    @classmethod
    def begun_by(cls, found: _Detections) -> _Tracks:
        """One new track for each detection, at rest but for all we know fast."""
        count = len(found)
        states = np.zeros((count, 2, 3))
        states[:, :, :2] = found.edges
        covariances = np.zeros((count, 2, 3, 3))
        covariances[:, :, EDGES, EDGES] = found.noise
        covariances[:, :, 2, 2] = (FIRST_SPEED * _sizes(found.edges)[:, None]) ** 2
        return cls(
            states,
            covariances,
            found.shapes,
            found.labels,
            found.features,
            ids=np.full(count, NOT_TRACKED),
            hits=np.ones(count, np.int64),
            frames_unseen=np.zeros(count, np.int64),
            unseen_for=np.zeros(count),
        )

    @property
    def edges(self) -> Reals:
        """Float64 (T, 2, 2), ``[[x1, x2], [y1, y2]]``."""
        return self.states[:, :, :2]

    def only(self, rows: npt.NDArray[Any]) -> _Tracks:
        return _Tracks(*(getattr(self, column.name)[rows] for column in fields(self)))

    def joined(self, other: _Tracks) -> _Tracks:
        names = [column.name for column in fields(self)]
        return _Tracks(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))

    def after(self, seconds: float) -> _Tracks:
        """The same tracks where they should be after ``seconds``: the filter's prediction."""
        step = np.eye(3)
        step[EDGES, 2] = seconds
        # White noise in the acceleration, integrated over the time; both edges share it.
        spread, both, own = seconds**3 / 3, seconds**2 / 2, STRETCH**2 * seconds
        shared = np.array([[spread, spread, both], [spread, spread, both], [both, both, seconds]])
        noise = ACCELERATION**2 * shared + np.diag([own, own, 0.0])
        states = self.states @ step.T
        middles = states[:, :, :2].mean(axis=2)
        states[:, :, 0] = np.minimum(states[:, :, 0], middles - LEAST_EXTENT / 2)
        states[:, :, 1] = np.maximum(states[:, :, 1], middles + LEAST_EXTENT / 2)
        grown = _sizes(self.edges)[:, None, None, None] ** 2 * noise
        return replace(
            self,
            states=states,
            covariances=step @ self.covariances @ step.T + grown,
            frames_unseen=self.frames_unseen + 1,
            unseen_for=self.unseen_for + seconds,
        )

    def see(self, rows: IntArray, found: _Detections) -> None:
        """Correct the tracks ``rows`` by what was found of them: the filter's update."""
        covariances = self.covariances[rows]
        innovations = covariances[:, :, :2, :2].copy()
        innovations[:, :, EDGES, EDGES] += found.noise
        gains = covariances[:, :, :, :2] @ np.linalg.inv(innovations)
        surprise = found.edges - self.edges[rows]
        self.states[rows] += (gains @ surprise[..., None])[..., 0]
        self.covariances[rows] = covariances - gains @ covariances[:, :, :2, :]
        self.shapes[rows] = found.shapes
        self.labels[rows] = found.labels
        remembered = APPEARANCE_MEMORY * self.features[rows]
        self.features[rows] = _unit(remembered + (1 - APPEARANCE_MEMORY) * found.features)
        self.hits[rows] += 1
        self.frames_unseen[rows] = 0
        self.unseen_for[rows] = 0


def _camera_shift(tracks: _Tracks, found: _Detections) -> Reals:
    """How far everything at once is from where it was predicted, px, float64 (2,): the camera.

    Each comparable pair proposes its own shift, and the one that most pairs agree with is taken
    (Hough voting): if half of the tracks do, and few are where they were expected anyway.
    """
    rows, columns = np.nonzero(_comparable(tracks, found))
    moves = found.edges[columns].mean(axis=2) - tracks.edges[rows].mean(axis=2)
    sizes = _sizes(tracks.edges)[rows]
    proposals = np.concatenate([np.zeros((1, 2)), moves])
    distances = np.hypot(*(moves - proposals[:, None]).transpose(2, 0, 1))
    agreeing = distances < SHIFT_TOLERANCE * sizes
    votes = agreeing.sum(axis=1)
    best = int(votes.argmax())
    seen = int((tracks.frames_unseen == 1).sum())
    if votes[best] < max(LEAST_VOTES, seen / 2, AGAINST_NONE * votes[0]):
        return np.zeros(2)
    return np.asarray(np.median(moves[agreeing[best]], axis=0))


def _comparable(tracks: _Tracks, found: _Detections) -> BoolArray:
    """Which detections could be which just seen track, by size and distance alone, (T, N)."""
    sizes, others = _sizes(tracks.edges)[:, None], _sizes(found.edges)[None]
    apart = tracks.edges.mean(axis=2)[:, None] - found.edges.mean(axis=2)[None]
    near = np.hypot(apart[..., 0], apart[..., 1]) < sizes
    alike = np.abs(np.log(sizes / others)) < 0.2
    same = (tracks.labels[:, None] == found.labels) & (tracks.frames_unseen == 1)[:, None]
    return np.asarray(near & alike & same)


def _worth(tracks: _Tracks, found: _Detections) -> Reals:
    """What it is worth to make a track and a detection one object, (T, N); 0 if they can't be."""
    likeness = _likeness(tracks, found)
    just_seen = (tracks.frames_unseen == 1)[:, None]
    enough = likeness >= np.where(just_seen, LEAST_LIKE_SEEN, LEAST_LIKE_LOST)
    resemblance = tracks.features @ found.features.T
    worth = (likeness + SEEN_BONUS * just_seen) * (1 + APPEARANCE_WEIGHT * resemblance)
    return np.where(enough, worth, 0.0)


def _match_across_classes(tracks: _Tracks, found: _Detections, taken: IntArray) -> IntArray:
    """Pairs of different categories at the same place, int64 (2, pairs).

    Args:
        tracks: all of them.
        found: all that was found.
        taken: int64 (2, pairs), rows of both that are one object already.
    """
    free, unmatched = np.ones(len(tracks.ids), np.bool_), np.ones(len(found), np.bool_)
    free[taken[0]] = unmatched[taken[1]] = False
    likeness = np.zeros((len(free), len(unmatched)))
    likeness[np.ix_(free, unmatched)] = _likeness(
        tracks.only(free), found.only(unmatched), same_class=False
    )
    return _assign(np.where(likeness >= LEAST_LIKE_OTHER, likeness, 0.0), free, unmatched)


def _likeness(tracks: _Tracks, found: _Detections, *, same_class: bool = True) -> Reals:
    """How well each detection fits where each track should be, float64 (T, N), 0 to 1."""
    boxes = _overlap(_buffered(tracks.edges), _buffered(found.edges))
    boxes *= (tracks.labels[:, None] == found.labels[None]) == same_class
    rows, columns = np.nonzero(boxes)  # the cheap gate: masks are compared for these pairs only
    masks = np.zeros_like(boxes)
    masks[rows, columns] = _mask_overlap(
        tracks.edges[rows], tracks.shapes[rows], found.edges[columns], found.shapes[columns]
    )
    return (boxes + masks) / 2


def _assign(worth: Reals, rows: BoolArray, columns: BoolArray) -> IntArray:
    """The pairs of greatest worth in all among some rows and columns, int64 (2, pairs)."""
    of_rows, of_columns = np.flatnonzero(rows), np.flatnonzero(columns)
    part = worth[of_rows[:, None], of_columns]
    i, j = linear_sum_assignment(part, maximize=True)
    real = part[i, j] > 0
    return np.stack([of_rows[i[real]], of_columns[j[real]]])


def _sizes(edges: Reals) -> Reals:
    """The root of each box's area, px, float64 (N,)."""
    return np.asarray(np.sqrt((edges[:, :, 1] - edges[:, :, 0]).prod(axis=1)))


def _buffered(edges: Reals) -> Reals:
    """Boxes grown by BUFFER of their extent on every side."""
    margin = BUFFER * (edges[:, :, 1:] - edges[:, :, :1])
    return np.concatenate([edges[:, :, :1] - margin, edges[:, :, 1:] + margin], axis=2)


def _overlap(a: Reals, b: Reals) -> Reals:
    """Intersection over union of boxes given by their edges, (T, 2, 2) and (N, 2, 2)."""
    return box_iou(*(e.transpose(0, 2, 1).reshape(-1, 4) for e in (a, b)))


def _mask_overlap(a: Reals, shapes_a: BoolArray, b: Reals, shapes_b: BoolArray) -> Reals:
    """Intersection over union of P pairs of masks, each stretched over its box, float64 (P,).

    Both masks are looked at on one lattice over what their boxes share, so the cost is the same
    for masks of any size.
    """
    low = np.maximum(a[:, :, :1], b[:, :, :1])
    extents = np.maximum(np.minimum(a[:, :, 1:], b[:, :, 1:]) - low, 0)
    points = low + LATTICE * extents
    both = _look_up(shapes_a, a, points) & _look_up(shapes_b, b, points)
    shared = both.mean(axis=(1, 2)) * extents.prod(axis=(1, 2))
    areas = (
        shapes_a.mean(axis=(1, 2)) * _sizes(a) ** 2 + shapes_b.mean(axis=(1, 2)) * _sizes(b) ** 2
    )
    # Sampled areas may be a little off: nothing overlaps by more than the whole.
    return np.asarray(shared / np.maximum(areas - shared, np.maximum(shared, 1e-9)))


def _look_up(shapes: BoolArray, edges: Reals, points: Reals) -> BoolArray:
    """P masks at the K x K points of ``points`` (P, 2, K), x and y inside their boxes; bool."""
    x, y = _cells(edges, points).transpose(1, 0, 2)
    rows = np.arange(len(shapes))[:, None] * SAMPLES + y
    return np.asarray(shapes.ravel()[rows[:, :, None] * SAMPLES + x[:, None, :]])


def _cells(edges: Reals, points: Reals) -> IntArray:
    """Which row or column of a shape each coordinate, inside its box, falls on."""
    parts = (points - edges[..., :1]) / (edges[..., 1:] - edges[..., :1])
    return np.minimum((parts * SAMPLES).astype(np.int64), SAMPLES - 1)


def _sample(masks: Masks, edges: Reals, boxed: BoolArray) -> BoolArray:
    """Each mask on a lattice over its box, bool (N, SAMPLES, SAMPLES); true where there is none."""
    shapes = np.ones((len(masks), SAMPLES, SAMPLES), np.bool_)
    if boxed.all():
        return shapes
    points = edges[:, :, :1] + LATTICE * (edges[:, :, 1:] - edges[:, :, :1])
    corners, ends = masks.windows[:, :2, None], masks.windows[:, 2:, None]
    pixels = np.floor(points).astype(np.int64)
    outside = (pixels < corners) | (pixels >= ends)
    pixels = np.maximum(np.minimum(pixels, ends - 1), corners) - corners
    for row in np.flatnonzero(~boxed & (ends > corners).all(axis=(1, 2))):
        x, y = pixels[row]
        shapes[row] = masks.crops[row][y[:, None], x]
        shapes[row, outside[row, 1]] = False
        shapes[row][:, outside[row, 0]] = False
    return shapes


def _hidden(edges: Reals, shapes: BoolArray) -> Reals:
    """What part of each edge lies against another mask, float64 (N, 2, 2), 0 to 1."""
    count = len(edges)
    outside = np.maximum(EDGE_DISTANCE * _sizes(edges), LEAST_EXTENT)[:, None, None]
    along = edges[:, :, :1] + EDGE_LATTICE * (edges[:, :, 1:] - edges[:, :, :1])
    across = edges + outside * (-1, 1)
    # Points just outside the left, right, upper and lower edges: x or y, axis, edge, which.
    places = np.empty((count, 2, 2, 2, EDGE_SAMPLES))
    places[:, 0, 0], places[:, 0, 1] = across[:, 0, :, None], along[:, 0, None]
    places[:, 1, 0], places[:, 1, 1] = along[:, 1, None], across[:, 1, :, None]
    points = places.reshape(count, 2, POINTS)
    near = _overlap(across, edges) > 0  # the cheap gate again
    of, by = np.nonzero(near & ~np.eye(count, dtype=np.bool_))
    inside = (points[of] >= edges[by, :, :1]) & (points[of] < edges[by, :, 1:])
    pair, at = np.nonzero(inside.all(axis=1))
    of, by = of[pair], by[pair]
    cells = _cells(edges[by], points[of, :, at][:, :, None])[:, :, 0]
    masked = shapes[by, cells[:, 1], cells[:, 0]]
    covered = np.zeros((count, POINTS))
    covered[of[masked], at[masked]] = 1
    return np.asarray(covered.reshape(count, 2, 2, EDGE_SAMPLES).mean(axis=3))


def _on_border(edges: Reals, size: Size) -> BoolArray:
    """Which edges lie on the border of the frame, bool (N, 2, 2)."""
    limits = np.array(size[::-1])
    return np.stack([edges[:, :, 0] <= 1, edges[:, :, 1] >= limits - 1], axis=2)


def _unit(vectors: npt.NDArray[Any]) -> Reals:
    """Rows scaled to unit length, float64; a row of zeros stays one."""
    rows = vectors.astype(np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _of_one_length(tracks: _Tracks, found: _Detections) -> tuple[_Tracks, _Detections]:
    """Both with features of the same length: zeros stand for those of a frame that gives none."""
    known, given = tracks.features.shape[1], found.features.shape[1]
    if known and given and known != given:
        raise StreamsegError(f"features of length {given} after features of length {known}")
    if given < known:
        return tracks, replace(found, features=np.zeros((len(found), known)))
    if known < given:
        return replace(tracks, features=np.zeros((len(tracks.ids), given))), found
    return tracks, found
