"""Network of nanomask: the detector NanoDet-g with a mask branch as in Mask R-CNN.

The detector is NanoDet-g (RangiLyu, https://github.com/RangiLyu/nanodet, Apache-2.0) with batch
norms folded into the convolutions: a small CSP backbone, a path aggregation neck without
convolutions, and a head that predicts each box side as a distribution over eleven distances (Li et
al., "Generalized Focal Loss", 2020). Masks are class-agnostic: RoIAlign on a stride-4 map and a
small fully convolutional head (He et al., "Mask R-CNN", 2017, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, leaky_relu, max_pool2d, pad, relu
from torchvision.ops import roi_align

from streamseg.structures.masks import FloatArray, Size

BINS = 11
"""Number of distances in the distribution of a box side."""
PRIOR = 0.01
"""Initial class probability."""
STRIDES = (8, 16, 32)
ROI_SIZE = 14
ROI_GROWTH = 1.1
"""Size of a mask region relative to its box."""
MAP_STRIDE = 4
C2_CHANNELS = 64
TILE = 8
"""Side of the tiles in which the stride-4 map is computed, in cells."""


class ConvAct(nn.Module):
    """3x3 convolution with bias and LeakyReLU (0.1)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return _leaky(self.conv(x))


class Block(nn.Module):
    """Two convolutions with half of the channels each; the output is (second, first)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = _leaky(self.conv1(x))
        return torch.cat([_leaky(self.conv2(first)), first], dim=1)


class Stage(nn.Module):
    """CSP stage: a convolution and blocks, concatenated to twice the channels."""

    def __init__(self, channels: int, stride: int, blocks: int) -> None:
        super().__init__()
        self.down = ConvAct(channels, channels, stride)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.out = ConvAct(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x)
        return torch.cat([self.out(self.blocks(down)), down], dim=1)


class Backbone(nn.Module):
    """CSP backbone with strides 4, 8, 16 and 32 and 64, 128, 256 and 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvAct(3, 32, stride=2)
        self.stage1 = Stage(32, 1, 1)
        self.stage2 = Stage(64, 2, 2)
        self.stage3 = Stage(128, 2, 2)
        self.stage4 = Stage(256, 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c2 = self.stage1(max_pool2d(self.stem(x), 3, 2, padding=1))
        c3 = self.stage2(c2)
        c4 = self.stage3(c3)
        return c2, c3, c4, self.stage4(c4)


class Neck(nn.Module):
    """Path aggregation neck without convolutions: top-down, then bottom-up bilinear resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(inputs, 128, 1) for inputs in (128, 256, 512))

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        l3, l4, l5 = (conv(c) for conv, c in zip(self.lateral, (c3, c4, c5), strict=True))
        p4 = l4 + _resized_like(l5, l4)
        p3 = l3 + _resized_like(p4, l3)
        q4 = p4 + _resized_like(p3, p4)
        return p3, q4, l5 + _resized_like(q4, l5)


class Head(nn.Module):
    """Head of one level: (B, C + 4 * 11, H, W), class logits and four distributions."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(128, 128, 3, padding=1)
        self.out = nn.Conv2d(128, classes + 4 * BINS, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.out(_leaky(self.conv(x)))
        return outputs


class MaskBranch(nn.Module):
    """Mask branch: a stride-4 feature map, and a mask for each box from its RoI features."""

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        self.lateral_c2 = nn.Conv2d(C2_CHANNELS, channels, 1)
        self.laterals = nn.ModuleList(nn.Conv2d(128, channels, 1) for _ in STRIDES)
        # Convolutions on the coarse map cost a quarter of those on the stride-4 map.
        self.context = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        # Dilated, so that the receptive field covers the whole object.
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
            for dilation in (1, 2, 4, 1)
        )
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.logits = nn.Conv2d(channels, 1, 1)

    def map(self, features: Features) -> Tensor:
        """Compute the feature map for RoIAlign: (B, 96, H / 4, W / 4)."""
        return relu(self.smooth(self._merged(features)), inplace=True)

    def map_around(self, features: Features, boxes: Sequence[Tensor]) -> Tensor:
        """Compute the feature map only where ``roi_features`` samples it for these boxes.

        Most of a frame is background, and the last convolution of the map takes a quarter of the
        time. It is computed on the 8 x 8 tiles that the boxes touch, each with a border of one
        cell; the other tiles are zero.
        """
        merged = self._merged(features)
        batch, channels, height, width = merged.shape
        tiles = _tiles_touched(boxes, (height // TILE, width // TILE))
        if tiles.float().mean() > 0.5:  # the borders would cost more than the skipped tiles save
            return relu(self.smooth(merged), inplace=True)
        tiles = tiles.to(merged.device)
        bordered = pad(merged.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = bordered.unfold(1, TILE + 2, TILE).unfold(2, TILE + 2, TILE)
        windows = windows.permute(0, 1, 2, 4, 5, 3)[tiles].permute(0, 3, 1, 2)
        smoothed = relu(conv2d(windows, self.smooth.weight, self.smooth.bias), inplace=True)
        rows, columns = tiles.shape[1:]
        full_map = smoothed.new_zeros(batch, channels, rows, TILE, columns, TILE)
        full_map.permute(0, 2, 4, 1, 3, 5)[tiles] = smoothed
        return full_map.view(batch, channels, height, width)

    def _merged(self, features: Features) -> Tensor:
        coarse: Tensor | None = None
        for lateral, level in zip(reversed(self.laterals), reversed(features.levels), strict=True):
            current: Tensor = lateral(level)
            coarse = current if coarse is None else current + _resized_like(coarse, current)
        assert coarse is not None
        for conv in self.context:
            coarse = relu(conv(coarse), inplace=True)
        fine: Tensor = self.lateral_c2(features.c2)
        return fine + _resized_like(coarse, fine)

    def roi_features(self, features: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Return RoI features (N, 96, 14, 14) of the boxes of each image, xyxy in pixels."""
        rois: Tensor = roi_align(features, list(boxes), ROI_SIZE, 1 / MAP_STRIDE, 2, aligned=True)
        return rois

    def forward(self, roi_features: Tensor) -> Tensor:
        """Return mask logits (N, 1, 28, 28)."""
        x = roi_features
        for conv in self.convs:
            x = relu(conv(x), inplace=True)
        logits: Tensor = self.logits(relu(self.deconv(x), inplace=True))
        return logits


class Features(NamedTuple):
    """Feature maps for the mask branch.

    Attributes:
        c2: (B, 64, H / 4, W / 4), first stage of the backbone.
        levels: (B, 128, H / s, W / s) for strides s = 8, 16 and 32, from the neck.
    """

    c2: Tensor
    levels: tuple[Tensor, Tensor, Tensor]


class Outputs(NamedTuple):
    """Outputs of the detector, and the features for the mask branch.

    Attributes:
        cells: (B, cells, C + 4 * 11), the three levels concatenated, row by row.
        features: feature maps for the mask branch.
    """

    cells: Tensor
    features: Features


class NanoMaskNet(nn.Module):
    """Network with normalized BGR input (B, 3, H, W), H and W multiples of 32; see ``Outputs``."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.neck = Neck()
        self.head = nn.ModuleList(Head(classes) for _ in STRIDES)
        self.mask = MaskBranch()
        self._initialize(classes)

    def forward(self, images: Tensor) -> Outputs:
        c2, c3, c4, c5 = self.backbone(images)
        levels = self.neck(c3, c4, c5)
        cells = [
            head(level).permute(0, 2, 3, 1).flatten(1, 2)
            for head, level in zip(self.head, levels, strict=True)
        ]
        return Outputs(torch.cat(cells, dim=1), Features(c2, levels))

    def _initialize(self, classes: int) -> None:
        """Initialize the weights (He et al., 2015); the initial class probability is ``PRIOR``."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.startswith("head.") and ".out." in name:
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.kaiming_normal_(parameter, a=0.1)
        for name, parameter in self.head.named_parameters():
            if name.endswith("out.bias"):
                nn.init.constant_(parameter[:classes], -math.log(1 / PRIOR - 1))


@lru_cache(maxsize=64)
def cell_grid(shape: Size) -> FloatArray:
    """Return center x, y and stride of each cell, float32 (cells, 3), for an input of ``shape``."""
    grids = []
    for stride in STRIDES:
        y, x = np.mgrid[: shape[0] // stride, : shape[1] // stride]
        centers = (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) * stride
        grids.append(np.pad(centers, ((0, 0), (0, 1)), constant_values=stride))
    return np.concatenate(grids).astype(np.float32)


def decode_boxes(distributions: Tensor, grid: Tensor) -> Tensor:
    """Decode boxes (N, 4) xyxy from logits (N, 4 * 11) of the cells ``grid`` (N, 3)."""
    bins = torch.arange(BINS, dtype=torch.float32, device=grid.device)
    # A matrix product would be computed in bf16 under autocast.
    sides = (distributions.reshape(-1, 4, BINS).softmax(dim=2) * bins).sum(dim=2) * grid[:, 2:]
    centers = grid[:, :2]
    return torch.cat([centers - sides[:, :2], centers + sides[:, 2:]], dim=1)


def expand_boxes(boxes: Tensor) -> Tensor:
    """Enlarge boxes (N, 4) by ``ROI_GROWTH``: a predicted box may be too small for its mask."""
    margins = (boxes[:, 2:] - boxes[:, :2]) * (ROI_GROWTH - 1) / 2
    return torch.cat([boxes[:, :2] - margins, boxes[:, 2:] + margins], dim=1)


def _tiles_touched(boxes: Sequence[Tensor], grid: Size) -> Tensor:
    """Return the tiles that RoIAlign reads for the boxes of each image, bool (B, rows, columns)."""
    tiles = np.zeros((len(boxes), *grid), np.bool_)
    for row, each in enumerate(boxes):
        # Bilinear sampling between two cells reads both.
        cells = np.floor(each.float().cpu().numpy() / MAP_STRIDE - 0.5).astype(np.int64)
        first, last = cells[:, :2].clip(0) // TILE, (cells[:, 2:] + 1) // TILE
        for (left, top), (right, bottom) in zip(first, last, strict=True):
            tiles[row, top : bottom + 1, left : right + 1] = True
    return torch.from_numpy(tiles)


def _leaky(x: Tensor) -> Tensor:
    return leaky_relu(x, 0.1, inplace=True)


def _resized_like(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
