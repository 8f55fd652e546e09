"""libzmq's connections and listeners as the system sees them, to be looked at, cut, and shut.

libzmq tells of each by its file descriptor, which may stand for another by the time that
somebody looks. So it is duplicated at once, and is one of ours by its own address.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import socket
import struct
import sys
import termios
import time

from streamseg.protocol.address import Address

log = logging.getLogger(__name__)

_TCP_BYTES_RECEIVED = 128
"""Where ``tcpi_bytes_received``, a u64, is in Linux' ``struct tcp_info`` (linux/tcp.h)."""

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
"""One instruction of the classic packet filter, linux/filter.h: keep 0 bytes."""


class Listener:
    """Where connections are accepted; they can be kept waiting on Linux, over TCP.

    Closing it would tell whoever comes that nobody is there, and only its own thread may do that.
    Here the system takes no notice of those who come, who knock again by themselves after a second.

    Args:
        fd: a descriptor of libzmq's.
        address: that it is bound to.
    """

    def __init__(self, fd: int, address: Address) -> None:
        self._sock = _duplicate(fd, address)
        self._is_shut = False

    def set_shut(self, shut: bool) -> None:
        """Let nobody in, or everybody again; may be told the same again and again."""
        if self._sock is None or shut == self._is_shut or not _is_counted(self._sock):
            return
        self._is_shut = shut
        if not shut:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            return
        program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
        said = struct.pack("HP", 1, ctypes.addressof(program))
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, said)
        except OSError as error:  # a sandbox: who comes can still be cut when he has come in
            log.warning("this system can keep nobody waiting: %s", error)
            self.close()

    def close(self) -> None:
        """Look at it no more. May be called twice."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class Connection:
    """To be closed when libzmq has closed its own: only then is the connection's end sent.

    Args:
        fd: a descriptor of libzmq's.
        address: where our connections are accepted; what is connected to another isn't touched.

    Attributes:
        since: when it was accepted, on the monotonic clock.
        is_cut: whether it was cut.
    """

    def __init__(self, fd: int, address: Address | None) -> None:
        self.since = time.monotonic()
        self.is_cut = False
        self._sock = None if address is None else _duplicate(fd, address)

    @property
    def received(self) -> int:
        """Bytes that have come, as far as anybody counts them."""
        if self._sock is None or not _is_counted(self._sock):
            return 0
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        counted = info[_TCP_BYTES_RECEIVED : _TCP_BYTES_RECEIVED + 8]  # missing before Linux 4.1
        return int.from_bytes(counted, sys.byteorder)

    @property
    def untaken(self) -> int:
        """Bytes that were sent and that the other side hasn't taken, as far as anybody says."""
        if self._sock is None or sys.platform != "linux":
            return 0
        asked = bytes(ctypes.sizeof(ctypes.c_int))
        try:
            answer = fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, asked)  # or SIOCOUTQ
        except OSError:  # a sandbox
            return 0
        return int.from_bytes(answer, sys.byteorder)

    def cut(self) -> None:
        """Shut it down: libzmq notices, and forgets it and all that was kept for it."""
        self.is_cut = True
        if self._sock is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Look at it no more. May be called twice."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _is_counted(sock: socket.socket) -> bool:
    """Whether the system counts what it receives."""
    return sys.platform == "linux" and sock.family != socket.AF_UNIX


def _duplicate(fd: int, address: Address) -> socket.socket | None:
    """A descriptor as a socket of ours; None where it isn't one of our connections any more."""
    try:
        copy = os.dup(fd)
    except OSError:
        return None
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    name = sock.getsockname()
    if name[1] == address.port if isinstance(name, tuple) else os.fsdecode(name) == _path(address):
        return sock
    sock.close()
    return None


def _path(address: Address) -> str | None:
    """What the system calls an ipc address."""
    if address.transport != "ipc":
        return None
    path = address.host
    return f"\0{path[1:]}" if path.startswith("@") else path
