"""Mask R-CNN as detectron2 builds it."""
