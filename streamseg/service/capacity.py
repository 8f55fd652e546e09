"""Check that the system has room for a service and its sources: open files and threads."""

from __future__ import annotations

import os
from collections.abc import Sequence

from streamseg.config import PublishConfig
from streamseg.service.system_limits import check_open_files, check_threads, raise_open_files_limit
from streamseg.sinks.zmq.endpoints import max_connections_within, open_files_needed
from streamseg.sources import LiveSource, Source

OWN_FILES = 256
"""Open files of the service itself: connections of the HTTP API, sockets, libraries."""
OWN_THREADS = 32
"""Threads of the service itself, in addition to two per core that compute."""
FILES_PER_LIVE_SOURCE = 4
"""Open files of a connection, and of the one before it, which may be blocked."""
FILES_PER_RECORDING = 2
THREADS_PER_SOURCE = 2


def check_capacity(
    publish: PublishConfig, running: Sequence[Source], starting: Sequence[Source]
) -> None:
    """Check that the system has room for sources, and for the service if none is running yet.

    Args:
        publish: config of the publisher, with the maximum number of subscribers.
        running: sources that are running and stay.
        starting: sources that are about to start.

    Raises:
        ConfigError: the limit of open files or threads is too low; the message has what is needed.
    """
    for_sources = sum(
        FILES_PER_LIVE_SOURCE if isinstance(source, LiveSource) else FILES_PER_RECORDING
        for source in (*running, *starting)
    )
    left = raise_open_files_limit() - for_sources - OWN_FILES
    max_connections = max_connections_within(publish, left)
    advice = ""
    if max_connections >= 1:
        advice = f", or set publish.max_connections to {max_connections} or less"
    for_subscribers = open_files_needed(publish)
    check_open_files(
        {"subscribers": for_subscribers, "sources": for_sources, "the service itself": OWN_FILES},
        advice,
    )
    own_threads = 0 if running else OWN_THREADS + 2 * (os.cpu_count() or 1)
    check_threads(own_threads + THREADS_PER_SOURCE * len(starting))
