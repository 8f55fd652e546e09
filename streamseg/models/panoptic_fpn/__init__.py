"""Panoptic FPN with detectron2's architecture: instances and stuff in one network."""

from streamseg.models.panoptic_fpn.segmenter import PanopticFPN

__all__ = ["PanopticFPN"]
