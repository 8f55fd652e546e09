"""What SOLO and SOLOv2 are trained to do: the class of each cell, and the masks of objects' cells.

Wang et al., "SOLO", 2019, sections 3.2 and 3.3: an object belongs to the levels for its size, and
there to the cells near its centre of mass. The class has the focal loss (Lin et al., 2017), the
mask the Dice loss (Milletari et al., "V-Net", 2016).
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

CENTRE = 0.2
"""Of an object's width and height: cells that far around its centre of mass are its own."""
ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss."""
SMOOTH = 0.001
"""Keeps the Dice loss finite."""


@dataclass(frozen=True, slots=True, eq=False)
class Claims:
    """What objects of one image have of one level.

    Attributes:
        classes: int64 (S, S), the class index of each cell, -1 where it has none.
        unknown: bool (S, S, C), where nobody knows whether there is an object.
        cells: int64 (P,), of each pair of an object and a cell.
        objects: int64 (P,), likewise.
    """

    classes: Tensor
    unknown: Tensor
    cells: Tensor
    objects: Tensor


class SOLOCriterion(Criterion):
    """The losses of both families.

    Objects without a mask, and crowds, are neither learnt nor taken for background.

    Args:
        network: either family's.
        weights: of single losses.
        ranges: the sizes of the objects of each level, see ``Scales``.
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
        claims = [
            [claim(each, padded, grid, sizes) for each in targets]
            for grid, sizes in zip(GRIDS, self._ranges, strict=True)
        ]
        return {
            "mask": self._mask_loss(outputs, claims, targets),
            "class": _class_loss(outputs.categories, claims),
        }

    def _mask_loss(
        self, outputs: Outputs, claims: Sequence[Sequence[Claims]], targets: Sequence[Targets]
    ) -> Tensor:
        """The mean of the Dice losses of all pairs of an object and a cell of its own."""
        losses = []
        for level, own in enumerate(claims):
            stride = self.network.mask_stride(level)
            if not any(len(claimed.cells) for claimed in own):
                losses.append(self._untaught(outputs, level))
            for image, claimed in enumerate(own):
                if len(claimed.cells) == 0:
                    continue
                masks = self.network.masks(outputs, image, level, claimed.cells)  # (P, h, w)
                wanted = shrunk(targets[image].masks[claimed.objects], stride, masks.shape[1:])
                losses.append(dice_loss(masks, wanted))
        every = torch.cat(losses)
        pairs = torch.tensor(len(every), device=every.device)
        return every.sum() / mean_over_processes(pairs)

    def _untaught(self, outputs: Outputs, level: int) -> Tensor:
        """No loss, (0,), that a level without objects has a part in all the same.

        A parameter without a gradient would have the other processes wait for it.
        """
        first = torch.zeros(1, dtype=torch.int64, device=outputs.categories[0].device)
        return self.network.masks(outputs, 0, level, first).flatten(1).sum(dim=1)[:0]


def claim(targets: Targets, padded: Size, grid: int, sizes: tuple[float, float]) -> Claims:
    """What the objects of one image have of a level.

    Args:
        targets: of the image.
        padded: (height, width) of the image as the network sees it.
        grid: cells on each side.
        sizes: of the level's objects, least and most.
    """
    classes = torch.full((grid, grid), -1)
    unknown = (~targets.annotated.cpu()).expand(grid, grid, -1).clone()
    extents = (targets.boxes[:, 2:] - targets.boxes[:, :2]).cpu()
    learnt = (targets.has_mask & ~targets.crowd).cpu()
    cells, objects = [], []
    for row in range(len(targets)):
        label = int(targets.labels[row])
        if not learnt[row]:
            unknown[(*_covered(targets.boxes[row], padded, grid), label)] = True
        elif sizes[0] <= float(extents[row].prod().sqrt()) <= sizes[1]:
            own = _own_cells(targets.masks[row], extents[row], padded, grid)
            if own is not None:
                classes[own] = label
                numbers = torch.arange(grid**2).view(grid, grid)[own].flatten()
                cells.append(numbers)
                objects.append(torch.full_like(numbers, row))
    none = torch.zeros(0, dtype=torch.int64)
    device = targets.boxes.device
    return Claims(
        classes.to(device),
        unknown.to(device),
        torch.cat([none, *cells]).to(device),
        torch.cat([none, *objects]).to(device),
    )


def dice_loss(probabilities: Tensor, wanted: Tensor) -> Tensor:
    """(N,), from two (N, h, w) in 0 to 1."""
    p, q = probabilities.flatten(1).float(), wanted.flatten(1).float()
    squares = (p * p).sum(dim=1) + SMOOTH + (q * q).sum(dim=1) + SMOOTH
    return 1 - 2 * (p * q).sum(dim=1) / squares


def shrunk(masks: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Bool masks (N, H, W) made smaller as the authors do, and padded: (N, *size).

    They pad them to ``factor`` times ``size`` and resize them bilinearly, so that a pixel is the
    mean of the four in the middle of its ``factor`` x ``factor``; halves are rounded up.
    """
    height, width = (factor * side for side in size)
    padded = pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1])).to(torch.uint8)
    middle = factor // 2 - 1, factor // 2
    four = [padded[:, y::factor, x::factor] for y in middle for x in middle]
    return torch.stack(four).sum(dim=0) >= 2


def _class_loss(logits: Sequence[Tensor], claims: Sequence[Sequence[Claims]]) -> Tensor:
    """The focal loss of every cell and class that something is known of."""
    total, positive = [], []
    for level, own in zip(logits, claims, strict=True):
        by_cell = level.permute(0, 2, 3, 1).float()  # (B, S, S, C)
        classes = torch.stack([each.classes for each in own])
        wanted = one_hot(classes + 1, by_cell.shape[3] + 1)[..., 1:].to(by_cell.dtype)
        known = ~torch.stack([each.unknown for each in own]) | (wanted > 0)
        losses = sigmoid_focal_loss(by_cell, wanted, ALPHA, GAMMA)
        total.append((losses * known).sum())
        positive.append((classes >= 0).sum())
    # One more than there are, over all processes together.
    cells = torch.stack(positive).sum() + 1 / process_count()
    return torch.stack(total).sum() / mean_over_processes(cells)


def _own_cells(mask: Tensor, extent: Tensor, padded: Size, grid: int) -> tuple[slice, slice] | None:
    """The rows and columns of the cells of an object with that mask, if it has a pixel."""
    y, x = mask.nonzero().T.cpu()
    if len(y) == 0:
        return None
    return (
        _span(float(y.float().mean()), float(extent[1]), padded[0], grid),
        _span(float(x.float().mean()), float(extent[0]), padded[1], grid),
    )


def _span(centre: float, extent: float, length: int, grid: int) -> slice:
    """The cells of one axis within ``CENTRE`` of the extent, and at most one from the centre's."""
    reach = extent * CENTRE / 2
    at = _cell(centre, length, grid)
    first = max(_cell(centre - reach, length, grid), at - 1, 0)
    last = min(_cell(centre + reach, length, grid), at + 1, grid - 1)
    return slice(first, last + 1)


def _covered(box: Tensor, padded: Size, grid: int) -> tuple[slice, slice]:
    """The rows and columns of the cells that a box touches."""
    x1, y1, x2, y2 = box.tolist()
    spans = [(y1, y2, padded[0]), (x1, x2, padded[1])]
    rows, columns = (
        slice(max(_cell(a, length, grid), 0), min(_cell(b, length, grid), grid - 1) + 1)
        for a, b, length in spans
    )
    return rows, columns


def _cell(position: float, length: int, grid: int) -> int:
    return int(position / length // (1 / grid))
