"""nanomask: instance segmentation in real time on a CPU, and how it is trained."""

from streamseg.models.nanomask.segmenter import NanoMask

__all__ = ["NanoMask"]
