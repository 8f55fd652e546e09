"""Losses of SOLO and SOLOv2: classes of cells, and masks of the cells of objects.

Wang et al., "SOLO", 2019, sections 3.2 and 3.3: an object is assigned to the levels of its size,
and there to the cells near its center of mass. Classes use the focal loss (Lin et al., 2017),
masks the Dice loss (Milletari et al., "V-Net", 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad
from torchvision.ops import sigmoid_focal_loss

from streamseg.models.layers.losses import Criterion, mean_over_processes, process_count
from streamseg.models.solo.network import GRIDS, Outputs, SOLONetwork
from streamseg.structures.masks import Size
from streamseg.structures.targets import Targets

CENTER = 0.2
"""Size of the center region of an object, relative to its width and height."""
ALPHA, GAMMA = 0.25, 2.0
"""Parameters of the focal loss."""
SMOOTH = 0.001
"""Smoothing term of the Dice loss."""


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Assignment of the objects of one image to the cells of one level.

    Attributes:
        classes: int64 (S, S), class index of each cell, or -1.
        unknown: bool (S, S, C), where the annotations are incomplete.
        cells: int64 (P,), cell index of each pair of object and cell.
        objects: int64 (P,), object index of each pair.
    """

    classes: Tensor
    unknown: Tensor
    cells: Tensor
    objects: Tensor


