"""Relay from a service to browsers: one subscription to masks, and one to plain images.

Masks are always subscribed to, for the numbers on the page. Images are subscribed to only while a
browser displays their source, because the service encodes images only for subscribers. An image
message contains the complete masks message of its frame. If no images arrive because the service
is slow to encode them, browsers receive the masks without an image.

After the service has ended or disappeared, the relay waits for it to return.
"""

from __future__ import annotations

import asyncio
import math
import struct
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from streamseg import protocol
from streamseg.client import Received, Subscriber
from streamseg.errors import ReceiveTimeout, RefusedError
from streamseg.viewer.browser_session import BrowserSession
from streamseg.viewer.dashboard_state import DashboardState
from streamseg.viewer.tasks import run_until_first_ends

POLL_INTERVAL = 0.1
"""Maximum wait for a message until statuses and visible sources are checked, in seconds."""
RECONNECT_DELAY = 1.0
"""Delay of a new connection after the service has ended, in seconds."""
IMAGE_TIMEOUT = 3.0
"""Minimum time without an image until masks are sent without one, in seconds."""
MAX_MASKS_WITHOUT_IMAGE = 3
"""Number of masks messages without an image that are also needed: the frame rate may be low."""

Connect: TypeAlias = Callable[[Sequence[str] | None, Literal[False, "plain"]], Subscriber]
"""Create a subscriber to sources (None for all), with plain images or without images."""


@dataclass(slots=True)
class _LatestImage:
    """Arrival of the latest image of a source, and number of masks messages since then."""

    at: float = -math.inf
    masks_since: int = 0

    def is_overdue(self, now: float) -> bool:
        """Return whether masks should be sent without an image."""
        if self.at == -math.inf:
            return True
        return now - self.at > IMAGE_TIMEOUT and self.masks_since > MAX_MASKS_WITHOUT_IMAGE


class Relay:
    """Relay from a service to browsers; used by the thread of the event loop only.

    Args:
        address: address of the service, for display.
        sources: source names; None for all.
        connect: creates the subscribers.
    """

    def __init__(self, address: str, sources: Sequence[str] | None, connect: Connect) -> None:
        self._sources = sources
        self._connect = connect
        self._dashboard = DashboardState(address)
        self._sessions: set[BrowserSession] = set()
        self._latest_images: dict[str, _LatestImage] = {}
        self._was_accepted = False

    async def run(self) -> None:
        """Relay messages until cancelled."""
        await run_until_first_ends(
            self._relay_masks(), self._relay_images(), self._send_dashboard_every_second()
        )

    @contextmanager
    def session(self) -> Iterator[BrowserSession]:
        """Register a browser for the duration of the context; the dashboard is sent at once."""
        session = BrowserSession()
        session.queue_text("board", self._dashboard_json())
        self._sessions.add(session)
        try:
            yield session
        finally:
            self._sessions.remove(session)

    @property
    def session_count(self) -> int:
        """Number of connected browsers."""
        return len(self._sessions)

    async def _relay_masks(self) -> None:
        while True:
            with self._connect(self._sources, False) as subscriber:
                await self._tolerate_refusal(self._read_masks(subscriber))
            await asyncio.sleep(RECONNECT_DELAY)

    async def _read_masks(self, subscriber: Subscriber) -> None:
        """Process masks and statuses until the service ends."""
        checked_at = -math.inf
        while not subscriber.ended:
            received = await _receive(subscriber)
            now = time.monotonic()
            if received is not None:
                self._dashboard.add(received, now, time.time())
                latest_image = self._latest_images.setdefault(received.source, _LatestImage())
                latest_image.masks_since += 1
                if latest_image.is_overdue(now):
                    self._queue_frame(received)
            if subscriber.ended or now - checked_at > POLL_INTERVAL:
                checked_at = now
                self._update_dashboard(subscriber, now)

    def _update_dashboard(self, subscriber: Subscriber, now: float) -> None:
        self._was_accepted = self._was_accepted or bool(subscriber.statuses)
        has_changed = self._dashboard.update(
            subscriber.statuses, subscriber.gaps, subscriber.rejected, now
        )
        if has_changed:
            self._send_dashboard()

    async def _relay_images(self) -> None:
        while True:
            if visible := self._visible_sources():
                with self._connect(sorted(visible), "plain") as subscriber:
                    await self._tolerate_refusal(self._read_images(subscriber, visible))
            await asyncio.sleep(POLL_INTERVAL)

    async def _read_images(self, subscriber: Subscriber, visible: frozenset[str]) -> None:
        """Process images until the visible sources change or the service ends."""
        while not subscriber.ended and self._visible_sources() == visible:
            received = await _receive(subscriber)
            if received is not None:
                self._latest_images[received.source] = _LatestImage(time.monotonic())
                self._queue_frame(received)

    def _visible_sources(self) -> frozenset[str]:
        """Return the running sources that a browser displays."""
        names: frozenset[str] = frozenset()
        names = names.union(*(session.visible_sources for session in self._sessions))
        return self._dashboard.running_sources(names)

    async def _tolerate_refusal(self, reading: Coroutine[None, None, None]) -> None:
        """Run ``reading``; ignore a refused key if the service has accepted it before.

        The viewer then reconnects as after any disconnection; the client has logged the refusal.
        """
        try:
            await reading
        except RefusedError:
            if not self._was_accepted:
                raise
            await asyncio.sleep(RECONNECT_DELAY)

    def _queue_frame(self, received: Received) -> None:
        sessions = [s for s in self._sessions if received.source in s.visible_sources]
        if sessions:
            frame = encode_frame(received)
            for session in sessions:
                session.queue_frame(received.source, frame)

    async def _send_dashboard_every_second(self) -> None:
        due = time.monotonic()
        while True:
            due = max(due + 1.0, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            self._dashboard.end_second(time.monotonic())
            self._send_dashboard()

    def _send_dashboard(self) -> None:
        if self._sessions:
            text = self._dashboard_json()
            for session in self._sessions:
                session.queue_text("board", text)

    def _dashboard_json(self) -> str:
        return msgspec.json.encode(self._dashboard.message(time.monotonic())).decode()


def encode_frame(received: Received) -> bytes:
    """Encode a frame for browsers: length of the JSON (4 bytes, big endian), JSON, JPEG.

    Without an image, the JPEG is empty.
    """
    message = protocol.encode(received.message)
    return struct.pack(">I", len(message)) + message + (received.jpeg or b"")


async def _receive(subscriber: Subscriber) -> Received | None:
    """Return the next message, or None if none arrives within ``POLL_INTERVAL``."""
    # Other tasks must run even if messages are always available.
    await asyncio.sleep(0)
    try:
        return await subscriber.receive_async(POLL_INTERVAL)
    except ReceiveTimeout:
        return None
