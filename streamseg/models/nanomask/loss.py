"""Losses of nanomask.

Detector: quality focal loss and distribution focal loss (Li et al., "Generalized Focal Loss", 2020,
sections 3.2 and 3.3), and GIoU loss. Mask branch: binary cross entropy and Dice loss on 28 x 28
masks. With ``distil``, the initial network is the teacher of a distillation loss, so that a dataset
that annotates one class does not turn the other classes into background.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    log_softmax,
    softmax,
)
from torchvision.ops import generalized_box_iou_loss, roi_align

from streamseg.models.layers.losses import Criterion, generator_of, mean_over_processes
from streamseg.models.nanomask.assignment import assign
from streamseg.models.nanomask.network import (
    BINS,
    ROI_SIZE,
    NanoMaskNet,
    Outputs,
    cell_grid,
    decode_boxes,
    expand_boxes,
)
from streamseg.structures.targets import Targets

ROIS_PER_IMAGE = 24
JITTER = 0.12
"""Maximum random shift of box coordinates, as a fraction of the width or height of the box."""
MIN_OVERLAP = 0.5
"""Minimum IoU of a predicted box with an object for the box to be used in mask training."""


class NanoMaskCriterion(Criterion):
    """Losses of :class:`NanoMaskNet`; ``distil`` uses the initial network as its teacher."""

    own_weights: ClassVar[Mapping[str, float]] = {
        "quality": 1.0,
        "box": 2.0,
        "distribution": 0.25,
        "mask": 1.0,
        "dice": 1.0,
        "distil": 0.0,
    }

    network: NanoMaskNet

    def __init__(self, network: NanoMaskNet, weights: Mapping[str, float]) -> None:
        super().__init__(network, weights)
        self._teacher: list[NanoMaskNet] = []  # in a list, so that it is not a submodule
        if self.weights["distil"]:
            self._teacher = [copy.deepcopy(network).eval().requires_grad_(False)]

    def losses(self, images: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
        outputs: Outputs = self.network(images)
        grid = torch.from_numpy(cell_grid((images.shape[2], images.shape[3]))).to(images.device)
        cells = outputs.cells.float()
        classes = cells.shape[2] - 4 * BINS
        boxes = [decode_boxes(each[:, classes:], grid) for each in cells]
        objects = [each[~each.crowd] for each in targets]
        owners = [assign(each.boxes, grid) for each in objects]
        losses = self._mask_losses(outputs, [each.detach() for each in boxes], owners, objects)
        if cells.requires_grad:  # the detector is not frozen
            known = [_known_cells(each, grid) for each in targets]
            losses |= self._detector_losses(cells, boxes, owners, grid, objects, known)
            if self._teacher:
                losses["distil"] = self._distillation_loss(images, cells, targets)
        return losses

    def _detector_losses(
        self,
        cells: Tensor,
        boxes: Sequence[Tensor],
        owners: Sequence[Tensor],
        grid: Tensor,
        targets: Sequence[Targets],
        known: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        classes = cells.shape[2] - 4 * BINS
        quality, box, distribution = cells.new_zeros(3).unbind()
        positives, weights = cells.new_zeros(2).unbind()
        for logits, decoded, owner, objects, is_known in zip(
            cells, boxes, owners, targets, known, strict=True
        ):
            rows = torch.nonzero(owner >= 0)[:, 0]
            truth = objects.boxes[owner[rows]]
            labels = objects.labels[owner[rows]]
            overlap = _overlaps(decoded[rows].detach(), truth)
            target = torch.zeros_like(logits[:, :classes])
            target[rows, labels] = overlap
            quality = quality + _quality_focal(logits[:, :classes], target, is_known | (target > 0))
            # A cell with a high score is the one whose box will be detected.
            weight = logits[rows, :classes].detach().sigmoid().amax(dim=1) if len(rows) else overlap
            box = box + (generalized_box_iou_loss(decoded[rows], truth) * weight).sum()
            distances = _side_distances(truth, grid[rows])
            distribution = (
                distribution
                + (_distribution_focal(logits[rows, classes:], distances) * weight[:, None]).sum()
                / 4
            )
            positives = positives + len(rows)
            weights = weights + weight.sum()
        total_weight = mean_over_processes(weights)
        return {
            "quality": quality / mean_over_processes(positives),
            "box": box / total_weight,
            "distribution": distribution / total_weight,
        }

    def _mask_losses(
        self,
        outputs: Outputs,
        boxes: Sequence[Tensor],
        owners: Sequence[Tensor],
        targets: Sequence[Targets],
    ) -> dict[str, Tensor]:
        classes = outputs.cells.shape[2] - 4 * BINS
        scores = outputs.cells[:, :, :classes].detach().float().amax(dim=2)
        proposals = [
            _propose(decoded, score, owner, each)
            for decoded, score, owner, each in zip(boxes, scores, owners, targets, strict=True)
        ]
        regions = [expand_boxes(each.boxes) for each in proposals]
        branch = self.network.mask
        logits = branch(branch.roi_features(branch.map(outputs.features), regions))[:, 0].float()
        has_mask = torch.cat([each.has_mask for each in proposals])
        mask_targets = [
            _roi_targets(each, region, objects.masks)
            for each, region, objects in zip(proposals, regions, targets, strict=True)
        ]
        mask_count = mean_over_processes(has_mask.sum())
        own, target = logits[has_mask], torch.cat(mask_targets)[has_mask]
        probabilities = own.sigmoid()
        pixels = binary_cross_entropy_with_logits(own, target, reduction="none").mean(dim=(1, 2))
        intersection = (probabilities * target).sum(dim=(1, 2))
        sizes = probabilities.square().sum(dim=(1, 2)) + target.square().sum(dim=(1, 2))
        return {
            "mask": pixels.sum() / mask_count,
            "dice": (1 - (2 * intersection + 1) / (sizes + 1)).sum() / mask_count,
        }

    def _distillation_loss(
        self, images: Tensor, cells: Tensor, targets: Sequence[Targets]
    ) -> Tensor:
        """Return the distillation loss of class scores and box distributions."""
        classes = cells.shape[2] - 4 * BINS
        with torch.no_grad():
            teacher = self._teacher[0](images).cells.float()
        target = teacher[:, :, :classes].sigmoid()
        logits = cells[:, :, :classes]
        confidence = target.amax(dim=2)
        weights = torch.stack([(~each.annotated).float() for each in targets])[:, None]
        focus = (logits.detach().sigmoid() - target).square()
        loss = binary_cross_entropy_with_logits(logits, target, reduction="none")
        sides = (*cells.shape[:2], 4)
        class_loss: Tensor = (loss * focus * (weights + 0.25)).sum()
        own = log_softmax(cells[:, :, classes:].reshape(*sides, BINS), dim=3)
        teacher_sides = softmax(teacher[:, :, classes:].reshape(*sides, BINS), dim=3)
        divergence: Tensor = (
            kl_div(own, teacher_sides, reduction="none").sum(dim=(2, 3)) * confidence.square()
        ).sum()
        return (class_loss + divergence / 4) / mean_over_processes(confidence.square().sum())


@dataclass(frozen=True, slots=True, eq=False)
class _Proposals:
    """Boxes of one image for mask training.

    Attributes:
        boxes: (R, 4) xyxy.
        rows: int64 (R,), indices of the objects.
        has_mask: bool (R,), whether the object has a mask.
    """

    boxes: Tensor
    rows: Tensor
    has_mask: Tensor


def _propose(boxes: Tensor, scores: Tensor, owners: Tensor, targets: Targets) -> _Proposals:
    """Propose for each object a jittered box and, if it is good enough, the predicted box.

    Args:
        boxes: (cells, 4), predicted boxes.
        scores: (cells,), predicted scores.
        owners: int64 (cells,), assigned object of each cell, or -1.
        targets: objects of the image, without crowds.
    """
    draws = generator_of(targets)
    count = len(targets)
    noise = (torch.rand(count, 4, generator=draws) * 2 - 1).to(boxes.device) * JITTER
    extents = targets.boxes[:, 2:] - targets.boxes[:, :2]
    jittered = targets.boxes + noise * torch.cat([extents, extents], dim=1)
    assigned = torch.nonzero(owners >= 0)[:, 0]
    best_scores = scores.new_full((count,), -torch.inf)
    best_scores = best_scores.scatter_reduce(0, owners[assigned], scores[assigned], "amax")
    best = assigned[scores[assigned] == best_scores[owners[assigned]]]
    predicted, objects = boxes[best], owners[best]
    good = _overlaps(predicted, targets.boxes[objects]) > MIN_OVERLAP
    rows = torch.cat([torch.arange(count, device=boxes.device), objects[good]])
    proposed = torch.cat([jittered, predicted[good]])
    order = torch.randperm(len(rows), generator=draws)[:ROIS_PER_IMAGE].to(boxes.device)
    rows, proposed = rows[order], proposed[order]
    return _Proposals(proposed, rows, targets.has_mask[rows])


def _roi_targets(proposals: _Proposals, regions: Tensor, masks: Tensor) -> Tensor:
    """Sample masks (N, H, W) inside regions: float32 (R, 28, 28), 0 to 1."""
    rois = torch.cat([proposals.rows[:, None].to(regions.dtype), regions], dim=1)
    sampled: Tensor = roi_align(masks[:, None].float(), rois, 2 * ROI_SIZE, 1.0, 2, aligned=True)
    return sampled[:, 0]


def _known_cells(targets: Targets, grid: Tensor) -> Tensor:
    """Return the cells and classes for which the annotations are complete, bool (cells, C)."""
    known = targets.annotated.repeat(len(grid), 1)
    crowds = targets[targets.crowd]
    for box, label in zip(crowds.boxes, crowds.labels.tolist(), strict=True):
        within = ((grid[:, :2] > box[:2]) & (grid[:, :2] < box[2:])).all(dim=1)
        known[within, label] = False
    return known


def _quality_focal(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Return the sum of the quality focal loss with beta = 2."""
    loss = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * (logits.sigmoid() - target).square() * known).sum()


