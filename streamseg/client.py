"""The subscriber: results of a service, as they are published, in a ``for`` loop.

    with streamseg.connect("tcp://127.0.0.1:5555", sources=["gate"]) as results:
        for result in results:
            print(result.pts, result.instances.names)

``_Session`` knows the protocol and no sockets; ``Subscriber`` is the thin shell around it, for
``for``, ``async for`` and ``receive``. Nothing that arrives can crash it: what isn't a message of
the protocol is counted and skipped.

What it keeps when nobody reads is bounded by libzmq: ``MASKS_QUEUED`` or ``FRAMES_QUEUED`` messages
of at most ``wire.MAX_JSON_BYTES`` and ``wire.MAX_JPEG_BYTES`` a part (256 and 160 MiB; 1 and 3 MB
with 20 instances in frames of 1080p).
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Literal, TypeAlias

import numpy as np
import zmq

from streamseg import wire
from streamseg.errors import ReceiveTimeout, UsageError, WireError
from streamseg.masks import MAX_PIXELS, Size
from streamseg.types import SOURCE_NAME, Image, Instances, Segment
from streamseg.wire import Address, MasksMessage, StatusMessage

log = logging.getLogger(__name__)

Pictures: TypeAlias = Literal["annotated", "plain"]
Parts: TypeAlias = Sequence[bytes]

MASKS_QUEUED = 64
FRAMES_QUEUED = 8
"""Messages waiting in this process; the rest waits in the network and at the publisher."""
MAX_SOURCES = 1024
"""Different names that a subscriber takes in its life."""
DEAF_AFTER = 5.0
"""Seconds without a word, not even a status, after which the connection is made anew.

libzmq gives a connection up for good after one message that is too large, and says so to nobody.
This takes the place of ZMTP's heartbeats, too: when one of those runs out while the queue here is
full, libzmq 4.3.5 connects again and aborts the process (``Assertion failed: _input_stopped``).
"""
RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000
_LATE_PICTURES = 2.0
"""Seconds that pictures get to end after the service has said that it ended."""


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """One frame's results.

    Attributes:
        message: the whole message, as it was sent.
        instances: what is in the frame, every run length checked.
        segments: the panoptic parts, None for models that have none.
        jpeg: the picture, if there was asked for one.
    """

    message: MasksMessage
    instances: Instances
    segments: tuple[Segment, ...] | None
    jpeg: bytes | None = None

    @property
    def service(self) -> str:
        """An id of this start of the service."""
        return self.message.service

    @property
    def source(self) -> str:
        """The source's name."""
        return self.message.source

    @property
    def epoch(self) -> int:
        """Goes up at each reconnection of the source; identities don't cross it."""
        return self.message.epoch

    @property
    def seq(self) -> int:
        """The number of this message in its topic: a gap is a loss."""
        return self.message.seq

    @property
    def index(self) -> int:
        """Which frame of the source it is, from 0."""
        return self.message.frame

    @property
    def item(self) -> str | None:
        """The file's name, for folders."""
        return self.message.item

    @property
    def pts(self) -> float:
        """Seconds, from the stream's own time base."""
        return self.message.pts

    @property
    def captured_at(self) -> float:
        """Unix seconds when the frame was decoded, on the service's clock."""
        return self.message.captured_at

    @property
    def published_at(self) -> float:
        """Unix seconds when the message was made, on the service's clock."""
        return self.message.published_at

    @property
    def age_ms(self) -> float:
        """Milliseconds from capture to publication."""
        return self.message.age_ms

    @property
    def size(self) -> Size:
        """(height, width) of the frame."""
        return self.message.size

    @property
    def model(self) -> str:
        """The model's name."""
        return self.message.model

    @property
    def dropped(self) -> Mapping[str, int]:
        """The source's frames dropped so far, by reason."""
        return self.message.dropped

    @property
    def timing(self) -> Mapping[str, float]:
        """Milliseconds spent, by stage."""
        return self.message.timing

    @property
    def frame(self) -> Image:
        """The picture, decoded: uint8 (H, W, 3) RGB. Needs ``streamseg[frames]``.

        Raises:
            UsageError: there was no picture asked for, or Pillow isn't installed.
            WireError: it isn't a JPEG of the frame's size.
        """
        if self.jpeg is None:
            raise UsageError('no picture: connect with frames="annotated" or frames="plain"')
        return _decode_jpeg(self.jpeg, self.size)


