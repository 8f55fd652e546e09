"""SOLO: each grid cell has a mask map for the object whose center is in it.

Wang et al., "SOLO: Segmenting Objects by Locations", 2019. In the decoupled variant (section 3.3.3
of the journal version) the mask of a cell is the product of a map of its column and a map of its
row: 2 S maps instead of S x S.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from streamseg.models.categories import Categories
from streamseg.models.solo.network import (
    GRIDS,
    PYRAMID,
    STRIDES,
    Outputs,
    SOLONetwork,
    head_levels,
    resize,
    tower,
    upsample,
    with_coordinates,
)
from streamseg.models.solo.segmenter import LARGE, SMALL_DEFORMABLE, Scales, SOLOSegmenter
from streamseg.structures.masks import Size


@dataclass(frozen=True, slots=True, eq=False)
class TowerOutputs(Outputs):
    """Outputs of SOLO for B images.

    Attributes:
        towers: features of the mask branch, (B, 256, 2 h, 2 w) for each level of h x w.
    """

    towers: tuple[Tensor, ...]


class SOLONet(SOLONetwork):
    """Network with a mask map for each cell; only maps of selected cells are computed (of 3,872).

    Args:
        depth: depth of the ResNet.
        classes: number C of classes.
        convs: number of convolutions of each branch before the last one.
    """

    def __init__(self, depth: int, classes: int, convs: int) -> None:
        super().__init__(depth, classes, convs, PYRAMID)
        self.mask_tower = tower(PYRAMID + 2, PYRAMID, convs)
        self.add_map_layers()

    def add_map_layers(self) -> None:
        """Add the output layers of the mask branch."""
        self.maps = nn.ModuleList(nn.Conv2d(PYRAMID, grid**2, 1) for grid in GRIDS)
        self.initialize_heads(self.mask_tower, self.maps)

    def forward(self, images: Tensor) -> TowerOutputs:
        """Compute :class:`TowerOutputs` of images (B, 3, H, W)."""
        levels = head_levels(self.pyramid(images))
        return TowerOutputs(
            self.category_logits(
                [resize(each, (grid, grid)) for each, grid in zip(levels, GRIDS, strict=True)]
            ),
            tuple(upsample(self.mask_tower(with_coordinates(each))) for each in levels),
        )

    def masks(
        self, outputs: Outputs, image: int, level: int, cells: Tensor, size: Size | None = None
    ) -> Tensor:
        """See :meth:`SOLONetwork.masks`."""
        assert isinstance(outputs, TowerOutputs)
        features = outputs.towers[level][image : image + 1]
        return self.cell_maps(features, level, cells, size)

    def cell_maps(self, features: Tensor, level: int, cells: Tensor, size: Size | None) -> Tensor:
        """Return probabilities (K, h, w) of ``cells`` from features (1, 256, h, w)."""
        return _probabilities(self.maps[level], features, cells, size)  # type: ignore[arg-type]

    def mask_stride(self, level: int) -> int:
        return STRIDES[level] // 2


class DecoupledSOLONet(SOLONet):
    """Network with a mask map for each column and each row of a grid."""

    def add_map_layers(self) -> None:
        self.columns = nn.ModuleList(nn.Conv2d(PYRAMID, grid, 3, padding=1) for grid in GRIDS)
        self.rows = nn.ModuleList(nn.Conv2d(PYRAMID, grid, 3, padding=1) for grid in GRIDS)
        self.initialize_heads(self.mask_tower, self.columns, self.rows)

    def cell_maps(self, features: Tensor, level: int, cells: Tensor, size: Size | None) -> Tensor:
        x, x_of = torch.unique(cells % GRIDS[level], return_inverse=True)
        y, y_of = torch.unique(cells // GRIDS[level], return_inverse=True)
        columns = _probabilities(self.columns[level], features, x, size)  # type: ignore[arg-type]
        rows = _probabilities(self.rows[level], features, y, size)  # type: ignore[arg-type]
        return columns[x_of] * rows[y_of]


class SOLO(SOLOSegmenter):
    """SOLO. ``input_size`` is the length of the resized short side."""

    @classmethod
    def build(cls, name: str, categories: Categories) -> SOLONet:
        classes = len(categories.things)
        if name == "decoupled_solo_light_r50":
            return DecoupledSOLONet(50, classes, 4)
        return SOLONet(50, classes, 7)

    @classmethod
    def scales(cls, name: str) -> Scales:
        return SMALL_DEFORMABLE if name == "decoupled_solo_light_r50" else LARGE


def _probabilities(
    layer: nn.Conv2d, features: Tensor, outputs: Tensor, size: Size | None
) -> Tensor:
    """Compute selected output channels of a layer as probabilities (N, h, w), or of ``size``."""
    # The dtype of the features under autocast depends on the device (group norm).
    weight = layer.weight[outputs].to(features.dtype)
    bias = None if layer.bias is None else layer.bias[outputs].to(features.dtype)
    logits = conv2d(features, weight, bias, padding=layer.padding)
    probabilities = logits.float().sigmoid()
    if size is not None and tuple(probabilities.shape[2:]) != size:
        probabilities = resize(probabilities, size)
    return probabilities[0]
