"""SOLO and SOLOv2: instance segmentation by the locations of object centers, without boxes."""

from streamseg.models.solo.v1 import SOLO
from streamseg.models.solo.v2 import SOLOv2

__all__ = ["SOLO", "SOLOv2"]
