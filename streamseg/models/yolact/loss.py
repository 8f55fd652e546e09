"""Losses of YOLACT and YOLACT++: boxes, classes, masks, semantic segmentation and mask IoU.

Bolya et al., "YOLACT", 2019, section 3; "YOLACT++", 2019, section 6. Anchors are matched as in SSD
(Liu et al., 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    interpolate,
    smooth_l1_loss,
)
from torchvision.ops import box_convert, box_iou

from streamseg.models.layers.losses import Criterion, generator_of, mean_over_processes
from streamseg.models.yolact.network import Outputs, YOLACTNet, encode, inside_boxes
from streamseg.structures.targets import Targets

POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
"""Minimum IoU of a positive anchor, and maximum IoU of a negative one."""
CROWD_OVERLAP = 0.7
"""Fraction of an anchor covered by a crowd above which the anchor is not negative."""
NEGATIVES = 3
"""Number of negative anchors in the class loss per positive one."""
MIN_IOU_AREA = 25
"""Minimum mask area for the mask IoU loss, in pixels of a prototype."""

IGNORED, BACKGROUND = -1, 0


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Matches of the P anchors of one image.

    Attributes:
        classes: int64 (P,), class index + 1, ``BACKGROUND`` or ``IGNORED``.
        objects: int64 (P,), object index of each positive anchor.
    """

    classes: Tensor
    objects: Tensor

    @property
    def positive(self) -> Tensor:
        """Positive anchors, bool (P,)."""
        return self.classes > 0


