"""One browser that looks: what waits for it, and what it may say.

Newest wins, for each source and browser: what waits is one picture a source, and no more than
``UNSEEN`` are sent before the browser says that it has painted one. So a slow browser, or a slow
network, loses its own pictures and nobody else's, and what it shows is never old; what is held for
it is one message a source (at most ``wire.MAX_JSON_BYTES`` + ``wire.MAX_JPEG_BYTES``), shared with
the other browsers, and one message in its socket.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from streamseg.viewer.dashboard_state import SOURCES_SHOWN

UNSEEN = 3
"""Pictures of a source that are sent ahead: at 100 ms there and back, 30 a second still come."""
MAX_SAID = 8 * 1024
"""Bytes of a message from a browser: ``SOURCES_SHOWN`` names fit."""

Name: TypeAlias = Annotated[str, Meta(max_length=64)]


class Look(msgspec.Struct, frozen=True, tag="look", tag_field="kind", forbid_unknown_fields=True):
    """The browser shows these sources now, and no others: only they are sent to it."""

    sources: Annotated[list[Name], Meta(max_length=SOURCES_SHOWN)]


class Seen(msgspec.Struct, frozen=True, tag="seen", tag_field="kind", forbid_unknown_fields=True):
    """A picture of this source has been painted, or a newer one was there by then."""

    source: Name


class Ping(msgspec.Struct, frozen=True, tag="ping", tag_field="kind", forbid_unknown_fields=True):
    """The browser asks how long it takes there and back; its own number comes back."""

    at: float


class Pong(msgspec.Struct, frozen=True, tag="pong", tag_field="kind"):
    """The answer to a ``Ping``."""

    at: float


Said: TypeAlias = Look | Seen | Ping
_decoder = msgspec.json.Decoder(Said)


class Browser:
    """What waits for one browser. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self.looks_at: frozenset[str] = frozenset()
        self._texts: dict[str, str] = {}
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._unseen: Counter[str] = Counter()
        self._changed = asyncio.Event()

    def hear(self, text: str) -> None:
        """Take what the browser said.

        Raises:
            msgspec.DecodeError: it isn't anything that a browser may say.
        """
        said = _decoder.decode(text)
        if isinstance(said, Look):
            self._look(frozenset(said.sources))
        elif isinstance(said, Seen):
            self._see(said.source)
        else:
            self.tell("pong", msgspec.json.encode(Pong(said.at)).decode())

    def tell(self, kind: str, text: str) -> None:
        """Have a text sent; a later one of the same kind takes its place if it is still there."""
        self._texts[kind] = text
        self._changed.set()

    def offer(self, source: str, picture: bytes) -> None:
        """Have a picture sent, if the browser looks; a later one takes its place."""
        if source in self.looks_at:
            self._pictures[source] = picture
            self._changed.set()

    async def next(self) -> str | bytes:
        """What to send now: texts first, then the pictures of the sources in turn."""
        while (message := self._take()) is None:
            self._changed.clear()
            await self._changed.wait()
        return message

    def _look(self, sources: frozenset[str]) -> None:
        self.looks_at = sources
        for source in self._pictures.keys() - sources:
            del self._pictures[source]

    def _see(self, source: str) -> None:
        if self._unseen[source] <= 1:
            del self._unseen[source]
        else:
            self._unseen[source] -= 1
        self._changed.set()

    def _take(self) -> str | bytes | None:
        if self._texts:
            return self._texts.pop(next(iter(self._texts)))
        for source in self._pictures:
            if self._unseen[source] < UNSEEN:
                self._unseen[source] += 1
                return self._pictures.pop(source)
        return None
