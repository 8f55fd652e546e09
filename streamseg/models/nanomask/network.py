"""nanomask: NanoDet-g's detector with a mask branch of the Mask R-CNN kind; real time on a CPU.

The detector is NanoDet-g (RangiLyu, https://github.com/RangiLyu/nanodet, Apache-2.0), its batch
norms folded into the convolutions: a small CSP network, a path aggregation neck without
convolutions, a head that says each side of a box as a distribution over eleven distances (Li et
al., "Generalized Focal Loss", 2020). Masks are class-agnostic: RoIAlign on a stride-4 map and a
small fully convolutional head (He et al., "Mask R-CNN", 2017, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import as_file, files
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    conv2d,
    interpolate,
    leaky_relu,
    max_pool2d,
    normalize,
    pad,
    relu,
)
from torchvision.ops import batched_nms, roi_align

from streamseg.masks import FloatArray, Size
from streamseg.models import checkpoints
from streamseg.models.base import Batch, Detections, Segmenter, State
from streamseg.models.categories import COCO
from streamseg.models.selection import Selection
from streamseg.models.two_stage import Boxes, select_boxes, with_masks
from streamseg.types import Image

CLASSES = 80
BINS = 11
STRIDES = (8, 16, 32)
ROI_SIZE = 14
MAP_STRIDE = 4
C2_CHANNELS = 64
TILE = 8


class ConvAct(nn.Module):
    """A 3x3 convolution with bias and LeakyReLU 0.1."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return _leaky(self.conv(x))


