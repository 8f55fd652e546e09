"""Which cells of the detector answer for which object: adaptive training sample selection.

Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training
Sample Selection", 2020 (ATSS), as NanoDet-g was trained.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

CANDIDATES = 9
ANCHOR = 5
"""Side of a cell's anchor, in strides; the anchors serve the assignment alone."""


def assign(boxes: Tensor, grid: Tensor) -> Tensor:
    """The object that each cell answers for.

    For each object, the nine cells nearest to its centre on each level are candidates; those are
    taken whose anchor overlaps it by more than the mean plus one standard deviation of all
    candidates, and whose centre lies inside it. A cell of several objects takes the one that its
    anchor overlaps most.

    Args:
        boxes: float32 (N, 4) xyxy.
        grid: float32 (cells, 3): centre x, y and stride, level after level.

    Returns:
        int64 (cells,): an object's row, or -1.
    """
    cells = len(grid)
    if not len(boxes):
        return grid.new_full((cells,), -1, dtype=torch.int64)
    half = grid[:, 2:] * ANCHOR / 2
    overlaps = box_iou(boxes, torch.cat([grid[:, :2] - half, grid[:, :2] + half], dim=1))
    candidate = _nearest(boxes, grid)
    # Unbiased over a varying number of candidates, because small pictures have fewer.
    counts = candidate.sum(dim=1, keepdim=True)
    mean = (overlaps * candidate).sum(dim=1, keepdim=True) / counts
    spread = ((overlaps - mean).square() * candidate).sum(dim=1, keepdim=True)
    least = mean + (spread / (counts - 1).clamp(min=1)).sqrt()
    x, y = grid[:, 0], grid[:, 1]
    inside = (x > boxes[:, :1]) & (y > boxes[:, 1:2]) & (x < boxes[:, 2:3]) & (y < boxes[:, 3:])
    taken = candidate & inside & (overlaps >= least)
    best, rows = overlaps.masked_fill(~taken, -1).max(dim=0)
    owners: Tensor = rows.masked_fill(best < 0, -1)
    return owners


def _nearest(boxes: Tensor, grid: Tensor) -> Tensor:
    """The candidates of each object, bool (N, cells)."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = torch.cdist(centres, grid[:, :2])
    candidate = torch.zeros_like(distances, dtype=torch.bool)
    first = 0
    for length in torch.unique_consecutive(grid[:, 2], return_counts=True)[1].tolist():
        level = distances[:, first : first + length]
        nearest = level.topk(min(CANDIDATES, length), dim=1, largest=False).indices + first
        candidate.scatter_(1, nearest, value=True)
        first += length
    return candidate
