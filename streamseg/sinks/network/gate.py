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

import contextlib
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from typing import Literal, TypeAlias

import zmq
from zmq.utils.monitor import recv_monitor_message

from streamseg.metrics import Metrics
from streamseg.wire import Address

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
SHUT_FOR = 1.0
"""Seconds that nobody more is let in after somebody was cut off for flooding: he would be back at
once, and those who are there shall be served."""
LOOK_EVERY = 0.01
LOOK_EVERY_FOR_EACH = 0.0002
"""Seconds between two looks at what has been received, and at least so many for each connection: a
look at one takes some 10 microseconds."""
POLL_EVERY = 0.05
"""Seconds, while nobody is there."""
LOG_EVERY = 1.0
"""Seconds between two lines about the same, however many strangers come."""

_SETTLED_AFTER = HANDSHAKE_MS / 1000 + 1
"""Seconds after which a connection that is still there has had its handshake."""
_EVENTS_AT_ONCE = 100
_TCP_BYTES_RECEIVED = 128
"""Where ``tcpi_bytes_received``, a u64, is in Linux' ``struct tcp_info`` (linux/tcp.h)."""
_FAILED = (
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)
_EVENTS = zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED | zmq.Event.HANDSHAKE_SUCCEEDED | _FAILED


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
        self._since: dict[int, float] = {}
        self._cut_off: set[int] = set()
        self._admitted = self._failed = 0
        self._shut_until = self._loudness_due = 0.0
        self._all_must_go = threading.Event()
        self.established = 0
        self.crowded = False
        self.monitor = _monitor(sock, name)

    def bound(self, endpoint: str) -> None:
        """The connections that are accepted there are ours to cut."""
        self._address = Address.parse(endpoint)

    @property
    def is_watching(self) -> bool:
        """Whether there is anybody who could say too much."""
        return bool(self._since)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for one more."""
        return self.established >= self._most

    def let_all_go(self) -> None:
        """Have every connection cut, also those that are accepted this moment; from any thread."""
        self._all_must_go.set()

    def look(self) -> None:
        """Take in who has come and gone, and cut who may not stay; never waits."""
        if self._all_must_go.is_set():
            self._all_must_go.clear()
            self._cut_all()
        self._take_events()
        self.established = self._count_established()
        self._cut_too_many()
        self._cut_too_loud()

    def close(self) -> None:
        """Let go of the socket, before it is closed."""
        self._sock.disable_monitor()
        self.monitor.close(linger=0)

    def _cut_all(self) -> None:
        while self.monitor.poll(0):
            self._take_events()
        for fd in self._staying():
            self._cut(fd)

    def _cut_too_many(self) -> None:
        half_open = len(self._since) - self.established
        leaving = len(self._cut_off)  # of either kind; what is still too many then is cut later
        for _ in range(self.established - self._most - leaving):
            self._cut(self._newest())
            self._refusals.add("full", f"{self._name}: more than {self._most} connections")
        for _ in range(half_open - MAX_HALF_OPEN - leaving):
            self._cut(self._oldest_half_open() or self._newest())
            self._refusals.add("half_open", f"{self._name}: many connections without a handshake")

    def _cut_too_loud(self) -> None:
        now = time.monotonic()
        if now < self._loudness_due:
            return
        self._loudness_due = now + max(LOOK_EVERY, LOOK_EVERY_FOR_EACH * len(self._since))
        said = {
            fd: self._received(fd) - (now - self._since[fd]) * MAY_SEND_A_SECOND
            for fd in self._staying()
        }
        everything = sum(amount for amount in said.values() if amount > 0)
        many = self.crowded or everything > MAY_ALL_SEND
        at_once = MAY_SEND_IN_A_CROWD if many else MAY_SEND_AT_ONCE
        for fd, amount in said.items():
            if amount > at_once:
                self._cut(fd)
                self._shut_until = now + SHUT_FOR
                self._refusals.add("loud", f"{self._name}: cut off who had said too much")

    def _count_established(self) -> int:
        settled = time.monotonic() - _SETTLED_AFTER
        old = sum(since < settled for since in self._since.values())
        return max(old, min(self._admitted, len(self._since)))

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
        if event == zmq.Event.ACCEPTED:
            now = time.monotonic()
            self._since.pop(value, None)
            self._since[value] = now
            self._cut_off.discard(value)
            if now < self._shut_until:
                self._cut(value)
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._admitted += 1
        elif event & _FAILED:
            self._failed += 1
        elif event == zmq.Event.DISCONNECTED:
            self._since.pop(value, None)
            self._cut_off.discard(value)
            if self._failed:
                self._failed -= 1
            else:
                self._admitted = max(0, self._admitted - 1)
            if not self._since:
                self._admitted = self._failed = 0

    def _staying(self) -> list[int]:
        return [fd for fd in self._since if fd not in self._cut_off]

    def _newest(self) -> int | None:
        return next((fd for fd in reversed(self._since) if fd not in self._cut_off), None)

    def _oldest_half_open(self) -> int | None:
        """The oldest that can't have had its handshake, by what it has sent."""
        settled = time.monotonic() - _SETTLED_AFTER
        for fd in self._staying():
            if self._since[fd] > settled and self._received(fd) < SHORTEST_HANDSHAKE:
                return fd
        return None

    def _cut(self, fd: int | None) -> None:
        """Shut a connection down: libzmq notices, and forgets it and all that was kept for it."""
        if fd is None:
            return
        self._cut_off.add(fd)
        connection = self._opened(fd)
        if connection is not None:
            with connection, contextlib.suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def _received(self, fd: int) -> int:
        """Bytes that a connection has received, as far as anybody counts them."""
        connection = self._opened(fd)
        if connection is None:
            return 0
        with connection:
            if sys.platform != "linux" or connection.family == socket.AF_UNIX:
                return 0
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            received: int = struct.unpack_from("=Q", info, _TCP_BYTES_RECEIVED)[0]
            return received

    def _opened(self, fd: int) -> socket.socket | None:
        """A descriptor as a socket; None where it isn't one of our connections any more.

        libzmq may have closed it this moment, and then its number may stand for anything.
        """
        try:
            copy = os.dup(fd)
        except OSError:
            return None
        try:
            connection = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            return None
        name = connection.getsockname()
        if isinstance(name, tuple):
            ours = self._address is not None and name[1] == self._address.port
        else:
            ours = self._address is not None and os.fsdecode(name) == self._unix_name
        if ours:
            return connection
        connection.close()
        return None

    @property
    def _unix_name(self) -> str | None:
        if self._address is None or self._address.transport != "ipc":
            return None
        path = self._address.host
        return f"\0{path[1:]}" if path.startswith("@") else path


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
        self._thread = threading.Thread(target=self._run, name="gatekeeper", daemon=True)
        self._thread.start()

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
                for gate in self._gates.values():
                    gate.look()
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
