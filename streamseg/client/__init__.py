"""The subscriber: results of a service, as they are published, in a ``for`` loop.

    with streamseg.connect("tcp://127.0.0.1:5555", sources=["gate"]) as results:
        for result in results:
            print(result.pts, result.instances.names)

``Session`` knows the protocol and no sockets; ``Subscriber`` is the thin shell around it. Nothing
that arrives can crash it: what isn't a message of the protocol is counted and skipped. What was
missed, because the connection was gone or the reader slow, is asked for again.

What it keeps when nobody reads is bounded by libzmq: ``MASKS_QUEUED`` or ``FRAMES_QUEUED`` messages
of at most ``wire.MAX_JSON_BYTES`` and ``wire.MAX_JPEG_BYTES`` a part (256 and 160 MiB; 1 and 3 MB
with 20 instances in frames of 1080p). While something is missing, ``HELD`` messages are held back
besides, and as many of an answer may wait. With ``newest`` it is one message a topic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from streamseg.client.received import Received
from streamseg.client.session import HELD, MAX_SOURCES
from streamseg.client.subscriber import FRAMES_QUEUED, MASKS_QUEUED, Pictures, Subscriber
from streamseg.structures.masks import MAX_PIXELS

__all__ = [
    "FRAMES_QUEUED",
    "HELD",
    "MASKS_QUEUED",
    "MAX_SOURCES",
    "Pictures",
    "Received",
    "Subscriber",
    "connect",
]


def connect(
    address: str,
    sources: Sequence[str] | None = None,
    *,
    frames: Literal[False] | Pictures = False,
    newest: bool = False,
    replay: bool = True,
    server_key: str | Path | None = None,
    key_file: str | Path | None = None,
    timeout: float | None = None,
    frames_address: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Subscriber:
    """Subscribe to a service; returns at once, whether it is there yet or not.

    Args:
        address: of masks and status, ``tcp://host:port`` or ``ipc://path``.
        sources: names; None is all there are.
        frames: results come with the painted frame (``annotated``) or as it was (``plain``).
        newest: a slow reader gets the newest result of each source and none that is older, as one
            does who shows what is now; otherwise every result is kept that there is room for.
        replay: results missed are asked for and given before the newer ones, which wait for them,
            two seconds at most. There is none of pictures, and none with ``newest``.
        server_key: the service's public key, or the file it is in, where it has one.
        key_file: the file of our own secret, which goes with it.
        timeout: seconds that ``receive`` and iteration wait for a result; None is for ever.
        frames_address: of the pictures; None asks the service.
        max_pixels: of a frame; results of larger ones are rejected.

    Raises:
        UsageError: an address, a source's name or ``frames`` that can't be, or one of the two keys
            without the other.
        KeyFileError: what is named isn't a key, or others can read the secret.
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
