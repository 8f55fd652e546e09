"""Category ids and names of the datasets that models are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights


@dataclass(frozen=True, slots=True)
class Categories:
    """Class names of a model by category id, in the order of its outputs.

    Attributes:
        things: classes of instances.
        stuff: classes of uncountable regions, such as sky; only panoptic models have any.
    """

    things: Mapping[int, str]
    stuff: Mapping[int, str] = field(default_factory=dict)


_BY_OUTPUT = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]

COCO: Mapping[int, str] = MappingProxyType(
    {
        category_id: name
        for category_id, name in enumerate(_BY_OUTPUT)
        if name not in ("__background__", "N/A")
    }
)
"""COCO's 80 categories by the ids of the dataset, which run from 1 to 90 with gaps.

The order is that of the ids; a model of 80 contiguous outputs has its outputs in this order.
"""

COCO_THINGS = Categories(COCO)
"""Categories of COCO instance segmentation."""

_STUFF: Mapping[int, str] = MappingProxyType(
    {
        92: "banner",
        93: "blanket",
        95: "bridge",
        100: "cardboard",
        107: "counter",
        109: "curtain",
        112: "door-stuff",
        118: "floor-wood",
        119: "flower",
        122: "fruit",
        125: "gravel",
        128: "house",
        130: "light",
        133: "mirror-stuff",
        138: "net",
        141: "pillow",
        144: "platform",
        145: "playingfield",
        147: "railroad",
        148: "river",
        149: "road",
        151: "roof",
        154: "sand",
        155: "sea",
        156: "shelf",
        159: "snow",
        161: "stairs",
        166: "tent",
        168: "towel",
        171: "wall-brick",
        175: "wall-stone",
        176: "wall-tile",
        177: "wall-wood",
        178: "water-other",
        180: "window-blind",
        181: "window-other",
        184: "tree-merged",
        185: "fence-merged",
        186: "ceiling-merged",
        187: "sky-other-merged",
        188: "cabinet-merged",
        189: "table-merged",
        190: "floor-other-merged",
        191: "pavement-merged",
        192: "mountain-merged",
        193: "grass-merged",
        194: "dirt-merged",
        195: "paper-merged",
        196: "food-other-merged",
        197: "building-other-merged",
        198: "rock-merged",
        199: "wall-other-merged",
        200: "rug-merged",
    }
)

COCO_PANOPTIC = Categories(COCO, _STUFF)
"""Categories of COCO panoptic segmentation: 80 things and 53 stuff classes, by their ids."""
