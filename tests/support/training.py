"""Small trainings for tests: a config that trains for seconds, and a dataset of squares."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.paths import ROOT

from streamseg.config import convert
from streamseg.config.training import TrainingConfig
from streamseg.training import Trainer

PATTERN = "test:?size=64x48&frames=8&objects=3&fps=1"
CONFIG: dict[str, Any] = {
    "model": {"name": "nanomask", "weights": "none", "device": "cpu", "input_size": 64},
    "data": {
        "train": [{"format": "pattern", "url": f"{PATTERN}&seed=1"}],
        "val": [{"format": "pattern", "url": f"{PATTERN}&seed=2", "name": "held out"}],
    },
    "epochs": 2,
    "batch": 4,
    "workers": 0,
    "ema": 0.9,
    "evaluate_every": 2,
    "schedule": {"warmup": 2},
    "augment": {"copy_paste": 0.5},
}
"""Two epochs of two batches, then an evaluation."""


def make_config(**changes: object) -> TrainingConfig:
    """Return ``CONFIG`` with some keys replaced."""
    return convert({**CONFIG, **changes}, TrainingConfig, "tiny.yaml")


def make_trainer(
    out: Path,
    *,
    resume: bool = False,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
    **changes: object,
) -> Trainer:
    """Return a trainer of ``CONFIG`` with some keys replaced."""
    return Trainer(make_config(**changes), ROOT, out, progress, resume=resume)


def write_config(path: Path, **changes: object) -> Path:
    """Write ``CONFIG`` with some keys replaced; JSON is valid YAML."""
    path.write_text(json.dumps({**CONFIG, **changes}))
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a log file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class KilledError(BaseException):
    """Stands for SIGKILL: no code of the training runs after it."""


def train_until_killed(out: Path, epoch: int, batch: int, /, **changes: object) -> None:
    """Train until a batch of an epoch is finished and leave the folder as it is at that moment."""

    def kill(phase: str, done: int, _total: int | None) -> None:
        if phase.startswith(f"epoch {epoch} ") and done == batch:
            raise KilledError

    with pytest.raises(KilledError):
        make_trainer(out, progress=kill, **changes).run()


def write_squares(folder: Path, names: list[str], first_id: int = 1) -> dict[str, str]:
    """Write a COCO dataset of four images with a square of each class; return its config section.

    The images are ``images/0.png`` to ``3.png``, with the ids 1 to 4.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(4):
        pixels = np.full((48, 64, 3), 60, np.uint8)
        for index in range(len(names)):
            x = 4 + 18 * index
            pixels[10:24, x : x + 14] = 80 + 50 * index
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": first_id + index,
                    "bbox": [x, 10, 14, 14],
                    "area": 196,
                    "iscrowd": 0,
                    "segmentation": [[x, 10, x + 14, 10, x + 14, 24, x, 24]],
                }
            )
        cv2.imwrite(str(folder / "images" / f"{number}.png"), pixels)
        size = {"width": 64, "height": 48}
        images.append({"id": number + 1, "file_name": f"{number}.png", **size})
    categories = [{"id": first_id + index, "name": name} for index, name in enumerate(names)]
    path = folder / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return {"format": "coco", "images": str(folder / "images"), "annotations": str(path)}


def write_damaged_squares(folder: Path, *damages: str) -> dict[str, str]:
    """Write the dataset of squares with problems of the given kinds."""
    section = write_squares(folder, ["disc", "box"])
    path = Path(section["annotations"])
    content = json.loads(path.read_text())
    rows = content["annotations"]
    for damage in damages:
        if damage == "only crowds":
            rows = [row | {"iscrowd": 1} for row in rows]
        elif damage == "no annotations":
            rows = []
        elif damage == "a box without area":
            rows[2] |= {"bbox": [5, 5, 0, 3], "segmentation": []}
        elif damage == "only boxes without area":
            rows = [row | {"bbox": [5, 5, 0, 3]} for row in rows]
        elif damage == "an unknown category":
            rows[0]["category_id"] = 77
        elif damage == "a damaged image":
            (folder / "images" / "2.png").write_bytes(b"not an image")
        elif damage == "a missing image":
            (folder / "images" / "0.png").unlink()
        else:
            raise ValueError(damage)
    path.write_text(json.dumps(content | {"annotations": rows}))
    return section
