"""Ports for what tests start, which nobody else is given meanwhile.

Those that a system gives away by itself, to every outgoing connection, begin above these; and each
process, every worker of xdist is one, begins in a place of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

FIRST, LAST = 10_000, 32_000
TOGETHER = 4
"""Masks, pictures, replay and control are neighbours."""

_apart = 397 * TOGETHER
_turns = itertools.count(os.getpid() * _apart, TOGETHER)


def free_port() -> int:
    """A port that is free, and whose next three are: a service's."""
    for turn in _turns:
        port = FIRST + turn % (LAST - FIRST)
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for number in range(TOGETHER):
                held.enter_context(socket.create_server(("127.0.0.1", port + number)))
            return port
    raise AssertionError("there is always another")
