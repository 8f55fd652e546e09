"""What nanomask is trained to do.

The detector: quality focal loss, distribution focal loss (Li et al., "Generalized Focal Loss",
2020, sections 3.2 and 3.3) and GIoU. The mask branch: binary cross entropy and Dice on 28 x 28
masks. With ``distil``, the network that training started from goes on teaching what it knew: a
dataset that annotates one class must not make the others background.
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
    grown,
)
from streamseg.structures.targets import Targets

ROIS_PER_IMAGE = 24
JITTER = 0.12
"""How far edges are moved at random, in parts of the box's width or height."""
LEAST_OVERLAP = 0.5
"""Of a detected box with an object, for its mask to be asked for."""


class NanoMaskCriterion(Criterion):
    """The losses of :class:`NanoMaskNet`; with ``distil``, its present weights are the teacher."""

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
        self._teacher: list[NanoMaskNet] = []  # in a list, it is no part of what is trained
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
        losses = self._masks(outputs, [each.detach() for each in boxes], owners, objects)
        if cells.requires_grad:  # not with a frozen detector
            known = [_known(each, grid) for each in targets]
            losses |= self._detector(cells, boxes, owners, grid, objects, known)
            if self._teacher:
                losses["distil"] = self._distil(images, cells, targets)
        return losses

    def _detector(
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
        for logits, decoded, owner, objects, sure in zip(
            cells, boxes, owners, targets, known, strict=True
        ):
            rows = torch.nonzero(owner >= 0)[:, 0]
            truth = objects.boxes[owner[rows]]
            labels = objects.labels[owner[rows]]
            overlap = _overlaps(decoded[rows].detach(), truth)
            wanted = torch.zeros_like(logits[:, :classes])
            wanted[rows, labels] = overlap
            quality = quality + _quality_focal(logits[:, :classes], wanted, sure | (wanted > 0))
            # A cell that is sure of the class will be the one whose box comes out.
            weight = logits[rows, :classes].detach().sigmoid().amax(dim=1) if len(rows) else overlap
            box = box + (generalized_box_iou_loss(decoded[rows], truth) * weight).sum()
            reach = _reach(truth, grid[rows])
            distribution = (
                distribution
                + (_distribution_focal(logits[rows, classes:], reach) * weight[:, None]).sum() / 4
            )
            positives = positives + len(rows)
            weights = weights + weight.sum()
        shared = mean_over_processes(weights)
        return {
            "quality": quality / mean_over_processes(positives),
            "box": box / shared,
            "distribution": distribution / shared,
        }

    def _masks(
        self,
        outputs: Outputs,
        boxes: Sequence[Tensor],
        owners: Sequence[Tensor],
        targets: Sequence[Targets],
    ) -> dict[str, Tensor]:
        classes = outputs.cells.shape[2] - 4 * BINS
        scores = outputs.cells[:, :, :classes].detach().float().amax(dim=2)
        chosen = [
            _propose(decoded, score, owner, each)
            for decoded, score, owner, each in zip(boxes, scores, owners, targets, strict=True)
        ]
        regions = [grown(each.boxes) for each in chosen]
        branch = self.network.mask
        logits = branch(branch.cut(branch.map(outputs.features), regions))[:, 0].float()
        has_mask = torch.cat([each.has_mask for each in chosen])
        cuts = [
            _cut_masks(each, region, objects.masks)
            for each, region, objects in zip(chosen, regions, targets, strict=True)
        ]
        masked = mean_over_processes(has_mask.sum())
        own, wanted = logits[has_mask], torch.cat(cuts)[has_mask]
        probabilities = own.sigmoid()
        pixels = binary_cross_entropy_with_logits(own, wanted, reduction="none").mean(dim=(1, 2))
        shared = (probabilities * wanted).sum(dim=(1, 2))
        sizes = probabilities.square().sum(dim=(1, 2)) + wanted.square().sum(dim=(1, 2))
        return {
            "mask": pixels.sum() / masked,
            "dice": (1 - (2 * shared + 1) / (sizes + 1)).sum() / masked,
        }

    def _distil(self, images: Tensor, cells: Tensor, targets: Sequence[Targets]) -> Tensor:
        """What the teacher says of classes, where nothing better is known, and of edges."""
        classes = cells.shape[2] - 4 * BINS
        with torch.no_grad():
            taught = self._teacher[0](images).cells.float()
        wanted = taught[:, :, :classes].sigmoid()
        logits = cells[:, :, :classes]
        sure = wanted.amax(dim=2)
        weights = torch.stack([(~each.annotated).float() for each in targets])[:, None]
        focus = (logits.detach().sigmoid() - wanted).square()
        loss = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        edges = (*cells.shape[:2], 4)
        said: Tensor = (loss * focus * (weights + 0.25)).sum()
        own = log_softmax(cells[:, :, classes:].reshape(*edges, BINS), dim=3)
        theirs = softmax(taught[:, :, classes:].reshape(*edges, BINS), dim=3)
        apart: Tensor = (
            kl_div(own, theirs, reduction="none").sum(dim=(2, 3)) * sure.square()
        ).sum()
        return (said + apart / 4) / mean_over_processes(sure.square().sum())


@dataclass(frozen=True, slots=True, eq=False)
class _Proposals:
    """Boxes of one picture that masks are asked for.

    Attributes:
        boxes: (R, 4) xyxy.
        rows: int64 (R,), the objects' rows.
        has_mask: bool (R,).
    """

    boxes: Tensor
    rows: Tensor
    has_mask: Tensor


def _propose(boxes: Tensor, scores: Tensor, owners: Tensor, targets: Targets) -> _Proposals:
    """For each object the box that would be detected, if it is good enough, and one by chance.

    Args:
        boxes: (cells, 4), what the cells say now.
        scores: (cells,), how sure they are.
        owners: int64 (cells,), the object that each answers for.
        targets: the picture's objects, without crowds.
    """
    draws = generator_of(targets)
    count = len(targets)
    noise = (torch.rand(count, 4, generator=draws) * 2 - 1).to(boxes.device) * JITTER
    extents = targets.boxes[:, 2:] - targets.boxes[:, :2]
    moved = targets.boxes + noise * torch.cat([extents, extents], dim=1)
    answering = torch.nonzero(owners >= 0)[:, 0]
    surest = scores.new_full((count,), -torch.inf)
    surest = surest.scatter_reduce(0, owners[answering], scores[answering], "amax")
    leading = answering[scores[answering] == surest[owners[answering]]]
    found, of = boxes[leading], owners[leading]
    good = _overlaps(found, targets.boxes[of]) > LEAST_OVERLAP
    rows = torch.cat([torch.arange(count, device=boxes.device), of[good]])
    proposed = torch.cat([moved, found[good]])
    order = torch.randperm(len(rows), generator=draws)[:ROIS_PER_IMAGE].to(boxes.device)
    rows, proposed = rows[order], proposed[order]
    return _Proposals(proposed, rows, targets.has_mask[rows])


def _cut_masks(proposals: _Proposals, regions: Tensor, masks: Tensor) -> Tensor:
    """The parts of masks, (N, H, W), that lie in regions: float32 (R, 28, 28), 0 to 1."""
    places = torch.cat([proposals.rows[:, None].to(regions.dtype), regions], dim=1)
    cuts: Tensor = roi_align(masks[:, None].float(), places, 2 * ROI_SIZE, 1.0, 2, aligned=True)
    return cuts[:, 0]


def _known(targets: Targets, grid: Tensor) -> Tensor:
    """For which cells and classes the annotations say whether there is an object, (cells, C)."""
    known = targets.annotated.repeat(len(grid), 1)
    crowds = targets[targets.crowd]
    for box, label in zip(crowds.boxes, crowds.labels.tolist(), strict=True):
        within = ((grid[:, :2] > box[:2]) & (grid[:, :2] < box[2:])).all(dim=1)
        known[within, label] = False
    return known


def _quality_focal(logits: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """Quality focal loss with beta = 2, summed."""
    loss = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (loss * (logits.sigmoid() - wanted).square() * known).sum()


def _distribution_focal(distributions: Tensor, reach: Tensor) -> Tensor:
    """Distribution focal loss, (N, 4), for logits (N, 4 * 11) and distances (N, 4) in strides."""
    logits = distributions.reshape(-1, BINS)
    distance = reach.reshape(-1)
    lower = distance.floor().long()
    share = distance - lower
    loss: Tensor = cross_entropy(logits, lower, reduction="none") * (1 - share)
    loss = loss + cross_entropy(logits, lower + 1, reduction="none") * share
    return loss.reshape(-1, 4)


def _reach(boxes: Tensor, grid: Tensor) -> Tensor:
    """How far a box's edges lie from its cell's centre, (N, 4) left, top, right, bottom."""
    sides = torch.cat([grid[:, :2] - boxes[:, :2], boxes[:, 2:] - grid[:, :2]], dim=1)
    return (sides / grid[:, 2:]).clamp(0, BINS - 1 - 0.01)


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union, row by row, (N,)."""
    corners = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (corners[1] - corners[0]).clamp(min=0).prod(dim=1)
    areas = [(each[:, 2:] - each[:, :2]).clamp(min=0).prod(dim=1) for each in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-6)
