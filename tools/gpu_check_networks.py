"""Comparison of network outputs, for gpu_check.py.

With random weights, activations explode or vanish from layer to layer and no class is likely.
Therefore the norm layers are calibrated on a real image, and the class layers are scaled so that
some objects are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from streamseg.config import Thresholds
from streamseg.models import load_model
from streamseg.models.base import Precision, Segmenter
from streamseg.models.yolact.segmenter import crop_masks
from streamseg.structures.results import Image, Instances

BUNDLED = "nanomask"
FOUND = Thresholds(score=0.05, max_instances=20)
"""Thresholds for models with random weights: as many objects as in a busy street."""
CLASSES = {
    "roi_heads.box_predictor.cls_score": 2.5,
    "head.classes": 2.5,
    "category": 0.8,
}
"""Name of the class layer of each family, and the standard deviation of its scaled outputs."""
REGIONS = ((0.1, 0.1, 0.4, 0.6), (0.5, 0.2, 0.9, 0.9), (0.0, 0.0, 1.0, 1.0), (0.6, 0.05, 0.7, 0.2))
"""Boxes for the heads, (x1, y1, x2, y2) as fractions of the image."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two networks' outputs.

    Attributes:
        relative: Euclidean norm of the difference divided by that of the output.
        absolute: maximum absolute difference of that output.
        output: name of the output with the largest ``relative``.
    """

    relative: float
    absolute: float
    output: str


@dataclass(frozen=True, slots=True)
class Sameness:
    """Comparison of the instances that one model finds in some frames in two ways.

    Attributes:
        ways: description of the two ways.
        frames: number of frames.
        instances: number of instances of the first and of the second way.
        unequal_frames: number of frames with different numbers of instances.
        least_iou: minimum mask IoU of matched instances.
        mean_iou: mean mask IoU of matched instances.
        box: maximum difference of a box coordinate of matched instances, in pixels.
    """

    ways: str
    frames: int
    instances: tuple[int, int]
    unequal_frames: int
    least_iou: float
    mean_iou: float
    box: float


def settled_model(name: str, picture: Image) -> Segmenter:
    """Load a model on the CPU; all but the bundled one with calibrated random weights."""
    if name == BUNDLED:
        return load_model(name, device="cpu")
    model = load_model(
        name, "none", device="cpu", score=FOUND.score, max_instances=FOUND.max_instances
    )
    _calibrate(model, picture)
    return model


def moved(model: Segmenter, device: torch.device) -> Segmenter:
    """Return a copy of the model on a device."""
    limits = model.thresholds
    there = load_model(
        model.name,
        "none",
        device=str(device),
        score=limits.score,
        max_instances=limits.max_instances,
    )
    there.network.load_state_dict(model.network.state_dict())
    return there


def in_precision(model: Segmenter, precision: Precision) -> Segmenter:
    """Return the same model with another precision."""
    other = model.with_network(model.network)
    other.precision = precision
    return other


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Disable TF32, which is the default for convolutions on GPUs."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@torch.inference_mode()
def raw_outputs(model: Segmenter, tensor: Tensor) -> dict[str, Tensor]:
    """Return all raw outputs of a network for a prepared batch.

    Args:
        model: model with the network.
        tensor: prepared images (B, 3, H, W) on its device.

    Returns:
        Tensors whose first dimension is B, by name.
    """
    corners = tensor.new_tensor(REGIONS) * tensor.new_tensor([*tensor.shape[:1:-1]] * 2)
    boxes = [corners] * len(tensor)
    with torch.autocast(
        tensor.device.type, torch.bfloat16, enabled=model.precision == "bf16", cache_enabled=False
    ):
        outputs = _run_network(model.network, tensor, boxes)
        return {name: each for name, each in _named(outputs) if len(each) == len(tensor)}


def differ(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Difference:
    """Return the largest difference of all outputs; infinite if a value is not finite."""
    worst = Difference(-1.0, 0.0, "")
    for name, own in expected.items():
        b = found[name].double()
        a = own.to(b.device).double()
        absolute, apart, length = (
            float(each) for each in ((a - b).abs().max(), (a - b).norm(), a.norm())
        )
        relative = apart / length if length else apart
        if not np.isfinite(relative):
            relative = absolute = float("inf")
        if relative > worst.relative:
            worst = Difference(relative, absolute, name)
    return worst


def sameness(ways: str, first: Sequence[Instances], second: Sequence[Instances]) -> Sameness:
    """Compare the instances found in the same frames in two ways."""
    overlaps, edges = [1.0], [0.0]
    for a, b in zip(first, second, strict=True):
        if len(a) and len(b):
            iou = a.masks.pairwise_iou(b.masks)
            overlaps += iou.max(axis=1).tolist()
            edges += np.abs(a.boxes - b.boxes[iou.argmax(axis=1)]).max(axis=1).tolist()
    return Sameness(
        ways,
        len(first),
        (sum(map(len, first)), sum(map(len, second))),
        sum(len(a) != len(b) for a, b in zip(first, second, strict=True)),
        min(overlaps),
        float(np.mean(overlaps)),
        max(edges),
    )


def _calibrate(model: Segmenter, picture: Image) -> None:
    """Calibrate norm layers on ``picture`` and scale class layers, in one forward pass."""
    hooks = []
    for name, module in model.network.named_modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            hooks.append(module.register_forward_pre_hook(_calibrate_norm))
        elif name in CLASSES:
            hooks.append(module.register_forward_hook(_OutputScaler(CLASSES[name])))
    model.forward(model.prepare([picture]))
    for hook in hooks:
        hook.remove()


def _calibrate_norm(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    (features,) = inputs
    if len(features):
        variance, mean = torch.var_mean(features, dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance + 1e-3)


class _OutputScaler:
    """Forward hook that scales a layer once, so that its outputs have a given deviation."""

    def __init__(self, deviation: float) -> None:
        self._deviation = deviation
        self._done = False

    def __call__(self, layer: Any, _inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor | None:
        if self._done:
            return None
        self._done = True
        by_class = outputs.movedim(1, 0).flatten(1)
        centre = by_class.mean(dim=1)
        factor = self._deviation / (by_class - centre[:, None]).std()
        shape = (-1,) + (1,) * (outputs.ndim - 2)
        bias = layer.bias.clone()
        layer.weight.mul_(factor)
        layer.bias.copy_(bias - (centre - bias) * factor)
        spread: Tensor = (outputs - centre.view(shape)) * factor + bias.view(shape)
        return spread


def _run_network(network: Any, tensor: Tensor, boxes: list[Tensor]) -> Any:
    """Run the network with ``boxes`` as the input of its heads."""
    if hasattr(network, "roi_heads"):
        return _two_stage(network, tensor, boxes)
    outputs = network(tensor)
    count, height, width = len(tensor), tensor.shape[2], tensor.shape[3]
    if hasattr(network, "mask"):  # nanomask
        branch = network.mask
        masks = branch(branch.roi_features(branch.map_around(outputs.features, boxes), boxes))
        return outputs, masks.unflatten(0, (count, -1))
    if hasattr(network, "prototypes"):  # YOLACT
        relative = tensor.new_tensor(REGIONS)
        masks = torch.stack(
            [
                crop_masks(own.float(), rows[: len(relative)].float(), relative)
                for own, rows in zip(outputs.prototypes, outputs.coefficients, strict=True)
            ]
        )
        if network.mask_iou is None:
            return outputs, masks
        return outputs, masks, network.mask_iou(masks.flatten(0, 1)).unflatten(0, (count, -1))
    size = height // 4, width // 4
    with torch.autocast(tensor.device.type, enabled=False):  # as SOLO is served
        masks = [
            torch.stack(
                [
                    network.masks(outputs, image, level, _middle(logits), size)
                    for image in range(count)
                ]
            )
            for level, logits in enumerate(outputs.categories)
        ]
    return outputs, masks


def _two_stage(network: Any, tensor: Tensor, boxes: list[Tensor]) -> Any:
    shapes = [(tensor.shape[2], tensor.shape[3])] * len(tensor)
    features, heads = network.backbone(tensor), network.roi_heads
    pooled = heads.box_head(heads.box_roi_pool(features, boxes, shapes))
    masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, shapes)))
    by_image = (len(tensor), -1)
    return {
        "features": features,
        "proposals": network.rpn.head(list(features.values())),
        "boxes": [each.unflatten(0, by_image) for each in heads.box_predictor(pooled)],
        "masks": masks.unflatten(0, by_image),
        "stuff": network.sem_seg_head(features) if hasattr(network, "sem_seg_head") else (),
    }


def _middle(logits: Tensor) -> Tensor:
    """Return the middle cell of a grid (B, C, S, S) and its right neighbor."""
    side = logits.shape[3]
    middle = side * (side // 2) + side // 2
    return torch.tensor([middle, middle + 1], device=logits.device)


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses with their paths."""
    if isinstance(value, Tensor):
        yield name, value
        return
    if isinstance(value, Mapping):
        parts = [(str(key), each) for key, each in value.items()]
    elif is_dataclass(value):
        parts = [(each.name, getattr(value, each.name)) for each in fields(value)]
    elif hasattr(value, "_fields"):
        parts = list(zip(value._fields, value, strict=True))
    else:
        parts = [(str(number), each) for number, each in enumerate(value)]
    for part, each in parts:
        yield from _named(each, f"{name}.{part}" if name else part)