def _distribution_focal(distributions: Tensor, distances: Tensor) -> Tensor:
    """Return the distribution focal loss (N, 4).

    Args:
        distributions: logits (N, 4 * 11).
        distances: (N, 4), in strides.
    """
    logits = distributions.reshape(-1, BINS)
    distance = distances.reshape(-1)
    lower = distance.floor().long()
    share = distance - lower
    loss: Tensor = cross_entropy(logits, lower, reduction="none") * (1 - share)
    loss = loss + cross_entropy(logits, lower + 1, reduction="none") * share
    return loss.reshape(-1, 4)


def _side_distances(boxes: Tensor, grid: Tensor) -> Tensor:
    """Return the distances of the box sides from the cell center in strides, (N, 4) ltrb."""
    sides = torch.cat([grid[:, :2] - boxes[:, :2], boxes[:, 2:] - grid[:, :2]], dim=1)
    return (sides / grid[:, 2:]).clamp(0, BINS - 1 - 0.01)


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of corresponding boxes, (N,)."""
    corners = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    intersection = (corners[1] - corners[0]).clamp(min=0).prod(dim=1)
    areas = [(each[:, 2:] - each[:, :2]).clamp(min=0).prod(dim=1) for each in (boxes, others)]
    return intersection / (areas[0] + areas[1] - intersection).clamp(min=1e-6)
