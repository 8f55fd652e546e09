"""Benchmark of the tracker against other trackers on the same detections.

The others are SORT, ByteTrack, OC-SORT, BoT-SORT and C-BIoU of the PyPI package ``trackers``, with
their default parameters and the frame rate of the sequence. They receive boxes, scores and
categories. Detections without a track id count as not tracked, as they do for streamseg. The
metrics are those of :mod:`streamseg.evaluation.tracking_metrics` over all sequences.

``trackers`` is imported when used, because it installs an OpenCV that must not be in the
environment of the service.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamseg.evaluation import TrackedFrame, TrackedSequence, read_tracks, score_sequences
from streamseg.structures.masks import IntArray, Masks, Size, box_iou
from streamseg.structures.results import NOT_TRACKED, Instances
from streamseg.tracking.tracker import Tracker

KITTI_FPS = 10.0
KITTI_NAMES = {1: "car", 2: "pedestrian"}
MOT15_FPS = 25.0
MOT15_SIZE = (480, 640)  # of both TUD sequences
PEERS = {
    "SORT": "SORTTracker",
    "ByteTrack": "ByteTrackTracker",
    "OC-SORT": "OCSORTTracker",
    "BoT-SORT": "BoTSORTTracker",
    "C-BIoU": "CBIoUTracker",
}

Identify: TypeAlias = Callable[[Instances, float], IntArray]
"""Function of the next frame's instances and time in seconds that returns track ids, int64 (N,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Annotated sequence of F frames with detections.

    Attributes:
        name: name of the sequence.
        fps: frames per second.
        truth_ids: F arrays, int64 (G,), ground-truth track ids.
        found: detections of the F frames, N rows each.
        overlaps: F arrays, float64 (G, N), mask or box IoU of ground truth and detections.
    """

    name: str
    fps: float
    truth_ids: tuple[IntArray, ...]
    found: tuple[Instances, ...]
    overlaps: tuple[npt.NDArray[np.float64], ...]

    def dropping(self, rate: float, seed: int) -> Scene:
        """Return a copy in which each detection is dropped with probability ``rate``."""
        random = np.random.default_rng(seed)
        kept = [np.flatnonzero(random.random(len(found)) >= rate) for found in self.found]
        return replace(
            self,
            found=tuple(found[rows] for found, rows in zip(self.found, kept, strict=True)),
            overlaps=tuple(
                overlap[:, rows] for overlap, rows in zip(self.overlaps, kept, strict=True)
            ),
        )


@dataclass(frozen=True, slots=True)
class TrackingRow:
    """Metrics of one tracker, means over the seeds; HOTA, IDF1 and MOTA are at most 1.

    Attributes:
        tracker: name of the tracker.
        hota: higher order tracking accuracy, mean over its overlap thresholds.
        idf1: identity F1.
        mota: multiple object tracking accuracy.
        switches: identity switches, over all sequences.
        ms: CPU time per frame in milliseconds, including the conversion of the detections.
    """

    tracker: str
    hota: float
    idf1: float
    mota: float
    switches: float
    ms: float


def measure_kitti_mots(folder: Path, *, rate: float = 0.1, seeds: int = 10) -> list[TrackingRow]:
    """Evaluate the trackers on ground-truth masks of which some are dropped at random.

    Args:
        folder: folder with a KITTI MOTS text file per sequence.
        rate: probability that a mask is dropped.
        seeds: number of repetitions; their means are returned.
    """
    scenes = load_kitti_mots(folder)
    draws = [[scene.dropping(rate, seed) for scene in scenes] for seed in range(seeds)]
    return [
        _row(name, [_run(create_tracker, draw) for draw in draws])
        for name, create_tracker in _trackers()
    ]


def measure_mot15(folder: Path) -> list[TrackingRow]:
    """Evaluate the trackers on the public detections of MOT15 (boxes with scores).

    Args:
        folder: folder with a folder per sequence, which contains ``det/det.txt`` and ``gt/gt.txt``.
    """
    scenes = load_mot15(folder)
    return [_row(name, [_run(create_tracker, scenes)]) for name, create_tracker in _trackers()]


def measure_speed(*, count: int = 20, size: Size = (1080, 1920), frames: int = 200) -> float:
    """Return the median CPU time of ``Tracker.update`` per frame of moving discs, in milliseconds.

    CPU time excludes other processes of the machine; the median excludes a slow first call.
    """
    times = []
    tracker = Tracker()
    for index, instances in enumerate(moving_discs(count, size, frames)):
        begin = time.process_time()
        tracker.update(instances, index / 25)
        times.append((time.process_time() - begin) * 1000)
    return float(np.median(times))


def moving_discs(count: int, size: Size, frames: int) -> Iterator[Instances]:
    """Yield frames of discs that move straight and bounce off the borders."""
    random = np.random.default_rng(0)
    height, width = size
    diameter = height // 10
    field = np.array([width - diameter, height - diameter])
    start = random.random((count, 2)) * field
    step = random.normal(0, height / 200, (count, 2))
    grid = np.arange(diameter) - (diameter - 1) / 2
    disc = np.hypot(grid[:, None], grid) <= diameter / 2
    for index in range(frames):
        folded = (start + index * step) % (2 * field)
        corners = np.minimum(folded, 2 * field - folded).astype(np.int64)
        masks = Masks.from_crops([disc] * count, corners, size)
        scores = np.full(count, 0.9, np.float32)
        yield Instances(masks.boxes, scores, np.ones(count, np.int64), masks, {1: "disc"})


def load_kitti_mots(folder: Path) -> list[Scene]:
    """Load KITTI MOTS sequences: lines of ``frame id class height width rle``."""
    return [_kitti_scene(path) for path in sorted(folder.glob("*.txt"))]


def load_mot15(folder: Path) -> list[Scene]:
    """Load MOT15 sequences: lines of ``frame,id,left,top,width,height,score,…``."""
    return [_mot15_scene(path.parent.parent) for path in sorted(folder.glob("*/det/det.txt"))]


def _kitti_scene(path: Path) -> Scene:
    tracks = read_tracks(path, {name: label for label, name in KITTI_NAMES.items()})
    frames = [tracks[index] for index in range(tracks.length)]
    found = tuple(_kitti_instances(frame) for frame in frames)
    return Scene(
        path.stem,
        KITTI_FPS,
        tuple(frame.ids for frame in frames),
        found,
        tuple(instances.masks.pairwise_iou(instances.masks) for instances in found),
    )


def _kitti_instances(frame: TrackedFrame) -> Instances:
    assert frame.masks is not None
    scores = np.ones(len(frame.ids), np.float32)
    return Instances(frame.masks.boxes, scores, frame.labels, frame.masks, KITTI_NAMES)


def _mot15_scene(folder: Path) -> Scene:
    truth = read_tracks(folder / "gt" / "gt.txt", {})
    # Detections have no track ids, so that read_tracks cannot read them.
    detected = np.loadtxt(folder / "det" / "det.txt", delimiter=",", ndmin=2)
    frames = range(max(truth.length, int(detected[:, 0].max())))
    instances = tuple(_mot15_instances(detected[detected[:, 0] == index + 1]) for index in frames)
    return Scene(
        folder.name,
        MOT15_FPS,
        tuple(truth[index].ids for index in frames),
        instances,
        tuple(
            box_iou(truth[index].boxes, found.boxes)
            for index, found in zip(frames, instances, strict=True)
        ),
    )


def _mot15_instances(rows: npt.NDArray[np.float64]) -> Instances:
    boxes = np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], axis=1)
    scores = rows[:, 6].astype(np.float32)
    masks = Masks.from_boxes(boxes, MOT15_SIZE)
    return Instances(
        boxes.astype(np.float32), scores, np.ones(len(rows), np.int64), masks, {1: "pedestrian"}
    )


def _trackers() -> Iterator[tuple[str, Callable[[float], Identify]]]:
    """Yield the name and the factory of each tracker; a factory takes the frame rate."""
    package = import_module("trackers")
    yield "streamseg", _streamseg
    for name, kind in PEERS.items():
        yield name, _peer(getattr(package, kind))


def _streamseg(_fps: float) -> Identify:
    tracker = Tracker()
    return lambda instances, pts: tracker.update(instances, pts).track_ids


def _peer(kind: Callable[..., Any]) -> Callable[[float], Identify]:
    """Return the factory of a tracker of ``trackers``, which may reorder and drop rows."""
    detections = import_module("supervision").Detections

    def create_tracker(fps: float) -> Identify:
        tracker = kind(frame_rate=fps)

        def identify(instances: Instances, _pts: float) -> IntArray:
            given = detections(
                xyxy=instances.boxes,
                confidence=instances.scores,
                class_id=instances.labels,
                data={"row": np.arange(len(instances))},
            )
            tracked = tracker.update(given)
            ids = np.full(len(instances), NOT_TRACKED)
            if len(tracked):
                ids[tracked.data["row"]] = tracked.tracker_id
            return ids

        return identify

    return create_tracker


def _run(create_tracker: Callable[[float], Identify], scenes: Iterable[Scene]) -> TrackingRow:
    """Run one tracker over the scenes and score them together; the row has no name yet."""
    tracked, seconds, frames = [], 0.0, 0
    for scene in scenes:
        identify = create_tracker(scene.fps)
        start = time.process_time()
        ids = [identify(found, index / scene.fps) for index, found in enumerate(scene.found)]
        seconds += time.process_time() - start
        frames += len(ids)
        tracked.append(_tracked_sequence(scene, ids))
    score = score_sequences(tracked, "boxes")
    return TrackingRow(
        tracker="",
        hota=score.hota,
        idf1=score.idf1,
        mota=score.mota,
        switches=score.switches,
        ms=seconds / frames * 1000,
    )


def _row(name: str, runs: list[TrackingRow]) -> TrackingRow:
    """Return the mean of several runs of one tracker."""
    columns = ("hota", "idf1", "mota", "switches", "ms")
    return TrackingRow(name, *(fmean(getattr(run, column) for run in runs) for column in columns))


def _tracked_sequence(scene: Scene, ids: list[IntArray]) -> TrackedSequence:
    """Return a tracked sequence without the detections that are not tracked."""
    kept = [frame != NOT_TRACKED for frame in ids]
    return TrackedSequence(
        scene.truth_ids,
        tuple(frame[there] for frame, there in zip(ids, kept, strict=True)),
        tuple(overlap[:, there] for overlap, there in zip(scene.overlaps, kept, strict=True)),
    )
