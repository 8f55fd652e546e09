"""Mask R-CNN as torchvision builds it."""

from streamseg.models.mask_rcnn.segmenter import MaskRCNN

__all__ = ["MaskRCNN"]
