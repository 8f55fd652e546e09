"""What detectron2's Mask R-CNN is trained to do: its losses, where they aren't torchvision's.

Boxes are learnt with L1, where torchvision begins smoothly, and masks are compared with targets
that are cut out as the network cuts out features. The proposals' losses are in the network itself,
as torchvision has them.
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

    def compare_boxes(
        self,
        logits: Tensor,
        regressions: Tensor,
        labels: Sequence[Tensor],
        wanted: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        outputs = torch.cat(list(labels))
        rows = outputs.nonzero()[:, 0]
        own = regressions.view(len(outputs), -1, 4)[rows, outputs[rows]]
        box = l1_loss(own, torch.cat(list(wanted))[rows], reduction="sum") / max(len(outputs), 1)
        return cross_entropy(logits, outputs), box

    def compare_masks(
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
        wanted = torch.cat(
            [_cut_out(*each, cells) for each in zip(masks, boxes, objects, strict=True)]
        )
        outputs = torch.cat([own[rows] for own, rows in zip(labels, objects, strict=True)])
        own = logits[torch.arange(len(outputs), device=logits.device), outputs]
        return binary_cross_entropy_with_logits(own.float(), wanted)


def _cut_out(masks: Tensor, boxes: Tensor, objects: Tensor, cells: int) -> Tensor:
    """What boxes (n, 4) show of the masks of their objects, 0 or 1, float32 (n, cells, cells)."""
    rois = torch.cat([objects[:, None].to(boxes), boxes], dim=1)
    cut: Tensor = roi_align(masks[:, None].to(boxes), rois, cells, 1.0, 0, aligned=True)[:, 0]
    return (cut >= 0.5).float()
