"""Service check: pictures are given only if they are of the service that publishes the masks.

The address of the pictures is what the service says of itself. Through a tunnel or a port mapping
another service may be there.
"""

from __future__ import annotations

import time
from collections import deque

from streamseg.client.received import Received
from streamseg.protocol.messages import StatusMessage

HELD_PICTURES = 8
"""Pictures of an unknown service that wait until the masks' service has said who it is."""
HELD_STATUSES = 1024
"""Sources of an unknown service whose latest status waits likewise."""
ANSWER_WITHIN = 2.0
"""Time that the masks' service gets for that, in seconds, where the pictures' address was given."""
KNOWN_STARTS = 8
"""Ids of earlier starts of the service whose last pictures may still arrive."""


class ServiceCheck:
    """Messages from the address of the pictures, checked against the status at that of the masks.

    Attributes:
        other: id of another service that was found at the address of the pictures, or None.
    """

    def __init__(self) -> None:
        self.other: str | None = None
        self._known: deque[str] = deque(maxlen=KNOWN_STARTS)
        self._pictures: deque[Received] = deque(maxlen=HELD_PICTURES)
        self._statuses: dict[str, StatusMessage] = {}
        self._held_since: float | None = None
        self._is_silent = False

    @property
    def service(self) -> str | None:
        """Id of the service that publishes the masks, or None while it is unknown."""
        return self._known[-1] if self._known else None

    def pass_on(self, message: Received | StatusMessage) -> list[Received | StatusMessage]:
        """Return the messages that may be given now: this one, if its service is known."""
        if message.service in self._known or (self._is_silent and not self._known):
            return [message]
        if self._held_since is None:
            self._held_since = time.monotonic()
        if isinstance(message, Received):
            self._pictures.append(message)
        elif message.source in self._statuses or len(self._statuses) < HELD_STATUSES:
            self._statuses[message.source] = message
        return []

    def release(self) -> list[Received | StatusMessage]:
        """Return the held messages if the masks' service has not answered in time.

        Its address may not be reachable; who has given that of the pictures then gets them.
        """
        since = self._held_since
        if self._known or since is None or time.monotonic() - since < ANSWER_WITHIN:
            return []
        self._is_silent = True
        return self._take_held()

    def answer(self, service: str) -> tuple[list[Received | StatusMessage], int]:
        """Note a status of the masks' service.

        Args:
            service: its id; another one when it has been started again.

        Returns:
            The held messages that are its own, and the number of those that are not.
        """
        if service not in self._known:
            self._known.append(service)
        held = self._take_held()
        own = [message for message in held if message.service == service]
        if own:
            self.other = None
        elif held:
            self.other = held[-1].service
        return own, len(held) - len(own)

    def _take_held(self) -> list[Received | StatusMessage]:
        """Pictures first: a status may say that nothing comes after them."""
        held: list[Received | StatusMessage] = [*self._pictures, *self._statuses.values()]
        self._pictures.clear()
        self._statuses.clear()
        self._held_since = None
        return held
