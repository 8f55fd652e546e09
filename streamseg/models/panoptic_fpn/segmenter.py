"""Panoptic FPN, as detectron2 has it: its Mask R-CNN with a branch for stuff on the same pyramid.

Kirillov et al., "Panoptic Feature Pyramid Networks", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from streamseg.models.base import Batch, ClassCounts, ClassRows, Detections, rows_of
from streamseg.models.categories import COCO_PANOPTIC, Categories
from streamseg.models.layers.losses import mean_over_processes
from streamseg.models.layers.panoptic import STRIDE, StuffLogits
from streamseg.models.mask_rcnn_d2.loss import MaskRCNND2Criterion
from streamseg.models.mask_rcnn_d2.segmenter import CHANNELS, MaskRCNND2, MaskRCNND2Net
from streamseg.models.selection import Selection
from streamseg.structures.targets import UNKNOWN, Targets

WIDTH = 128
"""Channels of the branch for stuff."""


class PanopticFPN(MaskRCNND2):
    """Panoptic FPN. ``input_size`` is the short side that images are resized to.

    The frame's thresholds decide about the things; stuff has none.
    """

    trained_on = COCO_PANOPTIC

    @classmethod
    def build(cls, name: str, categories: Categories) -> nn.Module:
        del name  # the family has one member
        return PanopticFPNNet(categories)

    @classmethod
    def class_rows(cls, network: nn.Module, categories: Categories) -> Mapping[str, ClassRows]:
        rows = {name: (row,) for row, name in enumerate(categories.stuff.values(), start=1)}
        predictor = {f"sem_seg_head.predictor.{part}": rows for part in ("weight", "bias")}
        return {**super().class_rows(network, categories), **predictor}

    @classmethod
    def count_classes(cls, state: Mapping[str, Tensor]) -> ClassCounts | None:
        things = super().count_classes(state)
        outputs = rows_of(state, "sem_seg_head.predictor.bias")  # things are the first one
        return replace(things, stuff=outputs - 1) if things and outputs > 0 else None

    def criterion(self, weights: Mapping[str, float]) -> PanopticFPNCriterion:
        return PanopticFPNCriterion(self.network, weights, self.outputs_of(self.categories))

    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        features = self.network.backbone(batch.tensor)
        found = self.detect_in(features, batch, selections)
        logits = self.network.sem_seg_head(features)
        return [
            replace(each, panoptic=StuffLogits(own, shape, size, self.stuff))
            for each, own, shape, size in zip(found, logits, batch.shapes, batch.sizes, strict=True)
        ]


class PanopticFPNNet(MaskRCNND2Net):
    """The network.

    Args:
        categories: what it tells apart.
    """

    def __init__(self, categories: Categories) -> None:
        super().__init__(len(categories.things))
        self.sem_seg_head = StuffBranch(len(categories.stuff))


class StuffBranch(nn.Module):
    """P2 to P5 brought to one size, summed, and the class of each place.

    Args:
        classes: S, of stuff; things are one class more, the first.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.p2 = nn.Sequential(_ConvNorm(CHANNELS))
        self.p3, self.p4, self.p5 = (_enlarging(times) for times in (1, 2, 3))
        self.predictor = nn.Conv2d(WIDTH, classes + 1, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, 1 + S, H / 4, W / 4), of maps (B, 256, h, w) named ``0`` to ``3``."""
        branches = (self.p2, self.p3, self.p4, self.p5)
        brought = [branch(features[str(n)]) for n, branch in enumerate(branches)]
        logits: Tensor = self.predictor(reduce(torch.add, brought))
        return logits


class PanopticFPNCriterion(MaskRCNND2Criterion):
    """Its Mask R-CNN's losses, and that of the class of each pixel that is known."""

    own_weights: ClassVar[Mapping[str, float]] = {
        **MaskRCNND2Criterion.own_weights,
        "semantic": 0.5,
    }

    def losses(self, images: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
        features = self.network.backbone(images)
        semantic = _semantic_loss(self.network.sem_seg_head(features), targets)
        return {**self.losses_in(features, images, targets), "semantic": semantic}


class _ConvNorm(nn.Conv2d):
    """A convolution without bias, group norm, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, WIDTH, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.GroupNorm(32, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.norm(super().forward(features)))


def _enlarging(times: int) -> nn.Sequential:
    """Convolutions, each followed by doubling height and width."""
    parts: list[nn.Module] = []
    for n in range(times):
        enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        parts += [_ConvNorm(WIDTH if n else CHANNELS), enlarge]
    return nn.Sequential(*parts)


def _semantic_loss(logits: Tensor, targets: Sequence[Targets]) -> Tensor:
    """The mean over the pixels that are known, of all images with stuff; logits (B, C, h, w)."""
    rows = [row for row, each in enumerate(targets) if each.stuff is not None]
    if not rows:
        return logits.sum() * 0
    large = interpolate(
        logits[rows].float(), scale_factor=STRIDE, mode="bilinear", align_corners=False
    )
    wanted = torch.stack([each.stuff.long() for each in targets if each.stuff is not None])
    total = cross_entropy(large, wanted, ignore_index=UNKNOWN, reduction="sum")
    return total / mean_over_processes((wanted != UNKNOWN).sum())
