"""How stable the classes of the bundled model are: rival rows of one object, changes over time.

    python tools/class_stability.py clips streamseg/assets/street.mp4 …
    python tools/class_stability.py images configs/eval/nanomask.yaml --set data.root=DATA

``clips``: rows with a rival (a row of another class that overlaps by more than 0.8), identities,
and how often the class changes within an identity, as served and without what is served.
``images``: what each value of ``class_agnostic_iou`` does on the datasets of an evaluation: average
precision at its settings, and from two scores the rows, those that are right (the object that they
overlap most, by a mask IoU of 0.5 or more, is of their class) and those with a rival.
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
    """Print a line for each way to serve a clip."""
    model = load_model("nanomask")
    ways = [
        Thresholds(score=SERVED_SCORE, class_agnostic_iou=i)
        for i in (None, model.class_agnostic_iou)
    ]
    found: list[list[Result]] = [[] for _ in ways]
    for frame in open_source(SourceConfig(url=clip, name="clip")).frames():
        stamp = replace(frame, image=np.zeros((1, 1, 3), np.uint8))  # all pictures are too many
        for results, instances in zip(found, model.predict([frame.image] * 2, ways), strict=True):
            results.append(Result(stamp, instances, model.name))
    for thresholds, results in zip(ways, found, strict=True):
        rows = sum(len(result.instances) for result in results)
        rivals = sum(rows_with_a_rival(result.instances) for result in results)
        for vote in (0, 1, *votes):  # a vote of one observation is the class as it was found
            tracked = track(results, TrackerConfig(class_vote=vote), Metrics())
            identities, changes = class_changes([result.instances for result in tracked])
            print(f"| {Path(clip).name} | {thresholds.class_agnostic_iou} | {vote} ", end="")
            print(f"| {rows} | {rivals} | {identities} | {changes} |", flush=True)


def rows_with_a_rival(instances: Instances) -> int:
    """How many rows overlap one of another class by more than ``RIVAL_IOU``."""
    overlaps = instances.masks.pairwise_iou(instances.masks) > RIVAL_IOU
    others = instances.labels[:, None] != instances.labels[None]
    return int((overlaps & others).any(axis=1).sum())


def class_changes(tracked: Sequence[Instances]) -> tuple[int, int]:
    """Identities, and how often the class of one differs from that of its row before."""
    latest: dict[int, int] = {}
    changes = 0
    for instances in tracked:
        rows = zip(instances.track_ids.tolist(), instances.labels.tolist(), strict=True)
        for identity, label in rows:
            if identity >= 0:
                changes += latest.get(identity, label) != label
                latest[identity] = label
    return len(latest), changes


def print_images(config: Path, sets: list[str]) -> None:
    """Print a line for each dataset and each value."""
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
            cells = " | ".join(measures(model, dataset, kept))
            print(f"| {dataset.name} | {iou} | {cells} |", flush=True)


def measures(model: Segmenter, dataset: Dataset, found: Sequence[Instances]) -> Iterator[str]:
    """Average precisions, and at each score the rows, the right ones and those with a rival."""
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
        yield str(sum(map(rows_with_a_rival, served)))


if __name__ == "__main__":
    main()
