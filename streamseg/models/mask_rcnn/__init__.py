"""Mask R-CNN as torchvision builds it."""
