"""Common network parts of SOLO and SOLOv2: backbone, pyramid, grids and category branch.

Wang et al., "SOLO: Segmenting Objects by Locations", 2019; "SOLOv2: Dynamic and Fast Instance
Segmentation", 2020. Each of the five pyramid levels is divided into a grid; the cell that contains
the center of an object predicts its class and its mask.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from streamseg.models.layers.backbones import DeformableConv2d, ResNet
from streamseg.structures.masks import Size

GRIDS = (40, 36, 24, 16, 12)
"""Number of grid cells per side of each level."""
STRIDES = (8, 8, 16, 32, 32)
"""Strides of the levels at the inputs of the heads, in pixels of the prepared image."""
PYRAMID = 256
"""Number of channels of the pyramid."""
PRIOR = 0.01
"""Initial class probability."""

OutputsT = TypeVar("OutputsT", bound="Outputs")


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Outputs of the network for B images.

    Attributes:
        categories: logits (B, C, S, S) of each level.
    """

    categories: tuple[Tensor, ...]


class SOLONetwork(nn.Module, ABC):
    """Backbone, pyramid and category branch.

    Args:
        depth: depth of the ResNet.
        classes: number C of classes.
        convs: number of convolutions of the category branch before the last one.
        width: number of channels of the category branch.
        deformable: whether the last three stages of the backbone and the last convolution of the
            branch are deformable.
    """

    def __init__(
        self, depth: int, classes: int, convs: int, width: int, *, deformable: bool = False
    ) -> None:
        super().__init__()
        self.backbone = ResNet(depth)
        if deformable:
            _make_deformable(self.backbone)
        self.fpn = FeaturePyramidNetwork(
            list(self.backbone.channels), PYRAMID, extra_blocks=LastLevelMaxPool()
        )
        self.category_tower = tower(PYRAMID, width, convs, deformable=deformable)
        self.category = nn.Conv2d(width, classes, 3, padding=1)

    @abstractmethod
    def masks(
        self, outputs: Outputs, image: int, level: int, cells: Tensor, size: Size | None = None
    ) -> Tensor:
        """Compute the masks of selected cells.

        Args:
            outputs: outputs of a batch.
            image: index in the batch.
            level: index of the level, 0 to 4.
            cells: int64 (K,), cell indices, row by row.
            size: (height, width) of the masks; None is the size used in training.

        Returns:
            Probabilities (K, height, width) that cover the padded image.
        """

    @abstractmethod
    def mask_stride(self, level: int) -> int:
        """Return the stride of the training masks of a level, in pixels of the image."""

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Compute P2 to P6, strides 4 to 64, each (B, 256, h, w)."""
        maps = self.backbone(images)
        return list(self.fpn({str(n): each for n, each in enumerate(maps)}).values())

    def category_logits(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return logits (B, C, S, S) of each level, from maps (B, 256, S, S)."""
        return tuple(self.category(self.category_tower(each)) for each in inputs)

    def initialize_heads(self, *heads: nn.Module) -> None:
        """Initialize the heads as the authors do: small weights and a low class probability."""
        for part in (self.category_tower, self.category, *heads):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.01)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        nn.init.constant_(self.category.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]


class ConvNorm(nn.Module):
    """3 x 3 or 1 x 1 convolution without bias, group norm and ReLU."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 3, *, deformable: bool = False
    ) -> None:
        super().__init__()
        self.conv = (
            DeformableConv2d(channels_in, channels_out)
            if deformable
            else nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        )
        self.norm = nn.GroupNorm(32, channels_out)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(features)))


def tower(channels: int, width: int, convs: int, *, deformable: bool = False) -> nn.Sequential:
    """Return ``convs`` convolutions; the last one may be deformable."""
    return nn.Sequential(
        *(
            ConvNorm(width if n else channels, width, deformable=deformable and n == convs - 1)
            for n in range(convs)
        )
    )


def head_levels(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """Resize the pyramid for the heads: P2 to half its size, P6 to the size of P5."""
    p2, p3, p4, p5, p6 = pyramid
    return [
        interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False),
        p3,
        p4,
        p5,
        resize(p6, (p5.shape[2], p5.shape[3])),
    ]


def with_coordinates(features: Tensor) -> Tensor:
    """Append the coordinates x and y, -1 to 1: (B, K, h, w) to (B, K + 2, h, w)."""
    batch, _, height, width = features.shape
    x = torch.linspace(-1, 1, width, device=features.device, dtype=features.dtype)
    y = torch.linspace(-1, 1, height, device=features.device, dtype=features.dtype)
    x = x.expand(batch, 1, height, width)
    y = y[:, None].expand(batch, 1, height, width)
    return torch.cat([features, x, y], dim=1)


def resize(features: Tensor, size: Size) -> Tensor:
    """Resize bilinearly: (B, K, h, w) to (B, K, *size)."""
    return interpolate(features, size, mode="bilinear", align_corners=False)


def upsample(features: Tensor) -> Tensor:
    """Double the height and the width."""
    return resize(features, (2 * features.shape[2], 2 * features.shape[3]))


def match_offsets(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rebuild the offset layers of deformable convolutions to match a state dict.

    They have 18 channels, or 27 with modulation. A missing bias is zero.

    Returns:
        ``state`` with the added biases.
    """
    biases = {}
    for name, module in network.named_modules():
        weight = state.get(f"{name}.offset.weight")
        if isinstance(module, DeformableConv2d) and weight is not None and len(weight) in (18, 27):
            module.offset = nn.Conv2d(
                module.in_channels,
                len(weight),
                3,
                module.stride[0],
                padding=1,
                device=module.weight.device,
            )
            biases[f"{name}.offset.bias"] = weight.new_zeros(len(weight))
    return {**biases, **state}


def _make_deformable(backbone: ResNet) -> None:
    for stage in (3, 4, 5):
        for block in backbone.blocks(stage):
            conv = block.conv2
            assert isinstance(conv, nn.Conv2d)
            block.conv2 = DeformableConv2d(
                conv.in_channels, conv.out_channels, stride=conv.stride[0]
            )
