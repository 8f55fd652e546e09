"""Networks side by side, for gpu_check.py: all that a network says, and how far two are apart.

Random weights say little: without training, numbers grow or vanish from layer to layer and no
class is likely. So their norms are given the statistics of a real picture, and their classes the
spread that lets some of them be found.
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
"""Of models with random weights: as many objects as a busy street has."""
CLASSES = {
    "roi_heads.box_predictor.cls_score": 2.5,
    "head.classes": 2.5,
    "category": 0.8,
}
"""The layer that says classes, by family, and the deviation that its outputs get."""
REGIONS = ((0.1, 0.1, 0.4, 0.6), (0.5, 0.2, 0.9, 0.9), (0.0, 0.0, 1.0, 1.0), (0.6, 0.05, 0.7, 0.2))
"""Boxes that heads are asked about, x1, y1, x2, y2 as fractions of the image."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far apart two networks' outputs are.

    Attributes:
        relative: the Euclidean length of the difference, as a part of the output's own.
        absolute: the largest difference of a number of that output.
        output: the output where ``relative`` is largest.
    """

    relative: float
    absolute: float
    output: str


@dataclass(frozen=True, slots=True)
class Sameness:
    """What one model finds in some frames, two ways.

    Attributes:
        ways: which.
        frames: how many.
        instances: of the first way and of the second.
        unequal_frames: frames in which the two don't find the same number.
        least_iou: the least overlap of a mask with the best one of the other way.
        mean_iou: the mean of these.
        box: pixels, the largest difference of an edge between these.
    """

    ways: str
    frames: int
    instances: tuple[int, int]
    unequal_frames: int
    least_iou: float
    mean_iou: float
    box: float


def settled_model(name: str, picture: Image) -> Segmenter:
    """A model on the CPU: the bundled one as it is, others with weights that find something."""
    if name == BUNDLED:
        return load_model(name, device="cpu")
    model = load_model(
        name, "none", device="cpu", score=FOUND.score, max_instances=FOUND.max_instances
    )
    _settle(model, picture)
    return model


def moved(model: Segmenter, device: torch.device) -> Segmenter:
    """The same weights on a device."""
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
    """The same model, autocast."""
    other = model.with_network(model.network)
    other.precision = precision
    return other


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Without TF32, which GPUs take for convolutions unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@torch.inference_mode()
def raw_outputs(model: Segmenter, tensor: Tensor) -> dict[str, Tensor]:
    """All that a network says of a prepared batch, before anything is chosen.

    Args:
        model: whose network.
        tensor: (B, 3, H, W) on its device.

    Returns:
        Tensors whose first dimension is B, by name.
    """
    corners = tensor.new_tensor(REGIONS) * tensor.new_tensor([*tensor.shape[:1:-1]] * 2)
    boxes = [corners] * len(tensor)
    with torch.autocast(
        tensor.device.type, torch.bfloat16, enabled=model.precision == "bf16", cache_enabled=False
    ):
        said = _said(model.network, tensor, boxes)
        return {name: each for name, each in _named(said) if len(each) == len(tensor)}


def differ(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Difference:
    """The worst of all outputs; infinite where one isn't a number."""
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
    """Compare what was found in the same frames, two ways."""
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


def _settle(model: Segmenter, picture: Image) -> None:
    """Give norms the statistics of ``picture``, and classes their spread, in one forward."""
    hooks = []
    for name, module in model.network.named_modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            hooks.append(module.register_forward_pre_hook(_settle_norm))
        elif name in CLASSES:
            hooks.append(module.register_forward_hook(_Spreading(CLASSES[name])))
    model.forward(model.prepare([picture]))
    for hook in hooks:
        hook.remove()


def _settle_norm(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    (features,) = inputs
    if len(features):
        variance, mean = torch.var_mean(features, dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance + 1e-3)


class _Spreading:
    """Scales a layer when it is first called, so that its outputs have a certain deviation."""

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


def _said(network: Any, tensor: Tensor, boxes: list[Tensor]) -> Any:
    """What the network says, its heads asked about ``boxes``."""
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
    """The middle cell of a grid (B, C, S, S) and one beside it."""
    side = logits.shape[3]
    middle = side * (side // 2) + side // 2
    return torch.tensor([middle, middle + 1], device=logits.device)


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in tuples, lists, mappings and dataclasses, by the way that leads to them."""
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
