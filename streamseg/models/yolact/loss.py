"""What YOLACT and YOLACT++ are trained to do: boxes, classes, masks, and what helps these.

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

OBJECT, BACKGROUND = 0.5, 0.4
"""Overlap from which an anchor is an object's, and below which it is background's."""
CROWDED = 0.7
"""Of an anchor; if a crowd covers more of it, it isn't background."""
NEGATIVES = 3
"""Anchors of background that are learnt, for each one of an object."""
LEAST_SCORED = 25
"""Pixels of a prototype; what a smaller mask is worth isn't learnt."""

IGNORED, NOTHING = -1, 0


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """What each of P anchors of one image is to learn.

    Attributes:
        classes: int64 (P,), the class index + 1, ``NOTHING`` or ``IGNORED``.
        objects: int64 (P,), the object of each anchor that has one.
    """

    classes: Tensor
    objects: Tensor

    @property
    def positive(self) -> Tensor:
        """Bool (P,), which anchors have an object."""
        return self.classes > 0


class YOLACTCriterion(Criterion):
    """The losses, each divided by the number of anchors with an object, but ``semantic``.

    Objects without a mask teach boxes and classes alone; crowds are never taken for background.

    Args:
        network: what is trained.
        weights: of single losses.
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
            match(own, each, outputs.anchors) for own, each in zip(boxes, targets, strict=True)
        ]
        count = mean_over_processes(torch.stack([each.positive.sum() for each in matches]).sum())
        sums = [
            self._of_image(outputs, image, *each)
            for image, each in enumerate(zip(boxes, targets, matches, strict=True))
        ]
        losses = {
            name: torch.stack([each[name] for each in sums]).sum() / count for name in sums[0]
        }
        semantic = self.network.semantic(outputs.finest)
        return losses | {"semantic": _semantic_loss(semantic, targets)}

    def _of_image(
        self, outputs: Outputs, image: int, boxes: Tensor, targets: Targets, matches: Matches
    ) -> dict[str, Tensor]:
        """The losses of one image, summed over its anchors."""
        positive = matches.positive
        own = boxes[matches.objects[positive]]
        wanted = encode(own, outputs.anchors[positive])
        box = smooth_l1_loss(outputs.boxes[image][positive].float(), wanted, reduction="sum")
        classes = _class_loss(outputs.classes[image].float(), matches.classes)
        return {"box": box, "class": classes} | self._mask_losses(
            outputs, image, boxes, targets, matches
        )

    def _mask_losses(
        self, outputs: Outputs, image: int, boxes: Tensor, targets: Targets, matches: Matches
    ) -> dict[str, Tensor]:
        """Of the masks, and of what the network thinks of them."""
        rows = matches.positive.nonzero()[:, 0]
        rows = rows[targets.has_mask[matches.objects[rows]]]
        drawn = draw(rows, self.network.most_masks, targets)
        objects = matches.objects[drawn]
        prototypes = outputs.prototypes[image].float()
        size = prototypes.shape[1], prototypes.shape[2]
        inside = inside_boxes(boxes[objects], *size)
        coefficients = outputs.coefficients[image][drawn].float()
        mixed = torch.einsum("phw,np->nhw", prototypes, coefficients).sigmoid() * inside
        wanted = _fitted(targets.masks, size)[objects]
        sides = (boxes[:, 2:] - boxes[:, :2])[objects]
        with torch.autocast(mixed.device.type, enabled=False):  # a GPU refuses it under autocast
            pixels = binary_cross_entropy(mixed.float().clamp(0, 1), wanted, reduction="none")
            pixels = pixels.sum(dim=(1, 2))
        represented = len(rows) / max(len(drawn), 1)
        mask = (pixels / sides.prod(dim=1)).sum() / (size[0] * size[1]) * represented
        if self.network.mask_iou is None:
            return {"mask": mask}
        large = wanted.sum(dim=(1, 2)) > LEAST_SCORED
        classes = targets.labels[objects][large]
        return {"mask": mask, "mask_iou": self._iou_loss(mixed[large], wanted[large], classes)}

    def _iou_loss(self, masks: Tensor, wanted: Tensor, classes: Tensor) -> Tensor:
        """How wrong the network is about its masks (N, h, w), which it doesn't change."""
        assert self.network.mask_iou is not None
        if len(masks) == 0:
            return masks.sum()
        thought = self.network.mask_iou(masks.detach()).gather(1, classes[:, None])[:, 0]
        made = masks.detach() > 0.5
        inter = (made * wanted).sum(dim=(1, 2))
        true = inter / (made.sum(dim=(1, 2)) + wanted.sum(dim=(1, 2)) - inter)
        return smooth_l1_loss(thought.float(), true, reduction="sum")


