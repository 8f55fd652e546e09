"""A service under an operator: its control endpoint, its config read again, its supervisor told.

A service alone is ``serve.Service``; this is what ``streamseg serve`` runs around one.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from streamseg.config import Config
from streamseg.errors import StreamsegError
from streamseg.pipeline.summary import Summary
from streamseg.service import systemd
from streamseg.service.http_api import Control
from streamseg.service.service import Service
from streamseg.service.source_set import Reloaded

log = logging.getLogger(__name__)

TELL_EVERY = 5.0
"""Seconds after which systemd is told how the service is, or sooner if it watches."""
MOST_NAMED = 5
"""Sources that aren't live of which systemd is told the names."""


class Supervisor:
    """Runs a service until it ends.

    Args:
        service: not started yet.
        config: what it was made with.
        load: reads the config again; None where there is no file.
        hangup_calls: context in which SIGHUP calls a function; None ignores the signal.

    Raises:
        ConfigError: what ``Control`` says, and ``notify.watchdog_interval``.
        BindError: the control's address can't be served on.
    """

    def __init__(
        self,
        service: Service,
        config: Config,
        load: Callable[[], Config] | None,
        hangup_calls: Callable[[Callable[[], None]], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._hangup_calls = hangup_calls or nullcontext
        self._service = service
        self._load = load
        self._watched_for = systemd.watchdog_interval()
        self._reloading = threading.Lock()
        self._over = threading.Event()
        reload = None if load is None else self.reload
        self._control = Control(service, config, reload) if config.control.enabled else None

    @property
    def control_address(self) -> str | None:
        """Where the control endpoint is, if there is one."""
        return None if self._control is None else self._control.address

    def run(self) -> Summary:
        """Serve until the service ends.

        Raises:
            StageError: what ``Service.wait`` says.
        """
        self._service.metrics.ready.set_function(lambda: float(self._service.ready))
        self._service.metrics.well.set_function(lambda: float(not self._service.health_problem))
        threading.Thread(target=self._report, name="watchdog", daemon=True).start()
        # What is there now stays: looking through all of it for garbage again and again would stop
        # every thread for a fifth of a second each time.
        gc.collect()
        gc.freeze()
        try:
            self._service.start()
            if self._control is not None:
                self._control.start()
            with self._hangup_calls(self._start_reload):
                systemd.ready()  # from now on it may be told to read its config again
                return self._service.wait()
        finally:
            gc.unfreeze()
            self._over.set()
            if self._control is not None:
                self._control.stop()

    def stop(self) -> None:
        """Finish what was taken, and end."""
        systemd.stopping()
        self._service.stop()

    def abort(self) -> None:
        """End now."""
        self._service.abort()

    def reload(self) -> Reloaded:
        """Have the sources and thresholds that the config file has now.

        Raises:
            StreamsegError: the file can't be, or what it asks for; the service goes on as it was.
        """
        assert self._load is not None
        with self._reloading:
            systemd.reloading()
            try:
                changes = self._service.sources.reload(self._load())
            finally:
                systemd.ready()
        log.warning(
            "config read again: added %s, removed %s, restarted %s",
            *(
                ", ".join(names) or "-"
                for names in (changes.added, changes.removed, changes.restarted)
            ),
        )
        if changes.waits:
            log.warning("other changes hold from the next start: %s", ", ".join(changes.waits))
        return changes

    def _report(self) -> None:
        """Tell systemd how the service is, and that all is well; that not if it isn't."""
        pause = min(TELL_EVERY, (self._watched_for or math.inf) / 2)
        results = _Rate()
        was_well = True
        while not self._over.wait(pause):
            health_problem = self._service.health_problem
            rate = results.now(self._published())
            if health_problem:
                systemd.status(f"not well: {health_problem}")
                if was_well:
                    log.error("not well: %s", health_problem)
            else:
                systemd.status(f"{self._lively()}, {rate:.0f} results/s")
                systemd.watchdog()
            was_well = not health_problem

    def _published(self) -> int:
        return sum(account.published for account in self._service.metrics.snapshots())

    def _lively(self) -> str:
        """How many of the sources are live, and which aren't."""
        feeds = list(self._service.sources)
        others = [f"{f.name} {f.condition.state}" for f in feeds if f.condition.state != "live"]
        named = f" ({', '.join(others[:MOST_NAMED])})" if others else ""
        return f"{len(feeds) - len(others)} of {len(feeds)} sources live{named}"

    def _start_reload(self) -> None:
        """Read the config again in a thread: opening sources may take long."""
        threading.Thread(target=self._reload_or_log, name="reload", daemon=True).start()

    def _reload_or_log(self) -> None:
        if self._load is None:
            log.error("SIGHUP: the service wasn't started with a config file")
            return
        try:
            self.reload()
        except StreamsegError as error:
            log.error("the config can't be read again, the service goes on as it was: %s", error)  # noqa: TRY400 - one line


class _Rate:
    """How fast a count grows."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._count = 0

    def now(self, count: int) -> float:
        """A second, since it was last asked."""
        now = time.monotonic()
        rate = (count - self._count) / (now - self._at)
        self._at, self._count = now, count
        return rate