def connect(
    address: str,
    sources: Sequence[str] | None = None,
    *,
    frames: Literal[False] | Pictures = False,
    timeout: float | None = None,
    frames_address: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Subscriber:
    """Subscribe to a service; returns at once, whether it is there yet or not.

    Args:
        address: of masks and status, ``tcp://host:port`` or ``ipc://path``.
        sources: names; None is all there are.
        frames: results come with the painted frame (``annotated``) or as it was (``plain``).
        timeout: seconds that ``receive`` and iteration wait for a result; None is for ever.
        frames_address: of the pictures; None asks the service.
        max_pixels: of a frame; results of larger ones are rejected.

    Raises:
        UsageError: an address, a source's name or ``frames`` that can't be.
    """
    return Subscriber(
        address,
        sources,
        frames=frames,
        timeout=timeout,
        frames_address=frames_address,
        max_pixels=max_pixels,
    )


class Subscriber:
    """See :func:`connect`. To be used by one thread, or one task, at a time.

    Iteration, with ``for`` or ``async for``, ends when all the sources named, or the service, have
    ended. A service that dies without a word is waited for; when it starts again, results go on.
    """

    def __init__(
        self,
        address: str,
        sources: Sequence[str] | None = None,
        *,
        frames: Literal[False] | Pictures = False,
        timeout: float | None = None,
        frames_address: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._address = _connectable(address)
        pictures_at = None if frames_address is None else _connectable(frames_address)
        self._timeout = _checked_timeout(timeout)
        self._kind = _result_topic(frames)
        self._session = _Session(sources, self._kind, max_pixels)
        self._context = zmq.Context()
        self._results: _Link | None = None
        self._guide: _Link | None = None
        try:
            if self._kind == "masks":
                self._open_results(self._address)
            elif pictures_at is not None:
                self._open_results(pictures_at)
            else:
                self._open_guide()
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
        """
        wait = _Wait(self._timeout if timeout is ... else timeout)
        while (received := self._read()) is None and not self.ended:
            zmq.select([link.socket for link in self._links], [], [], self._patience(wait))
        if received is None:
            self._leave()
        return received

    async def receive_async(self, timeout: float | EllipsisType | None = ...) -> Received | None:
        """``receive`` for asyncio; can be cancelled, and then loses nothing."""
        wait = _Wait(self._timeout if timeout is ... else timeout)
        while (received := self._read()) is None and not self.ended:
            await _readable([link.socket for link in self._links], self._patience(wait))
        if received is None:
            self._leave()
        return received

    def __iter__(self) -> Iterator[Received]:
        while (received := self.receive()) is not None:
            yield received

    async def __aiter__(self) -> AsyncIterator[Received]:
        while (received := await self.receive_async()) is not None:
            yield received

    @property
    def ended(self) -> bool:
        """Whether there will be no more results; also true once closed."""
        return self._context.closed or self._session.ended

    @property
    def gaps(self) -> Mapping[str, int]:
        """Messages lost so far, by source."""
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
        """Leave. May be called twice."""
        self._leave()
        self._context.term()

    def __enter__(self) -> Subscriber:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Subscriber:  # noqa: PYI034
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    @property
    def _links(self) -> list[_Link]:
        return [link for link in (self._results, self._guide) if link is not None]

    def _read(self) -> Received | None:
        """The next result of what has arrived; never waits."""
        if self.ended:
            return None
        if self._guide is not None:
            for parts in self._guide.waiting():
                self._session.feed_guide(parts)
            self._follow_guide()
        if self._results is not None:
            for parts in self._results.waiting():
                received = self._session.feed(parts)
                if received is not None:
                    return received
                if self._session.ended:
                    return None
        for link in self._links:
            link.reopen_if_deaf()
        return None

    def _leave(self) -> None:
        """Let the service know that nobody is waiting here any more."""
        for link in self._links:
            link.socket.close(linger=0)

    def _follow_guide(self) -> None:
        """Go where the service says that its pictures are."""
        told = self._session.pictures_at
        if told is None:
            return
        if told.is_everywhere:
            told = Address(told.transport, self._address.host, told.port)
        if self._results is not None and self._results.address != told:
            self._results.socket.close(linger=0)
            self._results = None
        if self._results is None:
            try:
                self._open_results(told)
            except UsageError as error:
                self._session.reject(error)
            self._session.pictures_at = None

    def _open_results(self, address: Address) -> None:
        pictures = self._kind != "masks"
        self._results = _Link(
            self._context,
            address,
            self._session.topics,
            queued=FRAMES_QUEUED if pictures else MASKS_QUEUED,
            largest=wire.MAX_JPEG_BYTES if pictures else wire.MAX_JSON_BYTES,
        )

    def _open_guide(self) -> None:
        """Only the service's status, which says where the pictures are."""
        self._guide = _Link(
            self._context,
            self._address,
            [wire.topic("status", "")],
            queued=MASKS_QUEUED,
            largest=wire.MAX_JSON_BYTES,
        )

    def _patience(self, wait: _Wait) -> float:
        """Seconds to sleep before looking again, even if nothing comes.

        Raises:
            ReceiveTimeout: the time is over.
        """
        left = wait.left()
        if left <= 0:
            raise ReceiveTimeout(
                f"{self._address}: no result in {wait.seconds:g} s; {self._session.last_word}"
            )
        return min(left, 0.5)


class _Wait:
    """One call's waiting: when it began, and how long it may take."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = math.inf if seconds is None else _checked_timeout(seconds) or 0.0
        self.began = time.monotonic()

    def left(self) -> float:
        return self.began + self.seconds - time.monotonic()


class _Link:
    """A SUB socket that is made anew when it may have gone deaf."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        topics: Sequence[bytes],
        *,
        queued: int,
        largest: int,
    ) -> None:
        self.address = address
        self.reopened = 0
        self._context = context
        self._topics = topics
        self._queued = queued
        self._largest = largest
        self.socket = self._open()

    def waiting(self) -> Iterator[list[bytes]]:
        """The messages that have arrived."""
        with contextlib.suppress(zmq.Again):
            while True:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
                self._heard_at = time.monotonic()
                yield parts

    def reopen_if_deaf(self) -> None:
        """Connect again if nothing has come for long; everything that came must have been read."""
        if time.monotonic() - self._heard_at > DEAF_AFTER:
            self.reopen()

    def reopen(self) -> None:
        """Connect again."""
        log.debug("%s: connecting again", self.address)
        self.socket.close(linger=0)
        self.socket = self._open()
        self.reopened += 1

    def _open(self) -> zmq.Socket[bytes]:
        sock = self._context.socket(zmq.SUB)
        sock.rcvhwm = self._queued
        sock.linger = 0
        for option, value in (
            (zmq.MAXMSGSIZE, self._largest),
            (zmq.IPV6, int(":" in self.address.host)),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS),
        ):
            sock.setsockopt(option, value)
        for topic in self._topics:
            sock.subscribe(topic)
        try:
            sock.connect(str(self.address))
        except zmq.ZMQError as error:
            sock.close(linger=0)
            raise UsageError(f"{self.address}: {error}") from None
        self._heard_at = time.monotonic()
        return sock


