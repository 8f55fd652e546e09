"""Mask R-CNN as detectron2 builds it."""

from streamseg.models.mask_rcnn_d2.segmenter import MaskRCNND2

__all__ = ["MaskRCNND2"]
