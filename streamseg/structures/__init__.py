"""Data structures of frames, masks and results."""

from streamseg.structures.masks import Mask, Masks
from streamseg.structures.results import Frame, Instances, Result, Segment

__all__ = ["Frame", "Instances", "Mask", "Masks", "Result", "Segment"]
