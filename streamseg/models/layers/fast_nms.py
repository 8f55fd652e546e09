"""Fast NMS: a box is dropped if a better one overlaps it, even if that one is dropped, too."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou


def fast_nms(
    boxes: Tensor, scores: Tensor, iou: float, per_class: int, max_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Select boxes class by class (Bolya et al., "YOLACT", 2019, section 4.2).

    Each box takes part in every class, so it may be selected several times.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N, C).
        iou: IoU threshold; a box is dropped if its IoU with a better box of the class is higher.
        per_class: number of best boxes per class before NMS.
        max_detections: maximum number of selected boxes.

    Returns:
        Rows of the boxes, int64 (K,); classes, int64 (K,); scores, (K,), descending.
    """
    if len(boxes) == 0:
        none = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return none, none, scores.new_zeros(0)
    by_class, order = scores.T.sort(dim=1, descending=True)  # (C, N)
    by_class, order = by_class[:, :per_class], order[:, :per_class]
    kept = torch.stack([_uncovered(boxes[row], iou) for row in order])
    classes = torch.arange(len(kept), device=boxes.device)[:, None].expand_as(kept)[kept]
    best, at = by_class[kept].sort(descending=True)
    best, at = best[:max_detections], at[:max_detections]
    return order[kept][at], classes[at], best


def fast_nms_across_classes(
    boxes: Tensor, scores: Tensor, iou: float, take: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Select boxes with one NMS for all classes, each box in its best class.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N, C).
        iou: IoU threshold; a box is dropped if its IoU with a better box is higher.
        take: number of boxes that take part, the best ones.

    Returns:
        See :func:`fast_nms`.
    """
    best, classes = scores.max(dim=1)
    best, order = best.sort(descending=True)
    best, order = best[:take], order[:take]
    kept = _uncovered(boxes[order], iou)
    return order[kept], classes[order[kept]], best[kept]


def _uncovered(boxes: Tensor, iou: float) -> Tensor:
    """Return bool (N,) for boxes (N, 4), best first; empty boxes have IoU NaN and are dropped."""
    overlaps: Tensor = box_iou(boxes, boxes).triu(diagonal=1)
    return overlaps.amax(dim=0) <= iou
