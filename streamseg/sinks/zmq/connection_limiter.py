"""The gate: how many connections there may be, and how much each may say.

libzmq takes every connection, keeps every subscription of every peer, and every part of a message
whose last part hasn't come, whatever ``MAXMSGSIZE`` says: 5 MB of long subscriptions made a
publisher grow by 220 MB, and an endless message made it grow twice as fast as it was sent. Neither
can be refused through libzmq, so the connections themselves are watched: it says which file
descriptors it has accepted, and a descriptor can be shut down.

This is done in a thread of its own: the network thread may have its hands full with what a flood
has brought, and a flood must be cut off within milliseconds.

Linux' TCP counts what a connection has received; elsewhere nothing does, and who can reach an ipc
socket is a matter of file permissions. The number of connections is limited everywhere.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Literal, TypeAlias

import zmq
from zmq.utils.monitor import recv_monitor_message

from streamseg.pipeline.metrics import Metrics
from streamseg.protocol.address import Address
from streamseg.sinks.zmq.tcp_connections import Connection, Listener

log = logging.getLogger(__name__)

Name: TypeAlias = Literal["masks", "frames", "replay"]
"""Of a socket."""

MAY_SEND_AT_ONCE = 256 * 1024
MAY_SEND_A_SECOND = 1024
"""Bytes: subscriptions to 1,500 sources at once, and then heartbeats with much to spare."""
MAY_ALL_SEND = 256 * 1024
MAY_SEND_IN_A_CROWD = 4 * 1024
"""Bytes that all connections of a socket may have sent beside their heartbeats, and what each may
once that is exceeded: some 60 subscriptions."""
MAX_HALF_OPEN = 64
"""Connections of a socket whose handshake isn't over; a good one takes some milliseconds."""
HANDSHAKE_MS = 5000
"""What a handshake may take."""
SHORTEST_HANDSHAKE = 80
"""Bytes that a peer has sent at the least when its handshake is over; 91 without keys."""
MUCH_UNTAKEN = 16 * 1024
"""Bytes: with so much before him somebody may have a full queue, where a last word has no room."""
SHUT_FOR = 1.0
"""Seconds that nobody more is let in after somebody was cut off for flooding: he would be back at
once, and those who are there shall be served. They begin anew while the network thread is behind:
libzmq takes the subscriptions of each who was cut off out of a tree of everybody's, so that floods
one on the other would cost it the square of their number."""
BEHIND_AFTER = 0.3
"""Seconds without a round of the network thread's, which makes one every 0.1 s at the least."""
LOOK_EVERY = 0.01
LOOK_EVERY_FOR_EACH = 0.00005
"""Seconds between two looks at what has been received, and at least so many for each connection: a
look at one takes some 3 microseconds."""
POLL_EVERY = 0.05
"""Seconds, while nobody is there."""
LOG_EVERY = 1.0
"""Seconds between two lines about the same, however many strangers come."""

_SETTLED_AFTER = HANDSHAKE_MS / 1000 + 1
"""Seconds after which a connection that is still there has had its handshake."""
_EVENTS_AT_ONCE = 100
_FAILED = (
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)
_EVENTS = (
    zmq.Event.LISTENING
    | zmq.Event.ACCEPTED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | _FAILED
)


class Refusals:
    """Counts who isn't let in or is cut off, and logs it, but not more often than can be read."""

    def __init__(self, metrics: Metrics) -> None:
        self._counter = metrics.refused
        self._logged_at: dict[str, float] = {}

    def add(self, reason: str, text: str) -> None:
        """One more.

        Args:
            reason: ``key``, ``full``, ``half_open``, ``loud`` or ``revoked``.
            text: for the log.
        """
        self._counter.labels(reason).inc()
        now = time.monotonic()
        if now - self._logged_at.get(reason, -LOG_EVERY) >= LOG_EVERY:
            self._logged_at[reason] = now
            log.warning(text)


