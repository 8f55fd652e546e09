"""Pipeline runner: runs stages in threads, stops them, and reports the first failure.

A stage is a generator. Its items are put into the mailboxes that it is spawned with, and its end
closes them, so the end of the sources propagates to the sinks. No other module starts threads for
frames. The same generators, chained without a pipeline, run synchronously.
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
"""Time that threads get to end after an abort, in seconds; later ones are logged and left."""


class Pipeline:
    """Threads of one run.

    After ``stop``, the frames in flight are finished; ``abort`` ends every stage now. A stage that
    raises aborts the run, and ``wait`` raises its error; one spawned with ``on_error`` fails alone.

    Attributes:
        stopping: set by ``stop`` and ``abort``.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._mailboxes: list[Inlet[Any]] = []
        self._first_failure: StageError | None = None
        self._aborted = threading.Event()
        self._aborted_at = math.inf
        # Reentrant: a signal handler may call ``abort`` while this thread holds the lock.
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
            name: name of the thread, also used in errors.
            items: the stage; a generator is closed when it ends.
            into: mailboxes, each of which gets every item.
            on_error: called with the stage's exception, which then doesn't end the run.
        """
        for mailbox in into:
            mailbox.add_writer()
        with self._lock:
            self._mailboxes.extend(m for m in into if m not in self._mailboxes)
        if self._aborted.is_set():
            self.abort()  # these mailboxes, too
        thread = threading.Thread(
            target=self._run, args=(name, items, into, on_error), name=name, daemon=True
        )
        with self._lock:
            # Sources come and go: threads that have ended would accumulate.
            self._threads = [*(t for t in self._threads if t.is_alive()), thread]
            thread.start()

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items of a source until ``stop``."""
        for item in items:
            yield item
            if self.stopping.is_set():
                return

    def stop(self) -> None:
        """End the sources; frames in flight are still finished."""
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
        """True once the run was aborted."""
        return self._aborted.is_set()

    def wait(self, deadline: float | None = None) -> None:
        """Wait until every stage has ended.

        Args:
            deadline: seconds after ``stop`` at which stages that haven't ended are aborted.

        Raises:
            StageError: a stage failed; the first failure, with its cause.
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
                    log.warning("not finished %g s after stop: aborting", deadline)
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
            log.debug("%s: ended by an abort", name)
        except Exception as error:  # noqa: BLE001 - passed to on_error, or raised by wait()
            self._handle_failure(name, error, on_error)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            for mailbox in into:
                mailbox.close()

    def _handle_failure(
        self, name: str, error: Exception, on_error: Callable[[Exception], None] | None
    ) -> None:
        if on_error is not None:
            on_error(error)
            return
        with self._lock:
            if self._first_failure is None:
                self._first_failure = StageError(name, error)
        self.abort()
