"""From the service to the browsers: two subscriptions, and what becomes of what they bring.

Masks are always subscribed to, for the numbers. Pictures only while a browser looks, and only those
of the sources that are looked at: the service compresses pictures for subscribers alone. With each
picture comes its frame's complete masks message; where no pictures come, because the service's
painter is behind, masks are sent to the browsers by themselves.

A service that ends, or goes away, is waited for.
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
from streamseg.viewer.browsers import Browser
from streamseg.viewer.dashboard_state import Board
from streamseg.viewer.tasks import first_of

LOOK_UP_EVERY = 0.1
"""Seconds of waiting for a message, after which states and looks are looked at."""
AGAIN_AFTER = 1.0
"""Seconds before a service that has ended is asked again."""
PICTURES_LATE = 3.0
PICTURES_MISSING = 3
"""Seconds, and masks messages, without a picture of a source, after which its masks are sent by
themselves; before that, a slow camera's picture may only be on its way."""

Connect: TypeAlias = Callable[[Sequence[str] | None, Literal[False, "plain"]], Subscriber]
"""Makes a subscriber to these sources, with plain pictures or without any."""


@dataclass(slots=True)
class _Pictured:
    """When a source's latest picture came, and how many masks messages have come since."""

    at: float = -math.inf
    masks_since: int = 0

    def is_missing(self, now: float) -> bool:
        """Whether pictures should have come."""
        if self.at == -math.inf:
            return True
        return now - self.at > PICTURES_LATE and self.masks_since > PICTURES_MISSING


class Relay:
    """Receives from a service and passes on to browsers. Belongs to the event loop's thread.

    Args:
        address: of the service, to be shown.
        sources: names; None is all there are.
        connect: makes the subscribers.
    """

    def __init__(self, address: str, sources: Sequence[str] | None, connect: Connect) -> None:
        self._sources = sources
        self._connect = connect
        self._board = Board(address)
        self._browsers: set[Browser] = set()
        self._pictured: dict[str, _Pictured] = {}
        self._heard = False

    async def run(self) -> None:
        """Receive until cancelled."""
        await first_of(self._follow_masks(), self._follow_pictures(), self._tell_every_second())

    @contextmanager
    def joined(self) -> Iterator[Browser]:
        """A browser that is fed for as long as this lasts; the board is there at once."""
        browser = Browser()
        browser.tell("board", self._board_text())
        self._browsers.add(browser)
        try:
            yield browser
        finally:
            self._browsers.remove(browser)

    @property
    def looking(self) -> int:
        """Browsers."""
        return len(self._browsers)

    # Masks, and what the service says of itself

    async def _follow_masks(self) -> None:
        while True:
            with self._connect(self._sources, False) as subscriber:
                await self._let_in(self._read_masks(subscriber))
            await asyncio.sleep(AGAIN_AFTER)

    async def _read_masks(self, subscriber: Subscriber) -> None:
        """Until the service ends."""
        heard_at = -math.inf
        while not subscriber.ended:
            received = await _next(subscriber)
            now = time.monotonic()
            if received is not None:
                self._board.add(received, now, time.time())
                self._pass_on_masks(received, now)
            if subscriber.ended or now - heard_at > LOOK_UP_EVERY:
                heard_at = now
                self._hear(subscriber, now)

    def _hear(self, subscriber: Subscriber, now: float) -> None:
        """What the service says of itself; a change is passed on at once."""
        self._heard = self._heard or bool(subscriber.statuses)
        changed = self._board.hear(subscriber.statuses, subscriber.gaps, subscriber.rejected, now)
        if changed:
            self._tell()

    def _pass_on_masks(self, received: Received, now: float) -> None:
        pictured = self._pictured.setdefault(received.source, _Pictured())
        pictured.masks_since += 1
        if pictured.is_missing(now):
            self._offer(received)

    # Pictures

    async def _follow_pictures(self) -> None:
        while True:
            if wanted := self._wanted():
                with self._connect(sorted(wanted), "plain") as subscriber:
                    await self._let_in(self._read_pictures(subscriber, wanted))
            await asyncio.sleep(LOOK_UP_EVERY)

    async def _read_pictures(self, subscriber: Subscriber, wanted: frozenset[str]) -> None:
        """Until other sources are looked at, or these have ended."""
        while not subscriber.ended and self._wanted() == wanted:
            received = await _next(subscriber)
            if received is not None:
                self._pictured[received.source] = _Pictured(time.monotonic())
                self._offer(received)

    def _wanted(self) -> frozenset[str]:
        """The sources that are looked at and can still send something."""
        looks: frozenset[str] = frozenset()
        return self._board.following(looks.union(*(b.looks_at for b in self._browsers)))

    async def _let_in(self, reading: Coroutine[None, None, None]) -> None:
        """Read, but pass over a refusal of our key by a service that has let us in before.

        It is asked again, as after any disconnection; the link has said why nothing comes.
        """
        try:
            await reading
        except RefusedError:
            if not self._heard:
                raise
            await asyncio.sleep(AGAIN_AFTER)

    # What browsers are sent

    def _offer(self, received: Received) -> None:
        lookers = [b for b in self._browsers if received.source in b.looks_at]
        if lookers:
            picture = pack(received)
            for browser in lookers:
                browser.offer(received.source, picture)

    async def _tell_every_second(self) -> None:
        due = time.monotonic()
        while True:
            due = max(due + 1.0, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            self._board.end_second(time.monotonic())
            self._tell()

    def _tell(self) -> None:
        if self._browsers:
            text = self._board_text()
            for browser in self._browsers:
                browser.tell("board", text)

    def _board_text(self) -> str:
        return msgspec.json.encode(self._board.message(time.monotonic())).decode()


def pack(received: Received) -> bytes:
    """A frame as browsers get it: the length of the JSON (4 bytes, big endian), JSON, JPEG.

    The JPEG is left out where there is no picture.
    """
    message = protocol.encode(received.message)
    return struct.pack(">I", len(message)) + message + (received.jpeg or b"")


async def _next(subscriber: Subscriber) -> Received | None:
    """The next message; None if there is none in ``LOOK_UP_EVERY``, or none any more."""
    await asyncio.sleep(0)  # who has much waiting shall not keep everybody else from running
    try:
        return await subscriber.receive_async(LOOK_UP_EVERY)
    except ReceiveTimeout:
        return None
