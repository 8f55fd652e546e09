"""What a Mask R-CNN is trained to do: torchvision's own losses (He et al., "Mask R-CNN", 2017)."""

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
        weights: of single losses.
        outputs: the number of the output that stands for each class.
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
        """The same, with the pyramid's levels given."""
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
        class_loss, box_loss = self.compare_boxes(logits, boxes, labels, regressions)
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
        """Of the proposals that are an object which has a mask."""
        heads = self.network.roi_heads
        shapes = [tuple(each["masks"].shape[1:]) for each in truth]
        chosen = [
            torch.nonzero((label > 0) & (each["has_mask"][row] if len(each["has_mask"]) else False))
            for label, row, each in zip(labels, matched, truth, strict=True)
        ]
        rows = [each[:, 0] for each in chosen]
        boxes = [proposal[row] for proposal, row in zip(proposals, rows, strict=True)]
        objects = [match[row] for match, row in zip(matched, rows, strict=True)]
        cuts = heads.mask_roi_pool(features, boxes, shapes)
        logits = heads.mask_predictor(heads.mask_head(cuts))
        masks, classes = ([each[name] for each in truth] for name in ("masks", "labels"))
        return self.compare_masks(logits, boxes, masks, classes, objects)

    def compare_boxes(
        self,
        logits: Tensor,
        regressions: Tensor,
        labels: Sequence[Tensor],
        wanted: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The losses of classes and boxes.

        Args:
            logits: (N, outputs), of the proposals of all images.
            regressions: (N, 4 * outputs).
            labels: int64, the output of each proposal, by image; 0 is background.
            wanted: (n, 4), what the regressions should be, by image.
        """
        losses: tuple[Tensor, Tensor] = fastrcnn_loss(logits, regressions, labels, wanted)
        return losses

    def compare_masks(
        self,
        logits: Tensor,
        boxes: Sequence[Tensor],
        masks: Sequence[Tensor],
        labels: Sequence[Tensor],
        objects: Sequence[Tensor],
    ) -> Tensor:
        """The loss of masks.

        Args:
            logits: (N, outputs, M, M), of the proposals of all images that are objects.
            boxes: (n, 4) of these proposals, by image.
            masks: uint8 (m, H, W) of the objects, by image.
            labels: int64 (m,), the output of each object, by image.
            objects: int64 (n,), which object each proposal is, by image.
        """
        loss: Tensor = maskrcnn_loss(logits, boxes, masks, labels, objects)
        return loss
