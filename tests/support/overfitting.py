"""Eight small pictures that a family has to learn by heart, by the loop that trains everything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from streamseg.config import convert
from streamseg.config.training import TrainingConfig
from streamseg.models import load_model
from streamseg.training import Trainer

REPEAT = 4
"""How often an epoch has each picture; a checkpoint is written after each."""


def ap_by_heart(folder: Path, name: str, url: str, size: int, **changes: Any) -> float:
    """Mask AP on the pictures of a test pattern that were learnt; see :func:`learn_by_heart`."""
    pattern = {"format": "pattern", "url": url, "name": "by heart"}
    measures = learn_by_heart(folder, name, pattern, size, **changes)
    return measures["by heart, masks"]["ap"]


def learn_by_heart(
    folder: Path,
    name: str,
    data: dict[str, str],
    size: int,
    *,
    regions: int = 512,
    **changes: Any,
) -> dict[str, dict[str, float]]:
    """What is measured on the pictures that were learnt.

    Args:
        folder: takes the training's files; paths of data are relative to it.
        name: of the model; it begins with random weights.
        data: as a recipe has it.
        size: the model's ``input_size``.
        regions: of a picture that a Mask R-CNN's heads learn from. With all 512 of them, eight
            small pictures take as long as eight large ones.
        **changes: of the recipe.
    """
    plain = {
        "model": {"name": name, "weights": "none", "device": "cpu", "input_size": size},
        "data": {"train": [{**data, "repeat": REPEAT}], "val": [data]},
        "batch": 1,
        "workers": 0,
        "ema": 0,
        "evaluate_every": 1000,
        "augment": {"flip": 0, "scale": [1, 1], "photometric": 0},
    }
    recipe = convert({**plain, **changes}, TrainingConfig, "by-heart.yaml")
    trainer = Trainer(recipe, folder, folder / "out", lambda *_: None)
    heads = getattr(trainer.model.network, "roi_heads", None)
    if heads is not None:
        heads.fg_bg_sampler.batch_size_per_image = regions
    with _every_core():
        return trainer.run().position.measures


@contextmanager
def _every_core() -> Iterator[None]:
    """Other tests compute with one thread; these take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batch_norms(name: str) -> list[str]:
    """What keeps a network's batch norms as they are, as ``optimiser.frozen`` takes it.

    With a picture or two in a batch, their statistics would be those of no other batch.
    """
    network = load_model(name, weights="none", device="cpu").network
    return [
        part for part, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
    ]
