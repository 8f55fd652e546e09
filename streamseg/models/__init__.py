"""Models: what one is (``base``), one file a family, what they share, and the catalogue."""

from streamseg.models.catalogue import CATALOGUE, Entry, Published
from streamseg.models.loading import load_model

__all__ = ["CATALOGUE", "Entry", "Published", "load_model"]
