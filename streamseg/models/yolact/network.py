"""Networks of YOLACT and YOLACT++.

Bolya et al., "YOLACT: Real-time Instance Segmentation", 2019; "YOLACT++: Better Real-time Instance
Segmentation", 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from streamseg.models.layers.backbones import DeformableConv2d, ResNet
from streamseg.models.layers.darknet import DarkNet53

WIDTH = 256
"""Number of channels of the pyramid and the heads."""
PROTOTYPES = 32
"""Number of prototypes."""
BASE = 550
"""Input size to which ``SCALES`` refers, in pixels."""
SCALES = (24, 48, 96, 192, 384)
"""Anchor scale of each level, in pixels of an input of ``BASE``."""
ASPECT_RATIOS = (1.0, 0.5, 2.0)
"""Aspect ratios of the anchors."""
VARIANCES = (0.1, 0.2)
"""Scales of the box regression: of centers and of the logarithm of sides."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Architecture of a model of the family.

    Attributes:
        depth: depth of the ResNet; 0 is DarkNet-53.
        plus: whether it is YOLACT++: deformable convolutions in the backbone, three sizes of
            rectangular anchors, and mask rescoring.
        interval: interval of deformable blocks in the last three stages (YOLACT++).
        max_masks: maximum number of anchors per image in the mask loss.
    """

    depth: int
    plus: bool = False
    interval: int = 1
    max_masks: int = 100


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Outputs of the network for B images with P anchors.

    Attributes:
        boxes: (B, P, 4), relative to the anchors.
        classes: logits (B, P, 1 + C), background first.
        coefficients: (B, P, 32), -1 to 1.
        prototypes: (B, 32, h, w), non-negative.
        finest: P3, (B, 256, h / 2, w / 2).
        anchors: (P, 4), centers and sides as fractions of the image.
    """

    boxes: Tensor
    classes: Tensor
    coefficients: Tensor
    prototypes: Tensor
    finest: Tensor
    anchors: Tensor


class YOLACTNet(nn.Module):
    """Network of YOLACT and YOLACT++.

    Args:
        variant: architecture.
        classes: number C of classes without background.
    """

    def __init__(self, variant: Variant, classes: int) -> None:
        super().__init__()
        self.plus = variant.plus
        self.max_masks = variant.max_masks
        self.backbone = ResNet(variant.depth) if variant.depth else DarkNet53()
        if variant.plus:
            _make_deformable(self.backbone, variant.interval)
        self.fpn = Pyramid(self.backbone.channels[1:])
        self.prototypes = _prototypes()
        self.head = Head(classes, anchors=9 if variant.plus else 3)
        self.semantic = nn.Conv2d(WIDTH, classes, 1)  # only used in training
        self.mask_iou = MaskIoU(classes) if variant.plus else None
        for part in (self.fpn, self.prototypes, self.head, self.semantic, self.mask_iou):
            _initialize(part)

    def forward(self, images: Tensor) -> Outputs:
        """Compute :class:`Outputs` of square images (B, 3, S, S)."""
        pyramid = self.fpn(self.backbone(images)[1:])
        boxes, classes, coefficients = self.head(pyramid)
        grids = tuple((level.shape[2], level.shape[3]) for level in pyramid)
        return Outputs(
            boxes,
            classes,
            coefficients,
            torch.relu(self.prototypes(pyramid[0])),
            pyramid[0],
            anchors(grids, images.shape[3], plus=self.plus).to(images.device),
        )


class Pyramid(nn.Module):
    """Pyramid P3 to P7 from C3 to C5; the layer lists start with C5.

    Args:
        channels: number of channels of C3 to C5.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(n, WIDTH, 1) for n in reversed(channels))
        self.smooth = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in channels)
        self.downsample = nn.ModuleList(
            nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1) for _ in range(2)
        )

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Return five maps (B, 256, h, w), strides 8 to 128; the last two may be negative."""
        merged: list[Tensor] = []
        for lateral, level in zip(self.lateral, reversed(maps), strict=True):
            current = lateral(level)
            merged.append(current + _resize_like(merged[-1], current) if merged else current)
        smooth = [torch.relu(conv(level)) for conv, level in zip(self.smooth, merged, strict=True)]
        levels = smooth[::-1]
        for conv in self.downsample:
            levels.append(conv(levels[-1]))
        return levels