def match(boxes: Tensor, targets: Targets, anchors: Tensor) -> Matches:
    """Which object each anchor is for, and which anchors are background.

    Args:
        boxes: float32 (N, 4) xyxy of the objects, fractions of the image.
        targets: the objects.
        anchors: float32 (P, 4), centres and sides, fractions of the image.
    """
    corners = box_convert(anchors, "cxcywh", "xyxy")
    numbers = (~targets.crowd).nonzero()[:, 0]
    classes = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    objects = torch.zeros_like(classes)
    if len(numbers):
        overlaps = box_iou(boxes[numbers], corners)  # (n, P)
        best, nearest = overlaps.max(dim=0)
        _claim(overlaps, best, nearest)
        objects = numbers[nearest]
        classes = targets.labels[objects] + 1
        classes[best < OBJECT] = IGNORED
        classes[best < BACKGROUND] = NOTHING
    crowds = boxes[targets.crowd]
    if len(crowds):
        covered = _covered(corners, crowds).amax(dim=1) > CROWDED
        classes[covered & (classes <= 0)] = IGNORED
    return Matches(classes, objects)


def _claim(overlaps: Tensor, best: Tensor, nearest: Tensor) -> None:
    """Let each object have its best anchor, the one that fits best first; the last two change."""
    left = overlaps.clone()
    for _ in range(len(overlaps)):
        of_object, anchors = left.max(dim=1)
        chosen = int(of_object.argmax())
        anchor = int(anchors[chosen])
        best[anchor], nearest[anchor] = 2.0, chosen
        left[chosen], left[:, anchor] = -1.0, -1.0


def _covered(boxes: Tensor, by: Tensor) -> Tensor:
    """How much of each box (P, 4) lies in each of the others (M, 4): (P, M)."""
    low = torch.maximum(boxes[:, None, :2], by[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], by[None, :, 2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return (high - low).clamp(min=0).prod(dim=2) / areas[:, None]


def _class_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Of the anchors with an object, and of the background that looks least like it.

    Args:
        logits: (P, 1 + C), background first.
        classes: int64 (P,), see :class:`Matches`.
    """
    positive = classes > 0
    surprise = (logits.logsumexp(dim=1) - logits[:, 0]).detach()
    surprise = surprise.masked_fill(classes != NOTHING, 0)
    most = min(NEGATIVES * int(positive.sum()), len(classes) - 1)
    hardest = surprise.argsort(descending=True)[:most]
    learnt = positive.clone()
    learnt[hardest] = True
    learnt &= classes != IGNORED
    return cross_entropy(logits[learnt], classes[learnt], reduction="sum")


def _semantic_loss(logits: Tensor, targets: Sequence[Targets]) -> Tensor:
    """Of each pixel and class, whether one of its objects is there; logits (B, C, h, w)."""
    size = logits.shape[2], logits.shape[3]
    losses = []
    for own, each in zip(logits.float(), targets, strict=True):
        wanted, known = torch.zeros_like(own), torch.ones(len(own), device=own.device)
        for mask, label in zip(_fitted(each.masks, size), each.labels, strict=True):
            wanted[label] = torch.maximum(wanted[label], mask)
        known[each.labels[~each.has_mask | each.crowd]] = 0
        pixels = binary_cross_entropy_with_logits(own, wanted, reduction="none")
        losses.append((pixels.sum(dim=(1, 2)) * known).sum())
    return torch.stack(losses).mean() / (size[0] * size[1])


def _fitted(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool masks (N, H, W) resized to 0 or 1, float32 (N, h, w)."""
    resized = interpolate(masks[None].float(), size, mode="bilinear", align_corners=False)[0]
    return (resized > 0.5).float()


def draw(rows: Tensor, most: int, targets: Targets) -> Tensor:
    """At most so many of the rows, which then stand for the others."""
    if len(rows) <= most:
        return rows
    order = torch.randperm(len(rows), generator=generator_of(targets))
    return rows[order[:most].to(rows.device)]
