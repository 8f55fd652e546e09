"""Mask R-CNN losses of torchvision (He et al., "Mask R-CNN", 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss

from streamseg.models.layers.losses import Criterion
from streamseg.structures.targets import Targets


class MaskRCNNCriterion(Criterion):
    """The losses of torchvision's Mask R-CNN.

    Args:
        network: torchvision's model.
        weights: weights of the losses, by name.
        outputs: index of the class output for each class.
    """

    own_weights: ClassVar[Mapping[str, float]] = {
        "objectness": 1.0,
        "proposal": 1.0,
        "class": 1.0,
        "box": 1.0,
        "mask": 1.0,
    }
    takes_partial_annotation = False

    network: Any

    def __init__(
        self, network: nn.Module, weights: Mapping[str, float], outputs: Sequence[int]
    ) -> None:
        super().__init__(network, weights)
        self._outputs = torch.tensor(outputs)

    def losses(self, images: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
        return self.losses_in(self.network.backbone(images), images, targets)

    def losses_in(
        self, features: dict[str, Tensor], images: Tensor, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Compute the losses from the feature maps of the pyramid."""
        shapes = [(images.shape[2], images.shape[3])] * len(images)
        objects = [each[~each.crowd] for each in targets]
        truth = [
            {
                "boxes": each.boxes,
                "labels": self._outputs.to(each.labels.device)[each.labels],
                "masks": each.masks.to(torch.uint8),
                "has_mask": each.has_mask,
            }
            for each in objects
        ]
        proposals, rpn = self.network.rpn(ImageList(images, shapes), features, truth)
        heads = self.network.roi_heads
        proposals, matched, labels, regressions = heads.select_training_samples(proposals, truth)
        pooled = heads.box_head(heads.box_roi_pool(features, proposals, shapes))
        logits, boxes = heads.box_predictor(pooled)
        class_loss, box_loss = self.box_losses(logits, boxes, labels, regressions)
        return {
            "objectness": rpn["loss_objectness"],
            "proposal": rpn["loss_rpn_box_reg"],
            "class": class_loss,
            "box": box_loss,
            "mask": self._mask_loss(features, proposals, matched, labels, truth),
        }

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Tensor],
        matched: Sequence[Tensor],
        labels: Sequence[Tensor],
        truth: Sequence[dict[str, Tensor]],
    ) -> Tensor:
        """Compute the mask loss of the proposals that are matched to an object with a mask."""
        heads = self.network.roi_heads
        shapes = [tuple(each["masks"].shape[1:]) for each in truth]
        matched_rows = [
            torch.nonzero((label > 0) & (each["has_mask"][row] if len(each["has_mask"]) else False))
            for label, row, each in zip(labels, matched, truth, strict=True)
        ]
        rows = [each[:, 0] for each in matched_rows]
        boxes = [proposal[row] for proposal, row in zip(proposals, rows, strict=True)]
        objects = [match[row] for match, row in zip(matched, rows, strict=True)]
        roi_features = heads.mask_roi_pool(features, boxes, shapes)
        logits = heads.mask_predictor(heads.mask_head(roi_features))
        masks, classes = ([each[name] for each in truth] for name in ("masks", "labels"))
        return self.mask_loss(logits, boxes, masks, classes, objects)

    def box_losses(
        self,
        logits: Tensor,
        regressions: Tensor,
        labels: Sequence[Tensor],
        targets: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the classification loss and the box regression loss.

        Args:
            logits: (N, outputs), class logits of the proposals of all images.
            regressions: (N, 4 * outputs), box regressions.
            labels: int64 (n,) per image, output index of each proposal; 0 is background.
            targets: (n, 4) per image, target box regressions.
        """
        losses: tuple[Tensor, Tensor] = fastrcnn_loss(logits, regressions, labels, targets)
        return losses

    def mask_loss(
        self,
        logits: Tensor,
        boxes: Sequence[Tensor],
        masks: Sequence[Tensor],
        labels: Sequence[Tensor],
        objects: Sequence[Tensor],
    ) -> Tensor:
        """Return the mask loss.

        Args:
            logits: (N, outputs, M, M), mask logits of the positive proposals of all images.
            boxes: (n, 4) per image, boxes of the positive proposals.
            masks: uint8 (m, H, W) per image, masks of the objects.
            labels: int64 (m,) per image, output index of each object.
            objects: int64 (n,) per image, object index of each positive proposal.
        """
        loss: Tensor = maskrcnn_loss(logits, boxes, masks, labels, objects)
        return loss
