"""The publisher: every result onto the network, for whoever subscribes.

One thread, the one that runs ``drain``, owns every socket; other threads leave what they have in
mailboxes and wake it. It never waits for a subscriber: who is late loses its own messages, those
beyond the high-water mark of its own queue, and nobody else's.

A subscriber that doesn't read costs at most its queue: ``MASKS_QUEUED`` x ``wire.MAX_JSON_BYTES``
(1 GiB) and ``FRAMES_QUEUED`` x (``wire.MAX_JSON_BYTES`` + ``wire.MAX_JPEG_BYTES``) (320 MiB) if
every message were as large as it may be; 3 MB and 5 MB with 20 instances in frames of 1080p.
Messages are shared by the queues they are in. (The high-water mark can't follow the size of the
messages: lowering it on a live socket can stop a queue for good, libzmq 4.3.5.)

Encryption, access lists and replay will be sockets of the same poller.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import secrets
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import zmq

from streamseg import wire
from streamseg.annotate import Picture
from streamseg.channel import Mailbox
from streamseg.config import PublishConfig
from streamseg.errors import BindError, ConfigError, UsageError
from streamseg.metrics import AccountSnapshot, Metrics
from streamseg.sinks.peers import Audience, Guard
from streamseg.types import Result
from streamseg.wire import Address, State

log = logging.getLogger(__name__)

RESULTS_WAITING = 16
PICTURES_WAITING = 4
"""Items a source may have waiting for the network thread."""
MASKS_QUEUED = 256
FRAMES_QUEUED = 16
"""Messages queued for one subscriber; what comes when its queue is full is lost to it."""
INCOMING_QUEUED = 64
INCOMING_BUFFER = 16 * 1024
HEARD_AT_ONCE = 1000
"""Subscriptions, bytes, subscriptions: small, so that one who never stops sending can't keep the
network thread busy, nor send much before he is cut off."""
MAX_INCOMING = 512
"""Bytes of a message from a subscriber: a topic, or a step of the handshake (CURVE needs 276)."""
STATUS_EVERY = 1.0
LISTEN_EVERY = 0.1
"""Seconds."""
RESEND_EVERY = 0.05
"""Seconds between answers to those who have just joined, however many they are."""
LAST_WORD = 2.0
"""Seconds that the end of the service is repeated for subscribers that don't leave."""
LINGER_MS = 2000
"""What is queued when the service ends gets so long to leave."""
HEARTBEAT_MS = 5000
SILENT_AFTER_MS = 15_000
"""A subscriber that answers no heartbeat for so long is dropped, and its queue with it."""
HANDSHAKE_MS = 5000


@dataclass(frozen=True, slots=True)
class _SourceState:
    """What is to be said of a source."""

    state: State
    reason: str
    epoch: int


