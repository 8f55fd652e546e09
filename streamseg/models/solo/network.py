"""What the networks of SOLO and SOLOv2 share: trunk, pyramid, grids and the category branch.

Wang et al., "SOLO: Segmenting Objects by Locations", 2019; "SOLOv2: Dynamic and Fast Instance
Segmentation", 2020. Each of five levels of the pyramid is divided into a grid; the cell that an
object's centre falls into says its class, and its mask is one of that cell.
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
"""Cells along each side, by level."""
STRIDES = (8, 8, 16, 32, 32)
"""Of the levels as the heads see them, pixels of the prepared image."""
PYRAMID = 256
"""Channels of the pyramid."""
PRIOR = 0.01
"""What a class's probability begins with."""

OutputsT = TypeVar("OutputsT", bound="Outputs")


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What the network says of B images.

    Attributes:
        categories: logits (B, C, S, S), one a level.
    """

    categories: tuple[Tensor, ...]


class SOLONetwork(nn.Module, ABC):
    """Trunk, pyramid and category branch.

    Args:
        depth: of the ResNet.
        classes: C.
        convs: of the category branch, before the last one.
        width: channels of the category branch.
        deformable: whether the trunk's last three stages and the branch's last convolution are.
    """

    def __init__(
        self, depth: int, classes: int, convs: int, width: int, *, deformable: bool = False
    ) -> None:
        super().__init__()
        self.backbone = ResNet(depth)
        if deformable:
            _deform(self.backbone)
        self.fpn = FeaturePyramidNetwork(
            list(self.backbone.channels), PYRAMID, extra_blocks=LastLevelMaxPool()
        )
        self.category_tower = tower(PYRAMID, width, convs, deformable=deformable)
        self.category = nn.Conv2d(width, classes, 3, padding=1)

    @abstractmethod
    def masks(
        self, outputs: Outputs, image: int, level: int, cells: Tensor, size: Size | None = None
    ) -> Tensor:
        """The masks of some cells.

        Args:
            outputs: of a batch.
            image: which of the batch.
            level: which of the five.
            cells: int64 (K,), row by row.
            size: (height, width) of the masks; None is what they are learnt at.

        Returns:
            Probabilities (K, height, width) of what the image is padded to.
        """

    @abstractmethod
    def mask_stride(self, level: int) -> int:
        """Pixels of the image for one of the masks that a level learns."""

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """P2 to P6, strides 4 to 64, each (B, 256, h, w)."""
        maps = self.backbone(images)
        return list(self.fpn({str(n): each for n, each in enumerate(maps)}).values())

    def categorise(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Logits (B, C, S, S) of each level, from maps (B, 256, S, S)."""
        return tuple(self.category(self.category_tower(each)) for each in inputs)

    def initialise_heads(self, *trained: nn.Module) -> None:
        """Small weights, and classes that are rare, as the authors begin with."""
        for part in (self.category_tower, self.category, *trained):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.01)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        nn.init.constant_(self.category.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]


class ConvNorm(nn.Module):
    """A 3 x 3 or 1 x 1 convolution without bias, group norm, ReLU."""

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
    """``convs`` convolutions, of which the last is deformable if wanted."""
    return nn.Sequential(
        *(
            ConvNorm(width if n else channels, width, deformable=deformable and n == convs - 1)
            for n in range(convs)
        )
    )


def head_levels(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """The pyramid as the heads see it: P2 halved, P6 as large as P5."""
    p2, p3, p4, p5, p6 = pyramid
    return [
        interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False),
        p3,
        p4,
        p5,
        resized(p6, (p5.shape[2], p5.shape[3])),
    ]


def with_coordinates(features: Tensor) -> Tensor:
    """(B, K, h, w) to (B, K + 2, h, w): x, then y, from -1 to 1 at the borders' cells."""
    batch, _, height, width = features.shape
    x = torch.linspace(-1, 1, width, device=features.device, dtype=features.dtype)
    y = torch.linspace(-1, 1, height, device=features.device, dtype=features.dtype)
    x = x.expand(batch, 1, height, width)
    y = y[:, None].expand(batch, 1, height, width)
    return torch.cat([features, x, y], dim=1)


def resized(features: Tensor, size: Size) -> Tensor:
    """(B, K, h, w) to (B, K, *size), bilinear."""
    return interpolate(features, size, mode="bilinear", align_corners=False)


def enlarged(features: Tensor) -> Tensor:
    """Twice as high and wide."""
    return resized(features, (2 * features.shape[2], 2 * features.shape[3]))


def fit_offsets(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give deformable convolutions the offsets that a file has for them.

    These are 18, or 27 with weights. Where a file has no bias for them, it is zero.

    Returns:
        ``state`` with these biases.
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


def _deform(backbone: ResNet) -> None:
    for stage in (3, 4, 5):
        for block in backbone.blocks(stage):
            conv = block.conv2
            assert isinstance(conv, nn.Conv2d)
            block.conv2 = DeformableConv2d(
                conv.in_channels, conv.out_channels, stride=conv.stride[0]
            )
