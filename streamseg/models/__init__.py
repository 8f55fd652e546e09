"""Models: interface, registry, loading, shared layers, and one package per family."""

from streamseg.models.loading import load_model
from streamseg.models.registry import REGISTRY, ModelInfo, PublishedWeights

__all__ = ["REGISTRY", "ModelInfo", "PublishedWeights", "load_model"]
