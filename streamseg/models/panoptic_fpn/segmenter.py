"""Panoptic FPN of detectron2: its Mask R-CNN with a semantic branch on the same pyramid.

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

from streamseg.models.base import ClassCounts, ClassRows, count_rows
from streamseg.models.categories import COCO_PANOPTIC, Categories
from streamseg.models.detections import Batch, Detections
from streamseg.models.layers.losses import mean_over_processes
from streamseg.models.layers.panoptic import STRIDE, StuffLogits
from streamseg.models.mask_rcnn_d2.loss import MaskRCNND2Criterion
from streamseg.models.mask_rcnn_d2.segmenter import CHANNELS, MaskRCNND2, MaskRCNND2Net
from streamseg.models.selection import Selection
from streamseg.structures.targets import UNKNOWN, Targets

WIDTH = 128
"""Channels of the semantic branch."""


class PanopticFPN(MaskRCNND2):
    """Panoptic FPN. ``input_size`` is the length of the resized short side.

    The thresholds apply to things, not to stuff.
    """

    trained_on = COCO_PANOPTIC

    @classmethod
    def build(cls, name: str, categories: Categories) -> nn.Module:
        del name  # the family has one model
        return PanopticFPNNet(categories)

    @classmethod
    def class_rows(cls, network: nn.Module, categories: Categories) -> Mapping[str, ClassRows]:
        rows = {name: (row,) for row, name in enumerate(categories.stuff.values(), start=1)}
        predictor = {f"sem_seg_head.predictor.{part}": rows for part in ("weight", "bias")}
        return {**super().class_rows(network, categories), **predictor}

    @classmethod
    def count_classes(cls, state: Mapping[str, Tensor]) -> ClassCounts | None:
        things = super().count_classes(state)
        outputs = count_rows(state, "sem_seg_head.predictor.bias")  # output 0 stands for all things
        return replace(things, stuff=outputs - 1) if things and outputs > 0 else None

    def criterion(self, weights: Mapping[str, float]) -> PanopticFPNCriterion:
        return PanopticFPNCriterion(self.network, weights, self.outputs_of(self.categories))

    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        features = self.network.backbone(batch.tensor)
        detections = self.detect_from_features(features, batch, selections)
        logits = self.network.sem_seg_head(features)
        return [
            replace(each, panoptic=StuffLogits(of_image, shape, size, self.stuff))
            for each, of_image, shape, size in zip(
                detections, logits, batch.shapes, batch.sizes, strict=True
            )
        ]


class PanopticFPNNet(MaskRCNND2Net):
    """Mask R-CNN network with a semantic branch.

    Args:
        categories: things and stuff.
    """

    def __init__(self, categories: Categories) -> None:
        super().__init__(len(categories.things))
        self.sem_seg_head = SemanticBranch(len(categories.stuff))


class SemanticBranch(nn.Module):
    """Semantic segmentation from P2 to P5, resized to one size and summed.

    Args:
        classes: number S of stuff classes; class 0 stands for all things.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.p2 = nn.Sequential(_ConvNorm(CHANNELS))
        self.p3, self.p4, self.p5 = (_upsampling_convs(times) for times in (1, 2, 3))
        self.predictor = nn.Conv2d(WIDTH, classes + 1, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return logits (B, 1 + S, H / 4, W / 4) of maps (B, 256, h, w), keys ``0`` to ``3``."""
        branches = (self.p2, self.p3, self.p4, self.p5)
        resized = [branch(features[str(n)]) for n, branch in enumerate(branches)]
        logits: Tensor = self.predictor(reduce(torch.add, resized))
        return logits


class PanopticFPNCriterion(MaskRCNND2Criterion):
    """Losses of Mask R-CNN, and the semantic loss of labeled pixels."""

    own_weights: ClassVar[Mapping[str, float]] = {
        **MaskRCNND2Criterion.own_weights,
        "semantic": 0.5,
    }

    def losses(self, images: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
        features = self.network.backbone(images)
        semantic = _semantic_loss(self.network.sem_seg_head(features), targets)
        return {**self.losses_in(features, images, targets), "semantic": semantic}


class _ConvNorm(nn.Conv2d):
    """Convolution without bias, group norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, WIDTH, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.GroupNorm(32, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.norm(super().forward(features)))


def _upsampling_convs(times: int) -> nn.Sequential:
    """Return ``times`` convolutions, each followed by upsampling by a factor of two."""
    parts: list[nn.Module] = []
    for n in range(times):
        upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        parts += [_ConvNorm(WIDTH if n else CHANNELS), upsample]
    return nn.Sequential(*parts)


def _semantic_loss(logits: Tensor, targets: Sequence[Targets]) -> Tensor:
    """Return the mean cross entropy of the labeled pixels in images with stuff.

    Args:
        logits: (B, C, h, w).
        targets: annotations; those without stuff are left out.
    """
    rows = [row for row, each in enumerate(targets) if each.stuff is not None]
    if not rows:
        return logits.sum() * 0
    upsampled = interpolate(
        logits[rows].float(), scale_factor=STRIDE, mode="bilinear", align_corners=False
    )
    classes = torch.stack([each.stuff.long() for each in targets if each.stuff is not None])
    total = cross_entropy(upsampled, classes, ignore_index=UNKNOWN, reduction="sum")
    return total / mean_over_processes((classes != UNKNOWN).sum())