class YOLACTCriterion(Criterion):
    """Losses of YOLACT; all but ``semantic`` are divided by the number of positive anchors.

    Objects without a mask are used for boxes and classes only; crowds are never background.

    Args:
        network: network to train.
        weights: weights of the losses, by name.
    """

    own_weights: ClassVar[Mapping[str, float]] = {
        "box": 1.5,
        "class": 1.0,
        "mask": 6.125,
        "semantic": 1.0,
        "mask_iou": 25.0,
    }
    takes_partial_annotation = False

    network: YOLACTNet

    def __init__(self, network: YOLACTNet, weights: Mapping[str, float]) -> None:
        super().__init__(network, weights)

    def losses(self, images: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
        outputs: Outputs = self.network(images)
        extent = torch.tensor(images.shape[:1:-1] * 2, device=images.device)  # W, H, W, H
        boxes = [each.boxes / extent for each in targets]
        matches = [
            match(of_image, each, outputs.anchors)
            for of_image, each in zip(boxes, targets, strict=True)
        ]
        count = mean_over_processes(torch.stack([each.positive.sum() for each in matches]).sum())
        sums = [
            self._image_losses(outputs, image, *each)
            for image, each in enumerate(zip(boxes, targets, matches, strict=True))
        ]
        losses = {
            name: torch.stack([each[name] for each in sums]).sum() / count for name in sums[0]
        }
        semantic = self.network.semantic(outputs.finest)
        return losses | {"semantic": _semantic_loss(semantic, targets)}

    def _image_losses(
        self, outputs: Outputs, image: int, boxes: Tensor, targets: Targets, matches: Matches
    ) -> dict[str, Tensor]:
        """Return the losses of one image, summed over its anchors."""
        positive = matches.positive
        matched = boxes[matches.objects[positive]]
        target = encode(matched, outputs.anchors[positive])
        box = smooth_l1_loss(outputs.boxes[image][positive].float(), target, reduction="sum")
        classes = _class_loss(outputs.classes[image].float(), matches.classes)
        return {"box": box, "class": classes} | self._mask_losses(
            outputs, image, boxes, targets, matches
        )

    def _mask_losses(
        self, outputs: Outputs, image: int, boxes: Tensor, targets: Targets, matches: Matches
    ) -> dict[str, Tensor]:
        """Return the mask loss and, for YOLACT++, the mask IoU loss."""
        rows = matches.positive.nonzero()[:, 0]
        rows = rows[targets.has_mask[matches.objects[rows]]]
        sampled = sample_rows(rows, self.network.max_masks, targets)
        objects = matches.objects[sampled]
        prototypes = outputs.prototypes[image].float()
        size = prototypes.shape[1], prototypes.shape[2]
        inside = inside_boxes(boxes[objects], *size)
        coefficients = outputs.coefficients[image][sampled].float()
        masks = torch.einsum("phw,np->nhw", prototypes, coefficients).sigmoid() * inside
        target = _resize_masks(targets.masks, size)[objects]
        sides = (boxes[:, 2:] - boxes[:, :2])[objects]
        with torch.autocast(
            masks.device.type, enabled=False
        ):  # not allowed under autocast on a GPU
            pixels = binary_cross_entropy(masks.float().clamp(0, 1), target, reduction="none")
            pixels = pixels.sum(dim=(1, 2))
        represented = len(rows) / max(len(sampled), 1)
        mask = (pixels / sides.prod(dim=1)).sum() / (size[0] * size[1]) * represented
        if self.network.mask_iou is None:
            return {"mask": mask}
        is_large = target.sum(dim=(1, 2)) > MIN_IOU_AREA
        classes = targets.labels[objects][is_large]
        iou_loss = self._iou_loss(masks[is_large], target[is_large], classes)
        return {"mask": mask, "mask_iou": iou_loss}

    def _iou_loss(self, masks: Tensor, target: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of the predicted mask IoUs; the masks (N, h, w) have no gradient."""
        assert self.network.mask_iou is not None
        if len(masks) == 0:
            return masks.sum()
        predicted = self.network.mask_iou(masks.detach()).gather(1, classes[:, None])[:, 0]
        binary = masks.detach() > 0.5
        intersection = (binary * target).sum(dim=(1, 2))
        union = binary.sum(dim=(1, 2)) + target.sum(dim=(1, 2)) - intersection
        return smooth_l1_loss(predicted.float(), intersection / union, reduction="sum")


def match(boxes: Tensor, targets: Targets, anchors: Tensor) -> Matches:
    """Match anchors to objects.

    Args:
        boxes: float32 (N, 4) xyxy of the objects, fractions of the image.
        targets: objects of the image.
        anchors: float32 (P, 4), centers and sides, fractions of the image.
    """
    corners = box_convert(anchors, "cxcywh", "xyxy")
    indices = (~targets.crowd).nonzero()[:, 0]
    classes = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    objects = torch.zeros_like(classes)
    if len(indices):
        overlaps = box_iou(boxes[indices], corners)  # (n, P)
        best, nearest = overlaps.max(dim=0)
        _match_best_anchors(overlaps, best, nearest)
        objects = indices[nearest]
        classes = targets.labels[objects] + 1
        classes[best < POSITIVE_IOU] = IGNORED
        classes[best < NEGATIVE_IOU] = BACKGROUND
    crowds = boxes[targets.crowd]
    if len(crowds):
        covered = _overlap_fraction(corners, crowds).amax(dim=1) > CROWD_OVERLAP
        classes[covered & (classes <= 0)] = IGNORED
    return Matches(classes, objects)


def _match_best_anchors(overlaps: Tensor, best: Tensor, nearest: Tensor) -> None:
    """Match each object to its best anchor, in place, the largest IoU first."""
    remaining = overlaps.clone()
    for _ in range(len(overlaps)):
        of_object, anchors = remaining.max(dim=1)
        chosen = int(of_object.argmax())
        anchor = int(anchors[chosen])
        best[anchor], nearest[anchor] = 2.0, chosen
        remaining[chosen], remaining[:, anchor] = -1.0, -1.0


def _overlap_fraction(boxes: Tensor, by: Tensor) -> Tensor:
    """Return the fractions of boxes (P, 4) that boxes ``by`` (M, 4) cover: (P, M)."""
    low = torch.maximum(boxes[:, None, :2], by[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], by[None, :, 2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return (high - low).clamp(min=0).prod(dim=2) / areas[:, None]


def _class_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the class loss of the positive anchors and of the hardest negative ones.

    Args:
        logits: (P, 1 + C), background first.
        classes: int64 (P,), as in :class:`Matches`.
    """
    positive = classes > 0
    hardness = (logits.logsumexp(dim=1) - logits[:, 0]).detach()
    hardness = hardness.masked_fill(classes != BACKGROUND, 0)
    count = min(NEGATIVES * int(positive.sum()), len(classes) - 1)
    hardest = hardness.argsort(descending=True)[:count]
    sampled = positive.clone()
    sampled[hardest] = True
    sampled &= classes != IGNORED
    return cross_entropy(logits[sampled], classes[sampled], reduction="sum")


def _semantic_loss(logits: Tensor, targets: Sequence[Targets]) -> Tensor:
    """Return the binary semantic segmentation loss of each class; logits (B, C, h, w)."""
    size = logits.shape[2], logits.shape[3]
    losses = []
    for own, each in zip(logits.float(), targets, strict=True):
        target, known = torch.zeros_like(own), torch.ones(len(own), device=own.device)
        for mask, label in zip(_resize_masks(each.masks, size), each.labels, strict=True):
            target[label] = torch.maximum(target[label], mask)
        known[each.labels[~each.has_mask | each.crowd]] = 0
        pixels = binary_cross_entropy_with_logits(own, target, reduction="none")
        losses.append((pixels.sum(dim=(1, 2)) * known).sum())
    return torch.stack(losses).mean() / (size[0] * size[1])


def _resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bool masks (N, H, W) to float32 (N, h, w), 0 or 1."""
    resized = interpolate(masks[None].float(), size, mode="bilinear", align_corners=False)[0]
    return (resized > 0.5).float()


def sample_rows(rows: Tensor, max_rows: int, targets: Targets) -> Tensor:
    """Sample at most ``max_rows`` of the rows; the sample depends on the image only."""
    if len(rows) <= max_rows:
        return rows
    order = torch.randperm(len(rows), generator=generator_of(targets))
    return rows[order[:max_rows].to(rows.device)]
