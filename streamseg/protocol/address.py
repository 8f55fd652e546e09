"""Addresses of ZeroMQ sockets: ``tcp://host:port`` and ``ipc://path``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Literal

from streamseg.errors import UsageError


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a socket: ``tcp://host:port`` or ``ipc://path``.

    Attributes:
        transport: ``tcp`` or ``ipc``.
        host: host name or IP address without brackets, ``*`` for all interfaces; path for ipc.
        port: TCP port; 0 for any free port, and for ipc.
    """

    transport: Literal["tcp", "ipc"]
    host: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address.

        Raises:
            UsageError: the address is invalid; libzmq would accept many invalid addresses.
        """
        if ipc := re.fullmatch(r"ipc://(.+)", text):
            if "\0" in text or len(ipc[1].encode("utf-8", "surrogateescape")) > 107:
                raise UsageError(f"{text!r}: the path of an ipc address has at most 107 bytes")
            return cls("ipc", ipc[1])
        tcp = re.fullmatch(
            r"tcp://(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>\*|[A-Za-z0-9._-]{1,253}))"
            r":(?P<port>\*|\d{1,5})",
            text,
            re.ASCII,
        )
        if tcp is None:
            raise UsageError(f"{text!r} isn't an address: use tcp://HOST:PORT or ipc://PATH")
        port = 0 if tcp["port"] == "*" else int(tcp["port"])
        if port > 65535:
            raise UsageError(f"{text!r}: the port must be at most 65535")
        host = tcp["six"] or tcp["name"]
        if tcp["six"] or re.fullmatch(r"[\d.]+", host):
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise UsageError(f"{text!r}: {host!r} isn't an IP address") from None
        return cls("tcp", host, port)

    def __str__(self) -> str:
        if self.transport == "ipc":
            return f"ipc://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port or '*'}"

    @property
    def for_images(self) -> Address:
        """Default address of images: the next port, or ``<path>-frames``.

        Raises:
            UsageError: there is no next port.
        """
        if self.transport == "ipc":
            return self if self.host == "*" else replace(self, host=f"{self.host}-frames")
        if self.port == 65535:
            raise UsageError(f"{self} has no next port for images: name their address")
        return replace(self, port=self.port + 1 if self.port else 0)

    @property
    def for_replay(self) -> Address:
        """Default address of replay: the port after the next, or ``<path>-replay``.

        Raises:
            UsageError: there is no such port.
        """
        if self.transport == "ipc":
            return self if self.host == "*" else replace(self, host=f"{self.host}-replay")
        if self.port >= 65534:
            raise UsageError(f"{self} has no port + 2 for replay: name its address")
        return replace(self, port=self.port + 2 if self.port else 0)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.transport == "ipc" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """Whether the host is a wildcard for all interfaces, to which a client can't connect."""
        return self.transport == "tcp" and self.host in ("*", "0.0.0.0", "::")  # noqa: S104
