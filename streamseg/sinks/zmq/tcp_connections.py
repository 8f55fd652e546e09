"""Access to libzmq's connections and listeners through duplicates of their file descriptors.

libzmq reports each one by its descriptor, which may be reused by another file before the report is
read. So it is duplicated at once, and accepted only if its local address is the socket's.
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
"""Offset of ``tcpi_bytes_received``, a u64, in Linux's ``struct tcp_info`` (linux/tcp.h)."""

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
"""Classic BPF program of one instruction (linux/filter.h): keep 0 bytes."""


class Listener:
    """A listening socket of libzmq, which can be paused over TCP on Linux.

    Only libzmq's own thread may close it, and a closed port refuses clients. While it is paused,
    the kernel drops connection attempts instead, and clients retry after a second.

    Args:
        fd: libzmq's file descriptor.
        address: address that it is bound to.
    """

    def __init__(self, fd: int, address: Address) -> None:
        self._sock = _duplicate(fd, address)
        self._is_paused = False

    def set_paused(self, is_paused: bool) -> None:
        """Drop connection attempts, or accept them again; does nothing if already so."""
        if self._sock is None or is_paused == self._is_paused or not _has_tcp_info(self._sock):
            return
        self._is_paused = is_paused
        if not is_paused:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            return
        program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
        sock_fprog = struct.pack("HP", 1, ctypes.addressof(program))
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, sock_fprog)
        except OSError as error:  # forbidden in a sandbox; accepted connections can still be closed
            log.warning("this system can't pause a listening socket: %s", error)
            self.close()

    def close(self) -> None:
        """Close the duplicate. May be called twice."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class Connection:
    """A connection of libzmq. ``close`` it after libzmq closed its own descriptor.

    TCP sends the end of a connection when its last descriptor is closed.

    Args:
        fd: libzmq's file descriptor.
        address: address that the listener is bound to; other sockets are not touched.

    Attributes:
        accepted_at: time of acceptance on the monotonic clock, in seconds.
        is_shut_down: whether ``shut_down`` was called.
    """

    def __init__(self, fd: int, address: Address | None) -> None:
        self.accepted_at = time.monotonic()
        self.is_shut_down = False
        self._sock = None if address is None else _duplicate(fd, address)

    @property
    def received_bytes(self) -> int:
        """Bytes received from the client; 0 where the system doesn't count them."""
        if self._sock is None or not _has_tcp_info(self._sock):
            return 0
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        field = info[_TCP_BYTES_RECEIVED : _TCP_BYTES_RECEIVED + 8]  # missing before Linux 4.1
        return int.from_bytes(field, sys.byteorder)

    @property
    def unsent_bytes(self) -> int:
        """Bytes in the kernel's send queue that the client hasn't acknowledged; 0 if unknown."""
        if self._sock is None or sys.platform != "linux":
            return 0
        buffer = bytes(ctypes.sizeof(ctypes.c_int))
        try:
            answer = fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, buffer)  # alias SIOCOUTQ
        except OSError:  # forbidden in a sandbox
            return 0
        return int.from_bytes(answer, sys.byteorder)

    def shut_down(self) -> None:
        """Shut the connection down; libzmq notices it and frees everything kept for it."""
        self.is_shut_down = True
        if self._sock is not None:
            with contextlib.suppress(OSError):  # the connection has ended already
                self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the duplicate. May be called twice."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _has_tcp_info(sock: socket.socket) -> bool:
    return sys.platform == "linux" and sock.family != socket.AF_UNIX


def _duplicate(fd: int, address: Address) -> socket.socket | None:
    """Return a duplicate of the socket, or None if it no longer has this local address."""
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
    if (
        name[1] == address.port
        if isinstance(name, tuple)
        else os.fsdecode(name) == _socket_path(address)
    ):
        return sock
    sock.close()
    return None


def _socket_path(address: Address) -> str | None:
    """Return the path of an ipc socket as in ``getsockname``; None for other transports."""
    if address.transport != "ipc":
        return None
    path = address.host
    return f"\0{path[1:]}" if path.startswith("@") else path
