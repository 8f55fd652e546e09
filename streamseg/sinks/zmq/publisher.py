"""The publisher: every result onto the network, for whoever subscribes.

One thread, the one that runs ``drain``, owns every socket; other threads leave what they have in
mailboxes and wake it. It never waits for a subscriber: who is late loses its own messages, those
beyond the high-water mark of its own queue, and nobody else's.

A subscriber that doesn't read costs at most its queue: ``MASKS_QUEUED`` x
``protocol.MAX_JSON_BYTES`` (1 GiB) and ``FRAMES_QUEUED`` x (``protocol.MAX_JSON_BYTES`` +
``protocol.MAX_JPEG_BYTES``) (320 MiB) if every message were as large as it may be; 3 MB and 5 MB
with 20 instances in frames of 1080p.
Messages are shared by the queues they are in. (The high-water mark can't follow the size of the
messages: lowering it on a live socket can stop a queue for good, libzmq 4.3.5.)

``endpoints`` opens the sockets and guards them, ``statuses`` knows what is to be said of the
sources, ``replay`` gives again what somebody has missed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

import zmq

from streamseg import protocol
from streamseg.config import PublishConfig
from streamseg.errors import StreamsegError
from streamseg.pipeline.mailbox import Mailbox
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.rendering import EncodedImages
from streamseg.protocol.messages import State
from streamseg.sinks.zmq.endpoints import Endpoints
from streamseg.sinks.zmq.replay import DEFAULT_BYTES, Replay
from streamseg.sinks.zmq.status import Statuses
from streamseg.sinks.zmq.subscriptions import Audience
from streamseg.structures.results import Result

log = logging.getLogger(__name__)

RESULTS_WAITING = 16
PICTURES_WAITING = 4
"""Items a source may have waiting for the network thread."""
HEARD_AT_ONCE = 1000
"""Subscriptions taken in before the next results go out."""
LISTEN_EVERY = 0.1
"""Seconds."""
LAST_WORD = 2.0
"""Seconds that the end of the service is repeated for subscribers that don't leave."""
CATCH_UP = 60.0
"""Seconds that it is repeated at the most for those who still read what was published before."""
READS_AGAIN_WITHIN = 10.0
"""Seconds. Of small messages, somebody slow takes a second's worth at a time, or several."""
LINGER_MS = 2000
"""What is queued when the service ends gets so long to leave."""


