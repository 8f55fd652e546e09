"""Layers shared by model families: backbones, losses, NMS, and masks inside their boxes."""
