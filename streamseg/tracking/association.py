"""Association of tracks and detections: camera shift, pair scores and assignment.

* If most objects are displaced by the same vector, the camera moved, and all tracks are shifted.
* The similarity of a pair is the mean of mask IoU, with the mask at its predicted position, and IoU
  of enlarged boxes (C-BIoU: Yang et al., "Hard to Track Objects with Irregular Motions and Similar
  Appearances?", WACV 2023, section 3.2).
* Appearance is compared by the cosine similarity of unit vectors (BoT-SORT: Aharon et al., 2022,
  section 3.3).
* Of two tracks that fit a detection equally well, the one that was matched in the previous frame is
  preferred (as in the matching cascade of DeepSORT: Wojke et al., ICIP 2017, section 2.3).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from streamseg.structures.arrays import DoubleArray
from streamseg.structures.masks import BoolArray, IntArray
from streamseg.tracking.detections import (
    GRID,
    Detections,
    bounds_iou,
    box_sizes,
    lookup_masks,
)
from streamseg.tracking.tracks import Tracks

BOX_EXPANSION = 0.4
"""Enlargement of a box on each side for the box IoU, relative to its width and height."""
MIN_SIMILARITY_RECENT = 0.2
"""Minimum similarity with a track that was matched in the previous frame."""
MIN_SIMILARITY_LOST = 0.1
"""Minimum similarity with another track, whose prediction is less accurate."""
MIN_SIMILARITY_OTHER_CLASS = 0.6
"""Minimum similarity with a track of another class."""
RECENT_BONUS = 0.1
"""Score bonus of tracks that were matched in the previous frame."""
APPEARANCE_WEIGHT = 0.5
"""Maximum relative change of a score by the appearance similarity."""

SHIFT_TOLERANCE = 0.15
"""Maximum deviation of an object from the camera shift, relative to its size."""
MIN_VOTES = 3
"""Minimum number of objects that agree on a camera shift."""
MIN_VOTE_RATIO = 2
"""Minimum ratio of the votes for a camera shift to those for no shift."""


def estimate_camera_shift(tracks: Tracks, detections: Detections) -> DoubleArray:
    """Estimate the shift of the camera since the previous frame in pixels, float64 (2,).

    Each comparable pair votes for its displacement (Hough voting). The displacement with the most
    votes is used if it has the votes of half of the recent tracks, and many more than no shift.
    """
    rows, columns = np.nonzero(_find_comparable_pairs(tracks, detections))
    moves = detections.bounds[columns].mean(axis=2) - tracks.bounds[rows].mean(axis=2)
    sizes = box_sizes(tracks.bounds)[rows]
    proposals = np.concatenate([np.zeros((1, 2)), moves])
    distances = np.hypot(*(moves - proposals[:, None]).transpose(2, 0, 1))
    agrees = distances < SHIFT_TOLERANCE * sizes
    votes = agrees.sum(axis=1)
    best = int(votes.argmax())
    recent = int((tracks.frames_since_hit == 1).sum())
    if votes[best] < max(MIN_VOTES, recent / 2, MIN_VOTE_RATIO * votes[0]):
        return np.zeros(2)
    return np.asarray(np.median(moves[agrees[best]], axis=0))


def _find_comparable_pairs(tracks: Tracks, detections: Detections) -> BoolArray:
    """Return true for recent tracks and detections of similar size and position, bool (T, N)."""
    sizes, others = box_sizes(tracks.bounds)[:, None], box_sizes(detections.bounds)[None]
    offsets = tracks.bounds.mean(axis=2)[:, None] - detections.bounds.mean(axis=2)[None]
    is_near = np.hypot(offsets[..., 0], offsets[..., 1]) < sizes
    is_similar = np.abs(np.log(sizes / others)) < 0.2
    is_same = (tracks.labels[:, None] == detections.labels) & (tracks.frames_since_hit == 1)[
        :, None
    ]
    return np.asarray(is_near & is_similar & is_same)


def score_pairs(tracks: Tracks, detections: Detections) -> DoubleArray:
    """Return the score of each pair of track and detection, (T, N); 0 for impossible pairs."""
    similarity = _compute_similarities(tracks, detections)
    is_recent = (tracks.frames_since_hit == 1)[:, None]
    is_possible = similarity >= np.where(is_recent, MIN_SIMILARITY_RECENT, MIN_SIMILARITY_LOST)
    appearance_similarity = tracks.features @ detections.features.T
    scores = (similarity + RECENT_BONUS * is_recent) * (
        1 + APPEARANCE_WEIGHT * appearance_similarity
    )
    return np.where(is_possible, scores, 0.0)


def match_across_classes(tracks: Tracks, detections: Detections, matched: IntArray) -> IntArray:
    """Match tracks and detections of different classes at the same place, int64 (2, pairs).

    Args:
        tracks: all tracks.
        detections: all detections.
        matched: int64 (2, pairs), rows of tracks and detections that are already matched.
    """
    free_tracks, free_detections = (
        np.ones(len(tracks.ids), np.bool_),
        np.ones(len(detections), np.bool_),
    )
    free_tracks[matched[0]] = free_detections[matched[1]] = False
    similarity = np.zeros((len(free_tracks), len(free_detections)))
    similarity[np.ix_(free_tracks, free_detections)] = _compute_similarities(
        tracks.select(free_tracks), detections.select(free_detections), same_class=False
    )
    scores = np.where(similarity >= MIN_SIMILARITY_OTHER_CLASS, similarity, 0.0)
    return assign_pairs(scores, free_tracks, free_detections)


def _compute_similarities(
    tracks: Tracks, detections: Detections, *, same_class: bool = True
) -> DoubleArray:
    """Return the similarity of predicted tracks and detections, float64 (T, N), 0 to 1."""
    boxes = bounds_iou(_expand_boxes(tracks.bounds), _expand_boxes(detections.bounds))
    boxes *= (tracks.labels[:, None] == detections.labels[None]) == same_class
    rows, columns = np.nonzero(boxes)  # masks are only compared for these pairs
    masks = np.zeros_like(boxes)
    masks[rows, columns] = mask_iou(
        tracks.bounds[rows],
        tracks.masks[rows],
        detections.bounds[columns],
        detections.masks[columns],
    )
    return (boxes + masks) / 2


def assign_pairs(scores: DoubleArray, rows: BoolArray, columns: BoolArray) -> IntArray:
    """Assign pairs with the maximum total score, int64 (2, pairs).

    Args:
        scores: float64 (T, N); pairs with a score of 0 are not assigned.
        rows: bool (T,), tracks that may be assigned.
        columns: bool (N,), detections that may be assigned.
    """
    row_indices, column_indices = np.flatnonzero(rows), np.flatnonzero(columns)
    candidates = scores[row_indices[:, None], column_indices]
    i, j = linear_sum_assignment(candidates, maximize=True)
    is_possible = candidates[i, j] > 0
    return np.stack([row_indices[i[is_possible]], column_indices[j[is_possible]]])


def _expand_boxes(bounds: DoubleArray) -> DoubleArray:
    """Enlarge boxes by ``BOX_EXPANSION`` of their width and height on each side."""
    margin = BOX_EXPANSION * (bounds[:, :, 1:] - bounds[:, :, :1])
    return np.concatenate([bounds[:, :, :1] - margin, bounds[:, :, 1:] + margin], axis=2)


def mask_iou(a: DoubleArray, masks_a: BoolArray, b: DoubleArray, masks_b: BoolArray) -> DoubleArray:
    """Return the IoU of P pairs of sampled masks, each stretched to its box, float64 (P,).

    Both masks are evaluated on a grid over the intersection of their boxes, so the cost does not
    depend on their size.
    """
    low = np.maximum(a[:, :, :1], b[:, :, :1])
    extents = np.maximum(np.minimum(a[:, :, 1:], b[:, :, 1:]) - low, 0)
    points = low + GRID * extents
    both = lookup_masks(masks_a, a, points) & lookup_masks(masks_b, b, points)
    intersection = both.mean(axis=(1, 2)) * extents.prod(axis=(1, 2))
    areas = (
        masks_a.mean(axis=(1, 2)) * box_sizes(a) ** 2
        + masks_b.mean(axis=(1, 2)) * box_sizes(b) ** 2
    )
    # Sampled areas are approximate; the IoU must not exceed 1.
    union = np.maximum(areas - intersection, np.maximum(intersection, 1e-9))
    return np.asarray(intersection / union)
