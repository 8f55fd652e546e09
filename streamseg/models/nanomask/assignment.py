"""Label assignment of the detector: adaptive training sample selection (ATSS).

Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training
Sample Selection", 2020, as in the training of NanoDet-g.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

CANDIDATES = 9
"""Number of candidate cells per object and level."""
ANCHOR_SIZE = 5
"""Side of the square anchor of a cell, in strides; anchors are only used for the assignment."""


def assign(boxes: Tensor, grid: Tensor) -> Tensor:
    """Assign an object to each cell.

    The candidates of an object are the nine cells nearest to its center on each level. A candidate
    is positive if the IoU of its anchor exceeds the mean plus one standard deviation over all
    candidates and its center lies inside the box. A cell that is positive for several objects is
    assigned to the one with the largest IoU.

    Args:
        boxes: float32 (N, 4) xyxy.
        grid: float32 (cells, 3): center x, y and stride, level by level.

    Returns:
        int64 (cells,): index of the object, or -1.
    """
    cells = len(grid)
    if not len(boxes):
        return grid.new_full((cells,), -1, dtype=torch.int64)
    half = grid[:, 2:] * ANCHOR_SIZE / 2
    overlaps = box_iou(boxes, torch.cat([grid[:, :2] - half, grid[:, :2] + half], dim=1))
    candidate = _nearest_cells(boxes, grid)
    # Unbiased standard deviation; small images have fewer candidates.
    counts = candidate.sum(dim=1, keepdim=True)
    mean = (overlaps * candidate).sum(dim=1, keepdim=True) / counts
    variance = ((overlaps - mean).square() * candidate).sum(dim=1, keepdim=True)
    threshold = mean + (variance / (counts - 1).clamp(min=1)).sqrt()
    x, y = grid[:, 0], grid[:, 1]
    inside = (x > boxes[:, :1]) & (y > boxes[:, 1:2]) & (x < boxes[:, 2:3]) & (y < boxes[:, 3:])
    positive = candidate & inside & (overlaps >= threshold)
    best, rows = overlaps.masked_fill(~positive, -1).max(dim=0)
    assigned: Tensor = rows.masked_fill(best < 0, -1)
    return assigned


def _nearest_cells(boxes: Tensor, grid: Tensor) -> Tensor:
    """Return the candidates of each object, bool (N, cells)."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = torch.cdist(centers, grid[:, :2])
    candidate = torch.zeros_like(distances, dtype=torch.bool)
    first = 0
    for length in torch.unique_consecutive(grid[:, 2], return_counts=True)[1].tolist():
        level = distances[:, first : first + length]
        nearest = level.topk(min(CANDIDATES, length), dim=1, largest=False).indices + first
        candidate.scatter_(1, nearest, value=True)
        first += length
    return candidate
