"""Session of one browser: its visible sources, and the messages that wait to be sent to it.

For each source and browser, only the newest frame waits, and at most ``MAX_UNACKNOWLEDGED`` frames
are sent before the browser acknowledges one. A slow browser or network therefore loses frames of
its own and does not delay other browsers. The memory per source is one frame
(``protocol.MAX_JSON_BYTES`` + ``protocol.MAX_JPEG_BYTES``), shared by all browsers, and one frame
in the socket of each browser.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from streamseg.viewer.dashboard_state import MAX_DISPLAYED_SOURCES

MAX_UNACKNOWLEDGED = 3
"""Maximum number of unacknowledged frames per source, for 30 fps at a round trip of 100 ms."""
MAX_MESSAGE_BYTES = 8 * 1024
"""Maximum size of a message from a browser: ``MAX_DISPLAYED_SOURCES`` names fit."""

Name: TypeAlias = Annotated[str, Meta(max_length=64)]


class VisibleSources(
    msgspec.Struct, frozen=True, tag="look", tag_field="kind", forbid_unknown_fields=True
):
    """Request of a browser to receive frames of these sources, and of no others."""

    sources: Annotated[list[Name], Meta(max_length=MAX_DISPLAYED_SOURCES)]


class Acknowledgement(
    msgspec.Struct, frozen=True, tag="seen", tag_field="kind", forbid_unknown_fields=True
):
    """Notice of a browser that a frame of this source was drawn, or skipped for a newer one."""

    source: Name


class Ping(msgspec.Struct, frozen=True, tag="ping", tag_field="kind", forbid_unknown_fields=True):
    """Ping of a browser, which measures the round-trip time; ``at`` is returned unchanged."""

    at: float


class Pong(msgspec.Struct, frozen=True, tag="pong", tag_field="kind"):
    """Answer to a ``Ping``."""

    at: float


BrowserMessage: TypeAlias = VisibleSources | Acknowledgement | Ping
_decoder = msgspec.json.Decoder(BrowserMessage)


class BrowserSession:
    """Session of one browser; not thread-safe, used by the thread of the event loop only.

    Attributes:
        visible_sources: names of the sources whose frames are sent to the browser.
    """

    def __init__(self) -> None:
        self.visible_sources: frozenset[str] = frozenset()
        self._texts: dict[str, str] = {}
        self._frames: OrderedDict[str, bytes] = OrderedDict()
        self._unacknowledged: Counter[str] = Counter()
        self._changed = asyncio.Event()

    def process_message(self, text: str) -> None:
        """Process a message from the browser.

        Raises:
            msgspec.DecodeError: the message is not a ``BrowserMessage``.
        """
        message = _decoder.decode(text)
        if isinstance(message, VisibleSources):
            self.visible_sources = frozenset(message.sources)
            for source in self._frames.keys() - self.visible_sources:
                del self._frames[source]
        elif isinstance(message, Acknowledgement):
            if self._unacknowledged[message.source] <= 1:
                del self._unacknowledged[message.source]
            else:
                self._unacknowledged[message.source] -= 1
            self._changed.set()
        else:
            self.queue_text("pong", msgspec.json.encode(Pong(message.at)).decode())

    def queue_text(self, kind: str, text: str) -> None:
        """Queue a text; it replaces a waiting text of the same kind."""
        self._texts[kind] = text
        self._changed.set()

    def queue_frame(self, source: str, frame: bytes) -> None:
        """Queue a frame if the source is visible; it replaces a waiting frame of the source."""
        if source in self.visible_sources:
            self._frames[source] = frame
            self._changed.set()

    async def next_message(self) -> str | bytes:
        """Wait for the next message to send: texts first, then frames of the sources in turn."""
        while (message := self.pop_message()) is None:
            self._changed.clear()
            await self._changed.wait()
        return message

    def pop_message(self) -> str | bytes | None:
        """Remove and return the next message, or None if none may be sent."""
        if self._texts:
            return self._texts.pop(next(iter(self._texts)))
        for source in self._frames:
            if self._unacknowledged[source] < MAX_UNACKNOWLEDGED:
                self._unacknowledged[source] += 1
                return self._frames.pop(source)
        return None
