"""Canary: an address and a file that no input may make the program touch.

Inputs name them by the placeholders ``@CANARY@`` (``host:port``) and ``@CANARY_FILE@`` (a path).
A connection, a datagram or a read of the file is a finding.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

ADDRESS, FILE = b"@CANARY@", b"@CANARY_FILE@"
HOST = "127.0.0.2"
"""Loopback too, but another host than the one that serves the inputs."""


class Canary:
    """One forbidden address (TCP and UDP) and one forbidden file.

    Args:
        folder: where the file is written; access times must be kept there.
        content: the file's content, best something that decodes.
    """

    def __init__(self, folder: Path, content: bytes) -> None:
        self._tcp = socket.create_server((HOST, 0), backlog=16)
        self._tcp.setblocking(False)
        port = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._udp.bind((HOST, port))
        self._file = folder / "canary.ts"
        self._file.write_bytes(content)
        self._address = f"{HOST}:{port}"
        self._check_access_times()

    def fill_in(self, data: bytes) -> bytes:
        """Return ``data`` with the placeholders replaced."""
        return data.replace(ADDRESS, self._address.encode()).replace(FILE, os.fsencode(self._file))

    def arm(self) -> None:
        """Make the next read of the file visible; forget what was there before."""
        self.touched()
        os.utime(self._file, (0, time.time()))

    def touched(self) -> str:
        """Return what was touched since ``arm``, or an empty string."""
        found = ""
        try:
            while True:
                self._tcp.accept()[0].close()
                found = f"a connection to {self._address}"
        except BlockingIOError:
            pass
        try:
            while True:
                self._udp.recv(65536)
                found = f"a datagram to {self._address}"
        except BlockingIOError:
            pass
        if self._file.stat().st_atime > 1:
            found = f"a read of {self._file.name}"
            os.utime(self._file, (0, time.time()))
        return found

    def close(self) -> None:
        """Close the sockets."""
        self._tcp.close()
        self._udp.close()

    def _check_access_times(self) -> None:
        self.arm()
        self._file.read_bytes()
        if not self.touched():
            raise SystemExit(f"{self._file.parent}: no access times are kept here, choose --work")
