"""SOLOv2: each grid cell predicts a convolution kernel, which gives its mask from shared features.

Wang et al., "SOLOv2: Dynamic and Fast Instance Segmentation", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from streamseg.models.categories import Categories
from streamseg.models.solo.network import (
    GRIDS,
    PYRAMID,
    ConvNorm,
    Outputs,
    SOLONetwork,
    head_levels,
    resize,
    tower,
    upsample,
    with_coordinates,
)
from streamseg.models.solo.segmenter import LARGE, SMALL, SMALL_DEFORMABLE, Scales, SOLOSegmenter
from streamseg.structures.masks import Size

FEATURES = 128
"""Number of channels of the mask features before the last convolution."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Architecture of a model of the family.

    Attributes:
        depth: depth of the ResNet.
        convs: number of convolutions of each branch before the last one.
        width: number of channels of the branches.
        kernel: number of channels of the mask features and of a kernel.
        scales: image and object sizes.
        deformable: whether convolutions are deformable, see :class:`SOLONetwork`.
    """

    depth: int
    convs: int
    width: int
    kernel: int
    scales: Scales
    deformable: bool = False


_VARIANTS = {
    "solov2_r50": Variant(50, 4, 512, 256, LARGE),
    "solov2_light_r18": Variant(18, 2, 256, 128, SMALL),
    "solov2_light_r34": Variant(34, 2, 256, 128, SMALL),
    "solov2_light_r50": Variant(50, 2, 256, 128, SMALL),
    "solov2_light_r50_dcn": Variant(50, 3, 256, 128, SMALL_DEFORMABLE, deformable=True),
}


@dataclass(frozen=True, slots=True, eq=False)
class DynamicOutputs(Outputs):
    """Outputs of SOLOv2 for B images.

    Attributes:
        kernels: (B, E, S, S) for each level.
        features: mask features (B, E, H / 4, W / 4).
    """

    kernels: tuple[Tensor, ...]
    features: Tensor


class SOLOv2Net(SOLONetwork):
    """Network with dynamic mask kernels.

    Args:
        variant: architecture.
        classes: number C of classes.
    """

    def __init__(self, variant: Variant, classes: int) -> None:
        deformable = variant.deformable
        super().__init__(
            variant.depth, classes, variant.convs, variant.width, deformable=deformable
        )
        self.kernel_tower = tower(PYRAMID + 2, variant.width, variant.convs, deformable=deformable)
        self.kernel = nn.Conv2d(variant.width, variant.kernel, 3, padding=1)
        self.features = MaskFeatures(variant.kernel)
        self.initialize_heads(self.kernel_tower, self.kernel, self.features)

    def forward(self, images: Tensor) -> DynamicOutputs:
        """Compute :class:`DynamicOutputs` of images (B, 3, H, W)."""
        pyramid = self.pyramid(images)
        cells = [
            resize(with_coordinates(level), (grid, grid))
            for level, grid in zip(head_levels(pyramid), GRIDS, strict=True)
        ]
        return DynamicOutputs(
            self.category_logits([each[:, :-2] for each in cells]),
            tuple(self.kernel(self.kernel_tower(each)) for each in cells),
            self.features(pyramid[:4]),
        )

    def masks(
        self, outputs: Outputs, image: int, level: int, cells: Tensor, size: Size | None = None
    ) -> Tensor:
        """See :meth:`SOLONetwork.masks`; the masks always have the size of the features."""
        del size
        assert isinstance(outputs, DynamicOutputs)
        kernels = outputs.kernels[level][image].flatten(1).T[cells]  # (K, E)
        features = outputs.features[image : image + 1]
        # Under autocast on a GPU, group norm gives fp32 and the kernels are not: align the dtypes.
        logits = conv2d(features, kernels[:, :, None, None].to(features.dtype))
        return logits[0].float().sigmoid()

    def mask_stride(self, level: int) -> int:
        del level
        return 4


class MaskFeatures(nn.Module):
    """Mask features from P2 to P5, resized to one size and summed.

    Args:
        channels: number E of output channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_branch(level) for level in range(4))
        self.out = ConvNorm(FEATURES, channels, 1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Return non-negative features (B, E, H / 4, W / 4)."""
        p2, p3, p4, p5 = pyramid
        maps = (p2, p3, p4, with_coordinates(p5))
        branches = [level(each) for level, each in zip(self.levels, maps, strict=True)]
        out: Tensor = self.out(reduce(torch.add, branches))
        return out


class _UpsamplingConvNorm(ConvNorm):
    """ConvNorm followed by upsampling by two."""

    def forward(self, features: Tensor) -> Tensor:
        return upsample(super().forward(features))


def _branch(level: int) -> nn.Sequential:
    """Return the layers that resize P2 (0), P3 (1), P4 (2) or P5 (3) to the size of P2."""
    if level == 0:
        return nn.Sequential(ConvNorm(PYRAMID, FEATURES))
    first = PYRAMID + 2 if level == 3 else PYRAMID
    return nn.Sequential(
        *(_UpsamplingConvNorm(FEATURES if n else first, FEATURES) for n in range(level))
    )


class SOLOv2(SOLOSegmenter):
    """SOLOv2. ``input_size`` is the length of the resized short side."""

    @classmethod
    def build(cls, name: str, categories: Categories) -> SOLOv2Net:
        return SOLOv2Net(_VARIANTS[name], len(categories.things))

    @classmethod
    def scales(cls, name: str) -> Scales:
        return _VARIANTS[name].scales
