"""The subscriber: the sockets around a ``Session``, for ``for``, ``async for`` and ``receive``."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal, TypeAlias

import zmq

from streamseg import protocol
from streamseg.client.authentication import Keys
from streamseg.client.closing import Turn
from streamseg.client.link import Link
from streamseg.client.newest_link import NewestLink
from streamseg.client.received import Received
from streamseg.client.replay_client import Asker
from streamseg.client.session import Session, connectable
from streamseg.errors import ReceiveTimeout, UsageError
from streamseg.protocol.address import Address
from streamseg.protocol.messages import StatusMessage
from streamseg.structures.masks import MAX_PIXELS

log = logging.getLogger(__name__)

Pictures: TypeAlias = Literal["annotated", "plain"]

MASKS_QUEUED = 64
FRAMES_QUEUED = 8
"""Messages waiting in this process; the rest waits in the network and at the publisher."""
_LOOK_UP_EVERY = 0.5
"""Seconds."""
_CLOSE_WITHIN = 1.0
"""Time limit for libzmq to close its connections, in seconds; a look-up of a name may take more."""


class Subscriber:
    """See :func:`streamseg.client.connect`. To be read by one thread, or one task, at a time.

    ``close`` may be called by any thread, and in a signal handler; whoever reads then gets None.
    Iteration, with ``for`` or ``async for``, ends when all the sources named, or the service, have
    ended. A service that dies without a word is waited for; when it starts again, results go on.
    """

    def __init__(
        self,
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
    ) -> None:
        self._address = connectable(address)
        pictures_at = None if frames_address is None else connectable(frames_address)
        self._follows = pictures_at is None
        self._timeout = _checked_timeout(timeout)
        self._kind = _result_topic(frames)
        self._newest = newest
        replays = replay and not newest and self._kind == "masks"
        guided = self._kind != "masks"
        self._session = Session(sources, self._kind, max_pixels, replays=replays, guided=guided)
        self._keys = Keys.load(server_key, key_file)
        self._process = os.getpid()
        self._turn = Turn(self._close_sockets)
        self._other_reported = False
        self._context = zmq.Context()
        self._asker = Asker(self._context, self._keys)
        self._results: Link | NewestLink | None = None
        self._guide: Link | None = None
        try:
            if guided:
                self._open_guide()
            if not guided or pictures_at is not None:
                self._open_results(pictures_at or self._address)
        except UsageError:
            self.close()
            raise

    def receive(self, timeout: float | EllipsisType | None = ...) -> Received | None:
        """The next result.

        Args:
            timeout: seconds to wait; None is for ever; left out, what ``connect`` was given.

        Returns:
            None if there will be no more: see the class.

        Raises:
            ReceiveTimeout: no result came in time.
            RefusedError: the service doesn't let us in. One that has let us in before is asked
                again until the time is over, as after any disconnection.
            UsageError: it was made by another process, of which this is a ``fork``; or another
                thread or task is reading.
        """
        wait = _Wait(self._timeout if timeout is ... else timeout)
        self._check_process()
        with self._turn.taken():
            while (received := self._read()) is None and not self.ended:
                zmq.select([*self._sockets, self._turn.wake_up], [], [], self._patience(wait))
            if received is None:
                self._leave()
            return received

    async def receive_async(self, timeout: float | EllipsisType | None = ...) -> Received | None:
        """``receive`` for asyncio; can be cancelled, and then loses nothing."""
        wait = _Wait(self._timeout if timeout is ... else timeout)
        self._check_process()
        with self._turn.taken():
            while (received := self._read()) is None and not self.ended:
                await _readable(self._sockets, self._turn.wake_up, self._patience(wait))
            if received is None:
                self._leave()
            return received

    def __reduce__(self) -> tuple[Any, ...]:
        raise UsageError("a subscription can't be pickled or copied: connect in the other process")

    def __iter__(self) -> Iterator[Received]:
        while (received := self.receive()) is not None:
            yield received

    async def __aiter__(self) -> AsyncIterator[Received]:
        while (received := await self.receive_async()) is not None:
            yield received

    @property
    def ended(self) -> bool:
        """Whether there will be no more results; also true once closed."""
        return self._turn.is_closed or self._session.ended

    @property
    def gaps(self) -> Mapping[str, int]:
        """Messages lost so far, by source; with ``newest``, those passed over too."""
        return dict(self._session.gaps)

    @property
    def rejected(self) -> int:
        """Messages skipped so far because they were not what the protocol allows."""
        return self._session.rejected

    @property
    def reopened(self) -> int:
        """How often a connection was made anew because nothing came."""
        return sum(link.reopened for link in self._links)

    @property
    def statuses(self) -> Mapping[str, StatusMessage]:
        """The latest status by source; the service's own is under the empty name."""
        return dict(self._session.statuses)

    def close(self) -> None:
        """Leave, from any thread or a signal handler; may be called twice.

        Who is reading in another thread is woken and leaves; this does not wait for it. In a child
        made by ``fork`` nothing is left: the connection is the parent's, and goes on.
        """
        if self._is_ours and not sys.is_finalizing():  # no other thread goes on then
            self._turn.close()
        else:
            self._turn.is_closed = True

    def __enter__(self) -> Subscriber:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Subscriber:  # noqa: PYI034
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    @property
    def _links(self) -> list[Link | NewestLink]:
        return [link for link in (self._results, self._guide) if link is not None]

    @property
    def _sockets(self) -> list[zmq.Socket[bytes]]:
        """What to wait for; each was read empty."""
        return [*(link.socket for link in self._links), *self._asker.sockets]

    def _read(self) -> Received | None:
        """The next result of what has arrived; never waits."""
        if self.ended:
            return None
        if self._guide is not None:
            for parts in self._guide.waiting():
                self._session.feed_guide(parts)
            if self._follows:
                self._follow_guide()
            self._report_other_service()
        while True:
            received = self._read_results()
            if received is not None or self._session.ended:
                return received
            if not self._asker.work(self._session, self._replay_at()):
                break
        received = self._session.take()
        if received is None:
            for link in self._links:
                link.look_after()
        return received

    def _read_results(self) -> Received | None:
        received = self._session.take()
        if received is None and self._results is not None:
            for parts in self._results.waiting():
                self._session.feed(parts)
                received = self._session.take()
                if received is not None or self._session.ended:
                    break
        return received

    def _leave(self) -> None:
        """Let the service know that nobody is waiting here any more."""
        if not self._is_ours:
            return
        self._asker.close()
        for link in self._links:
            link.close()

    def _close_sockets(self) -> None:
        self._leave()
        if self._context.closed:
            return
        # In a thread of its own: libzmq waits for a name that it is looking up.
        ending = threading.Thread(target=self._context.term, name="zmq end", daemon=True)
        ending.start()
        ending.join(_CLOSE_WITHIN)

    def _report_other_service(self) -> None:
        """Log once that pictures are refused: nothing else would say why none come."""
        if self._other_service is not None and not self._other_reported:
            self._other_reported = True
            log.warning(self._other_service)

    @property
    def _other_service(self) -> str | None:
        """What is wrong where the pictures are another service's."""
        found = self._session.other_service
        if found is None or self._results is None:
            return None
        own, other = found
        return (
            f"{self._results.address} has pictures of another service ({other}) than "
            f"{self._address} ({own}): name the address of this service's pictures with "
            "frames_address (--frames-address)"
        )

    def _check_process(self) -> None:
        if not self._is_ours and not self.ended:
            raise UsageError("another process has made this subscriber: connect in this one, too")

    @property
    def _is_ours(self) -> bool:
        """Whether this process made the sockets; libzmq waits for ever for them in any other."""
        return os.getpid() == self._process

    def _follow_guide(self) -> None:
        """Go where the service says that its pictures are."""
        told = self._session.pictures_at
        if told is None:
            return
        told = self._seen_from_here(told)
        if self._results is not None and self._results.address != told:
            self._results.close()
            self._results = None
        if self._results is None:
            try:
                self._open_results(told)
            except UsageError as error:
                self._session.reject(error)
            self._session.pictures_at = None

    def _replay_at(self) -> Address | None:
        told = self._session.replay_at
        return None if told is None else self._seen_from_here(told)

    def _seen_from_here(self, told: Address) -> Address:
        """An address that the service names: what is every interface, or its own machine, to it."""
        if self._address.transport == "ipc":
            return Address("tcp", "127.0.0.1", told.port) if told.is_wildcard else told
        other_machine = told.is_loopback and not self._address.is_loopback
        if told.transport == "tcp" and (told.is_wildcard or other_machine):
            return Address("tcp", self._address.host, told.port)
        return told

    def _open_results(self, address: Address) -> None:
        pictures = self._kind != "masks"
        link = Link(
            self._context,
            address,
            self._session.topics,
            keys=self._keys,
            queued=FRAMES_QUEUED if pictures else MASKS_QUEUED,
            largest=protocol.MAX_JPEG_BYTES if pictures else protocol.MAX_JSON_BYTES,
        )
        self._results = NewestLink(self._context, link) if self._newest else link

    def _open_guide(self) -> None:
        """Only the service's status, which says where the pictures are."""
        self._guide = Link(
            self._context,
            self._address,
            [protocol.topic("status", "")],
            keys=self._keys,
            queued=MASKS_QUEUED,
            largest=protocol.MAX_JSON_BYTES,
        )

    def _patience(self, wait: _Wait) -> float:
        """Seconds to sleep before looking again, even if nothing comes.

        Raises:
            ReceiveTimeout: the time is over.
        """
        left = wait.left()
        if left <= 0:
            troubles = [link.trouble for link in self._links if link.trouble is not None]
            why = next(iter(troubles), self._other_service or self._session.last_word)
            raise ReceiveTimeout(f"{self._address}: no result in {wait.seconds:g} s; {why}")
        return min(left, _LOOK_UP_EVERY, self._asker.due_in)


