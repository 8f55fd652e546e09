"""UDP receiver: provides the datagrams of one sender as a file for FFmpeg.

FFmpeg's UDP protocol mixes the datagrams of all senders, listens on all interfaces whatever the
URL, and keeps the port open while it waits. This receiver releases the port as soon as a connection
is abandoned, and ignores and logs other senders.

The host of ``udp://host:port`` selects what is received: a multicast group is joined; an address of
this machine is bound; an empty host (``udp://:5000``), ``0.0.0.0`` or ``[::]`` binds all addresses;
any other address is that of the only accepted sender.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from streamseg.errors import ConfigError, SourceError, redact_address
from streamseg.sources.base import SourceReport

log = logging.getLogger(__name__)

FORMATS = "mpegts,mpeg,h264,hevc,mjpeg,mpegvideo,m4v"
"""Allowed FFmpeg formats; playlists are excluded because they open other URLs."""
TAKEOVER_AFTER = 1.0
"""Seconds without datagrams after which another sender, or a new port, may take over."""
QUEUE_BYTES = 8 * 1024 * 1024
"""Size of the queue for a slow decoder, in bytes; the oldest datagrams are dropped."""
KERNEL_BUFFER_BYTES = 1024 * 1024
_MAX_DATAGRAM_BYTES = 65_535
_POLL_INTERVAL = 0.1
"""Seconds between checks whether the connection was abandoned."""
_IGNORED_OPTIONS = frozenset({"fifo_size", "overrun_nonfatal", "reuse", "pkt_size"})
"""Common options of FFmpeg's UDP protocol that are accepted but not needed."""

_Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class UdpAddress:
    """Content of a ``udp://`` URL.

    Attributes:
        host: multicast group, local address, or address of the sender; empty for any.
        port: port to bind.
        interface: local address of the interface for a multicast group; empty for the default.
        senders: accepted hosts; empty for any.
        buffer_size: size of the kernel's receive buffer in bytes.
    """

    host: str
    port: int
    interface: str = ""
    senders: tuple[str, ...] = ()
    buffer_size: int = KERNEL_BUFFER_BYTES

    @classmethod
    def parse(cls, url: str) -> UdpAddress:
        """Parse a URL.

        Raises:
            ConfigError: the port is missing, or an option is unknown or invalid.
        """
        shown = redact_address(url)
        parts = urlsplit(url)
        if not parts.port:
            raise ConfigError(f"{shown}: has no port: write udp://HOST:PORT")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(set(options) - {"localaddr", "sources", "buffer_size"} - _IGNORED_OPTIONS)
        if unknown:
            raise ConfigError(
                f"{shown}: has an unknown option; known options are localaddr, sources and "
                "buffer_size"
            )
        buffer_size = options.get("buffer_size", str(KERNEL_BUFFER_BYTES))
        if not (buffer_size.isdecimal() and 0 < int(buffer_size[:10]) < 2**30):
            raise ConfigError(f"{shown}: buffer_size must be a number of bytes below 1 GiB")
        senders = tuple(sender for sender in options.get("sources", "").split(",") if sender)
        interface = options.get("localaddr", "")
        return cls(parts.hostname or "", parts.port, interface, senders, int(buffer_size))


