"""Publisher: sends results, images and status messages to subscribers over ZeroMQ.

One thread, which runs ``drain``, owns every socket; other threads put results into mailboxes and
wake it. It never waits for a subscriber: a slow one loses the messages beyond the high-water mark
of its own queue, and no other subscriber is affected.

A subscriber that doesn't read costs at most its queue: ``MASKS_QUEUED`` x
``protocol.MAX_JSON_BYTES`` (1 GiB) and ``FRAMES_QUEUED`` x (``protocol.MAX_JSON_BYTES`` +
``protocol.MAX_JPEG_BYTES``) (320 MiB) with messages of maximum size; 3 MB and 5 MB with 20
instances in 1080p frames. Queues share the messages. (The high-water mark can't depend on the size
of the messages: lowering it on a connected socket can block a queue forever, libzmq 4.3.5.)

``endpoints`` opens and protects the sockets, ``status`` publishes the states of the sources,
``replay`` sends lost messages again.
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
from streamseg.sinks.zmq.replay import DEFAULT_BYTES, ReplayBuffer
from streamseg.sinks.zmq.status import StatusPublisher
from streamseg.sinks.zmq.subscriptions import Subscriptions
from streamseg.structures.results import Result

log = logging.getLogger(__name__)

RESULTS_WAITING = 16
IMAGES_WAITING = 4
"""Capacity of the publisher's mailboxes, in items per source."""
SUBSCRIPTIONS_AT_ONCE = 1000
"""Subscriptions processed before the next results are sent."""
POLL_TIMEOUT = 0.1
"""Maximum time that one poll of the sockets waits, in seconds."""
END_REPEATED_FOR = 2.0
"""Time that the end-of-stream messages are repeated while subscribers are connected, in seconds."""
MAX_DRAIN_TIME = 60.0
"""Maximum time that the end-of-stream messages are repeated, in seconds, while slow subscribers
still read earlier messages."""
SLOW_READ_INTERVAL = 10.0
"""Seconds after which a slow subscriber counts as stuck. With small messages, it reads those of
a second or more at a time."""
LINGER_MS = 2000
"""Time limit for sending queued messages when the service ends."""