class _Wait:
    """One call's waiting: when it began, and how long it may take."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = math.inf if seconds is None else _checked_timeout(seconds) or 0.0
        self.began = time.monotonic()

    def left(self) -> float:
        return self.began + self.seconds - time.monotonic()


def _checked_timeout(timeout: float | None) -> float | None:
    is_number = isinstance(timeout, int | float)
    if timeout is not None and not (is_number and timeout >= 0):
        raise UsageError(f"timeout {timeout!r}: seconds, or None to wait for ever")
    return timeout


def _result_topic(frames: Any) -> protocol.Topic:
    if frames is False:
        return "masks"
    if frames == "annotated":
        return "frames"
    if frames == "plain":
        return "video"
    raise UsageError(f"frames={frames!r}: it is False, 'annotated' or 'plain'")


async def _readable(sockets: Sequence[zmq.Socket[bytes]], wake_up: int, seconds: float) -> None:
    """Wait until a socket may have something or ``wake_up`` is readable, at most so long.

    libzmq's descriptor shows a change only, so each socket must have been read empty before.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    # Not wait_for: before Python 3.12 it can forget that it was cancelled.
    timer = loop.call_later(seconds, woken.set)
    descriptors = [*(sock.fileno() for sock in sockets), wake_up]
    for descriptor in descriptors:
        loop.add_reader(descriptor, woken.set)
    try:
        await woken.wait()
    finally:
        timer.cancel()
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
