"""Instance segmentation on video streams.

* ``load_model`` loads a model; its ``predict`` converts images to ``Instances``.
* ``Tracker`` adds track ids to the instances of a video.
* ``open_source`` opens a video, stream or camera; ``annotate`` draws instances on an image.
* ``serve`` runs a service that publishes results over ZeroMQ; ``connect`` subscribes to one.

The names are imported at first use: a subscriber neither needs nor loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from streamseg.client import Received, Subscriber, connect
    from streamseg.errors import StreamsegError
    from streamseg.models import load_model
    from streamseg.sources import open_source
    from streamseg.structures.masks import Mask, Masks
    from streamseg.structures.results import Frame, Instances, Result
    from streamseg.tracking.tracker import Tracker
    from streamseg.visualization import annotate

_PACKAGES = {
    "Frame": "structures",
    "Instances": "structures",
    "Mask": "structures",
    "Masks": "structures",
    "Received": "client",
    "Result": "structures",
    "StreamsegError": "errors",
    "Subscriber": "client",
    "Tracker": "tracking",
    "annotate": "visualization",
    "connect": "client",
    "load_model": "models",
    "open_source": "sources",
    "serve": "service",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slower than all other imports

        return version("streamseg")
    if name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from streamseg.errors import needs_extra

    with needs_extra("server"):
        return getattr(import_module(f"{__name__}.{_PACKAGES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
    "annotate",
    "connect",
    "load_model",
    "open_source",
    "serve",
]
