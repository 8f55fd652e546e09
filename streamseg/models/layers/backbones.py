"""The trunks that families share: torchvision's ResNets, with deformable convolutions if wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34, resnet50, resnet101
from torchvision.ops import deform_conv2d

_MAKERS: dict[int, Callable[..., Any]] = {
    18: resnet18,
    34: resnet34,
    50: resnet50,
    101: resnet101,
}


class ResNet(nn.Module):
    """A ResNet without its classifier (He et al., "Deep Residual Learning", 2015).

    The stride of a bottleneck is in its 3 x 3 convolution. Parameters have torchvision's names.

    Args:
        depth: 18, 34, 50 or 101.

    Attributes:
        channels: of C2 to C5.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        whole = _MAKERS[depth](weights=None)
        self.conv1, self.bn1 = whole.conv1, whole.bn1
        self.relu, self.maxpool = whole.relu, whole.maxpool
        self.layer1, self.layer2 = whole.layer1, whole.layer2
        self.layer3, self.layer4 = whole.layer3, whole.layer4
        self.channels = tuple(width * (1 if depth < 50 else 4) for width in (64, 128, 256, 512))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """C2 to C5, strides 4, 8, 16, 32, of images (B, 3, H, W)."""
        c2 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def blocks(self, stage: int) -> list[nn.Module]:
        """The residual blocks of the stage that gives C2 (2), C3 (3), C4 (4) or C5 (5)."""
        return list(self.get_submodule(f"layer{stage - 1}").children())


class DeformableConv2d(nn.Conv2d):
    """A 3 x 3 convolution that says itself where it looks.

    Dai et al., "Deformable Convolutional Networks", 2017; with ``modulated``, each place has a
    weight, too (Zhu et al., "Deformable ConvNets v2", 2018). Of the offsets' channels the first 18
    are (dy, dx) of the nine places, the last nine their weights before a sigmoid.

    Args:
        channels_in: of the input.
        channels_out: of the output.
        stride: of the output's places.
        modulated: whether places have weights.
        bias: whether the convolution has a bias; that of the offsets always does.
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
        nn.init.zeros_(self.offset.weight)  # begins as an ordinary convolution
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        offsets = self.offset(features).float()
        places, weights = offsets[:, :18], offsets[:, 18:]
        mask = weights.sigmoid() if weights.shape[1] else None
        # In fp32 under autocast, too: a place is a fraction of a pixel, and CPUs have no other.
        with torch.autocast(features.device.type, enabled=False):
            return deform_conv2d(  # type: ignore[no-any-return]
                features.float(),
                places,
                self.weight,
                self.bias,
                self.stride,
                self.padding,
                mask=mask,
            )
