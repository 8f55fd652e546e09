"""Tells systemd how the service is: started, reloading, stopping, and still alive.

That is a datagram of ``KEY=value`` lines to the socket that systemd names in the environment
(sd_notify(3)), so it takes no library. Without systemd, nothing here does anything.
"""

from __future__ import annotations

import logging
import os
import socket
import time

from streamseg.errors import ConfigError

log = logging.getLogger(__name__)

SOCKET = "NOTIFY_SOCKET"


def ready() -> None:
    """The service serves: it has started, or read its config again."""
    _send("READY=1")


def reloading() -> None:
    """The service reads its config again; ``ready`` ends that."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _send("RELOADING=1", f"MONOTONIC_USEC={now}")


def stopping() -> None:
    """The service has begun to end."""
    _send("STOPPING=1")


def status(text: str) -> None:
    """What ``systemctl status`` shows, in one line."""
    _send(f"STATUS={' '.join(text.split())}")


def watchdog() -> None:
    """The service is well; say so at least once in each ``watchdog_interval``."""
    _send("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds after which systemd takes the service for dead; None if it doesn't watch it.

    Raises:
        ConfigError: the environment says something that can't be.
    """
    interval, process = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if interval is None or process not in (None, str(os.getpid())):
        return None
    if not interval.isdecimal() or int(interval) == 0:
        raise ConfigError(f"WATCHDOG_USEC={interval}: must be a number of microseconds")
    return int(interval) / 1e6


def _send(*lines: str) -> None:
    path = os.environ.get(SOCKET)
    if not path:
        return
    # "@" stands for the zero byte that an abstract address begins with.
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), address)
    except OSError as error:  # the service goes on: systemd itself may be restarting
        reason = error.strerror or error
        log.warning("%s=%s: systemd can't be told %s: %s", SOCKET, path, lines[0], reason)
