"""The subscriber: the sockets of a ``Session``, with ``for``, ``async for`` and ``receive``."""

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
from streamseg.client.closing import ReaderLock
from streamseg.client.link import Link
from streamseg.client.newest_link import NewestLink
from streamseg.client.received import Received
from streamseg.client.replay_client import ReplayClient
from streamseg.client.session import Session, parse_connect_address
from streamseg.errors import ReceiveTimeout, UsageError
from streamseg.protocol.address import Address
from streamseg.protocol.messages import StatusMessage
from streamseg.structures.masks import MAX_PIXELS

log = logging.getLogger(__name__)

ImageKind: TypeAlias = Literal["annotated", "plain"]

MASKS_QUEUED = 64
FRAMES_QUEUED = 8
"""Messages queued in this process; the rest waits in the network and at the publisher."""
_POLL_TIMEOUT = 0.5
"""Maximum time that one poll of the sockets waits, in seconds."""
_CLOSE_TIMEOUT = 1.0
"""Seconds to wait for libzmq to close its connections; a name look-up may take longer."""


class Subscriber:
    """Subscription to a service; see :func:`streamseg.connect` for the arguments.

    One thread or task may read at a time. ``close`` may be called by any thread and in a signal
    handler; a waiting ``receive`` then returns None. Iteration, with ``for`` or ``async for``, ends
    when all named sources, or the service, have ended. If the service disappears without an
    end-of-stream message, the subscriber waits for it and continues when it is back.
    """

    def __init__(
        self,
        address: str,
        sources: Sequence[str] | None = None,
        *,
        frames: Literal[False] | ImageKind = False,
        newest: bool = False,
        replay: bool = True,
        server_key: str | Path | None = None,
        key_file: str | Path | None = None,
        timeout: float | None = None,
        frames_address: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._address = parse_connect_address(address)
        images_address = None if frames_address is None else parse_connect_address(frames_address)
        self._uses_announced_address = images_address is None
        self._timeout = _validate_timeout(timeout)
        self._kind = _result_topic(frames)
        self._newest = newest
        has_images = self._kind != "masks"
        self._session = Session(
            sources,
            self._kind,
            max_pixels,
            uses_replay=replay and not newest and not has_images,
            has_status_link=has_images,
        )
        self._keys = Keys.load(server_key, key_file)
        self._process = os.getpid()
        self._reader_lock = ReaderLock(self._close_sockets)
        self._reported_other_service = False
        self._context = zmq.Context()
        self._replay_client = ReplayClient(self._context, self._keys)
        self._result_link: Link | NewestLink | None = None
        self._status_link: Link | None = None
        try:
            if has_images:
                self._open_status_link()
            if not has_images or images_address is not None:
                self._open_result_link(images_address or self._address)
        except UsageError:
            self.close()
            raise

    def receive(self, timeout: float | EllipsisType | None = ...) -> Received | None:
        """Return the next result; waits for it.

        Args:
            timeout: time limit in seconds; None waits forever; by default that of ``connect``.

        Returns:
            The result, or None if there will be no more: see the class.

        Raises:
            ReceiveTimeout: no result arrived in time.
            RefusedError: the service refuses the connection. If it accepted one before, the
                connection is retried until the time limit, as after any disconnection.
            UsageError: this process is a ``fork`` of the one that created the subscriber, or
                another thread or task is reading.
        """
        deadline = _Deadline(self._timeout if timeout is ... else timeout)
        self._check_process()
        with self._reader_lock.acquire() as is_open:
            if not is_open:
                return None
            while (received := self._read()) is None and not self.ended:
                seconds = self._poll_seconds(deadline)
                zmq.select([*self._sockets, self._reader_lock.wake_up], [], [], seconds)
            if received is None:
                self._disconnect()
            return received

    async def receive_async(self, timeout: float | EllipsisType | None = ...) -> Received | None:
        """Return the next result, like ``receive``; cancellation loses no result."""
        deadline = _Deadline(self._timeout if timeout is ... else timeout)
        self._check_process()
        with self._reader_lock.acquire() as is_open:
            if not is_open:
                return None
            while (received := self._read()) is None and not self.ended:
                seconds = self._poll_seconds(deadline)
                await _wait_readable(self._sockets, self._reader_lock.wake_up, seconds)
            if received is None:
                self._disconnect()
            return received

    def __reduce__(self) -> tuple[Any, ...]:
        raise UsageError("a Subscriber can't be pickled or copied: connect in the other process")

    def __iter__(self) -> Iterator[Received]:
        while (received := self.receive()) is not None:
            yield received

    async def __aiter__(self) -> AsyncIterator[Received]:
        while (received := await self.receive_async()) is not None:
            yield received

    @property
    def ended(self) -> bool:
        """Whether there will be no more results; also true after ``close``."""
        return self._reader_lock.is_closed or self._session.ended

    @property
    def gaps(self) -> Mapping[str, int]:
        """Number of messages lost so far, by source; with ``newest``, including those skipped."""
        return dict(self._session.gaps)

    @property
    def rejected(self) -> int:
        """Number of invalid messages skipped so far."""
        return self._session.rejected

    @property
    def reopened(self) -> int:
        """Number of times a silent connection was replaced."""
        return sum(link.reopened for link in self._links)

    @property
    def statuses(self) -> Mapping[str, StatusMessage]:
        """Latest status message by source; the service's own has the empty name."""
        return dict(self._session.statuses)

    def close(self) -> None:
        """Disconnect, from any thread or a signal handler; may be called twice.

        A thread that is reading is woken up; this doesn't wait for it. In a ``fork`` of the
        process, only the child's copy is closed.
        """
        if self._is_own_process and not sys.is_finalizing():  # then no other thread is running
            self._reader_lock.close()
        else:
            self._reader_lock.is_closed = True

    def __enter__(self) -> Subscriber:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Subscriber:  # noqa: PYI034
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    # Reading

    @property
    def _links(self) -> list[Link | NewestLink]:
        return [link for link in (self._result_link, self._status_link) if link is not None]

    @property
    def _sockets(self) -> list[zmq.Socket[bytes]]:
        """Sockets to poll; all their messages have been read."""
        return [*(link.socket for link in self._links), *self._replay_client.sockets]

    def _read(self) -> Received | None:
        """Return the next result among the received messages, or None; doesn't block."""
        if self.ended:
            return None
        if self._status_link is not None:
            for parts in self._status_link.receive_waiting():
                self._session.feed_service_status(parts)
            if self._uses_announced_address:
                self._follow_images_address()
            self._report_other_service()
        while True:
            received = self._read_result_link()
            if received is not None or self._session.ended:
                return received
            if not self._replay_client.step(self._session, self._replay_address()):
                break
        received = self._session.take()
        if received is None:
            for link in self._links:
                link.check()
        return received

    def _read_result_link(self) -> Received | None:
        received = self._session.take()
        if received is None and self._result_link is not None:
            for parts in self._result_link.receive_waiting():
                self._session.feed(parts)
                received = self._session.take()
                if received is not None or self._session.ended:
                    break
        return received

    def _poll_seconds(self, deadline: _Deadline) -> float:
        """Return the seconds to poll the sockets.

        Raises:
            ReceiveTimeout: the deadline has passed.
        """
        remaining = deadline.remaining()
        if remaining <= 0:
            problems = [link.problem for link in self._links if link.problem is not None]
            reason = next(iter(problems), self._other_service or self._session.status_summary)
            raise ReceiveTimeout(f"{self._address}: no result in {deadline.seconds:g} s; {reason}")
        return min(remaining, _POLL_TIMEOUT, self._replay_client.seconds_to_timeout)

    # Connections

    def _open_result_link(self, address: Address) -> None:
        has_images = self._kind != "masks"
        link = Link(
            self._context,
            address,
            self._session.topics,
            keys=self._keys,
            queue_size=FRAMES_QUEUED if has_images else MASKS_QUEUED,
            max_part_bytes=protocol.MAX_JPEG_BYTES if has_images else protocol.MAX_JSON_BYTES,
        )
        self._result_link = NewestLink(self._context, link) if self._newest else link

    def _open_status_link(self) -> None:
        """Subscribe to the service's own status, which contains the address of the images."""
        self._status_link = Link(
            self._context,
            self._address,
            [protocol.topic("status", "")],
            keys=self._keys,
            queue_size=MASKS_QUEUED,
            max_part_bytes=protocol.MAX_JSON_BYTES,
        )

    def _follow_images_address(self) -> None:
        """Connect to the address of the images in the latest status, if it changed."""
        announced = self._session.images_address
        if announced is None:
            return
        address = self._resolve(announced)
        if self._result_link is not None and self._result_link.address != address:
            self._result_link.close()
            self._result_link = None
        if self._result_link is None:
            try:
                self._open_result_link(address)
            except UsageError as error:
                self._session.reject(error)
            self._session.images_address = None

    def _replay_address(self) -> Address | None:
        announced = self._session.replay_address
        return None if announced is None else self._resolve(announced)

    def _resolve(self, announced: Address) -> Address:
        """Replace an announced wildcard or loopback host by the host used for the masks."""
        if self._address.transport == "ipc":
            is_wildcard = announced.is_wildcard
            return Address("tcp", "127.0.0.1", announced.port) if is_wildcard else announced
        is_other_machine = announced.is_loopback and not self._address.is_loopback
        if announced.transport == "tcp" and (announced.is_wildcard or is_other_machine):
            return Address("tcp", self._address.host, announced.port)
        return announced

    def _report_other_service(self) -> None:
        """Log once that images are rejected, because the caller only sees that none arrive."""
        if self._other_service is not None and not self._reported_other_service:
            self._reported_other_service = True
            log.warning(self._other_service)

    @property
    def _other_service(self) -> str | None:
        """Error message if the images come from another service, or None."""
        services = self._session.other_service
        if services is None or self._result_link is None:
            return None
        expected, other = services
        return (
            f"{self._result_link.address} has images of another service ({other}) than "
            f"{self._address} ({expected}): give the address of this service's images with "
            "frames_address (--frames-address)"
        )

    # Closing

    def _disconnect(self) -> None:
        if not self._is_own_process:
            return
        self._replay_client.close()
        for link in self._links:
            link.close()

    def _close_sockets(self) -> None:
        self._disconnect()
        if self._context.closed:
            return
        # In a separate thread: term blocks while libzmq resolves a host name.
        thread = threading.Thread(target=self._context.term, name="zmq term", daemon=True)
        thread.start()
        thread.join(_CLOSE_TIMEOUT)

    def _check_process(self) -> None:
        if not self._is_own_process and not self.ended:
            raise UsageError("this subscriber belongs to the parent process: connect in this one")

    @property
    def _is_own_process(self) -> bool:
        """Whether this process created the sockets; closing them in a fork blocks forever."""
        return os.getpid() == self._process


class _Deadline:
    """The end of one call's waiting time."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = math.inf if seconds is None else _validate_timeout(seconds) or 0.0
        self._started_at = time.monotonic()

    def remaining(self) -> float:
        return self._started_at + self.seconds - time.monotonic()


def _validate_timeout(timeout: float | None) -> float | None:
    is_number = isinstance(timeout, int | float)
    if timeout is not None and not (is_number and timeout >= 0):
        raise UsageError(f"timeout {timeout!r}: give seconds, or None to wait forever")
    return timeout


def _result_topic(frames: Any) -> protocol.Topic:
    if frames is False:
        return "masks"
    if frames == "annotated":
        return "frames"
    if frames == "plain":
        return "video"
    raise UsageError(f"frames={frames!r}: use False, 'annotated' or 'plain'")


async def _wait_readable(
    sockets: Sequence[zmq.Socket[bytes]], wake_up: int, seconds: float
) -> None:
    """Wait until a socket may have a message or ``wake_up`` is readable, at most ``seconds``.

    libzmq's file descriptor is edge-triggered, so all messages must have been read before.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    is_ready = asyncio.Event()
    # Not wait_for: before Python 3.12 it could lose a cancellation.
    timer = loop.call_later(seconds, is_ready.set)
    descriptors = [*(sock.fileno() for sock in sockets), wake_up]
    for descriptor in descriptors:
        loop.add_reader(descriptor, is_ready.set)
    try:
        await is_ready.wait()
    finally:
        timer.cancel()
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
