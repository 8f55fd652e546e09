"""DarkNet-53, the backbone of YOLOv3 (Redmon and Farhadi, 2018, section 2.4)."""

from __future__ import annotations

from torch import Tensor, nn

_REPEATS = (1, 2, 8, 8, 4)


class DarkNet53(nn.Module):
    """DarkNet-53 without its classifier."""

    channels: tuple[int, ...] = (128, 256, 512, 1024)

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 32, 3)
        self.stages = nn.ModuleList(
            nn.Sequential(
                _conv(32 << stage, 64 << stage, 3, stride=2),
                *(_Block(64 << stage) for _ in range(repeats)),
            )
            for stage, repeats in enumerate(_REPEATS)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return C2 to C5, strides 4, 8, 16 and 32, for images (B, 3, H, W)."""
        features, maps = self.stem(images), []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        _, c2, c3, c4, c5 = maps
        return c2, c3, c4, c5


class _Block(nn.Module):
    """Residual block: 1 x 1 to half the channels, 3 x 3 back; no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels // 2, 1)
        self.conv2 = _conv(channels // 2, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = features + self.conv2(self.conv1(features))
        return added


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.LeakyReLU(0.1, inplace=True),
    )
