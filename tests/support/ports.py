"""Free ports for servers of tests, without conflicts between concurrent processes.

The ports are below the ephemeral ports of the system, and each process (each worker of xdist)
starts at a port of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

FIRST, LAST = 10_000, 32_000
PORTS_PER_SERVICE = 4
"""Consecutive ports of a service: masks, images, replay and HTTP API."""

_process_offset = 397 * PORTS_PER_SERVICE
_offsets = itertools.count(os.getpid() * _process_offset, PORTS_PER_SERVICE)


def free_port() -> int:
    """Return the first of four consecutive free ports."""
    for offset in _offsets:
        port = FIRST + offset % (LAST - FIRST)
        with contextlib.suppress(OSError), contextlib.ExitStack() as sockets:
            for number in range(PORTS_PER_SERVICE):
                sockets.enter_context(socket.create_server(("127.0.0.1", port + number)))
            return port
    raise AssertionError("unreachable: the offsets have no end")
