"""Matrix NMS: reduces the scores of instances that overlap better ones."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_nms(masks: Tensor, scores: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Return the scores after decay with a Gaussian kernel.

    Wang et al., "SOLOv2", 2020, section 3.3.

    Args:
        masks: bool (N, H, W), none of them empty.
        scores: float32 (N,), descending.
        labels: int64 (N,); only instances of the same class affect each other.
        sigma: strength of the decay.

    Returns:
        float32 (N,), at most ``scores``.
    """
    flat = masks.flatten(1).float()  # (N, H * W)
    inter = flat @ flat.T  # (N, N)
    areas = flat.sum(dim=1)
    iou = inter / (areas[:, None] + areas[None, :] - inter)
    same_class = labels[:, None] == labels[None, :]
    iou = (iou * same_class).triu(diagonal=1)  # row: the better one
    compensation = iou.amax(dim=0)[:, None]  # how much the better one is overlapped itself
    decay = torch.exp(-sigma * iou**2) / torch.exp(-sigma * compensation**2)
    return scores * decay.amin(dim=0)
