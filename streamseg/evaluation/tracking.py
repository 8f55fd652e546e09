"""How well tracks keep to what is there: HOTA, IDF1 and MOTA, on masks or boxes.

The numbers are trackeval's, the program of MOTChallenge and KITTI: HOTA (Luiten et al., IJCV 2021),
Identity (Ristani et al., ECCV-W 2016) and CLEAR (Bernardin and Stiefelhagen, 2008), which on masks
are MOTSA and sMOTSA (Voigtlaender et al., "MOTS", CVPR 2019). What is scored at all is decided here
and is as those benchmarks have it, but for one thing: they refuse results whose masks overlap, and
nothing here needs masks that don't.

trackeval is imported when used, and installed without what it asks for: its OpenCV would overwrite
the headless one, and its metrics need numpy and scipy only.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from streamseg.config.training import TrackingTask
from streamseg.errors import DataError, StreamsegError
from streamseg.evaluation.tracks import ANYTHING, TrackedFrame, Tracks, read_tracks
from streamseg.structures.masks import BoolArray, IntArray, Masks, box_iou

MATCH_IOU = 0.5  # from which CLEAR and Identity call two boxes or masks the same
ALL_TOGETHER = "all"  # what the only class is called where none is named

On: TypeAlias = Literal["masks", "boxes"]
Likeness: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TrackedSequence:
    """F frames of what is there and of what was found, of one class.

    Attributes:
        truth_ids: F arrays, int64 (G,), who is there.
        found_ids: F arrays, int64 (N,), who was found.
        likeness: F arrays, float64 (G, N), mask or box overlap of the two.
    """

    truth_ids: tuple[IntArray, ...]
    found_ids: tuple[IntArray, ...]
    likeness: tuple[Likeness, ...]


@dataclass(frozen=True, slots=True)
class TrackScore:
    """How well tracks keep to what is there: fractions of one; MOTA and sMOTSA may be below zero.

    Attributes:
        hota: higher order tracking accuracy, mean over its overlap thresholds.
        deta: its detection accuracy.
        assa: its association accuracy.
        idf1: identity F1.
        mota: multiple object tracking accuracy; MOTSA on masks.
        smota: sMOTSA, which weighs matches with their overlap; None on boxes.
        switches: how often somebody's track became another.
        fragments: how often somebody was lost and found again.
        frames: how many there are, up to the last that has something in it.
        tracks: how many there are in the truth; without any the other numbers mean nothing.
    """

    hota: float
    deta: float
    assa: float
    idf1: float
    mota: float
    smota: float | None
    switches: int
    fragments: int
    frames: int
    tracks: int


@dataclass(frozen=True, slots=True)
class TrackingScores:
    """One task's scores.

    Attributes:
        name: of the task, or of the truth's file.
        on: what overlaps were computed on.
        classes: the scores of each class, by name.
        overall: of all classes together, each weighing as much as it has objects.
    """

    name: str
    on: On
    classes: Mapping[str, TrackScore]
    overall: TrackScore


@dataclass(frozen=True, slots=True, eq=False)
class _Counts:
    """What trackeval makes of some sequences: what its numbers are computed from, and they."""

    hota: Mapping[str, Any]
    clear: Mapping[str, Any]
    identity: Mapping[str, Any]


def evaluate_tracks(task: TrackingTask, root: Path) -> TrackingScores:
    """Compare tracks with the truth, each class by itself and all together.

    A task without classes takes everything for one class, ``all``. Frames are those up to the last
    in either file. What was found and isn't like anything of its class doesn't count where most of
    it lies in a region that the truth says isn't annotated; nor does what was found in place of a
    distractor (:mod:`streamseg.evaluation.tracks`).

    Args:
        task: what to compare.
        root: the folder that its paths are relative to.

    Raises:
        DataError: a file isn't what it should be, or the two don't go together.
        StreamsegError: trackeval isn't installed.
    """
    truth = read_tracks(root / task.truth, task.classes)
    found = read_tracks(root / task.results, task.classes)
    labels = dict(task.classes) or {ALL_TOGETHER: ANYTHING}
    _check(truth, found, labels, task.overlap)
    # Where neither file has anything there is nothing to count, however many frames that are.
    frames = [(truth[i], found[i]) for i in sorted({*truth.frames, *found.frames})]
    length = max(truth.length, found.length)
    likeness = [_likeness(there, other, task.overlap) for there, other in frames]
    sequences = {
        name: _sequence(frames, likeness, label, task.overlap) for name, label in labels.items()
    }
    counts = {name: _count([sequence]) for name, sequence in sequences.items()}
    tracks = {name: _tracks([sequence]) for name, sequence in sequences.items()}
    return TrackingScores(
        name=task.name or Path(task.truth).stem,
        on=task.overlap,
        classes={
            name: _score(counts[name], length, tracks[name], task.overlap) for name in sequences
        },
        overall=_score(_together(counts), length, sum(tracks.values()), task.overlap),
    )


def score_sequences(sequences: Sequence[TrackedSequence], on: On) -> TrackScore:
    """The scores of one class over several sequences, taken together.

    Raises:
        StreamsegError: trackeval isn't installed.
    """
    frames = sum(len(sequence.likeness) for sequence in sequences)
    return _score(_count(sequences), frames, _tracks(sequences), on)


def _check(truth: Tracks, found: Tracks, labels: Mapping[str, int], on: On) -> None:
    """That the two files can be compared, and that there is something to compare."""
    for tracks in (truth, found):
        if on == "masks" and tracks.frames and tracks.size is None:
            raise DataError(f"{tracks.path}: has boxes only: say overlap: boxes")
        there = [np.isin(f.labels, list(labels.values())).any() for f in tracks.frames.values()]
        if not any(there) and (tracks is truth or tracks.names):
            has = (
                f"it has {', '.join(sorted(tracks.names))}" if tracks.names else "it has no tracks"
            )
            raise DataError(f"{tracks.path}: has no track of {', '.join(labels)}: {has}")
    if truth.size and found.size and truth.size != found.size:
        raise DataError(
            f"{found.path}: its frames are {found.size}, those of {truth.path} are {truth.size}"
        )


def _likeness(there: TrackedFrame, found: TrackedFrame, on: On) -> Likeness:
    """Overlap of every pair, float64 (G, N)."""
    if not len(there.ids) or not len(found.ids):
        return np.zeros((len(there.ids), len(found.ids)))
    if on == "boxes":
        return box_iou(there.boxes, found.boxes)
    assert there.masks is not None
    assert found.masks is not None
    return there.masks.pairwise_iou(found.masks)


def _sequence(
    frames: Sequence[tuple[TrackedFrame, TrackedFrame]],
    likeness: Sequence[Likeness],
    label: int,
    on: On,
) -> TrackedSequence:
    """What counts of one class, in each frame."""
    rows = [there.counted & (there.labels == label) for there, _ in frames]
    columns = [
        (found.labels == label) & ~_excused(there, found, like, label, on)
        for (there, found), like in zip(frames, likeness, strict=True)
    ]
    return TrackedSequence(
        tuple(there.ids[kept] for (there, _), kept in zip(frames, rows, strict=True)),
        tuple(found.ids[kept] for (_, found), kept in zip(frames, columns, strict=True)),
        tuple(like[r][:, c] for like, r, c in zip(likeness, rows, columns, strict=True)),
    )


def _excused(
    there: TrackedFrame, found: TrackedFrame, likeness: Likeness, label: int, on: On
) -> BoolArray:
    """Which results of a class are neither right nor wrong, bool (N,)."""
    of_class = np.where(found.labels == label, likeness, 0)
    excused = np.zeros(len(found.ids), np.bool_)
    if there.distractors.any():
        rows, columns = _matches(of_class)
        excused[columns[there.distractors[rows]]] = True
    if there.regions is not None and len(there.regions) and len(found.ids):
        alone = np.ones(len(found.ids), np.bool_)
        alone[_matches(of_class[there.labels == label])[1]] = False
        excused |= alone & (_part_within(found, there.regions, on) > 0.5)
    return excused


def _matches(likeness: Likeness) -> tuple[IntArray, IntArray]:
    """Rows and columns of the best assignment of pairs that are alike enough to be the same."""
    alike = np.where(likeness >= MATCH_IOU, likeness, 0)
    rows, columns = linear_sum_assignment(alike, maximize=True)
    same = alike[rows, columns] > 0
    return rows[same], columns[same]


def _part_within(found: TrackedFrame, regions: Masks, on: On) -> npt.NDArray[np.float64]:
    """What part of each result lies in the regions, float64 (N,)."""
    masks = Masks.from_boxes(found.boxes, regions.size) if on == "boxes" else found.masks
    assert masks is not None
    region = coco_mask.merge(regions.to_rle())
    # Of a pair with a crowd, pycocotools takes the result's area for the union.
    parts: npt.NDArray[np.float64] = coco_mask.iou(masks.to_rle(), [region], [1])[:, 0]
    return parts


def _count(sequences: Sequence[TrackedSequence]) -> _Counts:
    """All metrics over all sequences, taken together."""
    given = [_for_trackeval(sequence) for sequence in sequences]
    with redirect_stdout(io.StringIO()):
        each = [
            metric.combine_sequences(
                {str(number): metric.eval_sequence(data) for number, data in enumerate(given)}
            )
            for metric in _metrics()
        ]
    return _Counts(*each)


def _together(classes: Mapping[str, _Counts]) -> _Counts:
    """All metrics over all classes, each weighing as much as it has objects."""
    hota, clear, identity = _metrics()
    return _Counts(
        hota.combine_classes_det_averaged({name: c.hota for name, c in classes.items()}),
        clear.combine_classes_det_averaged({name: c.clear for name, c in classes.items()}),
        identity.combine_classes_det_averaged({name: c.identity for name, c in classes.items()}),
    )


def _metrics() -> tuple[Any, Any, Any]:
    """HOTA, CLEAR and Identity; trackeval says on stdout what else it would like to have."""
    try:
        with redirect_stdout(io.StringIO()):
            metrics = import_module("trackeval.metrics")
    except ModuleNotFoundError as error:
        raise StreamsegError(
            f"tracks are scored by trackeval, and there is no {error.name}: "
            "pip install --no-deps trackeval"
        ) from None
    config = {"THRESHOLD": MATCH_IOU, "PRINT_CONFIG": False}
    return metrics.HOTA(), metrics.CLEAR(config), metrics.Identity(config)


def _score(counts: _Counts, frames: int, tracks: int, on: On) -> TrackScore:
    return TrackScore(
        hota=float(np.mean(counts.hota["HOTA"])),
        deta=float(np.mean(counts.hota["DetA"])),
        assa=float(np.mean(counts.hota["AssA"])),
        idf1=float(counts.identity["IDF1"]),
        mota=float(counts.clear["MOTA"]),
        smota=float(counts.clear["sMOTA"]) if on == "masks" else None,
        switches=int(counts.clear["IDSW"]),
        fragments=int(counts.clear["Frag"]),
        frames=frames,
        tracks=tracks,
    )


def _tracks(sequences: Sequence[TrackedSequence]) -> int:
    """Identities in the truth."""
    return sum(len(_counted_from_zero(sequence.truth_ids)[1]) for sequence in sequences)


def _for_trackeval(sequence: TrackedSequence) -> Mapping[str, Any]:
    """What trackeval's metrics take, with ids counted from 0."""
    truth, people = _counted_from_zero(sequence.truth_ids)
    found, tracks = _counted_from_zero(sequence.found_ids)
    return {
        "gt_ids": truth,
        "tracker_ids": found,
        "similarity_scores": list(sequence.likeness),
        "num_gt_ids": len(people),
        "num_tracker_ids": len(tracks),
        "num_gt_dets": sum(map(len, truth)),
        "num_tracker_dets": sum(map(len, found)),
        "num_timesteps": len(truth),
    }


def _counted_from_zero(frames: Sequence[IntArray]) -> tuple[list[IntArray], IntArray]:
    known = np.unique(np.concatenate([np.zeros(0, np.int64), *frames]))
    return [np.searchsorted(known, frame).astype(np.int64) for frame in frames], known
