"""Make nanomask's bundled weights, one fp16 safetensors file, from the npz files they come as.

    python tools/convert.py DETECTOR.npz MASK_BRANCH.npz streamseg/assets/nanomask.safetensors

Names and shapes are checked against the network before anything is written.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from streamseg.models import checkpoints
from streamseg.models.nanomask import NanoMaskNet


def main(detector: Path, mask_branch: Path, target: Path) -> None:
    """Write ``target`` from the arrays of both files."""
    state: dict[str, torch.Tensor] = {}
    for source in (detector, mask_branch):
        with np.load(source) as arrays:
            state |= {name: torch.from_numpy(arrays[name]).half() for name in arrays.files}
    if wrong := checkpoints.differences(NanoMaskNet(), state):
        sys.exit(f"{detector}, {mask_branch}: {wrong}")
    target.write_bytes(save(state))
    values = sum(tensor.numel() for tensor in state.values())
    print(f"{target}: {len(state)} tensors, {values} values, {target.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
