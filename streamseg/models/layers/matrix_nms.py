"""Matrix NMS: scores of objects that overlap better ones decay, all at once."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_nms(masks: Tensor, scores: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Scores after decay, with a Gaussian kernel (Wang et al., "SOLOv2", 2020, section 3.3).

    Args:
        masks: bool (N, H, W), none of them empty.
        scores: float32 (N,), descending.
        labels: int64 (N,); only objects of the same class matter to each other.
        sigma: the larger, the more a score decays.

    Returns:
        float32 (N,), none higher than before.
    """
    flat = masks.flatten(1).float()  # (N, H * W)
    inter = flat @ flat.T  # (N, N)
    areas = flat.sum(dim=1)
    iou = inter / (areas[:, None] + areas[None, :] - inter)
    alike = labels[:, None] == labels[None, :]
    iou = (iou * alike).triu(diagonal=1)  # row: the better one
    compensation = iou.amax(dim=0)[:, None]  # how much the better one is covered itself
    decay = torch.exp(-sigma * iou**2) / torch.exp(-sigma * compensation**2)
    return scores * decay.amin(dim=0)
