"""Masks pasted as detectron2 pastes them, inside their boxes.

He et al., "Mask R-CNN", 2017, section 3.1. A pixel's value is sampled from its box's mask at the
pixel's centre, bilinearly, with nothing around the mask. Pixels are sampled one by one, so those
that the mask reaches are the same whether or not the rest of the frame is sampled, too.
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
    """Masks of boxes, to be sampled at the centres of pixels.

    Attributes:
        probabilities: float32 (N, M, M), in 0 to 1.
        boxes: float32 (N, 4) xyxy, pixels of the frame: what each covers.
    """

    probabilities: Tensor
    boxes: Tensor

    def masks(self, size: Size, threshold: float) -> Masks:
        """The pixels of a frame of ``size`` that are at ``threshold`` or above it."""
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
    """The values (len(y), len(x)) of some pixels of a mask (M, M) that covers ``box``, xyxy."""
    x1, y1, x2, y2 = box
    across = (torch.arange(x.start, x.stop) + 0.5 - x1) / (x2 - x1) * 2 - 1
    down = (torch.arange(y.start, y.stop) + 0.5 - y1) / (y2 - y1) * 2 - 1
    shape = len(y), len(x)
    grid = torch.stack([across.expand(shape), down[:, None].expand(shape)], dim=2)
    return grid_sample(values[None, None], grid[None], align_corners=False)[0, 0]


def _reached(cells: int, start: float, stop: float, pixels: int) -> range:
    """The pixels that a mask has a part in: half a cell more than its box, within the frame."""
    margin = (stop - start) / (2 * cells) + 1
    first = min(max(math.floor(start - margin), 0), pixels)
    return range(first, max(min(math.ceil(stop + margin), pixels), first))
