"""What a service may need of the system at the most, checked before it starts or takes a source."""

from __future__ import annotations

import os
from collections.abc import Sequence

from streamseg.config import PublishConfig
from streamseg.service.system_limits import check_open_files, check_threads, raise_open_files_limit
from streamseg.sinks.zmq.endpoints import max_connections_within, open_files_needed
from streamseg.sources import LiveSource, Source

OWN_FILES = 256
"""Open files of the service itself: its control connections, its sockets, libraries."""
OWN_THREADS = 32
"""Threads of the service itself, beside those that compute: one per core, twice."""
FILES_OF_A_LIVE_SOURCE = 4
"""Its connection, which may be several sockets, and the one before it, which may be blocked."""
FILES_OF_A_RECORDING = 2
THREADS_OF_A_SOURCE = 2


def check_capacity(
    publish: PublishConfig, running: Sequence[Source], starting: Sequence[Source]
) -> None:
    """Refuse to start sources, and the service if none is running, that the system has no room for.

    Args:
        publish: how many subscribers there may be.
        running: sources that the service has and keeps.
        starting: sources that are to begin.

    Raises:
        ConfigError: there are too few open files or threads; it names what is needed.
    """
    of_sources = sum(
        FILES_OF_A_LIVE_SOURCE if isinstance(source, LiveSource) else FILES_OF_A_RECORDING
        for source in (*running, *starting)
    )
    connections = open_files_needed(publish)
    check_open_files(
        {"subscribers": connections, "sources": of_sources, "the service itself": OWN_FILES},
        _advice(publish, raise_open_files_limit() - of_sources - OWN_FILES),
    )
    own = 0 if running else OWN_THREADS + 2 * (os.cpu_count() or 1)
    check_threads(own + THREADS_OF_A_SOURCE * len(starting))


def _advice(publish: PublishConfig, room: int) -> str:
    """Return the number of connections that there is room for, in words, if there is for one."""
    most = max_connections_within(publish, room)
    return f", or set publish.max_connections to {most} or less" if most >= 1 else ""