class Gate:
    """Watches the connections of one socket, and cuts those that are too many or too loud.

    Args:
        name: of the socket, for the log.
        sock: not bound yet, so that no connection is missed.
        most: connections after their handshake.
        refusals: where those that are cut are counted.

    Attributes:
        ending_since: to be set when the last has been said; who comes later isn't waited for.
        is_anybody_behind: whether somebody has much unread, since then.
        read_on_at: when such a one was last seen to read on.
        monitor: can be read from when there is something for ``look``.
        established: connections after their handshake.
        crowded: to be set while there are more subscriptions than can be kept.
    """

    def __init__(self, name: str, sock: zmq.Socket[bytes], most: int, refusals: Refusals) -> None:
        self._name = name
        self._sock = sock
        self._most = most
        self._refusals = refusals
        self._address: Address | None = None
        self._listener: Listener | None = None
        self._connections: dict[int, Connection] = {}
        self._admitted = self._failed = 0
        self._shut_until = self._loudness_due = 0.0
        self._all_must_go = threading.Event()
        self._untaken: dict[int, int] = {}
        self.ending_since: float | None = None
        self.is_anybody_behind = False
        self.read_on_at = -math.inf
        self.established = 0
        self.crowded = False
        self.monitor = _monitor(sock, name)

    def bound(self, endpoint: str) -> None:
        """The connections that are accepted there are ours to cut."""
        self._address = Address.parse(endpoint)

    @property
    def is_watching(self) -> bool:
        """Whether there is anybody who could say too much."""
        return bool(self._connections)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for one more."""
        return self.established >= self._most

    def let_all_go(self) -> None:
        """Have every connection cut, also those that are accepted this moment; from any thread."""
        self._all_must_go.set()

    def look(self, *, is_behind: bool) -> None:
        """Take in who has come and gone, and cut who may not stay; never waits.

        Args:
            is_behind: whether the network thread hasn't dealt with what has come so far.
        """
        now = time.monotonic()
        if is_behind and now < self._shut_until:
            self._shut_until = now + SHUT_FOR
        if self._all_must_go.is_set():
            self._all_must_go.clear()
            self._cut_all()
        self._take_events()
        self.established = self._count_established()
        self._cut_too_many()
        self._cut_too_loud()
        if self.ending_since is not None:
            self._note_reading(self.ending_since)
        if self._listener is not None:
            self._listener.set_shut(time.monotonic() < self._shut_until)

    def close(self) -> None:
        """Let go of the socket, before it is closed."""
        self._sock.disable_monitor()
        self.monitor.close(linger=0)
        for connection in self._connections.values():
            connection.close()
        if self._listener is not None:
            self._listener.close()

    def _cut_all(self) -> None:
        while self.monitor.poll(0):
            self._take_events()
        for connection in self._staying():
            connection.cut()

    def _cut_too_many(self) -> None:
        half_open = len(self._connections) - self.established
        leaving = len(self._connections) - len(self._staying())
        # Those may be of either kind; what is still too many then is cut later.
        for _ in range(self.established - self._most - leaving):
            self._cut_newest()
            self._refusals.add("full", f"{self._name}: more than {self._most} connections")
        for _ in range(half_open - MAX_HALF_OPEN - leaving):
            self._cut_oldest_half_open()
            self._refusals.add("half_open", f"{self._name}: many connections without a handshake")

    def _cut_too_loud(self) -> None:
        now = time.monotonic()
        if now < self._loudness_due:
            return
        self._loudness_due = now + max(LOOK_EVERY, LOOK_EVERY_FOR_EACH * len(self._connections))
        said = [
            (connection, connection.received - (now - connection.since) * MAY_SEND_A_SECOND)
            for connection in self._staying()
        ]
        everything = sum(amount for _, amount in said if amount > 0)
        many = self.crowded or everything > MAY_ALL_SEND
        at_once = MAY_SEND_IN_A_CROWD if many else MAY_SEND_AT_ONCE
        for connection, amount in said:
            if amount > at_once:
                connection.cut()
                self._shut_until = now + SHUT_FOR
                self._refusals.add("loud", f"{self._name}: cut off who had said too much")

    def _note_reading(self, ending_since: float) -> None:
        before, self._untaken = self._untaken, {}
        for fd, connection in self._connections.items():
            if connection.since < ending_since and not connection.is_cut:
                self._untaken[fd] = connection.untaken
        behind = {fd: left for fd, left in self._untaken.items() if left > MUCH_UNTAKEN}
        self.is_anybody_behind = bool(behind)
        if any(left < before.get(fd, math.inf) for fd, left in behind.items()):  # at first, too
            self.read_on_at = time.monotonic()

    def _count_established(self) -> int:
        settled = time.monotonic() - _SETTLED_AFTER
        old = sum(connection.since < settled for connection in self._connections.values())
        return max(old, min(self._admitted, len(self._connections)))

    def _take_events(self) -> None:
        for _ in range(_EVENTS_AT_ONCE):
            if not self.monitor.poll(0):
                return
            event = recv_monitor_message(self.monitor)
            self._take(zmq.Event(event["event"]), int(event["value"]))

    def _take(self, event: zmq.Event, value: int) -> None:
        """Note one event. Of a handshake's, none says whose it is, so they are only counted.

        A connection that ends has been admitted before, unless there was a failure that has had
        no end yet. Some strangers' end without one, so the count may be too low; those that are
        older than a handshake can be are counted by themselves.
        """
        if event == zmq.Event.LISTENING:
            self._listener = None if self._address is None else Listener(value, self._address)
        elif event == zmq.Event.ACCEPTED:
            self._forget(value)
            self._connections[value] = Connection(value, self._address)
            if time.monotonic() < self._shut_until:  # he was before the door already
                self._connections[value].cut()
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._admitted += 1
        elif event & _FAILED:
            self._failed += 1
        elif event == zmq.Event.DISCONNECTED:
            self._forget(value)
            if self._failed:
                self._failed -= 1
            else:
                self._admitted = max(0, self._admitted - 1)
            if not self._connections:
                self._admitted = self._failed = 0

    def _forget(self, fd: int) -> None:
        connection = self._connections.pop(fd, None)
        if connection is not None:
            connection.close()

    def _staying(self) -> list[Connection]:
        """Those that weren't cut, the oldest first."""
        return [connection for connection in self._connections.values() if not connection.is_cut]

    def _cut_newest(self) -> None:
        for connection in self._staying()[-1:]:
            connection.cut()

    def _cut_oldest_half_open(self) -> None:
        """The oldest that can't have had its handshake, by what it has sent; or else the newest."""
        settled = time.monotonic() - _SETTLED_AFTER
        for connection in self._staying():
            if connection.since > settled and connection.received < SHORTEST_HANDSHAKE:
                connection.cut()
                return
        self._cut_newest()


