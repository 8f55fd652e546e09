"""Multi-object tracking: identities of instances across frames."""

from streamseg.tracking.tracker import Tracker

__all__ = ["Tracker"]
