"""Service check: images are returned only if they come from the service that publishes the masks.

The address of the images is taken from the service's status messages. Behind a tunnel or a port
mapping, another service may answer at that address.
"""

from __future__ import annotations

import time
from collections import deque

from streamseg.client.received import Received
from streamseg.protocol.messages import StatusMessage

MAX_BUFFERED_IMAGES = 8
"""Maximum number of images buffered until the id of the service that sends the masks is known."""
MAX_BUFFERED_STATUSES = 1024
"""Maximum number of sources whose latest status is buffered until that id is known."""
ANSWER_TIMEOUT = 2.0
"""Time to wait for that id, in seconds, before images from an explicit address are accepted."""
MAX_KNOWN_SERVICES = 8
"""Maximum number of remembered ids: images sent before a restart of the service may arrive late."""


class ServiceCheck:
    """Compares the service ids of the images' socket with that of the masks' socket.

    Attributes:
        other: id of another service found at the address of the images, or None.
    """

    def __init__(self) -> None:
        self.other: str | None = None
        self._known: deque[str] = deque(maxlen=MAX_KNOWN_SERVICES)
        self._images: deque[Received] = deque(maxlen=MAX_BUFFERED_IMAGES)
        self._statuses: dict[str, StatusMessage] = {}
        self._held_since: float | None = None
        self._timed_out = False

    @property
    def service(self) -> str | None:
        """Id of the service that publishes the masks, or None while it is unknown."""
        return self._known[-1] if self._known else None

    def filter(self, message: Received | StatusMessage) -> list[Received | StatusMessage]:
        """Return the message if its service is known; otherwise buffer it and return nothing."""
        if message.service in self._known or (self._timed_out and not self._known):
            return [message]
        if self._held_since is None:
            self._held_since = time.monotonic()
        if isinstance(message, Received):
            self._images.append(message)
        elif message.source in self._statuses or len(self._statuses) < MAX_BUFFERED_STATUSES:
            self._statuses[message.source] = message
        return []

    def release_after_timeout(self) -> list[Received | StatusMessage]:
        """Return the buffered messages if no status of the masks' service arrived in time.

        The masks' address may be unreachable while the images' address was given explicitly.
        """
        since = self._held_since
        if self._known or since is None or time.monotonic() - since < ANSWER_TIMEOUT:
            return []
        self._timed_out = True
        return self._take_buffered()

    def set_service(self, service: str) -> tuple[list[Received | StatusMessage], int]:
        """Record the id of the masks' service, from one of its status messages.

        Args:
            service: id; a restarted service has a new one.

        Returns:
            The buffered messages of that service, and the number of discarded ones of others.
        """
        if service not in self._known:
            self._known.append(service)
        buffered = self._take_buffered()
        matching = [message for message in buffered if message.service == service]
        if matching:
            self.other = None
        elif buffered:
            self.other = buffered[-1].service
        return matching, len(buffered) - len(matching)

    def _take_buffered(self) -> list[Received | StatusMessage]:
        """Remove and return the buffered messages, images before the statuses that may end them."""
        buffered: list[Received | StatusMessage] = [*self._images, *self._statuses.values()]
        self._images.clear()
        self._statuses.clear()
        self._held_since = None
        return buffered