class Publisher:
    """Binds at once, publishes while somebody runs ``drain``.

    Args:
        config: where, and whether beyond loopback.
        metrics: the accounts of the frames; ``published`` means handed to the masks socket.

    Attributes:
        endpoints: the addresses bound, ``masks`` and ``frames``.
        service: an id of this start.
        results: to be published; what is too late is dropped as ``publisher_late``.
        pictures: to be published; the newest win.
        looked_up_at: when ``drain`` last looked for something to do, on the monotonic clock.

    Raises:
        ConfigError: not an address, or one beyond loopback without ``insecure``.
        BindError: the address is taken or can't be bound.
    """

    name = "publisher"

    def __init__(self, config: PublishConfig, metrics: Metrics) -> None:
        masks_at, frames_at = _addresses(config)
        self.service = secrets.token_hex(4)
        self._metrics = metrics
        self._lock = threading.Lock()
        self._joined = threading.Condition()
        self._context = zmq.Context()
        self._waker = _Waker(self._context)
        self.results: Mailbox[Result] = Mailbox(
            RESULTS_WAITING, "drop_oldest", on_drop=self._result_late, on_put=self._waker.wake
        )
        self.pictures: Mailbox[Picture] = Mailbox(
            PICTURES_WAITING, "drop_oldest", on_drop=self._picture_late, on_put=self._waker.wake
        )
        self._masks = _open(self._context, MASKS_QUEUED)
        self._frames = _open(self._context, FRAMES_QUEUED)
        self._guard = Guard(self._masks, self._frames)
        try:
            self.endpoints = {
                "masks": _bind(self._masks, masks_at, "bind"),
                "frames": _bind(self._frames, frames_at, "bind-frames"),
            }
        except BindError:
            self.close()
            raise
        for endpoint in self.endpoints.values():
            self._guard.watch_port(Address.parse(endpoint).port)
        self._audience = {self._masks: Audience(), self._frames: Audience()}
        self._poller = zmq.Poller()
        for sock in (self._waker.ear, self._masks, self._frames):
            self._poller.register(sock, zmq.POLLIN)
        self._seq: Counter[bytes] = Counter()
        self._states = {"": _SourceState("live", "", 0)}
        self._changed = {""}
        self._leaving: set[str] = set()
        self._said: dict[str, bytes] = {}
        self._joined_since: set[tuple[zmq.Socket[bytes], str]] = set()
        self._status_due = self._resend_due = self._guard_due = time.monotonic()
        self.looked_up_at = time.monotonic()

    def drain(self) -> Iterator[Result]:
        """Publish what is put into the mailboxes until both are finished: the network thread.

        Yields:
            Each result when it is done with: handed to the socket, or failed.
        """
        try:
            while not (self.results.finished and self.pictures.finished):
                self._listen()
                yield from self._send_waiting()
            self._say_ended()
        finally:
            self.close()

    def set_state(self, source: str, state: State, reason: str, epoch: int) -> None:
        """Publish a new state, at once, after what has been put into the mailboxes before.

        Safe from any thread; says nothing once ``drain`` has ended.

        Args:
            source: its name, empty for the service itself.
            state: ``ended`` and ``failed`` are final: subscribers stop waiting.
            reason: why, in words.
            epoch: the source's.
        """
        with self._lock:
            self._leaving.discard(source)
            self._states[source] = _SourceState(state, reason, epoch)
            self._changed.add(source)
        self._waker.wake()

    def forget(self, source: str) -> None:
        """Say no more of a source, once its latest state has gone out; safe from any thread.

        Args:
            source: its name; ``set_state`` brings it back.
        """
        with self._lock:
            self._leaving.add(source)
        self._waker.wake()

    def wants(self, kind: Literal["frames", "video"], source: str) -> bool:
        """Whether somebody subscribes to these pictures; safe from any thread."""
        return self._audience[self._frames].wants(wire.topic(kind, source))

    def wait_joined(self, count: int, stopped: threading.Event) -> bool:
        """Wait until ``count`` subscriptions to results or pictures are held; see ``drain``.

        Returns:
            False if ``stopped`` was set first, or the publisher closed.
        """
        with self._joined:
            while not (stopped.is_set() or self._waker.closed):
                if sum(a.results_joined for a in self._audience.values()) >= count:
                    return True
                self._joined.wait(LISTEN_EVERY)
        return False

    def close(self) -> None:
        """Close the sockets; what is queued gets ``LINGER_MS`` to leave.

        ``drain`` ends with it. Call it only where ``drain`` doesn't run.
        """
        if self._waker.closed:
            return
        self._waker.close()
        self._guard.close()
        self._masks.close(linger=LINGER_MS)
        self._frames.close(linger=LINGER_MS)
        self._context.term()

    def _result_late(self, result: Result) -> None:
        self._metrics.account(result.source).drop("publisher_late")
        self._metrics.messages_dropped.labels(self.name).inc()

    def _picture_late(self, picture: Picture) -> None:
        self._metrics.pictures_dropped.labels(picture.source).inc()

    # What the network thread hears

    def _listen(self) -> None:
        """Wait for something to do, and take in who has joined and left."""
        ready = dict(self._poller.poll(int(LISTEN_EVERY * 1000)))
        self.looked_up_at = time.monotonic()
        self._waker.rest()
        for sock, audience in self._audience.items():
            if sock in ready:
                self._hear(sock, audience)
        if time.monotonic() >= self._guard_due:
            self._guard.check()
            self._guard_due = time.monotonic() + LISTEN_EVERY

    def _hear(self, sock: zmq.Socket[bytes], audience: Audience) -> None:
        with contextlib.suppress(zmq.Again):
            for _ in range(HEARD_AT_ONCE):
                prefix = audience.hear(sock.recv(zmq.NOBLOCK))
                if prefix is not None:
                    self._joined_since |= {
                        (sock, source)
                        for source in self._said
                        if wire.topic("status", source).startswith(prefix)
                    }
        with self._joined:
            self._joined.notify_all()

    # What it says

    def _send_waiting(self) -> Iterator[Result]:
        """Everything that waits now. A change of state comes after what was put in before it."""
        with self._lock:
            changed, self._changed = self._changed, set()
        for _ in range(len(self.results)):
            if (result := self.results.get(0)) is not None:
                self._publish_result(result)
                yield result
        for _ in range(len(self.pictures)):
            if (picture := self.pictures.get(0)) is not None:
                self._publish_picture(picture)
        self._publish_statuses(changed)

    def _publish_result(self, result: Result) -> None:
        account = self._metrics.account(result.source)
        topic = wire.topic("masks", result.source)
        seq = self._next_seq(topic)
        if self._audience[self._masks].wants(topic):
            message = self._encode(result, seq)
            if len(message) > wire.MAX_JSON_BYTES:
                log.warning("%s: results of %d bytes", result.source, len(message))
                account.fail("too_large")
                return
            self._masks.send_multipart([topic, message])
        account.publish()
        age = time.monotonic() - result.frame.monotonic
        self._metrics.observe_age(result.source, age)

    def _publish_picture(self, picture: Picture) -> None:
        offered: list[tuple[wire.Topic, bytes | None]] = [
            ("frames", picture.annotated),
            ("video", picture.plain),
        ]
        for kind, jpeg in offered:
            topic = wire.topic(kind, picture.source)
            if jpeg is None or not self._audience[self._frames].wants(topic):
                continue
            message = self._encode(picture.result, self._next_seq(topic))
            if len(message) > wire.MAX_JSON_BYTES or len(jpeg) > wire.MAX_JPEG_BYTES:
                log.warning("%s: a picture of %d bytes", picture.source, len(jpeg))
                self._metrics.pictures_dropped.labels(picture.source).inc()
                continue
            self._frames.send_multipart([topic, message, jpeg])

    def _encode(self, result: Result, seq: int) -> bytes:
        """A masks message. Its run lengths are made once and kept by the result's ``Masks``."""
        message = wire.masks_message(
            wire.recorded_message(result, seq),
            result,
            service=self.service,
            published_at=time.time(),
            age_ms=(time.monotonic() - result.frame.monotonic) * 1000,
            dropped=self._metrics.account(result.source).snapshot().dropped,
        )
        return wire.encode(message)

    def _publish_statuses(self, changed: set[str]) -> None:
        """Those that have changed; every second all; and for who has just joined, the latest."""
        now = time.monotonic()
        with self._lock:
            states = dict(self._states)
            leaving, self._leaving = self._leaving - self._changed, self._leaving & self._changed
            for source in leaving:
                del self._states[source]
        if now >= self._status_due:
            changed = set(states)
            self._status_due = now + STATUS_EVERY
        for source in sorted(changed, reverse=True):  # the service's own comes last
            self._said[source] = self._encode_status(source, states[source])
            for sock in (self._masks, self._frames):
                sock.send_multipart([wire.topic("status", source), self._said[source]])
                self._joined_since.discard((sock, source))
        for source in leaving:
            self._said.pop(source, None)
            self._joined_since -= {(sock, source) for sock in self._audience}
        if self._joined_since and now >= self._resend_due:
            for sock, source in self._joined_since:
                sock.send_multipart([wire.topic("status", source), self._said[source]])
            self._joined_since.clear()
            self._resend_due = now + RESEND_EVERY

    def _encode_status(self, source: str, status: _SourceState) -> bytes:
        account = self._account(source)
        message = wire.StatusMessage(
            v=wire.VERSION,
            service=self.service,
            source=source,
            seq=self._next_seq(wire.topic("status", source)),
            state=status.state,
            reason=status.reason,
            epoch=status.epoch,
            decoded=account.decoded,
            published=account.published,
            dropped=dict(account.dropped),
            failed=dict(account.failed),
            in_flight=account.in_flight,
            endpoints=self.endpoints,
        )
        return wire.encode(message)

    def _account(self, source: str) -> AccountSnapshot:
        """A source's account, or the sum of all for the service."""
        snapshots = self._metrics.snapshots()
        if source:
            snapshots = [s for s in snapshots if s.source == source]
        dropped: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        for snapshot in snapshots:
            dropped.update(snapshot.dropped)
            failed.update(snapshot.failed)
        return AccountSnapshot(
            source,
            sum(s.decoded for s in snapshots),
            sum(s.published for s in snapshots),
            dropped,
            failed,
            sum(s.in_flight for s in snapshots),
        )

    def _say_ended(self) -> None:
        """The last word on every source, and then on the service.

        It is repeated until all have left, because it is lost to whoever's queue is full; who is
        only slow shall hear it too.
        """
        ending: tuple[State, str] = ("ended", "the service ended")
        if self.results.aborted:
            ending = ("failed", "the service ended before its work was done")
        with self._lock:
            for source, last in self._states.items():
                if last.state not in wire.FINAL:
                    self._states[source] = _SourceState(*ending, last.epoch)
            sources = set(self._states)
        if self.results.aborted:
            self._publish_statuses({""})  # first, so that nobody takes a source's end for its own
        self._publish_statuses(sources)
        until = time.monotonic() + LAST_WORD
        while self._anybody() and time.monotonic() < until:
            self._listen()
            self._joined_since |= {(sock, source) for sock in self._audience for source in sources}
            self._publish_statuses(set())

    def _anybody(self) -> bool:
        return any(audience.anybody for audience in self._audience.values())

    def _next_seq(self, topic: bytes) -> int:
        self._seq[topic] += 1
        return self._seq[topic] - 1


