"""Mask pasting limited to the boxes, for families like Mask R-CNN.

The usual implementation pastes each mask into a full frame. Here a mask is resized to its box and
clipped at the border of the frame, with identical pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from streamseg.structures.masks import BoolArray, Masks, Size

_SMALL = 10_000
"""Pixels up to which interpolating a mask in two steps isn't faster."""
_MARGIN = 3e-7
"""Upper bound of the rounding error of an interpolated probability."""


class MaskSource(Protocol):
    """Raw mask predictions of one image, one row per detection."""

    def masks(self, size: Size, threshold: float) -> Masks:
        """Return the pixels above ``threshold`` in a frame of ``size``."""


@dataclass(frozen=True, slots=True, eq=False)
class BoxMasks:
    """Output of a mask head like that of Mask R-CNN.

    Attributes:
        probabilities: float32 (N, M, M), 0 to 1.
        boxes: float32 (N, 4) xyxy, pixels of the frame.
    """

    probabilities: Tensor
    boxes: Tensor

    def masks(self, size: Size, threshold: float) -> Masks:
        """See :func:`paste_masks`."""
        return paste_masks(
            self.probabilities.float().cpu(), self.boxes.float().cpu(), size, threshold
        )


def paste_masks(probabilities: Tensor, boxes: Tensor, size: Size, threshold: float) -> Masks:
    """Resize masks to their boxes and threshold them there.

    The pixels are those of torchvision's ``paste_masks_in_image`` followed by ``> threshold``
    (He et al., "Mask R-CNN", 2017, section 3.1): a border of one zero around each mask, the box
    grown in proportion and cut to whole pixels, bilinear interpolation. Work and memory grow with
    the boxes, not with the frame.

    Args:
        probabilities: float32 (N, M, M).
        boxes: float32 (N, 4) xyxy, pixels; they may reach out of the frame.
        size: (height, width) of the frame.
        threshold: pixels above it are inside.
    """
    height, width = size
    padded, scale = expand_masks(probabilities[:, None], padding=1)
    grown = expand_boxes(boxes, scale).to(torch.int64).tolist()
    crops, origins = [], []
    for mask, (x1, y1, x2, y2) in zip(padded[:, None], grown, strict=True):
        left, top = min(max(x1, 0), width), min(max(y1, 0), height)
        right, bottom = max(min(x2 + 1, width), left), max(min(y2 + 1, height), top)
        inside = _above(mask, (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)), threshold)
        crops.append(inside[top - y1 : bottom - y1, left - x1 : right - x1])
        origins.append((left, top))
    return Masks.from_crops(crops, np.array(origins, np.int64), size)


def _above(mask: Tensor, size: Size, threshold: float) -> BoolArray:
    """Return ``interpolate(mask, size) > threshold``, bool (h, w), for a mask (1, 1, P, P).

    A large mask is interpolated along its rows and then, with columns as channels, along its
    columns. This is several times faster but differs in the last bit: if a pixel is so close to
    the threshold that it could matter, the mask is interpolated again in one step.
    """
    height, width = size
    if height * width > _SMALL:
        rows = interpolate(mask, (mask.shape[2], width), mode="bilinear", align_corners=False)
        columns = rows.reshape(1, -1, 1, width).permute(0, 3, 1, 2)  # columns as channels, last
        values = interpolate(columns, (height, 1), mode="bilinear", align_corners=False)
        pixels = values[0, :, :, 0].T.numpy()
        surely: BoolArray = pixels > threshold + _MARGIN
        if np.count_nonzero(surely) == np.count_nonzero(pixels > threshold - _MARGIN):
            return surely
    whole = interpolate(mask, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    inside: BoolArray = whole > threshold
    return inside