class Publisher:
    """Binds at once, publishes while somebody runs ``drain``.

    Args:
        config: where, for whom, and what is kept for those who were away.
        metrics: the accounts of the frames; ``published`` means handed to the masks socket.

    Attributes:
        endpoints: the addresses bound: ``masks``, ``frames`` and, where it is on, ``replay``.
        service: an id of this start.
        results: to be published; what is too late is dropped as ``publisher_late``.
        pictures: to be published; the newest win.
        last_poll_at: when ``drain`` last looked for something to do, on the monotonic clock.

    Raises:
        ConfigError: not an address, or one beyond loopback without keys or ``insecure``.
        KeyFileError: the keys can't be used.
        BindError: an address is taken or can't be bound.
    """

    name = "publisher"

    def __init__(self, config: PublishConfig, metrics: Metrics) -> None:
        self.service = secrets.token_hex(4)
        self._metrics = metrics
        self._joined = threading.Condition()
        self._hurried = threading.Event()
        self._context = zmq.Context()
        self._waker = _Waker(self._context)
        self.results: Mailbox[Result] = Mailbox(
            RESULTS_WAITING, "drop_oldest", on_drop=self._result_late, on_put=self._waker.wake
        )
        self.pictures: Mailbox[EncodedImages] = Mailbox(
            PICTURES_WAITING, "drop_oldest", on_drop=self._picture_late, on_put=self._waker.wake
        )
        try:
            self._sockets = Endpoints(self._context, config, metrics)
        except StreamsegError:
            self._waker.close()
            self._context.term()
            raise
        self.endpoints = self._sockets.addresses
        self._masks, self._frames = self._sockets.masks, self._sockets.frames
        self._audience = {self._masks: Audience(), self._frames: Audience()}
        self._replay = Replay(config.replay, DEFAULT_BYTES, self.service)
        self._replayed_for = config.replay
        self._wanted_at: dict[bytes, float] = {}
        self._poller = zmq.Poller()
        for sock in (self._waker.ear, self._masks, self._frames, *self._sockets.questions):
            self._poller.register(sock, zmq.POLLIN)
        if self._sockets.replay is not None:
            self._poller.register(self._sockets.replay, zmq.POLLIN)
        self._seq: Counter[bytes] = Counter()
        self._statuses = Statuses(
            self.service, (self._masks, self._frames), self.endpoints, metrics, self._next_seq
        )
        self.last_poll_at = time.monotonic()

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
        self._statuses.note(source, state, reason, epoch)
        self._waker.wake()

    def forget(self, source: str) -> None:
        """Say no more of a source, once its latest state has gone out; safe from any thread.

        Args:
            source: its name; ``set_state`` brings it back.
        """
        self._statuses.forget(source)
        self._waker.wake()

    def wants(self, kind: Literal["frames", "video"], source: str) -> bool:
        """Whether somebody subscribes to these pictures; safe from any thread."""
        return self._audience[self._frames].wants(protocol.topic(kind, source))

    def wait_joined(self, count: int, stopped: Callable[[], bool]) -> bool:
        """Wait until ``count`` subscriptions to results or pictures are held; see ``drain``.

        Returns:
            False if ``stopped`` was true first, or the publisher closed.
        """
        with self._joined:
            while not (stopped() or self._waker.closed):
                if sum(a.results_joined for a in self._audience.values()) >= count:
                    return True
                self._joined.wait(LISTEN_EVERY)
        return False

    def begin_fast_shutdown(self) -> None:
        """Don't wait at the end for those who are slow; safe from any thread."""
        self._hurried.set()

    def close(self) -> None:
        """Close the sockets; what is queued gets ``LINGER_MS`` to leave.

        ``drain`` ends with it. Call it only where ``drain`` doesn't run.
        """
        if self._waker.closed:
            return
        self._waker.close()
        self._sockets.close(linger=LINGER_MS)
        self._context.term()

    def _result_late(self, result: Result) -> None:
        self._metrics.account(result.source).drop("publisher_late")
        self._metrics.messages_dropped.labels(self.name).inc()

    def _picture_late(self, picture: EncodedImages) -> None:
        self._metrics.pictures_dropped.labels(picture.source).inc()

    # What the network thread hears

    def _listen(self) -> None:
        """Wait for something to do, and take in who has joined and left."""
        ready = dict(self._poller.poll(int(LISTEN_EVERY * 1000)))
        self.last_poll_at = time.monotonic()
        self._waker.rest()
        for sock, audience in self._audience.items():
            if sock in ready:
                self._hear(sock, audience)
        if self._sockets.replay is not None and self._sockets.replay in ready:
            self._replay.answer(self._sockets.replay)
        crowded = [sock for sock, audience in self._audience.items() if audience.is_crowded]
        self._sockets.look_after(crowded)

    def _hear(self, sock: zmq.Socket[bytes], audience: Audience) -> None:
        with contextlib.suppress(zmq.Again):
            for _ in range(HEARD_AT_ONCE):
                prefix = audience.hear(sock.recv(zmq.NOBLOCK))
                if prefix is not None:
                    self._statuses.joined(sock, prefix)
        with self._joined:
            self._joined.notify_all()

    # What it says

    def _send_waiting(self) -> Iterator[Result]:
        """Everything that waits now. A change of state comes after what was put in before it."""
        changed = self._statuses.take_changed()
        for _ in range(len(self.results)):
            if (result := self.results.get(0)) is not None:
                self._publish_result(result)
                yield result
        for _ in range(len(self.pictures)):
            if (picture := self.pictures.get(0)) is not None:
                self._publish_picture(picture)
        self._statuses.publish(changed)

    def _publish_result(self, result: Result) -> None:
        account = self._metrics.account(result.source)
        topic = protocol.topic("masks", result.source)
        seq = self._next_seq(topic)
        if self._has_readers(topic):
            message = self._encode(result, seq)
            if len(message) > protocol.MAX_JSON_BYTES:
                log.warning("%s: results of %d bytes", result.source, len(message))
                account.fail("too_large")
                return
            self._masks.send_multipart([topic, message])
            if self._replayed_for:
                self._replay.keep(topic, seq, message)
        age = time.monotonic() - result.frame.monotonic
        self._metrics.observe_age(result.source, age)
        account.publish()  # last: from now on the source may be over, and forgotten

    def _has_readers(self, topic: bytes) -> bool:
        """Whether somebody subscribes, or did a moment ago and may ask for it when he is back."""
        now = time.monotonic()
        if self._audience[self._masks].wants(topic):
            self._wanted_at[topic] = now
            return True
        return now - self._wanted_at.get(topic, -math.inf) < self._replayed_for

    def _publish_picture(self, picture: EncodedImages) -> None:
        offered: list[tuple[protocol.Topic, bytes | None]] = [
            ("frames", picture.annotated),
            ("video", picture.plain),
        ]
        for kind, jpeg in offered:
            topic = protocol.topic(kind, picture.source)
            if jpeg is None or not self._audience[self._frames].wants(topic):
                continue
            message = self._encode(picture.result, self._next_seq(topic))
            if len(message) > protocol.MAX_JSON_BYTES or len(jpeg) > protocol.MAX_JPEG_BYTES:
                log.warning("%s: a picture of %d bytes", picture.source, len(jpeg))
                self._metrics.pictures_dropped.labels(picture.source).inc()
                continue
            self._frames.send_multipart([topic, message, jpeg])

    def _encode(self, result: Result, seq: int) -> bytes:
        """A masks message. Its run lengths are made once and kept by the result's ``Masks``."""
        message = protocol.masks_message(
            protocol.recorded_message(result, seq),
            result,
            service=self.service,
            published_at=time.time(),
            age_ms=(time.monotonic() - result.frame.monotonic) * 1000,
            dropped=self._metrics.account(result.source).snapshot().dropped,
        )
        return protocol.encode(message)

    def _say_ended(self) -> None:
        """The last word on every source, and then on the service.

        It is repeated until all have left, because it is lost to whoever's queue is full; who is
        only slow shall hear it too, unless the service is in a hurry.
        """
        self._statuses.publish_end(aborted=self.results.aborted)
        self._sockets.note_readers()
        ended_at = time.monotonic()
        while self._anybody() and time.monotonic() < self._patient_until(ended_at):
            self._listen()
            self._statuses.repeat()

    def _patient_until(self, ended_at: float) -> float:
        if self._hurried.is_set() or self.results.aborted:
            return ended_at + LAST_WORD
        patience = READS_AGAIN_WITHIN if self._sockets.is_anybody_behind else LAST_WORD
        latest = max(ended_at + LAST_WORD, self._sockets.read_on_at + patience)
        return min(latest, ended_at + CATCH_UP)

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