class Gatekeeper:
    """The thread that looks after the gates.

    Args:
        gates: by name.
        metrics: counts the subscribers: the connections to ``masks`` and ``frames``.

    Attributes:
        failure: what has ended it, if it wasn't ``close``.
    """

    def __init__(self, gates: Mapping[Name, Gate], metrics: Metrics) -> None:
        self.failure: BaseException | None = None
        self._gates = gates
        self._metrics = metrics
        self._closing = threading.Event()
        self._round_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="gatekeeper", daemon=True)
        self._thread.start()

    def note_round(self) -> None:
        """The network thread has dealt with what there was."""
        self._round_at = time.monotonic()

    def close(self) -> None:
        """End it; takes ``POLL_EVERY`` at most."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        poller = zmq.Poller()
        for gate in self._gates.values():
            poller.register(gate.monitor, zmq.POLLIN)
        try:
            while not self._closing.is_set():
                busy = any(gate.is_watching for gate in self._gates.values())
                poller.poll(int((LOOK_EVERY if busy else POLL_EVERY) * 1000))
                is_behind = time.monotonic() - self._round_at > BEHIND_AFTER
                for gate in self._gates.values():
                    gate.look(is_behind=is_behind)
                masks, frames = self._gates["masks"], self._gates["frames"]
                self._metrics.subscribers.set(masks.established + frames.established)
        except Exception as error:  # noqa: BLE001 - the network thread raises it
            self.failure = error


def _monitor(sock: zmq.Socket[bytes], name: str) -> zmq.Socket[bytes]:
    """A socket's events, however many: libzmq's thread would stand still where one had no room."""
    where = f"inproc://monitor-{name}"
    sock.monitor(where, _EVENTS)
    monitor: zmq.Socket[bytes] = sock.context.socket(zmq.PAIR)
    monitor.rcvhwm = 0
    monitor.linger = 0
    monitor.connect(where)
    return monitor
