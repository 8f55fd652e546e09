"""Models: what one is (``base``), one file a family, what they share, and the catalogue."""

from streamseg.models.catalogue import CATALOGUE, Entry, load_model

__all__ = ["CATALOGUE", "Entry", "load_model"]
