"""Class stability of the bundled model: overlapping instances of different classes, class changes.

    python tools/class_stability.py clips streamseg/assets/street.mp4 …
    python tools/class_stability.py images configs/eval/nanomask.yaml --set data.root=DATA

``clips`` counts instances with a rival (an instance of another class with a mask IoU above 0.8),
tracks, and class changes within tracks, with and without the service's defaults.
``images`` compares values of ``class_agnostic_iou`` on the datasets of an evaluation: average
precision, and at two score thresholds the numbers of instances, of correct ones (the ground-truth
object with the highest mask IoU, at least 0.5, has their class) and of those with a rival.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from streamseg.config import SourceConfig, Thresholds, TrackerConfig
from streamseg.config.training import load_evaluation_config
from streamseg.datasets import Dataset, load_image, open_dataset
from streamseg.evaluation import compute_confusion_matrix
from streamseg.evaluation.predictions import PredictionCollector, make_ground_truth, score_dataset
from streamseg.models import load_model
from streamseg.models.base import Segmenter
from streamseg.models.selection import suppress_overlaps
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.stages import track
from streamseg.sources import open_source
from streamseg.structures.results import Instances, Result

RIVAL_IOU = 0.8
SERVED_SCORE = 0.45
SCORES = (0.3, SERVED_SCORE)
IOUS = (None, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    clips = kinds.add_parser("clips")
    clips.add_argument("clip", nargs="+")
    clips.add_argument("--vote", type=int, nargs="+", default=[TrackerConfig().class_vote])
    images = kinds.add_parser("images")
    images.add_argument("config", type=Path)
    images.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="sets")
    options = parser.parse_args()
    if options.kind == "clips":
        print("| clip | class_agnostic_iou | class_vote | rows | with a rival |", end="")
        print(" identities | class changes |\n|---|---|---|---|---|---|---|")
        for clip in options.clip:
            print_clip(clip, options.vote)
    else:
        print_images(options.config, options.sets)


def print_clip(clip: str, votes: Sequence[int]) -> None:
    """Print a row for each combination of settings."""
    model = load_model("nanomask")
    settings = [
        Thresholds(score=SERVED_SCORE, class_agnostic_iou=i)
        for i in (None, model.class_agnostic_iou)
    ]
    found: list[list[Result]] = [[] for _ in settings]
    for frame in open_source(SourceConfig(url=clip, name="clip")).frames():
        stamp = replace(
            frame, image=np.zeros((1, 1, 3), np.uint8)
        )  # all images would need too much memory
        for results, instances in zip(
            found, model.predict([frame.image] * 2, settings), strict=True
        ):
            results.append(Result(stamp, instances, model.name))
    for thresholds, results in zip(settings, found, strict=True):
        rows = sum(len(result.instances) for result in results)
        rivals = sum(count_rivals(result.instances) for result in results)
        for vote in (0, 1, *votes):  # with a vote of one hit, the class is the detected one
            tracked = track(results, TrackerConfig(class_vote=vote), Metrics())
            identities, changes = count_class_changes([result.instances for result in tracked])
            print(f"| {Path(clip).name} | {thresholds.class_agnostic_iou} | {vote} ", end="")
            print(f"| {rows} | {rivals} | {identities} | {changes} |", flush=True)


def count_rivals(instances: Instances) -> int:
    """Count instances that overlap one of another class by more than ``RIVAL_IOU``."""
    overlaps = instances.masks.pairwise_iou(instances.masks) > RIVAL_IOU
    others = instances.labels[:, None] != instances.labels[None]
    return int((overlaps & others).any(axis=1).sum())


def count_class_changes(tracked: Sequence[Instances]) -> tuple[int, int]:
    """Return the numbers of tracks and of class changes from one hit of a track to the next."""
    latest: dict[int, int] = {}
    changes = 0
    for instances in tracked:
        rows = zip(instances.track_ids.tolist(), instances.labels.tolist(), strict=True)
        for track_id, label in rows:
            if track_id >= 0:
                changes += latest.get(track_id, label) != label
                latest[track_id] = label
    return len(latest), changes


def print_images(config: Path, sets: list[str]) -> None:
    """Print a row for each dataset and each value."""
    evaluation = load_evaluation_config(config, sets)
    if evaluation.data is None:
        raise SystemExit(f"{config}: has no data")
    model = load_model(**msgspec.structs.asdict(evaluation.model))
    heads = [f"rows from {score} | right | with a rival" for score in SCORES]
    print("| images | class_agnostic_iou | box AP | mask AP |", " | ".join(heads), "|")
    print("|---" * (4 + 3 * len(SCORES)) + "|")
    for data in evaluation.data.val:
        dataset = open_dataset(data, config.parent / evaluation.data.root)
        found = [
            model.predict([load_image(image)], Thresholds(score=evaluation.min_score))[0]
            for image in dataset.images
        ]
        for iou in IOUS:
            kept = [f if iou is None else f[suppress_overlaps(f, iou)] for f in found]
            cells = " | ".join(iterate_cells(model, dataset, kept))
            print(f"| {dataset.name} | {iou} | {cells} |", flush=True)


def iterate_cells(model: Segmenter, dataset: Dataset, found: Sequence[Instances]) -> Iterator[str]:
    """Yield the average precisions, then the counts of instances, correct ones and rivals."""
    collector = PredictionCollector(model, dataset)
    for image, instances in zip(dataset.images, found, strict=True):
        collector.add(image, instances, None)
    rows = collector.predictions().results
    for scores in score_dataset(dataset, rows):
        yield f"{scores.ap:.4f}"
    for score in SCORES:
        served = [instances[instances.scores >= score] for instances in found]
        matrix = compute_confusion_matrix(make_ground_truth(dataset), rows, "masks", score=score)
        yield str(int(matrix.counts[:, :-1].sum()))
        yield str(int(np.trace(matrix.counts)))
        yield str(sum(map(count_rivals, served)))


if __name__ == "__main__":
    main()