class UdpReceiver:
    """Receives datagrams from its creation until ``close``.

    Args:
        name: name of the source.
        address: address to bind, and accepted senders.
        report: gets notes about ignored senders.
        cancel_event: set when the reader is abandoned; reads end then.

    Raises:
        SourceError: the address can't be bound.
    """

    def __init__(
        self, name: str, address: UdpAddress, report: SourceReport, cancel_event: threading.Event
    ) -> None:
        self.name = f"udp port {address.port}"
        self._source = name
        self._report = report
        self._cancel_event = cancel_event
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._sender: _Address | None = None
        self._last_received_at = 0.0
        self._error: SourceError | None = None
        self._closed = False
        try:
            self._socket, self._allowed = _listen(address)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SourceError(f"can't listen on {self.name}: {reason}") from None
        self._thread = threading.Thread(target=self._receive, name=f"udp:{name}", daemon=True)
        self._thread.start()

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes as soon as available; nothing after a failure.

        Raises:
            SourceError: the connection was abandoned, or another sender took over; raised once.
        """
        with self._changed:
            while not self._queue:
                if self._closed:
                    return b""
                error = SourceError("given up") if self._cancel_event.is_set() else self._error
                if error is not None:
                    self._closed = True
                    raise error
                self._changed.wait(_POLL_INTERVAL)
            return self._pop_bytes(size)

    def close(self) -> None:
        """Release the port."""
        with self._changed:
            self._closed = True
        self._thread.join()
        self._socket.close()

    def _pop_bytes(self, size: int) -> bytes:
        chunks = []
        while self._queue and size > 0:
            datagram = self._queue.popleft()
            if len(datagram) > size:
                self._queue.appendleft(datagram[size:])
                datagram = datagram[:size]
            size -= len(datagram)
            self._queued_bytes -= len(datagram)
            chunks.append(datagram)
        return b"".join(chunks)

    def _receive(self) -> None:
        self._socket.settimeout(_POLL_INTERVAL)
        while not (self._closed or self._cancel_event.is_set() or self._error):
            try:
                datagram, sender = self._socket.recvfrom(_MAX_DATAGRAM_BYTES)
            except TimeoutError:
                continue
            except OSError as error:
                self._fail(f"can't receive: {(error.strerror or str(error)).lower()}")
                return
            if datagram and self._accept_sender(sender[:2]):
                self._enqueue(datagram)

    def _accept_sender(self, sender: _Address) -> bool:
        """Return whether a datagram is from the sender of this connection, by default the first."""
        if self._allowed and ipaddress.ip_address(sender[0].partition("%")[0]) not in self._allowed:
            self._report_ignored_sender(sender)
            return False
        now = time.monotonic()
        if self._sender is None:
            self._sender = sender
        elif sender != self._sender and now - self._last_received_at < TAKEOVER_AFTER:
            self._report_ignored_sender(sender)
            return False
        elif sender != self._sender:
            self._fail(f"another sender took over: {sender[0]} port {sender[1]}")
            return False
        self._last_received_at = now
        return True

    def _report_ignored_sender(self, sender: _Address) -> None:
        """Log an ignored sender, once."""
        note = f"{self.name}: {sender[0]} is another sender and is ignored"
        if note not in self._report.notes and len(self._report.notes) < self._report.MAX_NOTES:
            log.warning("%s: %s", self._source, note)
        self._report.add_note(note)

    def _enqueue(self, datagram: bytes) -> None:
        with self._changed:
            self._queue.append(datagram)
            self._queued_bytes += len(datagram)
            while self._queued_bytes > QUEUE_BYTES:
                self._queued_bytes -= len(self._queue.popleft())
                self._report.add_note(f"{self.name}: datagrams were dropped: decoding is too slow")
            self._changed.notify()

    def _fail(self, reason: str) -> None:
        with self._changed:
            self._error = SourceError(reason)
            self._changed.notify()


_Host = ipaddress.IPv4Address | ipaddress.IPv6Address


def _listen(address: UdpAddress) -> tuple[socket.socket, frozenset[_Host]]:
    """Return a bound socket, and the accepted senders; empty for any.

    Raises:
        OSError: the host can't be resolved, or the port can't be bound.
    """
    family, host = _resolve(address.host or "0.0.0.0", address.port)  # noqa: S104 - requested by the URL
    senders = frozenset(
        ipaddress.ip_address(_resolve(sender, address.port)[1].partition("%")[0])
        for sender in address.senders
    )
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, address.buffer_size)
        group = ipaddress.ip_address(host.partition("%")[0])
        if group.is_multicast:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # others may have joined
            sock.bind(socket.getaddrinfo(host, address.port, family)[0][4])
            _join(sock, host, address.interface)
            return sock, senders
        try:
            sock.bind(socket.getaddrinfo(host, address.port, family)[0][4])
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            sock.bind((address.interface, address.port))
            return sock, senders or frozenset({group})
    except OSError:
        sock.close()
        raise
    return sock, senders


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    return family, str(
        socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    )


def _join(sock: socket.socket, group: str, interface: str) -> None:
    if sock.family == socket.AF_INET:
        membership = socket.inet_aton(group) + socket.inet_aton(interface or "0.0.0.0")  # noqa: S104 - any
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        return
    group_address, _, scope = group.partition("%")
    index = socket.if_nametoindex(scope) if scope and not scope.isdecimal() else int(scope or 0)
    membership = socket.inet_pton(socket.AF_INET6, group_address) + struct.pack("@I", index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
