"""Instance segmentation on video streams: every object's mask with a lasting identity.

What is here loads when it is first used: a consumer never needs torch, nor waits for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from streamseg.client import Received, Subscriber, connect
    from streamseg.errors import StreamsegError
    from streamseg.models import load_model
    from streamseg.structures.masks import Mask, Masks
    from streamseg.structures.results import Frame, Instances, Result
    from streamseg.tracking.tracker import Tracker

_HOMES = {
    "Frame": "structures",
    "Instances": "structures",
    "Mask": "structures",
    "Masks": "structures",
    "Received": "client",
    "Result": "structures",
    "StreamsegError": "errors",
    "Subscriber": "client",
    "Tracker": "tracking",
    "connect": "client",
    "load_model": "models",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes as long as all the rest

        return version("streamseg")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from streamseg.errors import needs_extra

    with needs_extra("server"):
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


__all__ = [
    "Frame",
    "Instances",
    "Mask",
    "Masks",
    "Received",
    "Result",
    "StreamsegError",
    "Subscriber",
    "Tracker",
    "__version__",
    "connect",
    "load_model",
]
