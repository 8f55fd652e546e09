"""Mask R-CNN losses of detectron2, where they differ from those of torchvision.

The box loss is L1 instead of smooth L1, and mask targets are sampled with the same RoIAlign as the
features. The losses of the region proposal network are part of the network, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, l1_loss
from torchvision.ops import roi_align

from streamseg.models.mask_rcnn.loss import MaskRCNNCriterion


class MaskRCNND2Criterion(MaskRCNNCriterion):
    """The losses of detectron2's Mask R-CNN."""

    def box_losses(
        self,
        logits: Tensor,
        regressions: Tensor,
        labels: Sequence[Tensor],
        targets: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        outputs = torch.cat(list(labels))
        rows = outputs.nonzero()[:, 0]
        predicted = regressions.view(len(outputs), -1, 4)[rows, outputs[rows]]
        box = l1_loss(predicted, torch.cat(list(targets))[rows], reduction="sum") / max(
            len(outputs), 1
        )
        return cross_entropy(logits, outputs), box

    def mask_loss(
        self,
        logits: Tensor,
        boxes: Sequence[Tensor],
        masks: Sequence[Tensor],
        labels: Sequence[Tensor],
        objects: Sequence[Tensor],
    ) -> Tensor:
        if len(logits) == 0:
            return logits.sum()
        cells = logits.shape[-1]
        targets = torch.cat(
            [_roi_targets(*each, cells) for each in zip(masks, boxes, objects, strict=True)]
        )
        outputs = torch.cat(
            [of_image[rows] for of_image, rows in zip(labels, objects, strict=True)]
        )
        predicted = logits[torch.arange(len(outputs), device=logits.device), outputs]
        return binary_cross_entropy_with_logits(predicted.float(), targets)


def _roi_targets(masks: Tensor, boxes: Tensor, objects: Tensor, cells: int) -> Tensor:
    """Sample the masks of the objects inside boxes (n, 4): 0 or 1, float32 (n, cells, cells)."""
    rois = torch.cat([objects[:, None].to(boxes), boxes], dim=1)
    sampled: Tensor = roi_align(masks[:, None].to(boxes), rois, cells, 1.0, 0, aligned=True)[:, 0]
    return (sampled >= 0.5).float()
