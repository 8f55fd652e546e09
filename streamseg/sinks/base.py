"""Sinks: what receives the results of a service or of a recorded run.

A sink has a mailbox of its own and runs in a thread of its own. Its mailbox drops the oldest
results in a service, where a sink that is late must not delay the masks, and blocks in ``process``,
where nothing may be lost.

Other packages add sinks by entry points of the group ``streamseg.sinks``: see ``plugin``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Protocol

from streamseg.pipeline.mailbox import Policy
from streamseg.structures.results import Result


class SinkWriter(Protocol):
    """Interface of a plug-in sink.

    The entry point names a class, or another callable, that is called with the options of its
    section in the config: an instance of its attribute ``Options``, a ``msgspec.Struct``. Without
    that attribute it takes no options and is called without arguments. All methods are called in
    the same thread. ``open`` and ``close`` are called once by a service, and once per input by
    ``process``. An exception ends this sink only.
    """

    def open(self) -> None:
        """Connect to, or create, what the results are written to."""

    def write(self, result: Result) -> None:
        """Write one result."""

    def close(self) -> None:
        """Release what ``open`` acquired; also called after ``write`` has failed."""


class Sink(SinkWriter, Protocol):
    """Sink with what its mailbox needs.

    Attributes:
        name: name in log messages, metrics and errors.
        policy: behavior of its full mailbox.
        capacity: results of one source that may wait in its mailbox.
    """

    @property
    def name(self) -> str: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def capacity(self) -> int: ...


def run_sink(sink: Sink, results: Iterable[Result]) -> Iterator[Result]:
    """Open a sink, write each result, and close the sink, also after a failure: a stage.

    Yields:
        Each result once it was written.
    """
    sink.open()
    try:
        for result in results:
            sink.write(result)
            yield result
    except BaseException:
        with suppress(Exception):  # the first failure is the one to report
            abort_sink(sink)
        raise
    sink.close()


def abort_sink(sink: Sink) -> None:
    """Close a sink after a failure; a file, which has ``abort``, isn't completed."""
    abort: Callable[[], None] = getattr(sink, "abort", sink.close)
    abort()