class _Waker:
    """Lets any thread end the network thread's sleep."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.closed = False
        self._lock = threading.Lock()
        self.ear = context.socket(zmq.PAIR)
        self._bell = context.socket(zmq.PAIR)
        for end in (self.ear, self._bell):
            end.sndhwm = end.rcvhwm = 1
        self.ear.bind("inproc://wake")
        self._bell.connect("inproc://wake")

    def wake(self) -> None:
        """Ring, from any thread."""
        with self._lock, contextlib.suppress(zmq.Again):  # Again: it has been rung already
            if not self.closed:
                self._bell.send(b"", zmq.NOBLOCK)

    def rest(self) -> None:
        """Take note: everything that was rung for up to now will be looked at next."""
        with contextlib.suppress(zmq.Again):
            while True:
                self.ear.recv(zmq.NOBLOCK)

    def close(self) -> None:
        """Ringing does nothing from now on."""
        with self._lock:
            self.closed = True
            self._bell.close(linger=0)
            self.ear.close(linger=0)


def _addresses(config: PublishConfig) -> tuple[Address, Address]:
    """Where masks and pictures are to be bound."""
    try:
        masks_at = Address.parse(config.bind)
        frames_at = (
            masks_at.for_pictures
            if config.bind_frames is None
            else Address.parse(config.bind_frames)
        )
    except UsageError as error:
        raise ConfigError(f"publish: {error}") from None
    for address in (masks_at, frames_at):
        if not address.is_loopback and not config.insecure:
            raise ConfigError(
                f"publish: {address} can be reached by other machines, and nothing is encrypted: "
                "bind to 127.0.0.1, or say --insecure"
            )
    return masks_at, frames_at


def _open(context: zmq.Context[zmq.Socket[bytes]], queued: int) -> zmq.Socket[bytes]:
    """An XPUB socket that nobody can stall or fill."""
    sock = context.socket(zmq.XPUB)
    sock.setsockopt(zmq.XPUB_VERBOSE, 1)  # every join, and the last leave: see Audience
    sock.sndhwm = queued
    sock.rcvhwm = INCOMING_QUEUED
    sock.setsockopt(zmq.RCVBUF, INCOMING_BUFFER)
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_INCOMING)
    sock.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_AFTER_MS)
    sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    sock.linger = LINGER_MS
    return sock


def _bind(sock: zmq.Socket[bytes], address: Address, option: str) -> str:
    """Bind; the endpoint, with the port that it got."""
    if address.transport == "ipc":
        _check_ipc_path(address, option)
    sock.setsockopt(zmq.IPV6, int(":" in address.host))
    # libzmq binds to addresses and interfaces, not to names of hosts.
    host = "127.0.0.1" if address.host == "localhost" else address.host
    try:
        sock.bind(str(Address(address.transport, host, address.port)))
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise BindError(
                f"{address} is taken by another program: choose another address with --{option}"
            ) from None
        raise BindError(f"{address} can't be bound: {error}") from None
    endpoint = sock.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def _check_ipc_path(address: Address, option: str) -> None:
    """Refuse a path that libzmq would take from whoever has it: it deletes what is there."""
    path = Path(address.host)
    if address.host.startswith(("@", "*")) or not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise BindError(f"{address} can't be bound: there is a file of that name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address.host)
        except ConnectionRefusedError:
            return  # left behind by a program that is gone
        except OSError as error:
            raise BindError(f"{address} can't be bound: {error}") from None
    raise BindError(
        f"{address} is taken by another program: choose another address with --{option}"
    )
