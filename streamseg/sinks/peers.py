"""What is known of the subscribers of an XPUB socket: what they ask for, and whether they behave.

libzmq keeps every subscription of every peer, and every part of a message whose last part hasn't
come, whatever ``MAXMSGSIZE`` says: 5 MB of long subscriptions made a publisher grow by 220 MB, and
an endless message made it grow twice as fast as it was sent. Neither can be refused through
libzmq, so the connections themselves are watched, by how much they have sent.
"""

from __future__ import annotations

import logging
import socket
import struct
import sys
import time

import zmq
from zmq.utils.monitor import recv_monitor_message

from streamseg import wire

log = logging.getLogger(__name__)

MAX_PREFIXES = 100_000
"""Different prefixes kept for a socket; beyond that, everything counts as wanted for a while."""
MAY_SEND_AT_ONCE = 256 * 1024
MAY_SEND_A_SECOND = 1024
"""Bytes: subscriptions to 1,500 sources at once, and then heartbeats with much to spare."""

_TCP_BYTES_RECEIVED = 128
"""Where ``tcpi_bytes_received``, a u64, is in Linux' ``struct tcp_info`` (linux/tcp.h)."""


class Audience:
    """The prefixes that the peers of one socket subscribe to.

    ``XPUB_VERBOSE`` tells of every join, but of a leave only when nobody holds the prefix any
    more. So ``wants`` is exact for ever; ``results_joined`` may count one too many while somebody
    else still holds the prefix of one who has left. (``XPUB_VERBOSER`` tells of every leave, but
    counting joins and leaves goes wrong for good when a peer subscribes to the same twice.)

    Only the thread that owns the socket changes it; it may be read from any.
    """

    def __init__(self) -> None:
        self.results_joined = 0
        self._joins: dict[bytes, int] = {}
        self._overflowed = False

    @property
    def anybody(self) -> bool:
        """Whether there is a subscription at all."""
        return bool(self._joins) or self._overflowed

    def hear(self, message: bytes) -> bytes | None:
        """Take a message of the socket; the prefix, if somebody has joined."""
        prefix = message[1:]
        if message[:1] not in (b"\x00", b"\x01") or len(prefix) > wire.MAX_TOPIC_BYTES:
            return None  # not a subscription, or longer than any topic
        if message[:1] == b"\x00":
            left = self._joins.pop(prefix, 0)
            self.results_joined -= left * _may_match_results(prefix)
            self._overflowed = self._overflowed and bool(self._joins)
            return None
        if prefix not in self._joins and len(self._joins) >= MAX_PREFIXES:
            self._overflowed = True
            return prefix
        self._joins[prefix] = self._joins.get(prefix, 0) + 1
        self.results_joined += _may_match_results(prefix)
        return prefix

    def wants(self, topic: bytes) -> bool:
        """Whether somebody subscribes to ``topic``."""
        joins = self._joins
        return self._overflowed or any(topic[:end] in joins for end in range(len(topic) + 1))


class _NotOurs(Exception):  # noqa: N818 - said from one method to another
    """The file descriptor isn't a connection to one of our ports."""


class Guard:
    """Cuts the connections that send more than a subscriber has to say.

    Linux' TCP only: elsewhere nothing counts what a connection has received, and who can reach an
    ipc socket is a matter of file permissions.

    Args:
        sockets: whose connections to watch; not bound yet, so that none is missed.
    """

    def __init__(self, *sockets: zmq.Socket[bytes]) -> None:
        self._sockets = sockets
        self._monitors = [s.get_monitor_socket(zmq.Event.ACCEPTED) for s in sockets]
        self._accepted: dict[int, float] = {}
        self._ports: set[int] = set()

    def watch_port(self, port: int) -> None:
        """Connections to this port are ours to cut."""
        self._ports.add(port)

    def check(self) -> None:
        """Look at every connection; to be called several times a second."""
        now = time.monotonic()
        for monitor in self._monitors:
            while monitor.poll(0):
                self._accepted[int(recv_monitor_message(monitor)["value"])] = now
        if sys.platform == "linux":
            self._accepted = {
                fd: since for fd, since in self._accepted.items() if self._behaves(fd, now - since)
            }

    def close(self) -> None:
        """Let go of the sockets, before they are closed."""
        for sock in self._sockets:
            sock.disable_monitor()
        for monitor in self._monitors:
            monitor.close(linger=0)

    def _behaves(self, fd: int, age: float) -> bool:
        """Cut the connection if it is too loud; False once it isn't one of ours any more."""
        try:
            with socket.fromfd(fd, socket.AF_INET, socket.SOCK_STREAM) as connection:
                received = self._received(connection)
                if received > MAY_SEND_AT_ONCE + age * MAY_SEND_A_SECOND:
                    log.warning("cut off a subscriber that had sent %d bytes", received)
                    connection.shutdown(socket.SHUT_RDWR)
                return True
        except (OSError, _NotOurs):
            return False  # libzmq has closed it; the number may stand for anything by now

    def _received(self, connection: socket.socket) -> int:
        name = connection.getsockname()
        if not isinstance(name, tuple) or name[1] not in self._ports:
            raise _NotOurs
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        received: int = struct.unpack_from("=Q", info, _TCP_BYTES_RECEIVED)[0]
        return received


def _may_match_results(prefix: bytes) -> bool:
    return any(
        prefix.startswith(kind) or kind.startswith(prefix)
        for kind in (b"masks/", b"frames/", b"video/")
    )
