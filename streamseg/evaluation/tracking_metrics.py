"""Tracking metrics HOTA, IDF1 and MOTA, on masks or boxes.

trackeval, the program of MOTChallenge and KITTI, computes the numbers: HOTA (Luiten et al., IJCV
2021), Identity (Ristani et al., ECCV-W 2016) and CLEAR (Bernardin and Stiefelhagen, 2008), which
on masks are MOTSA and sMOTSA (Voigtlaender et al., "MOTS", CVPR 2019). This module selects the rows
that count, as those benchmarks do, with one difference: they reject overlapping predicted masks,
which are allowed here.

trackeval is imported on first use, and installed without its dependencies: its OpenCV would
overwrite the headless one, and its metrics need only numpy and scipy.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from streamseg.config.training import TrackingTask
from streamseg.errors import DataError, StreamsegError
from streamseg.evaluation.coco_rows import IouType
from streamseg.evaluation.track_files import ANY_CLASS, TrackedFrame, Tracks, read_tracks
from streamseg.structures.masks import BoolArray, IntArray, Masks, box_iou

MIN_IOU = 0.5
"""IoU from which CLEAR and Identity match two boxes or masks."""
SINGLE_CLASS_NAME = "all"
"""Name of the only class of a task without classes."""

IouMatrix: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TrackedSequence:
    """Ground truth and predictions of one class in F frames.

    Attributes:
        true_ids: F arrays, int64 (G,), ids of the annotated tracks.
        predicted_ids: F arrays, int64 (N,), ids of the predicted tracks.
        ious: F arrays, float64 (G, N), IoU of masks or boxes.
    """

    true_ids: tuple[IntArray, ...]
    predicted_ids: tuple[IntArray, ...]
    ious: tuple[IouMatrix, ...]


@dataclass(frozen=True, slots=True)
class TrackScore:
    """Tracking metrics as fractions of one; MOTA and sMOTSA may be negative.

    Attributes:
        hota: higher order tracking accuracy, mean over its IoU thresholds.
        deta: detection accuracy of HOTA.
        assa: association accuracy of HOTA.
        idf1: identity F1 score.
        mota: multiple object tracking accuracy; MOTSA on masks.
        smota: sMOTSA, which weights matches with their IoU; None on boxes.
        switches: identity switches.
        fragments: interruptions of tracked objects.
        frames: number of frames, up to the last one with an object.
        tracks: number of annotated tracks; the metrics are meaningless if it is zero.
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
    """Tracking metrics of one task.

    Attributes:
        name: name of the task, or of the ground-truth file.
        on: whether IoU is computed on boxes or masks.
        classes: metrics of each class, by name.
        overall: metrics of all classes, weighted by their number of objects.
    """

    name: str
    on: IouType
    classes: Mapping[str, TrackScore]
    overall: TrackScore


@dataclass(frozen=True, slots=True, eq=False)
class _MetricResults:
    """Results of trackeval's metrics: counts and the numbers computed from them."""

    hota: Mapping[str, Any]
    clear: Mapping[str, Any]
    identity: Mapping[str, Any]


def evaluate_tracks(task: TrackingTask, root: Path) -> TrackingScores:
    """Return the metrics of a task, for each class and for all classes together.

    A task without classes has one class, ``all``, with every object. Frames are those up to the
    last one in either file. A prediction that matches no object of its class doesn't count if most
    of it lies in a region that isn't annotated; nor does one that matches a distractor (see
    :mod:`streamseg.evaluation.track_files`).

    Args:
        task: the files to compare.
        root: the folder that their paths are relative to.

    Raises:
        DataError: a file is invalid, or the two files can't be compared.
        StreamsegError: trackeval isn't installed.
    """
    truth = read_tracks(root / task.truth, task.classes)
    predictions = read_tracks(root / task.results, task.classes)
    labels = dict(task.classes) or {SINGLE_CLASS_NAME: ANY_CLASS}
    _check_comparable(truth, predictions, labels, task.overlap)
    # A frame without any object in either file counts nothing, so such frames are left out.
    numbers = sorted({*truth.frames, *predictions.frames})
    frames = [(truth[number], predictions[number]) for number in numbers]
    length = max(truth.length, predictions.length)
    ious = [_compute_ious(true, predicted, task.overlap) for true, predicted in frames]
    sequences = {
        name: _select_class(frames, ious, label, task.overlap) for name, label in labels.items()
    }
    results = {name: _compute_metrics([sequence]) for name, sequence in sequences.items()}
    tracks = {name: _count_true_tracks([sequence]) for name, sequence in sequences.items()}
    return TrackingScores(
        name=task.name or Path(task.truth).stem,
        on=task.overlap,
        classes={
            name: _make_score(results[name], length, tracks[name], task.overlap)
            for name in sequences
        },
        overall=_make_score(_combine_classes(results), length, sum(tracks.values()), task.overlap),
    )


