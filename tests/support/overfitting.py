"""Overfitting tests: a model family must reproduce a few small images that it was trained on."""

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
"""Times that each image occurs in an epoch; more means fewer checkpoints per step."""


def overfit_pattern(folder: Path, name: str, url: str, size: int, **changes: Any) -> float:
    """Return the mask AP on the training images of a test pattern; see :func:`overfit_dataset`."""
    pattern = {"format": "pattern", "url": url, "name": "pattern"}
    metrics = overfit_dataset(folder, name, pattern, size, **changes)
    return metrics["pattern, masks"]["ap"]


def overfit_dataset(
    folder: Path,
    name: str,
    data: dict[str, str],
    size: int,
    *,
    regions: int = 512,
    **changes: Any,
) -> dict[str, dict[str, float]]:
    """Train a model with random weights and return its metrics on the training images.

    Args:
        folder: folder for the training's files; paths in ``data`` are relative to it.
        name: the model's name.
        data: dataset section of a training config.
        size: the model's ``input_size``.
        regions: regions per image that the heads of a Mask R-CNN are trained on. With its default
            of 512, small images take as long as large ones.
        **changes: keys of the config to replace.
    """
    config = {
        "model": {"name": name, "weights": "none", "device": "cpu", "input_size": size},
        "data": {"train": [{**data, "repeat": REPEAT}], "val": [data]},
        "batch": 1,
        "workers": 0,
        "ema": 0,
        "evaluate_every": 1000,
        "augment": {"flip": 0, "scale": [1, 1], "photometric": 0},
    }
    training_config = convert({**config, **changes}, TrainingConfig, "overfit.yaml")
    trainer = Trainer(training_config, folder, folder / "out", lambda *_: None)
    heads = getattr(trainer.model.network, "roi_heads", None)
    if heads is not None:
        heads.fg_bg_sampler.batch_size_per_image = regions
    with _all_cores():
        return trainer.run().position.measures


@contextmanager
def _all_cores() -> Iterator[None]:
    """Run torch with all cores, because these trainings take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def find_batch_norms(name: str) -> list[str]:
    """Return the names of a network's batch norms, for ``optimiser.frozen``.

    With one or two images in a batch, batch statistics differ too much from batch to batch.
    """
    network = load_model(name, weights="none", device="cpu").network
    return [
        part for part, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
    ]