class Block(nn.Module):
    """Two convolutions to half the channels each; the output is (second, first)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = _leaky(self.conv1(x))
        return torch.cat([_leaky(self.conv2(first)), first], dim=1)


class Stage(nn.Module):
    """A convolution and blocks on it; the output, (blocks, convolution), is twice as wide."""

    def __init__(self, channels: int, stride: int, blocks: int) -> None:
        super().__init__()
        self.down = ConvAct(channels, channels, stride)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.out = ConvAct(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x)
        return torch.cat([self.out(self.blocks(down)), down], dim=1)


class Backbone(nn.Module):
    """CSP stages at strides 4, 8, 16 and 32, of 64, 128, 256 and 512 channels."""

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
    """Path aggregation without convolutions: top-down, then bottom-up, by bilinear resizing."""

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
    """One level's outputs: (B, 80 + 4 * 11, H, W), class logits and four distributions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(128, 128, 3, padding=1)
        self.out = nn.Conv2d(128, CLASSES + 4 * BINS, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.out(_leaky(self.conv(x)))
        return outputs


class MaskBranch(nn.Module):
    """A stride-4 map of the image, and from it a mask for each box."""

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        self.lateral_c2 = nn.Conv2d(C2_CHANNELS, channels, 1)
        self.lateral_p3 = nn.Conv2d(128, channels, 1)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.logits = nn.Conv2d(channels, 1, 1)

    def map(self, c2: Tensor, p3: Tensor) -> Tensor:
        """The map that boxes are cut from: (B, 96, H / 4, W / 4)."""
        return relu(self.smooth(self._merged(c2, p3)), inplace=True)

    def map_around(self, c2: Tensor, p3: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """The same where ``cut`` looks for these boxes; zeros elsewhere.

        Most of a frame is background, and the map's convolution is a quarter of all work: it is
        done on the 8 x 8 tiles that a box touches, each with a border of one.
        """
        merged = self._merged(c2, p3)
        batch, channels, height, width = merged.shape
        tiles = _tiles_touched(boxes, (height // TILE, width // TILE)).to(merged.device)
        if tiles.float().mean() > 0.5:  # the borders would cost more than the rest saves
            return relu(self.smooth(merged), inplace=True)
        bordered = pad(merged.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = bordered.unfold(1, TILE + 2, TILE).unfold(2, TILE + 2, TILE)
        windows = windows.permute(0, 1, 2, 4, 5, 3)[tiles].permute(0, 3, 1, 2)
        smoothed = relu(conv2d(windows, self.smooth.weight, self.smooth.bias), inplace=True)
        rows, columns = tiles.shape[1:]
        whole = smoothed.new_zeros(batch, channels, rows, TILE, columns, TILE)
        whole.permute(0, 2, 4, 1, 3, 5)[tiles] = smoothed
        return whole.view(batch, channels, height, width)

    def _merged(self, c2: Tensor, p3: Tensor) -> Tensor:
        fine: Tensor = self.lateral_c2(c2)
        return fine + _resized_like(self.lateral_p3(p3), fine)

    def cut(self, features: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """RoIAlign of the boxes of each image, xyxy in its pixels: (N, 96, 14, 14)."""
        cuts: Tensor = roi_align(features, list(boxes), ROI_SIZE, 1 / MAP_STRIDE, 2, aligned=True)
        return cuts

    def forward(self, cuts: Tensor) -> Tensor:
        """Mask logits, (N, 1, 28, 28)."""
        x = cuts
        for conv in self.convs:
            x = relu(conv(x), inplace=True)
        logits: Tensor = self.logits(relu(self.deconv(x), inplace=True))
        return logits


class Outputs(NamedTuple):
    """What the network says of a batch before there are boxes to make masks for.

    Attributes:
        cells: (B, cells, 80 + 4 * 11), the three levels one after the other, row by row.
        c2: (B, 64, H / 4, W / 4), the backbone's first stage, for the mask branch.
        p3: (B, 128, H / 8, W / 8), the neck's finest level, for the mask branch.
    """

    cells: Tensor
    c2: Tensor
    p3: Tensor


class NanoMaskNet(nn.Module):
    """The network: normalised BGR (B, 3, H, W) in, sides multiples of 32, :class:`Outputs` out."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.neck = Neck()
        self.head = nn.ModuleList(Head() for _ in STRIDES)
        self.mask = MaskBranch()

    def forward(self, images: Tensor) -> Outputs:
        c2, c3, c4, c5 = self.backbone(images)
        levels = self.neck(c3, c4, c5)
        cells = [
            head(level).permute(0, 2, 3, 1).flatten(1, 2)
            for head, level in zip(self.head, levels, strict=True)
        ]
        return Outputs(torch.cat(cells, dim=1), c2, levels[0])


@lru_cache(maxsize=64)
def cell_grid(shape: Size) -> FloatArray:
    """Centre x, y and stride of each cell, float32 (cells, 3), of a prepared image of ``shape``."""
    grids = []
    for stride in STRIDES:
        y, x = np.mgrid[: shape[0] // stride, : shape[1] // stride]
        centres = (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) * stride
        grids.append(np.pad(centres, ((0, 0), (0, 1)), constant_values=stride))
    return np.concatenate(grids).astype(np.float32)


def decode_boxes(distributions: Tensor, grid: Tensor) -> Tensor:
    """Boxes, (N, 4) xyxy, of cells with 4 x 11 distribution logits at ``grid`` (N, 3)."""
    bins = torch.arange(BINS, dtype=torch.float32, device=grid.device)
    # Not a matrix product, which autocast would do in bf16.
    sides = (distributions.reshape(-1, 4, BINS).softmax(dim=2) * bins).sum(dim=2) * grid[:, 2:]
    centres = grid[:, :2]
    return torch.cat([centres - sides[:, :2], centres + sides[:, 2:]], dim=1)


class NanoMask(Segmenter):
    """NanoDet-g with a mask branch. ``input_size`` is the long side that images are resized to."""

    trained_on = COCO
    mean: ClassVar[tuple[float, ...]] = (103.53, 116.28, 123.675)
    deviation: ClassVar[tuple[float, ...]] = (57.375, 57.12, 58.395)
    least_score: ClassVar[float] = 0.05
    nms_iou: ClassVar[float] = 0.6
    most_candidates: ClassVar[int] = 1000
    most_detections: ClassVar[int] = 100

    network: NanoMaskNet

    @classmethod
    def build(cls, name: str) -> NanoMaskNet:
        del name  # the family has one member
        return NanoMaskNet()

    @classmethod
    def published(cls, name: str) -> State:
        with as_file(files("streamseg") / "assets" / f"{name}.safetensors") as path:
            return checkpoints.read(path)

    def fit(self, size: Size) -> Size:
        scale = self.input_size / max(size)
        return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)

    def write(self, image: Image, into: Tensor) -> None:
        height, width = into.shape[1:]
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        bgr = torch.from_numpy(cv2.cvtColor(resized, cv2.COLOR_RGB2BGR)).permute(2, 0, 1)
        mean = torch.tensor(self.mean)[:, None, None]
        deviation = torch.tensor(self.deviation)[:, None, None]
        torch.sub(bgr, mean, out=into).div_(deviation)

    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        outputs: Outputs = self.network(batch.tensor)
        height, width = batch.tensor.shape[2:]
        grid = cell_grid((height, width))
        found = [
            self._boxes(cells, grid, shape, size, selection)
            for cells, shape, size, selection in zip(
                outputs.cells.float().cpu(), batch.shapes, batch.sizes, selections, strict=True
            )
        ]
        boxes = [each.prepared.to(self.device) for each in found]
        return with_masks(batch, selections, found, *self._masks(outputs, boxes))

    def _boxes(
        self, cells: Tensor, grid: FloatArray, shape: Size, size: Size, selection: Selection
    ) -> Boxes:
        """The detections of one image that the thresholds let through, on the CPU."""
        values = cells.numpy()  # its reductions of small arrays wait for no other thread
        best = values[:, :CLASSES].max(axis=1)
        # A detection below all thresholds can't come out, and it suppresses none above them.
        least = max(self.least_score, selection.least_score - 1e-6)
        chosen = np.flatnonzero(best > np.log(least / (1 - least)))
        if len(chosen) > self.most_candidates:
            chosen = chosen[np.argsort(-best[chosen], kind="stable")[: self.most_candidates]]
        scores = torch.from_numpy(best[chosen]).sigmoid()
        classes = torch.from_numpy(values[chosen, :CLASSES].argmax(axis=1))
        boxes = decode_boxes(
            torch.from_numpy(values[chosen, CLASSES:]), torch.from_numpy(grid[chosen])
        )
        boxes = torch.minimum(boxes.clamp_(min=0), torch.tensor([*shape[::-1], *shape[::-1]]))
        kept = batched_nms(boxes, scores, classes, self.nms_iou)[: self.most_detections]
        kept = kept[(boxes[kept, 2:] > boxes[kept, :2]).all(dim=1)]  # not wholly in the padding
        labels = torch.tensor(list(self.categories))[classes[kept]]
        return select_boxes(boxes[kept], scores[kept], labels, shape, size, selection)

    def _masks(self, outputs: Outputs, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mask probabilities (N, 28, 28) and appearance (N, 128) for the boxes of all images."""
        if not any(len(rows) for rows in boxes):
            return torch.zeros(0, 2 * ROI_SIZE, 2 * ROI_SIZE), torch.zeros(0, 2 * C2_CHANNELS)
        branch = self.network.mask
        cuts = branch.cut(branch.map_around(outputs.c2, outputs.p3, boxes), boxes)
        probabilities = branch(cuts)[:, 0].float().sigmoid()
        return probabilities, _appearance(outputs.c2, boxes, probabilities)


def _appearance(c2: Tensor, boxes: Sequence[Tensor], probabilities: Tensor) -> Tensor:
    """What the pixels of each mask look like: (N, 128) of length 1.

    The mean of the backbone's first stage over the mask, its upper half and its lower half apart:
    it tells people apart better than the mask branch's own features, which are made to be alike.
    """
    cuts = roi_align(c2, list(boxes), 8, 1 / MAP_STRIDE, 1, aligned=True)
    weighted = cuts * adaptive_avg_pool2d(probabilities[:, None], 8)
    halves = [half.sum(dim=(2, 3)) for half in weighted.chunk(2, dim=2)]
    return normalize(torch.cat(halves, dim=1), dim=1)


def _tiles_touched(boxes: Sequence[Tensor], grid: Size) -> Tensor:
    """Which tiles RoIAlign reads for the boxes of each image, bool (B, rows, columns)."""
    tiles = np.zeros((len(boxes), *grid), np.bool_)
    for row, each in enumerate(boxes):
        # A sample between two cells reads both.
        cells = np.floor(each.float().cpu().numpy() / MAP_STRIDE - 0.5).astype(np.int64)
        first, last = cells[:, :2].clip(0) // TILE, (cells[:, 2:] + 1) // TILE
        for (left, top), (right, bottom) in zip(first, last, strict=True):
            tiles[row, top : bottom + 1, left : right + 1] = True
    return torch.from_numpy(tiles)


def _leaky(x: Tensor) -> Tensor:
    return leaky_relu(x, 0.1, inplace=True)


def _resized_like(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
