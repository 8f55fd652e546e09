"""Fast NMS: every box that a better one covers goes, whether or not the better one stays itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou


def fast_nms(
    boxes: Tensor, scores: Tensor, iou: float, per_class: int, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Class by class (Bolya et al., "YOLACT", 2019, section 4.2).

    Every box competes in every class, so one box may come out several times.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N, C).
        iou: what overlaps a better box of the class by more is dropped.
        per_class: only so many of the best of a class take part.
        most: what comes out.

    Returns:
        Which box, int64 (K,); its class, int64 (K,); its score, (K,), descending.
    """
    if len(boxes) == 0:
        none = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return none, none, scores.new_zeros(0)
    by_class, order = scores.T.sort(dim=1, descending=True)  # (C, N)
    by_class, order = by_class[:, :per_class], order[:, :per_class]
    kept = torch.stack([_uncovered(boxes[row], iou) for row in order])
    classes = torch.arange(len(kept), device=boxes.device)[:, None].expand_as(kept)[kept]
    best, at = by_class[kept].sort(descending=True)
    best, at = best[:most], at[:most]
    return order[kept][at], classes[at], best


def fast_nms_across_classes(
    boxes: Tensor, scores: Tensor, iou: float, take: int
) -> tuple[Tensor, Tensor, Tensor]:
    """With each box in its best class alone, and all classes in one; see :func:`fast_nms`.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N, C).
        iou: what overlaps a better box by more is dropped.
        take: only so many of the best boxes take part.
    """
    best, classes = scores.max(dim=1)
    best, order = best.sort(descending=True)
    best, order = best[:take], order[:take]
    kept = _uncovered(boxes[order], iou)
    return order[kept], classes[order[kept]], best[kept]


def _uncovered(boxes: Tensor, iou: float) -> Tensor:
    """Bool (N,), of boxes (N, 4) in descending order; an empty box overlaps by NaN and goes."""
    overlaps: Tensor = box_iou(boxes, boxes).triu(diagonal=1)
    return overlaps.amax(dim=0) <= iou
