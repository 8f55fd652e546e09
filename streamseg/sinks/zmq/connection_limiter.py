"""Limits on the number of connections to a socket and on the bytes each one may send.

libzmq accepts every connection, stores every subscription of every peer, and every part of a
message whose last part hasn't arrived, regardless of ``MAXMSGSIZE``: 5 MB of long subscriptions
made a publisher grow by 220 MB, and an endless message made it grow twice as fast as it was sent.
libzmq offers no limit for either, so the connections themselves are watched: libzmq's monitor
reports the accepted file descriptors, and a descriptor can be shut down.

A separate thread does this, because the publisher's thread may be busy with the flood, which must
be cut off within milliseconds.

Received bytes are counted by Linux's TCP only. Elsewhere, and for ipc sockets, which are protected
by file permissions, only the number of connections is limited.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection
from typing import Literal, TypeAlias

import zmq
from zmq.utils.monitor import recv_monitor_message

from streamseg.pipeline.metrics import Metrics
from streamseg.protocol.address import Address
from streamseg.sinks.zmq.refusals import RefusalLog
from streamseg.sinks.zmq.tcp_connections import Connection, Listener

SocketName: TypeAlias = Literal["masks", "frames", "replay"]

MAX_BURST_BYTES = 256 * 1024
MAX_BYTES_PER_SECOND = 1024
"""Bytes that a peer may send: subscriptions to 1,500 sources at once, and heartbeats."""
MAX_TOTAL_BURST_BYTES = 256 * 1024
REDUCED_BURST_BYTES = 4 * 1024
"""Bytes that all peers of a socket together may send in addition to heartbeats, and the limit of
each peer once that is exceeded: about 60 subscriptions."""
MAX_HALF_OPEN = 64
"""Connections of a socket during their handshake, which normally takes milliseconds."""
HANDSHAKE_MS = 5000
"""Time limit of a handshake."""
MIN_HANDSHAKE_BYTES = 80
"""Bytes that a peer has sent at least after its handshake; 91 without keys."""
LARGE_SEND_QUEUE = 16 * 1024
"""Bytes in the kernel's send queue above which the peer's message queue may be full, too, so that
an end-of-stream message would be dropped."""
PAUSE_AFTER_FLOOD = 1.0
"""Seconds without new connections after a peer was disconnected for flooding, because it would
reconnect at once. The pause is extended while the publisher's thread is behind: libzmq removes the
subscriptions of a closed connection from a tree shared by all, so that repeated floods would cost
the square of their number."""
BEHIND_AFTER = 0.3
"""Seconds without a round of the publisher's thread, which normally takes at most 0.1 s."""
CHECK_INTERVAL = 0.01
CHECK_INTERVAL_PER_CONNECTION = 0.00005
"""Minimum seconds between two checks of the received bytes, in all and per connection; a check of
one takes about 3 microseconds."""
IDLE_INTERVAL = 0.05
"""Seconds between two checks while there are no connections."""

_SETTLED_AFTER = HANDSHAKE_MS / 1000 + 1
"""Seconds after which an open connection must have completed its handshake."""
_EVENTS_AT_ONCE = 100
_HANDSHAKE_FAILED = (
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)
_EVENTS = (
    zmq.Event.LISTENING
    | zmq.Event.ACCEPTED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | _HANDSHAKE_FAILED
)


