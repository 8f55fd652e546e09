"""MQTT topics of a service, and valid topic levels for arbitrary class names.

Class names come from weights files and may contain anything, while ``/``, ``+``, ``#`` and NUL have
a meaning in topics. Invalid characters are replaced in topics; payloads contain the full name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

MAX_LEVEL_LENGTH = 64
"""Maximum length of a class name in a topic, in characters."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics of one service.

    Attributes:
        prefix: first levels of all topics; unique among the services of a broker.
    """

    prefix: str

    @property
    def status(self) -> str:
        """Topic of ``online`` or ``offline``; retained."""
        return f"{self.prefix}/status"

    def state(self, source: str) -> str:
        """Return the topic of the state of a source; retained."""
        return f"{self.prefix}/{source}/state"

    def count(self, source: str, level: str) -> str:
        """Return the topic of the number of present objects of a class; retained.

        Args:
            source: source name.
            level: topic level of the class, see ``topic_level``.
        """
        return f"{self.prefix}/{source}/count/{level}"

    def event(self, source: str) -> str:
        """Return the topic of appearing and disappearing objects; not retained."""
        return f"{self.prefix}/{source}/event"


def topic_level(name: str) -> str:
    """Convert a class name to a topic level of letters, digits, ``.``, ``-`` and ``_``.

    Spaces become underscores. If other characters are replaced or the name is truncated, a digest
    of the name is appended, so that different names have different levels.
    """
    without_spaces = name.replace(" ", "_")
    safe = re.sub(r"[^\w.-]", "_", without_spaces)
    if safe and safe == without_spaces and len(safe) <= MAX_LEVEL_LENGTH:
        return safe
    return f"{safe[: MAX_LEVEL_LENGTH - 7]}-{short_digest(name)}"


def identifier(text: str) -> str:
    """Convert text to a Home Assistant identifier of ASCII letters, digits, ``-`` and ``_``.

    Different texts give different identifiers.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    if safe and safe == text and len(safe) <= MAX_LEVEL_LENGTH:
        return safe
    return f"{safe[: MAX_LEVEL_LENGTH - 7]}_{short_digest(text)}"


def json_text(name: str) -> str:
    """Replace the characters of a class name that JSON can't contain (lone surrogates)."""
    return name.encode("utf-8", "replace").decode()


def short_digest(text: str) -> str:
    """Return the first six hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:6]
