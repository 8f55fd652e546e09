"""Panoptic FPN: instances and stuff in one network."""
