"""Where each thing is said on an MQTT broker: the topics, whatever a class is called.

Names of classes come from weights files and may hold anything, while MQTT gives ``/``, ``+``, ``#``
and NUL a meaning. What can't stand in a topic is replaced there; payloads have the full name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

LONGEST_PART = 64
"""Characters of a class's name in a topic."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics below a prefix.

    Attributes:
        prefix: no other service on the broker may have it.
    """

    prefix: str

    @property
    def status(self) -> str:
        """Whether the service is there; retained."""
        return f"{self.prefix}/status"

    def state(self, source: str) -> str:
        """A source's state; retained."""
        return f"{self.prefix}/{source}/state"

    def count(self, source: str, part: str) -> str:
        """How many of a class are there; retained.

        Args:
            source: its name.
            part: what ``part_of`` made of the class's name.
        """
        return f"{self.prefix}/{source}/count/{part}"

    def event(self, source: str) -> str:
        """What comes and goes; not retained."""
        return f"{self.prefix}/{source}/event"


def part_of(name: str) -> str:
    """A class's name as a part of a topic: letters, digits, dots, dashes and underscores.

    A space becomes an underscore. Where something else was replaced or cut off, a digest of the
    name follows, so that different names stay different.
    """
    plain = name.replace(" ", "_")
    safe = re.sub(r"[^\w.-]", "_", plain)
    if safe and safe == plain and len(safe) <= LONGEST_PART:
        return safe
    return f"{safe[: LONGEST_PART - 7]}-{digest(name)}"


def identifier(text: str) -> str:
    """``text`` as Home Assistant takes identifiers: letters of ASCII, digits, dashes, underscores.

    Other texts give other identifiers.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    if safe and safe == text and len(safe) <= LONGEST_PART:
        return safe
    return f"{safe[: LONGEST_PART - 7]}_{digest(text)}"


def shown(name: str) -> str:
    """A class's name as JSON can hold it."""
    return name.encode("utf-8", "replace").decode()


def digest(text: str) -> str:
    """Six characters that other texts hardly have."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:6]
