"""YOLACT and YOLACT++: masks as linear combinations of prototypes."""

from streamseg.models.yolact.segmenter import YOLACT

__all__ = ["YOLACT"]
