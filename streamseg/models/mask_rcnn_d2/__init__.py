"""Mask R-CNN with detectron2's architecture, for its checkpoints."""

from streamseg.models.mask_rcnn_d2.segmenter import MaskRCNND2

__all__ = ["MaskRCNND2"]
