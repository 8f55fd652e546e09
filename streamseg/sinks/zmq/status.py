"""What the publisher says of the sources, and of itself: at each change, every second, at the end.

Statuses go to both publishing sockets, so that a subscriber to pictures needs no other to learn
that a source has ended. Who has just joined hears the latest at once, under its old number.
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

STATUS_EVERY = 1.0
RESEND_EVERY = 0.05
"""Seconds between answers to those who have just joined, however many they are."""


@dataclass(frozen=True, slots=True)
class _SourceState:
    """What is to be said of a source."""

    state: State
    reason: str
    epoch: int


class Statuses:
    """The states of all sources; ``note`` and ``forget`` from any thread, the rest from one.

    Args:
        service: the id of this start.
        sockets: where statuses go.
        addresses: of the sockets, as they are said.
        metrics: with the accounts.
        next_seq: the number of the next message of a topic.
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
        self._said: dict[str, bytes] = {}
        self._joined_since: set[tuple[zmq.Socket[bytes], str]] = set()
        self._status_due = self._resend_due = time.monotonic()

    def note(self, source: str, state: State, reason: str, epoch: int) -> None:
        """Note a state, to be said next; see ``Publisher.set_state``."""
        with self._lock:
            self._leaving.discard(source)
            self._states[source] = _SourceState(state, reason, epoch)
            self._changed.add(source)

    def forget(self, source: str) -> None:
        """Say no more of a source, once its latest state has gone out."""
        with self._lock:
            self._leaving.add(source)

    def take_changed(self) -> set[str]:
        """The sources whose state has changed since this was asked last."""
        with self._lock:
            changed, self._changed = self._changed, set()
        return changed

    def joined(self, sock: zmq.Socket[bytes], prefix: bytes) -> None:
        """Somebody subscribes to this at a socket, and shall hear what has been said of it."""
        self._joined_since |= {
            (sock, source)
            for source in self._said
            if protocol.topic("status", source).startswith(prefix)
        }

    def publish(self, changed: set[str]) -> None:
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
            self._said[source] = self._encode(source, states[source])
            for sock in self._sockets:
                self._send(sock, source)
                self._joined_since.discard((sock, source))
        for source in leaving:
            self._said.pop(source, None)
            self._joined_since -= {(sock, source) for sock in self._sockets}
        if self._joined_since and now >= self._resend_due:
            for sock, source in self._joined_since:
                self._send(sock, source)
            self._joined_since.clear()
            self._resend_due = now + RESEND_EVERY

    def publish_end(self, *, aborted: bool) -> None:
        """The last state of every source, and then of the service."""
        ending: tuple[State, str] = ("ended", "the service ended")
        if aborted:
            ending = ("failed", "the service ended before its work was done")
        with self._lock:
            for source, last in self._states.items():
                if last.state not in protocol.FINAL:
                    self._states[source] = _SourceState(*ending, last.epoch)
        if aborted:
            self.publish({""})  # first, so that nobody takes a source's end for its own
        with self._lock:
            sources = set(self._states)
        self.publish(sources)

    def repeat(self) -> None:
        """Say again what was said last, as if all had just joined."""
        self._joined_since |= {(sock, source) for sock in self._sockets for source in self._said}
        self.publish(set())

    def _send(self, sock: zmq.Socket[bytes], source: str) -> None:
        sock.send_multipart([protocol.topic("status", source), self._said[source]])

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
        """A source's account, or the sum of all for the service."""
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
