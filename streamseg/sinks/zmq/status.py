"""Status messages of the sources and the service: at each change, every second and at the end.

They are sent on both publishing sockets, so that a subscriber to images learns there that a source
has ended. A new subscriber gets the latest ones at once, with their old sequence numbers.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from streamseg import protocol
from streamseg.pipeline.metrics import AccountSnapshot, Metrics
from streamseg.protocol.messages import State

STATUS_INTERVAL = 1.0
"""Seconds between the regular status messages of a source."""
RESEND_INTERVAL = 0.05
"""Minimum seconds between repetitions for new subscribers."""


@dataclass(frozen=True, slots=True)
class _SourceState:
    """State of a source in its next status message."""

    state: State
    reason: str
    epoch: int


class StatusPublisher:
    """Publishes the states of all sources and of the service, whose name is empty.

    ``set_state`` and ``forget`` may be called from any thread, the rest from the publisher's.

    Args:
        service: id of the service process.
        sockets: sockets to send to.
        addresses: addresses of the sockets, for the messages.
        metrics: the accounts of the sources.
        next_seq: returns the next sequence number of a topic.
    """

    def __init__(
        self,
        service: str,
        sockets: Sequence[zmq.Socket[bytes]],
        addresses: dict[str, str],
        metrics: Metrics,
        next_seq: Callable[[bytes], int],
    ) -> None:
        self._service = service
        self._sockets = sockets
        self._addresses = addresses
        self._metrics = metrics
        self._next_seq = next_seq
        self._lock = threading.Lock()
        self._states = {"": _SourceState("live", "", 0)}
        self._changed = {""}
        self._leaving: set[str] = set()
        self._last_messages: dict[str, bytes] = {}
        self._to_resend: set[tuple[zmq.Socket[bytes], str]] = set()
        self._next_status_at = self._next_resend_at = time.monotonic()

    def set_state(self, source: str, state: State, reason: str, epoch: int) -> None:
        """Set the state for the next status message; see ``Publisher.set_state``."""
        with self._lock:
            self._leaving.discard(source)
            self._states[source] = _SourceState(state, reason, epoch)
            self._changed.add(source)

    def forget(self, source: str) -> None:
        """Stop publishing a source's status after its latest state was sent."""
        with self._lock:
            self._leaving.add(source)

    def take_changed(self) -> set[str]:
        """Return the sources whose state changed since the last call."""
        with self._lock:
            changed, self._changed = self._changed, set()
        return changed

    def add_subscription(self, sock: zmq.Socket[bytes], prefix: bytes) -> None:
        """Schedule the latest status messages for a new subscription."""
        self._to_resend |= {
            (sock, source)
            for source in self._last_messages
            if protocol.topic("status", source).startswith(prefix)
        }

    def publish(self, changed: set[str]) -> None:
        """Send the status of changed sources, of all once a second, and those scheduled."""
        now = time.monotonic()
        with self._lock:
            states = dict(self._states)
            leaving, self._leaving = self._leaving - self._changed, self._leaving & self._changed
            for source in leaving:
                del self._states[source]
        if now >= self._next_status_at:
            changed = set(states)
            self._next_status_at = now + STATUS_INTERVAL
        for source in sorted(changed, reverse=True):  # the service's own comes last
            self._last_messages[source] = self._encode(source, states[source])
            for sock in self._sockets:
                self._send(sock, source)
                self._to_resend.discard((sock, source))
        for source in leaving:
            self._last_messages.pop(source, None)
            self._to_resend -= {(sock, source) for sock in self._sockets}
        if self._to_resend and now >= self._next_resend_at:
            for sock, source in self._to_resend:
                self._send(sock, source)
            self._to_resend.clear()
            self._next_resend_at = now + RESEND_INTERVAL

    def publish_end(self, *, aborted: bool) -> None:
        """Send the final state of every source, and then that of the service."""
        final: tuple[State, str] = ("ended", "the service ended")
        if aborted:
            final = ("failed", "the service ended before its work was done")
        with self._lock:
            for source, last in self._states.items():
                if last.state not in protocol.FINAL:
                    self._states[source] = _SourceState(*final, last.epoch)
        if aborted:
            self.publish({""})  # first, so that no subscriber takes a source's end for a normal one
        with self._lock:
            sources = set(self._states)
        self.publish(sources)

    def repeat(self) -> None:
        """Send all latest status messages again."""
        for source in self._last_messages:
            self._to_resend |= {(sock, source) for sock in self._sockets}
        self.publish(set())

    def _send(self, sock: zmq.Socket[bytes], source: str) -> None:
        sock.send_multipart([protocol.topic("status", source), self._last_messages[source]])

    def _encode(self, source: str, status: _SourceState) -> bytes:
        account = self._account(source)
        message = protocol.StatusMessage(
            v=protocol.VERSION,
            service=self._service,
            source=source,
            seq=self._next_seq(protocol.topic("status", source)),
            state=status.state,
            reason=status.reason,
            epoch=status.epoch,
            decoded=account.decoded,
            published=account.published,
            dropped=dict(account.dropped),
            failed=dict(account.failed),
            in_flight=account.in_flight,
            endpoints=self._addresses,
        )
        return protocol.encode(message)

    def _account(self, source: str) -> AccountSnapshot:
        """Return a source's account, or for the service the sum of all."""
        if source:
            return self._metrics.account(source).snapshot()
        snapshots = self._metrics.snapshots()
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
