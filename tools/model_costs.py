"""Parameters, operations and times of each model. See docs/models.md.

    python tools/model_costs.py [NAME ...]

The weights are random: the time of a forward pass does not depend on them if no object is found.
A score threshold of 1 excludes all objects, so that the work per object (masks, and the mask head
of Mask R-CNN) is not included. Measured on one image, interleaved over several rounds:

* ``prepare``: resizing, normalizing and padding;
* ``forward``: the network and the selection of boxes, cells or instances;
* ``modules``: the same modules called in sequence, without this project's code around them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.image_list import ImageList

from streamseg.config import Thresholds
from streamseg.models import REGISTRY, load_model
from streamseg.models.base import Segmenter
from streamseg.structures.results import Image

ROUNDS = 3
SIZE = (480, 640)
BACKGROUND = Thresholds(score=1.0)


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of a model; times are medians.

    Attributes:
        parameters: millions.
        gflops: billions of multiply-add operations.
        prepare: milliseconds.
        forward: milliseconds.
        ratio: time of ``forward`` divided by that of the modules alone.
    """

    parameters: float
    gflops: float
    prepare: float
    forward: float
    ratio: float


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[entry.name for entry in REGISTRY])
    options = parser.parse_args()
    print("| model | M parameters | GFLOPs | prepare, ms | forward, ms | / modules alone |")
    print("|---|---|---|---|---|---|")
    for name in options.names:
        costs = measure(load_model(name, weights="none", device="cpu"))
        print(
            f"| `{name}` | {costs.parameters:.2f} | {costs.gflops:.1f} | {costs.prepare:.1f} | "
            f"{costs.forward:.0f} | {costs.ratio:.2f} |",
            flush=True,
        )


def measure(model: Segmenter) -> Costs:
    """Measure the costs of ``model`` for one image of noise."""
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    batches = model.prepare([image])
    prepare, forward, alone = _time_interleaved(
        lambda: model.prepare([image]),
        lambda: model.forward(batches, BACKGROUND),
        lambda: call_modules(model, batches[0].tensor, batches[0].shapes[0]),
    )
    ratio = median(a / b for a, b in zip(forward, alone, strict=True))
    parameters = sum(each.numel() for each in model.network.parameters()) / 1e6
    return Costs(parameters, count_gflops(model, image), median(prepare), median(forward), ratio)


def count_gflops(model: Segmenter, image: Image) -> float:
    """Count billions of multiply-add operations for an image without objects."""
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _count_deformable}
    )
    with counter:
        model.forward(model.prepare([image]), BACKGROUND)
    return counter.get_total_flops() / 2e9


@torch.inference_mode()
def call_modules(model: Segmenter, tensor: Tensor, shape: tuple[int, int]) -> Any:
    """The network's modules in sequence."""
    network: Any = model.network
    if not hasattr(network, "roi_heads"):
        return network(tensor)
    images, heads = ImageList(tensor, [shape]), network.roi_heads
    features = network.backbone(tensor)
    proposals, _ = network.rpn(images, features)
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, [shape]))
    stuff = network.sem_seg_head(features) if hasattr(network, "sem_seg_head") else None
    return heads.box_predictor(pooled), stuff


def _time_interleaved(*calls: Callable[[], Any]) -> list[list[float]]:
    """Return the times of each call in milliseconds, interleaved."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(ROUNDS + 1):
        for call, call_times in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if turn:  # the first round warms up
                call_times.append((time.perf_counter() - begin) * 1000)
    return times


def _count_deformable(
    _image: Any, weight: Any, *_rest: Any, out_shape: Any = None, **_named: Any
) -> int:
    """Count the operations of a deformable convolution as those of a normal one."""
    batch, _, height, width = out_shape
    channels_out, channels_in, *kernel = weight
    return int(2 * batch * height * width * channels_out * channels_in * np.prod(kernel))


if __name__ == "__main__":
    main()
