"""Recall of people in the bundled clip, on 30 manually annotated frames.

    python tools/street_check.py [--set model.input_size=512]… [--sheet sheet.png]

Prints recall at box IoU 0.5 of people taller than 60 pixels and at most half occluded, and false
instances: those that match no annotated person (small and occluded people are annotated as ignored)
and, for vehicles, no annotated vehicle. The sheet shows the masks for visual inspection.
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
"""Minimum box IoU with an ignored person or a vehicle for an instance to be ignored."""
VEHICLES = ("car", "truck", "bus")


def main() -> None:
    """Print recall and false instances; write the sheet if an output file is given."""
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
    images = []
    for label, image in read_annotated_frames(labels):
        (instances,) = model.predict([image], Thresholds(score=options.score))
        hits, wrong = match_people(instances, label["people"], labels["vehicles"])
        found += hits
        people += sum(not person["ignore"] for person in label["people"])
        false += [f"frame {label['frame']}: {text}" for text in wrong]
        images.append(annotate(image, instances))
    print(f"input {model.input_size}, score {options.score}: recall {found / people:.3f}")
    print(f"{found} of {people} people, {len(false)} false instances", *false, sep="\n  ")
    if options.sheet:
        cv2.imwrite(str(options.sheet), make_sheet(images)[..., ::-1])


def read_annotated_frames(labels: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Image]]:
    """Yield each annotated frame: its annotations and its image."""
    wanted = {frame["frame"]: frame for frame in labels["frames"]}
    with av.open(str(ROOT / labels["clip"])) as clip:
        for index, frame in enumerate(clip.decode(video=0)):
            if index in wanted:
                yield wanted[index], frame.to_ndarray(format="rgb24")


def match_people(
    instances: Instances, people: Sequence[dict[str, Any]], vehicles: Sequence[Sequence[int]]
) -> tuple[int, list[str]]:
    """Return the number of people found, and descriptions of false instances, best score first."""
    wanted = make_boxes([person["box"] for person in people if not person["ignore"]])
    ignored = make_boxes([person["box"] for person in people if person["ignore"]])
    taken: set[int] = set()
    wrong = []
    for box, name, score in zip(instances.boxes, instances.names, instances.scores, strict=True):
        if name == "person":
            overlaps = box_iou(box[None], wanted)[0]
            free = [row for row in np.argsort(-overlaps).tolist() if row not in taken]
            if free and overlaps[free[0]] >= MATCH:
                taken.add(free[0])
                continue
        near = ignored if name == "person" else make_boxes(vehicles if name in VEHICLES else [])
        if len(near) and box_iou(box[None], near).max() >= NEAR:
            continue
        wrong.append(f"{name} {score:.2f} at {box.round().astype(int).tolist()}")
    return len(taken), wrong


def make_boxes(corners: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Convert box lists to float32 (N, 4)."""
    return np.array(corners, np.float32).reshape(-1, 4)


def make_sheet(images: Sequence[Image], columns: int = 3) -> Image:
    """Combine images into one, row by row."""
    blank = np.zeros_like(images[0])
    padded = [*images, *[blank] * (-len(images) % columns)]
    rows = [np.hstack(padded[at : at + columns]) for at in range(0, len(padded), columns)]
    return np.vstack(rows)


if __name__ == "__main__":
    main()