class ConnectionLimiter:
    """Limits the connections of all sockets of a publisher; runs in its own thread.

    Args:
        max_connections: limit of each socket for connections with a completed handshake.
        metrics: gets the number of subscribers: the connections to ``masks`` and ``frames``.
        refusals: counts and logs the closed connections.
    """

    def __init__(self, max_connections: int, metrics: Metrics, refusals: RefusalLog) -> None:
        self._max_connections = max_connections
        self._metrics = metrics
        self._refusals = refusals
        self._limiters: dict[SocketName, SocketLimiter] = {}
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._last_round_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)

    def add_socket(self, name: SocketName, sock: zmq.Socket[bytes]) -> None:
        """Limit the connections of a socket that isn't bound yet."""
        self._limiters[name] = SocketLimiter(name, sock, self._max_connections, self._refusals)

    def set_endpoint(self, name: SocketName, endpoint: str) -> None:
        """Set the address that a socket was bound to."""
        self._limiters[name].set_endpoint(endpoint)

    def start(self) -> None:
        """Start the thread, after all sockets were added."""
        self._thread.start()

    def is_full(self, name: str) -> bool:
        """Return whether a socket has reached its limit of connections."""
        return any(limiter.is_full for key, limiter in self._limiters.items() if key == name)

    def update(self, overfull: Collection[SocketName]) -> None:
        """Record that the publisher's thread has processed all waiting messages; doesn't block.

        Args:
            overfull: sockets whose peers have more subscriptions than are stored; the limit of
                bytes per connection is reduced for them.

        Raises:
            Exception: the exception that ended the limiter's thread.
        """
        if self._failure is not None:
            raise self._failure
        self._last_round_at = time.monotonic()
        for name, limiter in self._limiters.items():
            limiter.has_too_many_subscriptions = name in overfull

    def close_all_connections(self) -> None:
        """Close every connection, including those accepted at this moment."""
        for limiter in self._limiters.values():
            limiter.close_all_connections()

    def start_draining(self) -> None:
        """Start to watch whether the connected peers read what is queued for them."""
        for limiter in self._limiters.values():
            limiter.draining_since = time.monotonic()

    @property
    def has_slow_peers(self) -> bool:
        """Whether a peer has a large send queue, since ``start_draining``."""
        return any(limiter.has_slow_peers for limiter in self._limiters.values())

    @property
    def last_read_at(self) -> float:
        """Time at which a slow peer last read something, on the monotonic clock."""
        return max(limiter.last_read_at for limiter in self._limiters.values())

    def close(self) -> None:
        """Stop the thread and the monitoring, before the sockets are closed."""
        self._closing.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join()
        for limiter in self._limiters.values():
            limiter.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        for limiter in self._limiters.values():
            poller.register(limiter.monitor, zmq.POLLIN)
        try:
            while not self._closing.is_set():
                is_busy = any(limiter.has_connections for limiter in self._limiters.values())
                poller.poll(int((CHECK_INTERVAL if is_busy else IDLE_INTERVAL) * 1000))
                is_behind = time.monotonic() - self._last_round_at > BEHIND_AFTER
                for limiter in self._limiters.values():
                    limiter.check(is_publisher_behind=is_behind)
                masks, frames = self._limiters["masks"], self._limiters["frames"]
                self._metrics.subscribers.set(masks.established + frames.established)
        except Exception as error:  # noqa: BLE001 - raised by update in the publisher's thread
            self._failure = error


