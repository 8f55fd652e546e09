"""Backbones: torchvision's ResNets, optionally with deformable convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34, resnet50, resnet101
from torchvision.ops import deform_conv2d

_CONSTRUCTORS: dict[int, Callable[..., Any]] = {
    18: resnet18,
    34: resnet34,
    50: resnet50,
    101: resnet101,
}


class ResNet(nn.Module):
    """ResNet without its classifier (He et al., "Deep Residual Learning", 2015).

    The stride of a bottleneck is in its 3 x 3 convolution. Parameters have torchvision's names.

    Args:
        depth: 18, 34, 50 or 101.

    Attributes:
        channels: numbers of channels of C2 to C5.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        resnet = _CONSTRUCTORS[depth](weights=None)
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.relu, self.maxpool = resnet.relu, resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4
        self.channels = tuple(width * (1 if depth < 50 else 4) for width in (64, 128, 256, 512))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return C2 to C5, strides 4, 8, 16 and 32, for images (B, 3, H, W)."""
        c2 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def blocks(self, stage: int) -> list[nn.Module]:
        """Return the residual blocks of the stage that outputs C2 (2), C3 (3), C4 (4) or C5 (5)."""
        return list(self.get_submodule(f"layer{stage - 1}").children())


class DeformableConv2d(nn.Conv2d):
    """3 x 3 deformable convolution.

    Dai et al., "Deformable Convolutional Networks", 2017; with ``modulated``, also a weight for
    each sampling point (Zhu et al., "Deformable ConvNets v2", 2018). The first 18 channels of the
    offsets are (dy, dx) of the nine sampling points, the last nine their weights before a sigmoid.

    Args:
        channels_in: number of input channels.
        channels_out: number of output channels.
        stride: stride of the convolution.
        modulated: whether sampling points have weights.
        bias: whether the convolution has a bias; the one of the offsets always does.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        stride: int = 1,
        modulated: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(channels_in, channels_out, 3, stride, 1, bias=bias)
        self.offset = nn.Conv2d(channels_in, 27 if modulated else 18, 3, stride, 1)
        nn.init.zeros_(self.offset.weight)  # starts as an ordinary convolution
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        offsets = self.offset(features).float()
        points, weights = offsets[:, :18], offsets[:, 18:]
        mask = weights.sigmoid() if weights.shape[1] else None
        # In fp32 also under autocast: points are fractions of a pixel, and CPUs support only fp32.
        with torch.autocast(features.device.type, enabled=False):
            return deform_conv2d(  # type: ignore[no-any-return]
                features.float(),
                points,
                self.weight,
                self.bias,
                self.stride,
                self.padding,
                mask=mask,
            )
