"""``streamseg train`` as a script for ``torchrun``, on several GPUs or machines.

torchrun --nproc-per-node 2 tools/train.py configs/train/nanomask.yaml --out runs/nanomask
"""

from __future__ import annotations

import sys

from streamseg.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
