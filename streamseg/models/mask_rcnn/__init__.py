"""Mask R-CNN with torchvision's architecture and weights."""

from streamseg.models.mask_rcnn.segmenter import MaskRCNN

__all__ = ["MaskRCNN"]
