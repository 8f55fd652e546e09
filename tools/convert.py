"""Weights files from other files: what training starts from, and what the package carries.

    python tools/convert.py detector DETECTOR.npz start.safetensors
    python tools/convert.py bundle runs/nanomask/best.pt streamseg/assets/nanomask.safetensors

``detector`` takes NanoDet-g's arrays and gives the mask branch random weights; ``bundle`` takes a
checkpoint's averaged weights as fp16. Names and shapes are checked before anything is written.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from streamseg.models import load_model
from streamseg.models.categories import COCO_THINGS
from streamseg.models.weights import files


def detector(source: Path, target: Path) -> None:
    """NanoDet-g's detector with a mask branch that knows nothing yet."""
    state = load_model("nanomask", weights="none").network.state_dict()
    own = {name for name in state if not name.startswith("mask.")}
    with np.load(source) as arrays:
        if own != set(arrays.files):
            sys.exit(f"{source}: isn't NanoDet-g: {sorted(own ^ set(arrays.files))[:3]} …")
        state |= {name: torch.from_numpy(arrays[name]).float() for name in own}
    _write(files.Weights(state, "nanomask", COCO_THINGS), target)


def bundle(source: Path, target: Path) -> None:
    """A checkpoint's weights as fp16."""
    weights = files.read(source)
    half = {name: tensor.half() for name, tensor in weights.state.items()}
    _write(replace(weights, state=half), target)


def _write(weights: files.Weights, target: Path) -> None:
    target.write_bytes(files.to_safetensors(weights))
    values = sum(tensor.numel() for tensor in weights.state.values())
    print(f"{target}: {len(weights.state)} tensors, {values} values, {target.stat().st_size} bytes")


if __name__ == "__main__":
    ways = {"detector": detector, "bundle": bundle}
    if len(sys.argv) != 4 or sys.argv[1] not in ways:
        sys.exit(__doc__)
    ways[sys.argv[1]](*map(Path, sys.argv[2:]))