class SOLOCriterion(Criterion):
    """Losses of both families.

    Objects without a mask and crowds are neither positive nor background.

    Args:
        network: network of either family.
        weights: weights of the losses, by name.
        ranges: size range of the objects of each level, see ``Scales``.
    """

    own_weights: ClassVar[Mapping[str, float]] = {"mask": 3.0, "class": 1.0}

    network: SOLONetwork

    def __init__(
        self,
        network: SOLONetwork,
        weights: Mapping[str, float],
        ranges: Sequence[tuple[float, float]],
    ) -> None:
        super().__init__(network, weights)
        self._ranges = tuple(ranges)

    def losses(self, images: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
        padded = images.shape[2], images.shape[3]
        outputs: Outputs = self.network(images)
        assignments = [
            [assign(each, padded, grid, sizes) for each in targets]
            for grid, sizes in zip(GRIDS, self._ranges, strict=True)
        ]
        return {
            "mask": self._mask_loss(outputs, assignments, targets),
            "class": _class_loss(outputs.categories, assignments),
        }

    def _mask_loss(
        self,
        outputs: Outputs,
        assignments: Sequence[Sequence[Assignment]],
        targets: Sequence[Targets],
    ) -> Tensor:
        """Return the mean Dice loss of all pairs of object and cell."""
        losses = []
        for level, of_level in enumerate(assignments):
            stride = self.network.mask_stride(level)
            if not any(len(assignment.cells) for assignment in of_level):
                losses.append(self._empty_loss(outputs, level))
            for image, assignment in enumerate(of_level):
                if len(assignment.cells) == 0:
                    continue
                masks = self.network.masks(outputs, image, level, assignment.cells)  # (P, h, w)
                target = downsample_masks(
                    targets[image].masks[assignment.objects], stride, masks.shape[1:]
                )
                losses.append(dice_loss(masks, target))
        all_losses = torch.cat(losses)
        pairs = torch.tensor(len(all_losses), device=all_losses.device)
        return all_losses.sum() / mean_over_processes(pairs)

    def _empty_loss(self, outputs: Outputs, level: int) -> Tensor:
        """Return an empty loss (0,) that depends on the parameters of a level without objects.

        In distributed training, every parameter must have a gradient in every process.
        """
        first = torch.zeros(1, dtype=torch.int64, device=outputs.categories[0].device)
        return self.network.masks(outputs, 0, level, first).flatten(1).sum(dim=1)[:0]


def assign(targets: Targets, padded: Size, grid: int, sizes: tuple[float, float]) -> Assignment:
    """Assign the objects of one image to the cells of a level.

    Args:
        targets: objects of the image.
        padded: (height, width) of the padded image.
        grid: number of cells per side.
        sizes: minimum and maximum object size of the level.
    """
    classes = torch.full((grid, grid), -1)
    unknown = (~targets.annotated.cpu()).expand(grid, grid, -1).clone()
    extents = (targets.boxes[:, 2:] - targets.boxes[:, :2]).cpu()
    is_positive = (targets.has_mask & ~targets.crowd).cpu()
    cells, objects = [], []
    for row in range(len(targets)):
        label = int(targets.labels[row])
        if not is_positive[row]:
            unknown[(*_touched_cells(targets.boxes[row], padded, grid), label)] = True
        elif sizes[0] <= float(extents[row].prod().sqrt()) <= sizes[1]:
            center = _center_cells(targets.masks[row], extents[row], padded, grid)
            if center is not None:
                classes[center] = label
                indices = torch.arange(grid**2).view(grid, grid)[center].flatten()
                cells.append(indices)
                objects.append(torch.full_like(indices, row))
    none = torch.zeros(0, dtype=torch.int64)
    device = targets.boxes.device
    return Assignment(
        classes.to(device),
        unknown.to(device),
        torch.cat([none, *cells]).to(device),
        torch.cat([none, *objects]).to(device),
    )


def dice_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """Return the Dice losses (N,) of probabilities and targets (N, h, w), 0 to 1."""
    p, q = probabilities.flatten(1).float(), target.flatten(1).float()
    squares = (p * p).sum(dim=1) + SMOOTH + (q * q).sum(dim=1) + SMOOTH
    return 1 - 2 * (p * q).sum(dim=1) / squares


def downsample_masks(masks: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Downsample and pad bool masks (N, H, W) to (N, *size), as the authors do.

    They pad the masks to ``factor`` times ``size`` and resize bilinearly: a pixel is the mean of
    the four central pixels of its ``factor`` x ``factor`` block, rounded half up.
    """
    height, width = (factor * side for side in size)
    padded = pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1])).to(torch.uint8)
    center = factor // 2 - 1, factor // 2
    central = [padded[:, y::factor, x::factor] for y in center for x in center]
    return torch.stack(central).sum(dim=0) >= 2


def _class_loss(logits: Sequence[Tensor], assignments: Sequence[Sequence[Assignment]]) -> Tensor:
    """Return the focal loss of the cells and classes with complete annotations."""
    total, positive = [], []
    for level, of_level in zip(logits, assignments, strict=True):
        by_cell = level.permute(0, 2, 3, 1).float()  # (B, S, S, C)
        classes = torch.stack([each.classes for each in of_level])
        target = one_hot(classes + 1, by_cell.shape[3] + 1)[..., 1:].to(by_cell.dtype)
        known = ~torch.stack([each.unknown for each in of_level]) | (target > 0)
        losses = sigmoid_focal_loss(by_cell, target, ALPHA, GAMMA)
        total.append((losses * known).sum())
        positive.append((classes >= 0).sum())
    # The number of positive cells of all processes, plus one.
    cells = torch.stack(positive).sum() + 1 / process_count()
    return torch.stack(total).sum() / mean_over_processes(cells)


def _center_cells(
    mask: Tensor, extent: Tensor, padded: Size, grid: int
) -> tuple[slice, slice] | None:
    """Return rows and columns of the center cells of an object, or None for an empty mask."""
    y, x = mask.nonzero().T.cpu()
    if len(y) == 0:
        return None
    return (
        _span(float(y.float().mean()), float(extent[1]), padded[0], grid),
        _span(float(x.float().mean()), float(extent[0]), padded[1], grid),
    )


def _span(center: float, extent: float, length: int, grid: int) -> slice:
    """Return the cells of the center region along one axis, at most one from the center cell."""
    radius = extent * CENTER / 2
    central = _cell(center, length, grid)
    first = max(_cell(center - radius, length, grid), central - 1, 0)
    last = min(_cell(center + radius, length, grid), central + 1, grid - 1)
    return slice(first, last + 1)


def _touched_cells(box: Tensor, padded: Size, grid: int) -> tuple[slice, slice]:
    """Return rows and columns of the cells that a box touches."""
    x1, y1, x2, y2 = box.tolist()
    spans = [(y1, y2, padded[0]), (x1, x2, padded[1])]
    rows, columns = (
        slice(max(_cell(a, length, grid), 0), min(_cell(b, length, grid), grid - 1) + 1)
        for a, b, length in spans
    )
    return rows, columns


def _cell(position: float, length: int, grid: int) -> int:
    return int(position / length // (1 / grid))
