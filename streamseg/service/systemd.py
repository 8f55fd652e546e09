"""systemd notifications: the service is ready, reloading, stopping or healthy.

A notification is a datagram of ``KEY=value`` lines to the socket that systemd names in the
environment (sd_notify(3)). Without systemd, these functions do nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import time

from streamseg.errors import ConfigError

log = logging.getLogger(__name__)

SOCKET = "NOTIFY_SOCKET"
"""Environment variable with the path of systemd's socket."""


def notify_ready() -> None:
    """Report that the service has started, or has finished a reload."""
    _send("READY=1")


def notify_reloading() -> None:
    """Report that the service reloads its config; ``notify_ready`` ends that."""
    microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _send("RELOADING=1", f"MONOTONIC_USEC={microseconds}")


def notify_stopping() -> None:
    """Report that the service is stopping."""
    _send("STOPPING=1")


def notify_status(text: str) -> None:
    """Set the line that ``systemctl status`` shows."""
    _send(f"STATUS={' '.join(text.split())}")


def notify_watchdog() -> None:
    """Report that the service is healthy; needed once in each ``watchdog_interval``."""
    _send("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Return the seconds after which systemd restarts a silent service; None without a watchdog.

    Raises:
        ConfigError: the environment variable isn't a number of microseconds.
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
    except OSError as error:  # the service runs on: systemd itself may be restarting
        reason = error.strerror or error
        log.warning("%s=%s: can't notify systemd of %s: %s", SOCKET, path, lines[0], reason)
