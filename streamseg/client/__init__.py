"""Client of a service: results in a ``for`` loop as they are published.

    with streamseg.connect("tcp://127.0.0.1:5555", sources=["gate"]) as results:
        for result in results:
            print(result.pts, result.instances.names)

``Session`` implements the protocol without sockets; ``Subscriber`` adds the sockets. Invalid
messages are counted and skipped. Messages lost to a disconnection or a slow reader are requested
again (replay).

Memory of a subscriber that doesn't read is bounded: the sockets queue ``MASKS_QUEUED`` or
``FRAMES_QUEUED`` messages with parts of at most ``protocol.MAX_JSON_BYTES`` and
``protocol.MAX_JPEG_BYTES`` (256 and 160 MiB; 1 and 3 MB with 20 instances in 1080p frames). While
messages are missing, up to ``MAX_BUFFERED_MESSAGES`` later ones are buffered, and as many of a
replay may be queued. With ``newest``, one message per topic is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from streamseg.client.received import Received
from streamseg.client.session import MAX_BUFFERED_MESSAGES, MAX_SOURCES
from streamseg.client.subscriber import FRAMES_QUEUED, MASKS_QUEUED, ImageKind, Subscriber
from streamseg.structures.masks import MAX_PIXELS

__all__ = [
    "FRAMES_QUEUED",
    "MASKS_QUEUED",
    "MAX_BUFFERED_MESSAGES",
    "MAX_SOURCES",
    "ImageKind",
    "Received",
    "Subscriber",
    "connect",
]


def connect(
    address: str,
    sources: Sequence[str] | None = None,
    *,
    frames: Literal[False] | ImageKind = False,
    newest: bool = False,
    replay: bool = True,
    server_key: str | Path | None = None,
    key_file: str | Path | None = None,
    timeout: float | None = None,
    frames_address: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Subscriber:
    """Subscribe to a service. Returns at once, even if the service isn't running yet.

    Args:
        address: endpoint of the masks and status messages, ``tcp://host:port`` or ``ipc://path``.
        sources: names of the sources to subscribe to; None subscribes to all.
        frames: also receive each frame as a JPEG, with overlays (``annotated``) or without
            (``plain``).
        newest: keep only the newest result of each source, for displays; by default every result
            is queued while there is room.
        replay: request lost results from the service and return them in order; later results are
            delayed for that by two seconds at most. Has no effect with ``frames`` or ``newest``.
        server_key: public key of the service, or the path of its ``.pub`` file.
        key_file: path of the subscriber's own ``.key`` file; required with ``server_key``.
        timeout: default time limit of ``receive`` and iteration in seconds; None waits forever.
        frames_address: endpoint of the images; None uses the one in the service's status messages.
        max_pixels: results of frames with more pixels are rejected.

    Raises:
        UsageError: an address, a source name or ``frames`` is invalid, or only one of
            ``server_key`` and ``key_file`` is given.
        KeyFileError: a key is invalid, or other users can read the secret key.
    """
    return Subscriber(
        address,
        sources,
        frames=frames,
        newest=newest,
        replay=replay,
        server_key=server_key,
        key_file=key_file,
        timeout=timeout,
        frames_address=frames_address,
        max_pixels=max_pixels,
    )