def score_sequences(sequences: Sequence[TrackedSequence], iou_type: IouType) -> TrackScore:
    """Return the metrics of one class over several sequences together.

    Raises:
        StreamsegError: trackeval isn't installed.
    """
    frames = sum(len(sequence.ious) for sequence in sequences)
    results = _compute_metrics(sequences)
    return _make_score(results, frames, _count_true_tracks(sequences), iou_type)


def _check_comparable(
    truth: Tracks, predictions: Tracks, labels: Mapping[str, int], iou_type: IouType
) -> None:
    """Check that two files can be compared and have tracks of the classes.

    Raises:
        DataError: masks are to be compared and a file has only boxes, a file has no track of any
            of the classes, or the frame sizes differ.
    """
    for tracks in (truth, predictions):
        if iou_type == "masks" and tracks.frames and tracks.size is None:
            raise DataError(f"{tracks.path}: has only boxes: set overlap: boxes")
        has_class = any(
            np.isin(frame.labels, list(labels.values())).any() for frame in tracks.frames.values()
        )
        if not has_class and (tracks is truth or tracks.names):
            names = ", ".join(sorted(tracks.names))
            present = f"it has {names}" if names else "it has no tracks"
            raise DataError(f"{tracks.path}: has no track of {', '.join(labels)}: {present}")
    if truth.size and predictions.size and truth.size != predictions.size:
        raise DataError(
            f"{predictions.path}: its frames are {predictions.size}, those of {truth.path} are "
            f"{truth.size}"
        )


def _compute_ious(true: TrackedFrame, predicted: TrackedFrame, iou_type: IouType) -> IouMatrix:
    """Return the IoU of every pair, float64 (G, N)."""
    if not len(true.ids) or not len(predicted.ids):
        return np.zeros((len(true.ids), len(predicted.ids)))
    if iou_type == "boxes":
        return box_iou(true.boxes, predicted.boxes)
    assert true.masks is not None
    assert predicted.masks is not None
    return true.masks.pairwise_iou(predicted.masks)


def _select_class(
    frames: Sequence[tuple[TrackedFrame, TrackedFrame]],
    ious: Sequence[IouMatrix],
    label: int,
    iou_type: IouType,
) -> TrackedSequence:
    """Return the objects and predictions of one class that count."""
    true_ids, predicted_ids, kept_ious = [], [], []
    for (true, predicted), iou in zip(frames, ious, strict=True):
        rows = true.counted & (true.labels == label)
        ignored = _find_ignored(true, predicted, iou, label, iou_type)
        columns = (predicted.labels == label) & ~ignored
        true_ids.append(true.ids[rows])
        predicted_ids.append(predicted.ids[columns])
        kept_ious.append(iou[rows][:, columns])
    return TrackedSequence(tuple(true_ids), tuple(predicted_ids), tuple(kept_ious))


def _find_ignored(
    true: TrackedFrame, predicted: TrackedFrame, ious: IouMatrix, label: int, iou_type: IouType
) -> BoolArray:
    """Return which predictions of a class are neither right nor wrong, bool (N,)."""
    class_ious = np.where(predicted.labels == label, ious, 0)
    ignored = np.zeros(len(predicted.ids), np.bool_)
    if true.distractors.any():
        rows, columns = _match_optimally(class_ious)
        ignored[columns[true.distractors[rows]]] = True
    if true.regions is not None and len(true.regions) and len(predicted.ids):
        unmatched = np.ones(len(predicted.ids), np.bool_)
        unmatched[_match_optimally(class_ious[true.labels == label])[1]] = False
        ignored |= unmatched & (_fraction_inside(predicted, true.regions, iou_type) > 0.5)
    return ignored


def _match_optimally(ious: IouMatrix) -> tuple[IntArray, IntArray]:
    """Return rows and columns of the assignment with the largest sum of IoUs, each a match."""
    valid = np.where(ious >= MIN_IOU, ious, 0)
    rows, columns = linear_sum_assignment(valid, maximize=True)
    is_match = valid[rows, columns] > 0
    return rows[is_match], columns[is_match]


