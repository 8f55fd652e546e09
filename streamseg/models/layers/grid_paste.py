"""Mask pasting as in detectron2, limited to the boxes.

He et al., "Mask R-CNN", 2017, section 3.1. The value of a pixel is sampled bilinearly from the mask
of the box at the center of the pixel; the mask is surrounded by zeros. Pixels are sampled
independently, so sampling only those near the box gives the same result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from streamseg.structures.masks import BoolArray, Masks, Size


@dataclass(frozen=True, slots=True, eq=False)
class SampledMasks:
    """Mask probabilities of boxes, sampled at pixel centers.

    Attributes:
        probabilities: float32 (N, M, M), 0 to 1.
        boxes: float32 (N, 4) xyxy, pixels of the frame.
    """

    probabilities: Tensor
    boxes: Tensor

    def masks(self, size: Size, threshold: float) -> Masks:
        """Return the pixels of a frame of ``size`` with at least ``threshold``."""
        crops: list[BoolArray] = []
        origins = []
        for values, box in zip(
            self.probabilities.float().cpu(), self.boxes.float().cpu(), strict=True
        ):
            cells = values.shape[0]
            x = _reached(cells, float(box[0]), float(box[2]), size[1])
            y = _reached(cells, float(box[1]), float(box[3]), size[0])
            crops.append((sample(values, box, x, y) >= threshold).numpy())
            origins.append((x.start, y.start))
        return Masks.from_crops(crops, np.array(origins, np.int64), size)


def sample(values: Tensor, box: Tensor, x: range, y: range) -> Tensor:
    """Sample pixels of a mask (M, M) that covers ``box`` (xyxy); returns (len(y), len(x))."""
    x1, y1, x2, y2 = box
    across = (torch.arange(x.start, x.stop) + 0.5 - x1) / (x2 - x1) * 2 - 1
    down = (torch.arange(y.start, y.stop) + 0.5 - y1) / (y2 - y1) * 2 - 1
    shape = len(y), len(x)
    grid = torch.stack([across.expand(shape), down[:, None].expand(shape)], dim=2)
    return grid_sample(values[None, None], grid[None], align_corners=False)[0, 0]


def _reached(cells: int, start: float, stop: float, pixels: int) -> range:
    """Return the pixels affected by a mask: its box plus half a cell, inside the frame."""
    margin = (stop - start) / (2 * cells) + 1
    first = min(max(math.floor(start - margin), 0), pixels)
    return range(first, max(min(math.ceil(stop + margin), pixels), first))
