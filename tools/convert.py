"""Converter for weights files: the initial weights of a training, and the bundled weights.

    python tools/convert.py detector DETECTOR.npz start.safetensors
    python tools/convert.py bundle runs/nanomask/best.pt streamseg/assets/nanomask.safetensors

``detector`` reads NanoDet-g's arrays and initializes the mask branch randomly; ``bundle`` converts
the averaged weights of a checkpoint to fp16. Names and shapes are checked before writing.
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


def convert_detector(source: Path, target: Path) -> None:
    """Convert NanoDet-g's arrays, with random weights for the mask branch."""
    state = load_model("nanomask", weights="none").network.state_dict()
    detector_names = {name for name in state if not name.startswith("mask.")}
    with np.load(source) as arrays:
        if detector_names != set(arrays.files):
            sys.exit(
                f"{source}: isn't NanoDet-g: {sorted(detector_names ^ set(arrays.files))[:3]} …"
            )
        state |= {name: torch.from_numpy(arrays[name]).float() for name in detector_names}
    _write(files.Weights(state, "nanomask", COCO_THINGS), target)


def convert_bundle(source: Path, target: Path) -> None:
    """Convert the weights of a checkpoint to fp16."""
    weights = files.read(source)
    half = {name: tensor.half() for name, tensor in weights.state.items()}
    _write(replace(weights, state=half), target)


def _write(weights: files.Weights, target: Path) -> None:
    target.write_bytes(files.to_safetensors(weights))
    values = sum(tensor.numel() for tensor in weights.state.values())
    print(f"{target}: {len(weights.state)} tensors, {values} values, {target.stat().st_size} bytes")


if __name__ == "__main__":
    commands = {"detector": convert_detector, "bundle": convert_bundle}
    if len(sys.argv) != 4 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*map(Path, sys.argv[2:]))