class _Session:
    """What a subscriber knows of its service: fed with raw messages, it gives results.

    Args:
        sources: names, None for all.
        kind: the topic that results come under.
        max_pixels: of a frame.
    """

    def __init__(self, sources: Sequence[str] | None, kind: wire.Topic, max_pixels: int) -> None:
        for name in sources or ():
            if not SOURCE_NAME.fullmatch(name):
                raise UsageError(f"{name!r} can't be a source: use letters, digits, dots, - and _")
        if isinstance(sources, str) or (sources is not None and not sources):
            raise UsageError("sources is a list of names, or None for all")
        self._sources = None if sources is None else tuple(dict.fromkeys(sources))
        self._kind = kind
        self._max_pixels = max_pixels
        self._service: str | None = None
        self._seq: dict[str, int] = {}
        self._guide_ended_at = math.inf
        self._fed_at = -math.inf
        self.statuses: dict[str, StatusMessage] = {}
        self.gaps: Counter[str] = Counter()
        self.rejected = 0
        self.pictures_at: Address | None = None

    @property
    def topics(self) -> list[bytes]:
        """What to subscribe to."""
        service = wire.topic("status", "")
        if self._sources is None:
            return [f"{self._kind}/".encode(), b"status/"]
        named = [wire.topic(kind, s) for s in self._sources for kind in (self._kind, "status")]
        return [*named, service]

    @property
    def ended(self) -> bool:
        """Whether the named sources, or the service, have said their last."""
        if self._is_final("") or self._guide_is_final():
            return True
        return self._sources is not None and all(self._is_final(name) for name in self._sources)

    @property
    def last_word(self) -> str:
        """What is known of the service, for people who wait for it."""
        if not self.statuses:
            return "is a service running there?"
        said = [f"{s.source or 'the service'} is {s.state} {s.reason}" for s in self._known()]
        return "; ".join(word.rstrip() for word in said[:5])

    def feed(self, parts: Parts) -> Received | None:
        """Take a message of the socket that results come from; the result, if it is one."""
        self._fed_at = time.monotonic()
        try:
            kind, source = self._wanted(parts)
            if kind == "status":
                self._take_status(_decode(parts[1], StatusMessage, source))
                return None
            return self._take_result(parts, source)
        except WireError as error:
            self.reject(error)
            return None

    def feed_guide(self, parts: Parts) -> None:
        """Take a message of the socket that only says where the pictures are."""
        try:
            status = _service_status(parts)
            final = status.state in wire.FINAL
            self._guide_ended_at = (
                min(self._guide_ended_at, time.monotonic()) if final else math.inf
            )
            self.pictures_at = _connectable(status.endpoints.get("frames", ""))
        except (WireError, UsageError) as error:
            self.reject(error)

    def reject(self, error: Exception) -> None:
        """Count something that can't be used."""
        self.rejected += 1
        log.debug("rejected: %s", error)

    def _wanted(self, parts: Parts) -> tuple[wire.Topic, str]:
        kind, source = wire.parse_topic(parts[0])
        count = 3 if kind in ("frames", "video") else 2
        if kind not in (self._kind, "status") or len(parts) != count:
            raise WireError(f"{len(parts)} parts under {parts[0][:80]!r}")
        if self._sources is not None and source and source not in self._sources:
            raise WireError(f"{source} wasn't asked for")
        return kind, source

    def _take_status(self, status: StatusMessage) -> None:
        self._meet(status.service)
        _check_room(self.statuses, status.source)
        last = self.statuses.get(status.source)
        if last is None or status.seq > last.seq:
            self.statuses[status.source] = status

    def _take_result(self, parts: Parts, source: str) -> Received | None:
        message = _decode(parts[1], MasksMessage, source)
        instances = wire.decode_instances(message, self._max_pixels)
        segments = wire.decode_segments(message, self._max_pixels)
        self._meet(message.service)
        _check_room(self.gaps, source)
        last = self._seq.get(source)
        if last is not None and message.seq <= last:
            return None  # sent twice
        self.gaps[source] += 0 if last is None else message.seq - last - 1
        self._seq[source] = message.seq
        return Received(message, instances, segments, parts[2] if len(parts) == 3 else None)

    def _meet(self, service: str) -> None:
        """Another start of the service counts from 0 again, and its sources are alive again."""
        if service != self._service:
            self._service = service
            self._seq.clear()
            self.statuses.clear()

    def _known(self) -> list[StatusMessage]:
        return [self.statuses[name] for name in sorted(self.statuses)]

    def _is_final(self, source: str) -> bool:
        status = self.statuses.get(source)
        return status is not None and status.state in wire.FINAL

    def _guide_is_final(self) -> bool:
        """Whether the service has ended and its pictures, which take another way, have too."""
        return time.monotonic() - max(self._guide_ended_at, self._fed_at) > _LATE_PICTURES


