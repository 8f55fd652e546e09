"""How well a model finds the people in the bundled clip, where 30 frames are labelled by eye.

    python tools/street_check.py [--set model.input_size=512]… [--sheet sheet.png]

Recall at box IoU 0.5 of people taller than 60 pixels and not more than half hidden, and how many
instances are false: not at a labelled person (small and hidden ones are labelled too, to be
ignored) nor, for vehicles, at one that stands there. The sheet shows the masks, to be looked at.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import msgspec
import numpy as np

from streamseg.config import ModelConfig, Thresholds, convert, override
from streamseg.models import load_model
from streamseg.structures.masks import box_iou
from streamseg.structures.results import Image, Instances
from streamseg.visualization import annotate

ROOT = Path(__file__).parents[1]
LABELS = ROOT / "tests" / "labels" / "street_people.json"
MATCH = 0.5
NEAR = 0.3
"""Overlap from which an instance belongs to something that doesn't count."""
VEHICLES = ("car", "truck", "bus")


def main() -> None:
    """Print recall and false instances; write the sheet if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="sets")
    parser.add_argument("--score", type=float, default=0.5)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    raw: dict[str, Any] = {"model": {"name": "nanomask"}}
    override(raw, options.sets)
    config = convert(raw["model"], ModelConfig, "--set")
    model = load_model(**msgspec.structs.asdict(config))
    labels = json.loads(LABELS.read_text())
    found = people = 0
    false: list[str] = []
    pictures = []
    for label, image in labelled_frames(labels):
        (instances,) = model.predict([image], Thresholds(score=options.score))
        hits, wrong = judge(instances, label["people"], labels["vehicles"])
        found += hits
        people += sum(not person["ignore"] for person in label["people"])
        false += [f"frame {label['frame']}: {text}" for text in wrong]
        pictures.append(annotate(image, instances))
    print(f"input {model.input_size}, score {options.score}: recall {found / people:.3f}")
    print(f"{found} of {people} people, {len(false)} false instances", *false, sep="\n  ")
    if options.sheet:
        cv2.imwrite(str(options.sheet), sheet(pictures)[..., ::-1])


def labelled_frames(labels: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Image]]:
    """Each labelled frame with its pixels."""
    wanted = {frame["frame"]: frame for frame in labels["frames"]}
    with av.open(str(ROOT / labels["clip"])) as clip:
        for index, frame in enumerate(clip.decode(video=0)):
            if index in wanted:
                yield wanted[index], frame.to_ndarray(format="rgb24")


def judge(
    instances: Instances, people: Sequence[dict[str, Any]], vehicles: Sequence[Sequence[int]]
) -> tuple[int, list[str]]:
    """How many people were found, and what else was, best score first."""
    wanted = boxes_of([person["box"] for person in people if not person["ignore"]])
    ignored = boxes_of([person["box"] for person in people if person["ignore"]])
    taken: set[int] = set()
    wrong = []
    for box, name, score in zip(instances.boxes, instances.names, instances.scores, strict=True):
        if name == "person":
            overlaps = box_iou(box[None], wanted)[0]
            free = [row for row in np.argsort(-overlaps).tolist() if row not in taken]
            if free and overlaps[free[0]] >= MATCH:
                taken.add(free[0])
                continue
        near = ignored if name == "person" else boxes_of(vehicles if name in VEHICLES else [])
        if len(near) and box_iou(box[None], near).max() >= NEAR:
            continue
        wrong.append(f"{name} {score:.2f} at {box.round().astype(int).tolist()}")
    return len(taken), wrong


def boxes_of(corners: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Boxes, float32 (N, 4)."""
    return np.array(corners, np.float32).reshape(-1, 4)


def sheet(pictures: Sequence[Image], columns: int = 3) -> Image:
    """All pictures in one, row by row."""
    blank = np.zeros_like(pictures[0])
    padded = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.hstack(padded[at : at + columns]) for at in range(0, len(padded), columns)]
    return np.vstack(rows)


if __name__ == "__main__":
    main()