class Head(nn.Module):
    """Prediction head for boxes, classes and coefficients, shared by all levels.

    Args:
        classes: number of classes without background.
        anchors: number of anchors per cell.
    """

    def __init__(self, classes: int, anchors: int) -> None:
        super().__init__()
        self.outputs = classes + 1
        self.shared = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.boxes = nn.Conv2d(WIDTH, anchors * 4, 3, padding=1)
        self.classes = nn.Conv2d(WIDTH, anchors * self.outputs, 3, padding=1)
        self.coefficients = nn.Conv2d(WIDTH, anchors * PROTOTYPES, 3, padding=1)

    def forward(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (B, P, 4), classes (B, P, 1 + C) and coefficients (B, P, 32)."""
        features = [torch.relu(self.shared(level)) for level in pyramid]
        return (
            _by_anchor([self.boxes(each) for each in features], 4),
            _by_anchor([self.classes(each) for each in features], self.outputs),
            _by_anchor([self.coefficients(each) for each in features], PROTOTYPES).tanh(),
        )


class MaskIoU(nn.Module):
    """Prediction of the mask IoU for each class (YOLACT++, section 6.1).

    Args:
        classes: number C of classes without background.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        channels = (1, 8, 16, 32, 64, 128)
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise(channels):
            self.layers.extend([nn.Conv2d(inputs, outputs, 3, stride=2), nn.ReLU()])
        self.layers.extend([nn.Conv2d(channels[-1], classes, 1), nn.ReLU()])

    def forward(self, masks: Tensor) -> Tensor:
        """Return the IoUs (N, C) of masks (N, h, w)."""
        scores: Tensor = self.layers(masks[:, None]).amax(dim=(2, 3))
        return scores


@lru_cache(maxsize=8)
def anchors(grids: tuple[tuple[int, int], ...], size: int, *, plus: bool) -> Tensor:
    """Return centers and sides of all anchors, float32 (P, 4), as fractions of the image.

    The anchors of YOLACT are squares despite their aspect ratios: an error in the original code,
    with which the published weights were trained.

    Args:
        grids: height and width of each level.
        size: height and width of the input, in pixels.
        plus: whether to return the anchors of YOLACT++.
    """
    all_anchors = []
    for (height, width), base in zip(grids, SCALES, strict=True):
        scale = int(base * size / BASE)
        scales = [scale * 2 ** (n / 3) for n in range(3)] if plus else [float(scale)]
        sides = [_sides(s / size, ratio, plus=plus) for s, ratio in product(scales, ASPECT_RATIOS)]
        all_anchors += [
            ((x + 0.5) / width, (y + 0.5) / height, *side)
            for y in range(height)
            for x in range(width)
            for side in sides
        ]
    return torch.tensor(all_anchors)


def decode(relative: Tensor, anchors: Tensor) -> Tensor:
    """Decode boxes (N, 4) xyxy, as fractions of the image, from regressions and anchors (N, 4)."""
    centers = anchors[:, :2] + VARIANCES[0] * relative[:, :2] * anchors[:, 2:]
    sides = anchors[:, 2:] * torch.exp(VARIANCES[1] * relative[:, 2:])
    corners = centers - sides / 2
    return torch.cat([corners, corners + sides], dim=1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Encode boxes relative to anchors; the inverse of :func:`decode`."""
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offsets = (centers - anchors[:, :2]) / (VARIANCES[0] * anchors[:, 2:])
    return torch.cat([offsets, torch.log(sides / anchors[:, 2:]) / VARIANCES[1]], dim=1)


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the grid cells inside boxes, with a margin of one cell: bool (N, height, width).

    Args:
        boxes: (N, 4) xyxy, fractions of the image.
        height: height of the grid.
        width: width of the grid.
    """
    left, right = _limits(boxes[:, 0], boxes[:, 2], width)
    top, bottom = _limits(boxes[:, 1], boxes[:, 3], height)
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    columns = (x >= left[:, None]) & (x < right[:, None])  # (N, w)
    rows = (y >= top[:, None]) & (y < bottom[:, None])  # (N, h)
    return rows[:, :, None] & columns[:, None, :]


def _limits(a: Tensor, b: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the first and last cell between two coordinates in either order, with a margin."""
    low, high = torch.minimum(a, b) * length, torch.maximum(a, b) * length
    return (low - 1).clamp(min=0), (high + 1).clamp(max=length)


def _sides(scale: float, ratio: float, *, plus: bool) -> tuple[float, float]:
    width = scale * ratio**0.5
    return width, scale / ratio**0.5 if plus else width


def _by_anchor(maps: list[Tensor], values: int) -> Tensor:
    """Reshape maps (B, A * values, h, w) of all levels to (B, P, values)."""
    return torch.cat(
        [each.permute(0, 2, 3, 1).reshape(each.shape[0], -1, values) for each in maps], dim=1
    )


def _resize_like(features: Tensor, like: Tensor) -> Tensor:
    return interpolate(features, like.shape[2:], mode="bilinear", align_corners=False)


def _prototypes() -> nn.Sequential:
    """Return the prototype branch: (B, 256, h, w) to (B, 32, 2 h, 2 w), before the last ReLU."""
    convs = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(4)]
    return nn.Sequential(
        *(part for conv in convs[:3] for part in (conv, nn.ReLU())),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.ReLU(),
        convs[3],
        nn.ReLU(),
        nn.Conv2d(WIDTH, PROTOTYPES, 1),
    )


def _make_deformable(backbone: ResNet | DarkNet53, interval: int) -> None:
    assert isinstance(backbone, ResNet)
    for stage in (3, 4, 5):
        for block in backbone.blocks(stage)[::interval]:
            conv = block.conv2
            assert isinstance(conv, nn.Conv2d)
            block.conv2 = DeformableConv2d(
                conv.in_channels, conv.out_channels, stride=conv.stride[0], bias=True
            )


def _initialize(part: nn.Module | None) -> None:
    for module in part.modules() if part is not None else ():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
