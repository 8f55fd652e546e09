"""Bundled files: the example clip, and weights with their model cards."""

from importlib.resources import files

CLIP = files("streamseg") / "assets" / "street.mp4"
"""Recording of a street, 201 frames at 1280 x 720, that the demo and the benchmarks use."""
