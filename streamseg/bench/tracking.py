"""The tracker beside its peers: the same inputs, one run, standard metrics.

The peers are SORT, ByteTrack, OC-SORT, BoT-SORT and C-BIoU as the PyPI package ``trackers`` has
them, at their published defaults, told the frame rate. They are given boxes, scores and categories;
what they leave without an identity counts as not tracked, as it does for streamseg. The metrics
are trackeval's HOTA (Luiten et al., IJCV 2021), CLEAR (Bernardin and Stiefelhagen, 2008) and
Identity (Ristani et al., ECCV-W 2016), all sequences taken together.

``trackers`` and ``trackeval`` are imported when used: they bring an OpenCV that must not be in the
environment of the service.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamseg.masks import IntArray, Masks, Size, box_iou
from streamseg.tracker import Tracker
from streamseg.types import NOT_TRACKED, Instances

KITTI_FPS = 10.0
KITTI_IGNORE = 10000  # the id of regions that aren't annotated
KITTI_NAMES = {1: "car", 2: "pedestrian"}
MOT15_FPS = 25.0
MOT15_SIZE = (480, 640)  # of both TUD sequences
MATCH_IOU = 0.5  # from which CLEAR and Identity call two boxes or masks the same
PEERS = {
    "SORT": "SORTTracker",
    "ByteTrack": "ByteTrackTracker",
    "OC-SORT": "OCSORTTracker",
    "BoT-SORT": "BoTSORTTracker",
    "C-BIoU": "CBIoUTracker",
}

Identify: TypeAlias = Callable[[Instances, float], IntArray]
"""Takes the instances of the next frame and its time in seconds; gives their ids, int64 (N,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One annotated sequence: F frames of what is there and of what a detector found.

    Attributes:
        name: of the sequence.
        fps: frames per second.
        truth_ids: F arrays, int64 (G,), who is there.
        found: F times what the tracker is given, N rows.
        likeness: F arrays, float64 (G, N), mask or box overlap of the two.
    """

    name: str
    fps: float
    truth_ids: tuple[IntArray, ...]
    found: tuple[Instances, ...]
    likeness: tuple[npt.NDArray[np.float64], ...]

    def dropping(self, rate: float, seed: int) -> Scene:
        """The same with each detection left out with probability ``rate``."""
        random = np.random.default_rng(seed)
        kept = [np.flatnonzero(random.random(len(found)) >= rate) for found in self.found]
        return replace(
            self,
            found=tuple(found[rows] for found, rows in zip(self.found, kept, strict=True)),
            likeness=tuple(like[:, rows] for like, rows in zip(self.likeness, kept, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class TrackingRow:
    """How one tracker did: fractions of one, a mean over seeds where there are several.

    Attributes:
        tracker: its name.
        hota: higher order tracking accuracy, mean over its overlap thresholds.
        idf1: identity F1.
        mota: multiple object tracking accuracy.
        switches: identity switches, over all sequences.
        ms: milliseconds of processor a frame, with what it takes to hand the frame over.
    """

    tracker: str
    hota: float
    idf1: float
    mota: float
    switches: float
    ms: float


def measure_kitti_mots(folder: Path, *, rate: float = 0.1, seeds: int = 10) -> list[TrackingRow]:
    """Ground-truth masks of which some are dropped at random, against all of them.

    Args:
        folder: with KITTI MOTS text files, one a sequence.
        rate: the probability that a mask is dropped.
        seeds: how many times; the means are given.
    """
    scenes = load_kitti_mots(folder)
    draws = [[scene.dropping(rate, seed) for scene in scenes] for seed in range(seeds)]
    return [_row(name, [_run(begin, draw) for draw in draws]) for name, begin in _trackers()]


def measure_mot15(folder: Path) -> list[TrackingRow]:
    """Public detections, boxes with scores, against annotated boxes.

    Args:
        folder: with a folder for each sequence that has ``det/det.txt`` and ``gt/gt.txt``.
    """
    scenes = load_mot15(folder)
    return [_row(name, [_run(begin, scenes)]) for name, begin in _trackers()]


def measure_speed(*, count: int = 20, size: Size = (1080, 1920), frames: int = 200) -> float:
    """Milliseconds of processor that ``Tracker.update`` takes for a frame, with moving discs.

    Processor time, so that whatever else the machine does isn't counted; the median, so that a
    first call isn't either.
    """
    times = []
    tracker = Tracker()
    for index, instances in enumerate(moving_discs(count, size, frames)):
        begin = time.process_time()
        tracker.update(instances, index / 25)
        times.append((time.process_time() - begin) * 1000)
    return float(np.median(times))


def moving_discs(count: int, size: Size, frames: int) -> Iterator[Instances]:
    """Discs a tenth of the frame high on straight paths, rebounding at the borders."""
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
    """The sequences of KITTI MOTS in ``folder``: ``frame id class height width rle`` a line."""
    return [_kitti_scene(path) for path in sorted(folder.glob("*.txt"))]


def load_mot15(folder: Path) -> list[Scene]:
    """The sequences of MOT15 in ``folder``: ``frame,id,left,top,width,height,score,…`` a line."""
    return [_mot15_scene(path.parent.parent) for path in sorted(folder.glob("*/det/det.txt"))]


def _kitti_scene(path: Path) -> Scene:
    lines: dict[int, list[list[str]]] = defaultdict(list)
    for text in path.read_text().splitlines():
        frame, *line = text.split()
        if int(line[0]) != KITTI_IGNORE:
            lines[int(frame)].append(line)
    height, width = (int(extent) for extent in next(iter(lines.values()))[0][2:4])
    frames = [lines[index] for index in range(max(lines) + 1)]
    found = tuple(_kitti_instances(frame, (height, width)) for frame in frames)
    return Scene(
        path.stem,
        KITTI_FPS,
        tuple(np.array([int(line[0]) for line in frame], np.int64) for frame in frames),
        found,
        tuple(instances.masks.pairwise_iou(instances.masks) for instances in found),
    )


def _kitti_instances(lines: list[list[str]], size: Size) -> Instances:
    masks = Masks.from_rle([line[4] for line in lines], size)
    labels = np.array([int(line[1]) for line in lines], np.int64)
    return Instances(masks.boxes, np.ones(len(lines), np.float32), labels, masks, KITTI_NAMES)


def _mot15_scene(folder: Path) -> Scene:
    truth, found = (
        np.loadtxt(folder / kind / f"{kind}.txt", delimiter=",", ndmin=2) for kind in ("gt", "det")
    )
    last = int(max(truth[:, 0].max(), found[:, 0].max()))
    frames = range(1, last + 1)
    there = [truth[truth[:, 0] == frame] for frame in frames]
    instances = tuple(_mot15_instances(found[found[:, 0] == frame]) for frame in frames)
    return Scene(
        folder.name,
        MOT15_FPS,
        tuple(rows[:, 1].astype(np.int64) for rows in there),
        instances,
        tuple(box_iou(_corners(t), f.boxes) for t, f in zip(there, instances, strict=True)),
    )


def _mot15_instances(rows: npt.NDArray[np.float64]) -> Instances:
    boxes = _corners(rows)
    scores = rows[:, 6].astype(np.float32)
    masks = Masks.from_boxes(boxes, MOT15_SIZE)
    return Instances(
        boxes.astype(np.float32), scores, np.ones(len(rows), np.int64), masks, {1: "pedestrian"}
    )


def _corners(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Boxes xyxy of lines in MOT's format."""
    return np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], axis=1)