def _check_room(known: Mapping[str, object], source: str) -> None:
    if source not in known and len(known) >= MAX_SOURCES:
        raise WireError(f"{source} is one source more than {MAX_SOURCES}")


def _decode(raw: bytes, kind: type[wire.M], source: str) -> wire.M:
    message = wire.decode(raw, kind)
    said: str = message.source  # type: ignore[attr-defined]  # both kinds have one
    if said != source:
        raise WireError(f"a message of {said[:80]!r} under the topic of {source!r}")
    return message


def _service_status(parts: Parts) -> StatusMessage:
    if len(parts) != 2 or parts[0] != wire.topic("status", ""):
        raise WireError(f"{len(parts)} parts under {parts[0][:80]!r}")
    return _decode(parts[1], StatusMessage, "")


def _connectable(address: str) -> Address:
    parsed = Address.parse(address)
    if parsed.transport == "tcp" and (parsed.port == 0 or parsed.host == "*"):
        raise UsageError(f"{address!r}: to connect, name a host and a port")
    return parsed


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is not None and not timeout >= 0:
        raise UsageError(f"timeout {timeout!r}: seconds, or None to wait for ever")
    return timeout


def _result_topic(frames: Any) -> wire.Topic:
    if frames is False:
        return "masks"
    if frames == "annotated":
        return "frames"
    if frames == "plain":
        return "video"
    raise UsageError(f"frames={frames!r}: it is False, 'annotated' or 'plain'")


async def _readable(sockets: Sequence[zmq.Socket[bytes]], seconds: float) -> None:
    """Wait until a socket may have something, at most so long.

    libzmq's descriptor shows a change only, so each socket must have been read empty before.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    descriptors = [sock.fileno() for sock in sockets]
    for descriptor in descriptors:
        loop.add_reader(descriptor, woken.set)
    try:
        await asyncio.wait_for(woken.wait(), seconds)
    except asyncio.TimeoutError:
        pass
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)


def _decode_jpeg(jpeg: bytes, size: Size) -> Image:
    try:
        from PIL import Image as Pillow
    except ImportError:
        raise UsageError(
            "pictures are decoded by Pillow: pip install 'streamseg[frames]'"
        ) from None
    try:
        with Pillow.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            if (picture.height, picture.width) != tuple(size):  # before anything is allocated
                raise WireError(
                    f"a picture of {picture.height} x {picture.width} of a {size} frame"
                )
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"a picture that can't be decoded: {error}") from None
