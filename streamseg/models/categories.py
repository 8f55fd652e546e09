"""The category ids and names of the datasets that models are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

_BY_OUTPUT = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]

COCO: Mapping[int, str] = MappingProxyType(
    {
        category_id: name
        for category_id, name in enumerate(_BY_OUTPUT)
        if name not in ("__background__", "N/A")
    }
)
"""COCO's 80 categories by the dataset's own ids, which run from 1 to 90 with holes.

The order is that of the ids; a model of 80 contiguous outputs has its outputs in this order.
"""