def _trackers() -> Iterator[tuple[str, Callable[[float], Identify]]]:
    """Name and maker of each tracker; a maker takes the frame rate."""
    package = import_module("trackers")
    yield "streamseg", _streamseg
    for name, kind in PEERS.items():
        yield name, _peer(getattr(package, kind))


def _streamseg(_fps: float) -> Identify:
    tracker = Tracker()
    return lambda instances, pts: tracker.update(instances, pts).track_ids


def _peer(kind: Callable[..., Any]) -> Callable[[float], Identify]:
    """A tracker of the package: it may reorder and leave out rows, so they carry their number."""
    detections = import_module("supervision").Detections

    def begin(fps: float) -> Identify:
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

    return begin


def _run(begin: Callable[[float], Identify], scenes: Iterable[Scene]) -> TrackingRow:
    """One tracker over some scenes, scored together; the row has no name yet."""
    tracked, seconds, frames = [], 0.0, 0
    for scene in scenes:
        identify = begin(scene.fps)
        start = time.process_time()
        ids = [identify(found, index / scene.fps) for index, found in enumerate(scene.found)]
        seconds += time.process_time() - start
        frames += len(ids)
        tracked.append(_for_trackeval(scene, ids))
    hota, clear, identity = (_score(metric, tracked) for metric in _metrics())
    return TrackingRow(
        tracker="",
        hota=float(np.mean(hota["HOTA"])),
        idf1=float(identity["IDF1"]),
        mota=float(clear["MOTA"]),
        switches=float(clear["IDSW"]),
        ms=seconds / frames * 1000,
    )


def _row(name: str, runs: list[TrackingRow]) -> TrackingRow:
    """The mean of several runs of one tracker."""
    columns = ("hota", "idf1", "mota", "switches", "ms")
    return TrackingRow(name, *(fmean(getattr(run, column) for run in runs) for column in columns))


def _metrics() -> list[Any]:
    metrics = import_module("trackeval.metrics")
    config = {"THRESHOLD": MATCH_IOU, "PRINT_CONFIG": False}
    return [metrics.HOTA(), metrics.CLEAR(config), metrics.Identity(config)]


def _score(metric: Any, sequences: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """One metric over all sequences together."""
    each = {str(index): metric.eval_sequence(data) for index, data in enumerate(sequences)}
    total: Mapping[str, Any] = metric.combine_sequences(each)
    return total


def _for_trackeval(scene: Scene, ids: list[IntArray]) -> Mapping[str, Any]:
    """What trackeval's metrics take: ids counted from 0, and only what has an identity."""
    kept = [frame != NOT_TRACKED for frame in ids]
    truth, people = _counted_from_zero(list(scene.truth_ids))
    tracked, tracks = _counted_from_zero([f[k] for f, k in zip(ids, kept, strict=True)])
    return {
        "gt_ids": truth,
        "tracker_ids": tracked,
        "similarity_scores": [like[:, k] for like, k in zip(scene.likeness, kept, strict=True)],
        "num_gt_ids": people,
        "num_tracker_ids": tracks,
        "num_gt_dets": sum(map(len, truth)),
        "num_tracker_dets": sum(map(len, tracked)),
        "num_timesteps": len(ids),
    }


def _counted_from_zero(frames: list[IntArray]) -> tuple[list[IntArray], int]:
    known = np.unique(np.concatenate(frames))
    return [np.searchsorted(known, frame).astype(np.int64) for frame in frames], len(known)
