"""Eight small pictures that a family has to learn by heart, by the loop that trains everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from streamseg.config import convert
from streamseg.models import load_model
from streamseg.recipe import Recipe
from streamseg.train import Trainer


def ap_by_heart(folder: Path, name: str, url: str, size: int, **changes: Any) -> float:
    """Mask AP on the pictures that were learnt.

    Args:
        folder: takes the training's files.
        name: of the model; it begins with random weights.
        url: of the test pattern.
        size: the model's ``input_size``.
        **changes: of the recipe.
    """
    pattern = {"format": "pattern", "url": url, "name": "by heart"}
    plain = {
        "model": {"name": name, "weights": "none", "device": "cpu", "input_size": size},
        "data": {"train": [pattern], "val": [pattern]},
        "batch": 1,
        "workers": 0,
        "ema": 0,
        "evaluate_every": 1000,
        "augment": {"flip": 0, "scale": [1, 1], "photometric": 0},
    }
    recipe = convert({**plain, **changes}, Recipe, "by-heart.yaml")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # or it would take twice as long
    try:
        report = Trainer(recipe, folder, folder / "out", lambda *_: None).run()
    finally:
        torch.set_num_threads(threads)
    ap = report.position.measures["by heart, masks"]["ap"]
    assert ap is not None
    return ap


def batch_norms(name: str) -> list[str]:
    """What keeps a network's batch norms as they are, as ``optimiser.frozen`` takes it.

    With a picture or two in a batch, their statistics would be those of no other batch.
    """
    network = load_model(name, weights="none", device="cpu").network
    return [
        part for part, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
    ]
