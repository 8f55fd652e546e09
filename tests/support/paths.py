"""Paths of the repository, of the test data and of material that is not in it."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
MEDIA = TESTS / "media"
CLIP = ROOT / "streamseg" / "assets" / "street.mp4"
SHARED = ROOT.parent / "shared"
"""Datasets that must not be redistributed; tests that need them are skipped where it is absent."""
