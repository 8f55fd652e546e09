"""Panoptic FPN: instances and stuff in one network."""

from streamseg.models.panoptic_fpn.segmenter import PanopticFPN

__all__ = ["PanopticFPN"]
