"""SOLO and SOLOv2: objects told apart by where their centres are, without boxes."""

from streamseg.models.solo.v1 import SOLO
from streamseg.models.solo.v2 import SOLOv2

__all__ = ["SOLO", "SOLOv2"]
