"""Models: what one is (``base``), one file a family, what they share, and the catalogue."""

from streamseg.models.loading import load_model
from streamseg.models.registry import CATALOGUE, Entry, Published

__all__ = ["CATALOGUE", "Entry", "Published", "load_model"]
