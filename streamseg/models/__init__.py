"""Models: what one is (``base``), one file a family, what they share, and the catalogue."""

from streamseg.models.loading import load_model
from streamseg.models.registry import REGISTRY, ModelInfo, PublishedWeights

__all__ = ["REGISTRY", "ModelInfo", "PublishedWeights", "load_model"]