class Publisher:
    """Publishes results and images while ``drain`` runs; the sockets are bound on creation.

    Args:
        config: addresses, keys, limits and the duration of replay.
        metrics: the accounts of the frames; ``published`` means passed to the masks socket.

    Attributes:
        endpoints: bound addresses of ``masks``, ``frames`` and, if enabled, ``replay``.
        service: id of this service process.
        results: mailbox of results; the oldest are dropped as ``publisher_late``.
        images: mailbox of encoded images; the oldest are dropped.
        last_poll_at: when ``drain`` last polled its sockets, on the monotonic clock.

    Raises:
        ConfigError: an address is invalid, or not loopback without keys or ``insecure``.
        KeyFileError: the keys are invalid.
        BindError: an address is in use or can't be bound.
    """

    name = "publisher"

    def __init__(self, config: PublishConfig, metrics: Metrics) -> None:
        self.service = secrets.token_hex(4)
        self._metrics = metrics
        self._subscriptions_changed = threading.Condition()
        self._is_fast_shutdown = threading.Event()
        self._context = zmq.Context()
        self._wake_up = _WakeUp(self._context)
        self.results: Mailbox[Result] = Mailbox(
            RESULTS_WAITING,
            "drop_oldest",
            on_drop=self._count_late_result,
            on_put=self._wake_up.wake,
        )
        self.images: Mailbox[EncodedImages] = Mailbox(
            IMAGES_WAITING, "drop_oldest", on_drop=self._count_late_image, on_put=self._wake_up.wake
        )
        try:
            self._sockets = Endpoints(self._context, config, metrics)
        except StreamsegError:
            self._wake_up.close()
            self._context.term()
            raise
        self.endpoints = self._sockets.addresses
        self._masks, self._frames = self._sockets.masks, self._sockets.frames
        self._subscriptions = {self._masks: Subscriptions(), self._frames: Subscriptions()}
        self._replay = ReplayBuffer(config.replay, DEFAULT_BYTES, self.service)
        self._replay_seconds = config.replay
        self._subscribed_at: dict[bytes, float] = {}
        self._poller = zmq.Poller()
        authentication = self._sockets.authentication_sockets
        for sock in (self._wake_up.receiver, self._masks, self._frames, *authentication):
            self._poller.register(sock, zmq.POLLIN)
        if self._sockets.replay is not None:
            self._poller.register(self._sockets.replay, zmq.POLLIN)
        self._seq: Counter[bytes] = Counter()
        self._statuses = StatusPublisher(
            self.service, (self._masks, self._frames), self.endpoints, metrics, self._next_seq
        )
        self.last_poll_at = time.monotonic()

    def drain(self) -> Iterator[Result]:
        """Publish the content of the mailboxes until both are finished; run by one thread.

        Yields:
            Each result once it was passed to the socket or has failed.
        """
        try:
            while not (self.results.finished and self.images.finished):
                self._process_sockets()
                yield from self._send_waiting()
            self._publish_end()
        finally:
            self.close()

    def set_state(self, source: str, state: State, reason: str, epoch: int) -> None:
        """Publish a new state at once, but after the results that are already in the mailbox.

        May be called from any thread; has no effect after ``drain`` has ended.

        Args:
            source: name of the source; empty for the service itself.
            state: new state; subscribers stop waiting after ``ended`` and ``failed``.
            reason: human-readable reason.
            epoch: current epoch of the source.
        """
        self._statuses.set_state(source, state, reason, epoch)
        self._wake_up.wake()

    def forget(self, source: str) -> None:
        """Stop publishing a source's status after its latest state was sent; from any thread.

        Args:
            source: name of the source; ``set_state`` starts again.
        """
        self._statuses.forget(source)
        self._wake_up.wake()

    def has_image_subscribers(self, kind: Literal["frames", "video"], source: str) -> bool:
        """Return whether anyone subscribes to these images of a source; from any thread."""
        return self._subscriptions[self._frames].includes(protocol.topic(kind, source))

    def wait_for_subscribers(self, count: int, stopped: Callable[[], bool]) -> bool:
        """Wait for ``count`` subscriptions to results or images; ``drain`` must run in its thread.

        Returns:
            False if ``stopped`` returned true first, or the publisher was closed.
        """
        with self._subscriptions_changed:
            while not (stopped() or self._wake_up.is_closed):
                if sum(each.result_count for each in self._subscriptions.values()) >= count:
                    return True
                self._subscriptions_changed.wait(POLL_TIMEOUT)
        return False

    def begin_fast_shutdown(self) -> None:
        """Don't wait for slow subscribers at the end; from any thread."""
        self._is_fast_shutdown.set()

    def close(self) -> None:
        """Close the sockets; queued messages are sent for at most ``LINGER_MS``.

        ``drain`` calls this at its end. Call it only if ``drain`` isn't running.
        """
        if self._wake_up.is_closed:
            return
        self._wake_up.close()
        self._sockets.close(linger=LINGER_MS)
        self._context.term()

    def _count_late_result(self, result: Result) -> None:
        self._metrics.account(result.source).drop("publisher_late")
        self._metrics.messages_dropped.labels(self.name).inc()

    def _count_late_image(self, images: EncodedImages) -> None:
        self._metrics.images_dropped.labels(images.source).inc()

    # Incoming messages

    def _process_sockets(self) -> None:
        """Wait for work, then process subscriptions, replay requests and connections."""
        ready = dict(self._poller.poll(int(POLL_TIMEOUT * 1000)))
        self.last_poll_at = time.monotonic()
        self._wake_up.clear()
        for sock, subscriptions in self._subscriptions.items():
            if sock in ready:
                self._process_subscriptions(sock, subscriptions)
        if self._sockets.replay is not None and self._sockets.replay in ready:
            self._replay.answer_requests(self._sockets.replay)
        overfull = [sock for sock, each in self._subscriptions.items() if each.is_full]
        self._sockets.check_connections(overfull)

    def _process_subscriptions(self, sock: zmq.Socket[bytes], subscriptions: Subscriptions) -> None:
        with contextlib.suppress(zmq.Again):
            for _ in range(SUBSCRIPTIONS_AT_ONCE):
                prefix = subscriptions.process(sock.recv(zmq.NOBLOCK))
                if prefix is not None:
                    self._statuses.add_subscription(sock, prefix)
        with self._subscriptions_changed:
            self._subscriptions_changed.notify_all()

    # Outgoing messages

    def _send_waiting(self) -> Iterator[Result]:
        """Send all waiting items; state changes follow the results that were put in before."""
        changed = self._statuses.take_changed()
        for _ in range(len(self.results)):
            if (result := self.results.get(0)) is not None:
                self._publish_result(result)
                yield result
        for _ in range(len(self.images)):
            if (images := self.images.get(0)) is not None:
                self._publish_images(images)
        self._statuses.publish(changed)

    def _publish_result(self, result: Result) -> None:
        account = self._metrics.account(result.source)
        topic = protocol.topic("masks", result.source)
        seq = self._next_seq(topic)
        if self._is_needed(topic):
            message = self._encode(result, seq)
            if len(message) > protocol.MAX_JSON_BYTES:
                log.warning("%s: a result of %d bytes is too large", result.source, len(message))
                account.fail("too_large")
                return
            self._masks.send_multipart([topic, message])
            if self._replay_seconds:
                self._replay.add(topic, seq, message)
        age = time.monotonic() - result.frame.monotonic
        self._metrics.observe_age(result.source, age)
        account.publish()  # last, because the source may end and be removed from then on

    def _is_needed(self, topic: bytes) -> bool:
        """Return whether anyone subscribes, or did so recently and may request a replay."""
        now = time.monotonic()
        if self._subscriptions[self._masks].includes(topic):
            self._subscribed_at[topic] = now
            return True
        return now - self._subscribed_at.get(topic, -math.inf) < self._replay_seconds

    def _publish_images(self, images: EncodedImages) -> None:
        jpegs: list[tuple[protocol.Topic, bytes | None]] = [
            ("frames", images.annotated),
            ("video", images.plain),
        ]
        for kind, jpeg in jpegs:
            topic = protocol.topic(kind, images.source)
            if jpeg is None or not self._subscriptions[self._frames].includes(topic):
                continue
            message = self._encode(images.result, self._next_seq(topic))
            if len(message) > protocol.MAX_JSON_BYTES or len(jpeg) > protocol.MAX_JPEG_BYTES:
                log.warning("%s: an image of %d bytes is too large", images.source, len(jpeg))
                self._metrics.images_dropped.labels(images.source).inc()
                continue
            self._frames.send_multipart([topic, message, jpeg])

    def _encode(self, result: Result, seq: int) -> bytes:
        """Encode a masks message. Its run lengths are computed once and cached by ``Masks``."""
        message = protocol.masks_message(
            protocol.recorded_message(result, seq),
            result,
            service=self.service,
            published_at=time.time(),
            age_ms=(time.monotonic() - result.frame.monotonic) * 1000,
            dropped=self._metrics.account(result.source).snapshot().dropped,
        )
        return protocol.encode(message)

    def _publish_end(self) -> None:
        """Send the end-of-stream messages of every source, and then of the service.

        They are repeated until all subscribers have left, because a full queue drops them. Slow
        subscribers are waited for, except in a fast shutdown.
        """
        self._statuses.publish_end(aborted=self.results.aborted)
        self._sockets.limiter.start_draining()
        ended_at = time.monotonic()
        while self._has_subscribers() and time.monotonic() < self._drain_deadline(ended_at):
            self._process_sockets()
            self._statuses.repeat()

    def _drain_deadline(self, ended_at: float) -> float:
        if self._is_fast_shutdown.is_set() or self.results.aborted:
            return ended_at + END_REPEATED_FOR
        limiter = self._sockets.limiter
        interval = SLOW_READ_INTERVAL if limiter.has_slow_peers else END_REPEATED_FOR
        deadline = max(ended_at + END_REPEATED_FOR, limiter.last_read_at + interval)
        return min(deadline, ended_at + MAX_DRAIN_TIME)

    def _has_subscribers(self) -> bool:
        return any(subscriptions.has_any for subscriptions in self._subscriptions.values())

    def _next_seq(self, topic: bytes) -> int:
        self._seq[topic] += 1
        return self._seq[topic] - 1


class _WakeUp:
    """Wakes the publisher's thread from any other thread, through an inproc socket pair."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.is_closed = False
        self._lock = threading.Lock()
        self.receiver = context.socket(zmq.PAIR)
        self._sender = context.socket(zmq.PAIR)
        for end in (self.receiver, self._sender):
            end.sndhwm = end.rcvhwm = 1
        self.receiver.bind("inproc://wake")
        self._sender.connect("inproc://wake")

    def wake(self) -> None:
        """Wake the publisher's thread; may be called from any thread."""
        with self._lock, contextlib.suppress(zmq.Again):  # a wake-up is pending already
            if not self.is_closed:
                self._sender.send(b"", zmq.NOBLOCK)

    def clear(self) -> None:
        """Discard pending wake-ups; call this before looking for work."""
        with contextlib.suppress(zmq.Again):
            while True:
                self.receiver.recv(zmq.NOBLOCK)

    def close(self) -> None:
        """Close the sockets; ``wake`` has no effect from then on."""
        with self._lock:
            self.is_closed = True
            self._sender.close(linger=0)
            self.receiver.close(linger=0)
