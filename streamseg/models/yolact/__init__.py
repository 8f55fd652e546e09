"""YOLACT and YOLACT++: an object's mask is a mixture of prototypes that all objects share."""

from streamseg.models.yolact.segmenter import YOLACT

__all__ = ["YOLACT"]
