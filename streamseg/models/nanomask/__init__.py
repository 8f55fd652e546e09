"""nanomask: the bundled model, real time on a CPU."""

from streamseg.models.nanomask.segmenter import NanoMask

__all__ = ["NanoMask"]
