"""Stages into threads: spawn them, stop them, and say which one failed first.

A stage is a generator: what it yields goes into the mailboxes it is spawned with, and its end
closes them, so that the end of the sources runs through to the sinks by itself. Nothing else in
the package makes threads for frames. The same generators chained without a pipeline are the
synchronous mode.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from streamseg.errors import StageError
from streamseg.pipeline.mailbox import Closed, Inlet, Sourced

log = logging.getLogger(__name__)
T = TypeVar("T", bound=Sourced)

LATE_AFTER = 5.0
"""Seconds that threads get to end after an abort; who is later is named and left behind."""


class Pipeline:
    """The threads of one run.

    ``stop`` lets what was taken be finished; ``abort`` ends everything now. A stage that raises
    aborts the run, and ``wait`` raises it; a stage spawned with ``on_error`` fails alone.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._mailboxes: list[Inlet[Any]] = []
        self._first_failure: StageError | None = None
        self._aborted = threading.Event()
        self._aborted_at = math.inf
        # ``_failed`` and ``_remember`` call ``abort``; so may a program's own signal handler.
        self._lock = threading.RLock()

    def spawn(
        self,
        name: str,
        items: Iterable[T],
        into: Sequence[Inlet[T]] = (),
        *,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        """Run a stage in a thread of its own.

        Args:
            name: of the thread, and in errors.
            items: the stage; closed when it ends, if it is a generator.
            into: each item goes into each of them.
            on_error: takes what the stage raises, if its failure concerns only itself.
        """
        for mailbox in into:
            mailbox.add_writer()
        self._remember(into)
        thread = threading.Thread(
            target=self._run, args=(name, items, into, on_error), name=name, daemon=True
        )
        with self._lock:
            # Sources come and go for months: those that have ended are forgotten.
            self._threads = [*(t for t in self._threads if t.is_alive()), thread]
            thread.start()

    def _remember(self, mailboxes: Sequence[Inlet[Any]]) -> None:
        """Have ``abort`` reach them."""
        with self._lock:
            self._mailboxes.extend(m for m in mailboxes if m not in self._mailboxes)
        if self._aborted.is_set():
            self.abort()

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """``items`` until ``stop``: what a source is wrapped in."""
        for item in items:
            yield item
            if self.stopping.is_set():
                return

    def stop(self) -> None:
        """Let the sources end; what they delivered is still finished."""
        self.stopping.set()

    def abort(self) -> None:
        """End every stage at its next read or write."""
        self._aborted_at = min(self._aborted_at, time.monotonic())
        self.stopping.set()
        self._aborted.set()
        with self._lock:
            mailboxes = list(self._mailboxes)
        for mailbox in mailboxes:
            mailbox.abort()

    @property
    def aborted(self) -> bool:
        """Whether the run was ended before its stages were."""
        return self._aborted.is_set()

    def wait(self, deadline: float | None = None) -> None:
        """Wait until every stage has ended.

        Args:
            deadline: seconds that stages get to end by themselves after ``stop``; then abort.

        Raises:
            StageError: the first stage that failed, with its cause.
        """
        due: float | None = None
        while alive := self._alive():
            if self.aborted:
                if self._aborted_at + LATE_AFTER < time.monotonic():
                    log.warning("left behind, blocked: %s", ", ".join(t.name for t in alive))
                    break
            elif self.stopping.is_set() and deadline is not None:
                due = due or time.monotonic() + deadline
                if due < time.monotonic():
                    log.warning("not finished %g s after stop: ending now", deadline)
                    self.abort()
            alive[0].join(0.1)
        if self._first_failure is not None:
            raise self._first_failure

    def _alive(self) -> list[threading.Thread]:
        with self._lock:
            return [thread for thread in self._threads if thread.is_alive()]

    def _run(
        self,
        name: str,
        items: Iterable[T],
        into: Sequence[Inlet[T]],
        on_error: Callable[[Exception], None] | None,
    ) -> None:
        try:
            for item in items:
                for mailbox in into:
                    mailbox.put(item)
        except Closed:
            log.debug("%s: ended by the run", name)
        except Exception as error:  # noqa: BLE001 - handed to its handler, or raised by wait()
            self._failed(name, error, on_error)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            for mailbox in into:
                mailbox.close()

    def _failed(
        self, name: str, error: Exception, on_error: Callable[[Exception], None] | None
    ) -> None:
        if on_error is not None:
            on_error(error)
            return
        with self._lock:
            if self._first_failure is None:
                self._first_failure = StageError(name, error)
        self.abort()