def _fraction_inside(
    predicted: TrackedFrame, regions: Masks, iou_type: IouType
) -> npt.NDArray[np.float64]:
    """Return the fraction of each prediction's area that lies in the regions, float64 (N,)."""
    masks = predicted.masks
    if iou_type == "boxes":
        masks = Masks.from_boxes(predicted.boxes, regions.size)
    assert masks is not None
    region = coco_mask.merge(regions.to_rle())
    # With iscrowd, pycocotools divides by the area of the prediction instead of the union.
    fractions: npt.NDArray[np.float64] = coco_mask.iou(masks.to_rle(), [region], [1])[:, 0]
    return fractions


def _compute_metrics(sequences: Sequence[TrackedSequence]) -> _MetricResults:
    """Return trackeval's metrics over all sequences together."""
    inputs = [_make_trackeval_input(sequence) for sequence in sequences]
    with redirect_stdout(io.StringIO()):
        results = [
            metric.combine_sequences(
                {str(number): metric.eval_sequence(data) for number, data in enumerate(inputs)}
            )
            for metric in _load_metrics()
        ]
    return _MetricResults(*results)


def _combine_classes(classes: Mapping[str, _MetricResults]) -> _MetricResults:
    """Return the metrics over all classes, weighted by their number of objects."""
    hota, clear, identity = _load_metrics()
    return _MetricResults(
        hota.combine_classes_det_averaged({name: c.hota for name, c in classes.items()}),
        clear.combine_classes_det_averaged({name: c.clear for name, c in classes.items()}),
        identity.combine_classes_det_averaged({name: c.identity for name, c in classes.items()}),
    )


def _load_metrics() -> tuple[Any, Any, Any]:
    """Return trackeval's metrics HOTA, CLEAR and Identity.

    Raises:
        StreamsegError: trackeval isn't installed.
    """
    try:
        with redirect_stdout(io.StringIO()):  # it prints the names of missing optional packages
            metrics = import_module("trackeval.metrics")
    except ModuleNotFoundError as error:
        raise StreamsegError(
            f"tracking metrics need trackeval, and {error.name} isn't installed: "
            "pip install --no-deps trackeval"
        ) from None
    config = {"THRESHOLD": MIN_IOU, "PRINT_CONFIG": False}
    return metrics.HOTA(), metrics.CLEAR(config), metrics.Identity(config)


def _make_score(results: _MetricResults, frames: int, tracks: int, iou_type: IouType) -> TrackScore:
    return TrackScore(
        hota=float(np.mean(results.hota["HOTA"])),
        deta=float(np.mean(results.hota["DetA"])),
        assa=float(np.mean(results.hota["AssA"])),
        idf1=float(results.identity["IDF1"]),
        mota=float(results.clear["MOTA"]),
        smota=float(results.clear["sMOTA"]) if iou_type == "masks" else None,
        switches=int(results.clear["IDSW"]),
        fragments=int(results.clear["Frag"]),
        frames=frames,
        tracks=tracks,
    )


def _count_true_tracks(sequences: Sequence[TrackedSequence]) -> int:
    return sum(len(_renumber_ids(sequence.true_ids)[1]) for sequence in sequences)


def _make_trackeval_input(sequence: TrackedSequence) -> Mapping[str, Any]:
    """Return a sequence as the dict that trackeval's metrics take, with ids counted from 0."""
    true_ids, true_tracks = _renumber_ids(sequence.true_ids)
    predicted_ids, predicted_tracks = _renumber_ids(sequence.predicted_ids)
    return {
        "gt_ids": true_ids,
        "tracker_ids": predicted_ids,
        "similarity_scores": list(sequence.ious),
        "num_gt_ids": len(true_tracks),
        "num_tracker_ids": len(predicted_tracks),
        "num_gt_dets": sum(map(len, true_ids)),
        "num_tracker_dets": sum(map(len, predicted_ids)),
        "num_timesteps": len(true_ids),
    }


def _renumber_ids(frames: Sequence[IntArray]) -> tuple[list[IntArray], IntArray]:
    """Return the ids of each frame renumbered from 0, and the distinct original ids."""
    distinct = np.unique(np.concatenate([np.zeros(0, np.int64), *frames]))
    return [np.searchsorted(distinct, ids).astype(np.int64) for ids in frames], distinct
