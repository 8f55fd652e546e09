"""SOLO: each cell of a grid has a map of its own, for the mask of the object centred in it.

Wang et al., "SOLO: Segmenting Objects by Locations", 2019. In the decoupled variant (section 3.3.3
of the paper's journal version) a cell's mask is the product of a map of its column and one of its
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
    enlarged,
    head_levels,
    resized,
    tower,
    with_coordinates,
)
from streamseg.models.solo.segmenter import LARGE, SMALL_DEFORMABLE, Scales, SOLOSegmenter
from streamseg.structures.masks import Size


@dataclass(frozen=True, slots=True, eq=False)
class TowerOutputs(Outputs):
    """What SOLO says of B images.

    Attributes:
        towers: what maps are made from, (B, 256, 2 h, 2 w), one a level of h x w.
    """

    towers: tuple[Tensor, ...]


class SOLONet(SOLONetwork):
    """The network with a map for each cell.

    Only the maps of cells that are asked for are made: all of them would be 3,872.

    Args:
        depth: of the ResNet.
        classes: C.
        convs: of each branch, before the last one.
    """

    def __init__(self, depth: int, classes: int, convs: int) -> None:
        super().__init__(depth, classes, convs, PYRAMID)
        self.mask_tower = tower(PYRAMID + 2, PYRAMID, convs)
        self.add_maps()

    def add_maps(self) -> None:
        """Add the layers that maps are made with."""
        self.maps = nn.ModuleList(nn.Conv2d(PYRAMID, grid**2, 1) for grid in GRIDS)
        self.initialise_heads(self.mask_tower, self.maps)

    def forward(self, images: Tensor) -> TowerOutputs:
        """See :class:`TowerOutputs`, of images (B, 3, H, W)."""
        levels = head_levels(self.pyramid(images))
        return TowerOutputs(
            self.categorise(
                [resized(each, (grid, grid)) for each, grid in zip(levels, GRIDS, strict=True)]
            ),
            tuple(enlarged(self.mask_tower(with_coordinates(each))) for each in levels),
        )

    def masks(
        self, outputs: Outputs, image: int, level: int, cells: Tensor, size: Size | None = None
    ) -> Tensor:
        """See :meth:`SOLONetwork.masks`."""
        assert isinstance(outputs, TowerOutputs)
        features = outputs.towers[level][image : image + 1]
        return self.maps_of(features, level, cells, size)

    def maps_of(self, features: Tensor, level: int, cells: Tensor, size: Size | None) -> Tensor:
        """Probabilities (K, h, w) of ``cells``, from one image's (1, 256, h, w)."""
        return _probabilities(self.maps[level], features, cells, size)  # type: ignore[arg-type]

    def mask_stride(self, level: int) -> int:
        return STRIDES[level] // 2


class DecoupledSOLONet(SOLONet):
    """The network with a map for each column and each row of a grid."""

    def add_maps(self) -> None:
        self.columns = nn.ModuleList(nn.Conv2d(PYRAMID, grid, 3, padding=1) for grid in GRIDS)
        self.rows = nn.ModuleList(nn.Conv2d(PYRAMID, grid, 3, padding=1) for grid in GRIDS)
        self.initialise_heads(self.mask_tower, self.columns, self.rows)

    def maps_of(self, features: Tensor, level: int, cells: Tensor, size: Size | None) -> Tensor:
        x, x_of = torch.unique(cells % GRIDS[level], return_inverse=True)
        y, y_of = torch.unique(cells // GRIDS[level], return_inverse=True)
        columns = _probabilities(self.columns[level], features, x, size)  # type: ignore[arg-type]
        rows = _probabilities(self.rows[level], features, y, size)  # type: ignore[arg-type]
        return columns[x_of] * rows[y_of]


class SOLO(SOLOSegmenter):
    """SOLO. ``input_size`` is the short side that images are resized to."""

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
    """Some of a layer's outputs for (1, K, h, w), after a sigmoid, (N, h, w) or resized."""
    # Under autocast features are in fp32 or not, depending on where group norms are worked out.
    weight = layer.weight[outputs].to(features.dtype)
    bias = None if layer.bias is None else layer.bias[outputs].to(features.dtype)
    logits = conv2d(features, weight, bias, padding=layer.padding)
    probabilities = logits.float().sigmoid()
    if size is not None and tuple(probabilities.shape[2:]) != size:
        probabilities = resized(probabilities, size)
    return probabilities[0]