class SocketLimiter:
    """Watches the connections of one socket and closes those beyond the limits.

    Args:
        name: name of the socket in log messages.
        sock: socket that isn't bound yet, so that no connection is missed.
        max_connections: connections with a completed handshake.
        refusals: counts and logs the closed connections.

    Attributes:
        monitor: becomes readable when ``check`` has something to do.
        established: connections with a completed handshake.
        has_too_many_subscriptions: set by the owner while the peers have more subscriptions than
            are stored.
        draining_since: set by the owner when the last message was sent, on the monotonic clock;
            later connections are not waited for.
        has_slow_peers: whether a peer has a large send queue since then.
        last_read_at: when a slow peer was last seen reading, on the monotonic clock.
    """

    def __init__(
        self,
        name: str,
        sock: zmq.Socket[bytes],
        max_connections: int,
        refusals: RefusalLog,
    ) -> None:
        self._name = name
        self._sock = sock
        self._max_connections = max_connections
        self._refusals = refusals
        self._address: Address | None = None
        self._listener: Listener | None = None
        self._connections: dict[int, Connection] = {}
        self._admitted = self._failed = 0
        self._paused_until = self._next_byte_check_at = 0.0
        self._must_close_all = threading.Event()
        self._unsent: dict[int, int] = {}
        self.draining_since: float | None = None
        self.has_slow_peers = False
        self.last_read_at = -math.inf
        self.established = 0
        self.has_too_many_subscriptions = False
        self.monitor = _open_monitor(sock, name)

    def set_endpoint(self, endpoint: str) -> None:
        """Set the address that the socket was bound to, by which its connections are recognized."""
        self._address = Address.parse(endpoint)

    @property
    def has_connections(self) -> bool:
        """Whether there is any connection."""
        return bool(self._connections)

    @property
    def is_full(self) -> bool:
        """Whether the limit of connections is reached."""
        return self.established >= self._max_connections

    def close_all_connections(self) -> None:
        """Request that every connection is closed at the next check; from any thread."""
        self._must_close_all.set()

    def check(self, *, is_publisher_behind: bool) -> None:
        """Process the monitor's events and close connections beyond the limits; doesn't block.

        Args:
            is_publisher_behind: whether the publisher's thread has unprocessed messages.
        """
        now = time.monotonic()
        if is_publisher_behind and now < self._paused_until:
            self._paused_until = now + PAUSE_AFTER_FLOOD
        if self._must_close_all.is_set():
            self._must_close_all.clear()
            self._shut_down_all()
        self._process_events()
        self.established = self._count_established()
        self._limit_connections()
        self._limit_bytes()
        if self.draining_since is not None:
            self._check_slow_peers(self.draining_since)
        if self._listener is not None:
            self._listener.set_paused(time.monotonic() < self._paused_until)

    def close(self) -> None:
        """Stop monitoring the socket; call this before closing it."""
        self._sock.disable_monitor()
        self.monitor.close(linger=0)
        for connection in self._connections.values():
            connection.close()
        if self._listener is not None:
            self._listener.close()

    def _shut_down_all(self) -> None:
        while self.monitor.poll(0):
            self._process_events()
        for connection in self._open_connections():
            connection.shut_down()

    def _limit_connections(self) -> None:
        half_open = len(self._connections) - self.established
        closing = len(self._connections) - len(self._open_connections())
        # Those may be of either kind; if there are still too many then, they are closed later.
        for _ in range(self.established - self._max_connections - closing):
            self._shut_down_newest()
            self._refusals.add("full", f"{self._name}: over {self._max_connections} connections")
        for _ in range(half_open - MAX_HALF_OPEN - closing):
            self._shut_down_oldest_half_open()
            self._refusals.add("half_open", f"{self._name}: many connections without a handshake")

    def _limit_bytes(self) -> None:
        now = time.monotonic()
        if now < self._next_byte_check_at:
            return
        interval = max(CHECK_INTERVAL, CHECK_INTERVAL_PER_CONNECTION * len(self._connections))
        self._next_byte_check_at = now + interval
        excess = [
            (
                connection,
                connection.received_bytes - (now - connection.accepted_at) * MAX_BYTES_PER_SECOND,
            )
            for connection in self._open_connections()
        ]
        total = sum(size for _, size in excess if size > 0)
        is_reduced = self.has_too_many_subscriptions or total > MAX_TOTAL_BURST_BYTES
        limit = REDUCED_BURST_BYTES if is_reduced else MAX_BURST_BYTES
        for connection, size in excess:
            if size > limit:
                connection.shut_down()
                self._paused_until = now + PAUSE_AFTER_FLOOD
                self._refusals.add("loud", f"{self._name}: closed a peer that sent too much")

    def _check_slow_peers(self, draining_since: float) -> None:
        before, self._unsent = self._unsent, {}
        for fd, connection in self._connections.items():
            if connection.accepted_at < draining_since and not connection.is_shut_down:
                self._unsent[fd] = connection.unsent_bytes
        slow = {fd: size for fd, size in self._unsent.items() if size > LARGE_SEND_QUEUE}
        self.has_slow_peers = bool(slow)
        if any(size < before.get(fd, math.inf) for fd, size in slow.items()):  # also at first
            self.last_read_at = time.monotonic()

    def _count_established(self) -> int:
        settled = time.monotonic() - _SETTLED_AFTER
        old = sum(connection.accepted_at < settled for connection in self._connections.values())
        return max(old, min(self._admitted, len(self._connections)))

    def _process_events(self) -> None:
        for _ in range(_EVENTS_AT_ONCE):
            if not self.monitor.poll(0):
                return
            event = recv_monitor_message(self.monitor)
            self._process_event(zmq.Event(event["event"]), int(event["value"]))

    def _process_event(self, event: zmq.Event, value: int) -> None:
        """Process one event. Handshake events have no descriptor, so they are only counted.

        A connection that ends counts as admitted unless a failed handshake is still without its
        end. Some failures are not reported, so the count may be too low; connections older than a
        handshake may take are counted separately.
        """
        if event == zmq.Event.LISTENING:
            self._listener = None if self._address is None else Listener(value, self._address)
        elif event == zmq.Event.ACCEPTED:
            self._remove(value)
            self._connections[value] = Connection(value, self._address)
            if time.monotonic() < self._paused_until:  # it was in the backlog already
                self._connections[value].shut_down()
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._admitted += 1
        elif event & _HANDSHAKE_FAILED:
            self._failed += 1
        elif event == zmq.Event.DISCONNECTED:
            self._remove(value)
            if self._failed:
                self._failed -= 1
            else:
                self._admitted = max(0, self._admitted - 1)
            if not self._connections:
                self._admitted = self._failed = 0

    def _remove(self, fd: int) -> None:
        connection = self._connections.pop(fd, None)
        if connection is not None:
            connection.close()

    def _open_connections(self) -> list[Connection]:
        """Return the connections that were not shut down, oldest first."""
        return [each for each in self._connections.values() if not each.is_shut_down]

    def _shut_down_newest(self) -> None:
        for connection in self._open_connections()[-1:]:
            connection.shut_down()

    def _shut_down_oldest_half_open(self) -> None:
        """Shut down the oldest connection that sent too little for a handshake, or the newest."""
        settled = time.monotonic() - _SETTLED_AFTER
        for connection in self._open_connections():
            is_recent = connection.accepted_at > settled
            if is_recent and connection.received_bytes < MIN_HANDSHAKE_BYTES:
                connection.shut_down()
                return
        self._shut_down_newest()


def _open_monitor(sock: zmq.Socket[bytes], name: str) -> zmq.Socket[bytes]:
    """Open an unbounded monitor socket: libzmq's I/O thread would block on a full one."""
    address = f"inproc://monitor-{name}"
    sock.monitor(address, _EVENTS)
    monitor: zmq.Socket[bytes] = sock.context.socket(zmq.PAIR)
    monitor.rcvhwm = 0
    monitor.linger = 0
    monitor.connect(address)
    return monitor
