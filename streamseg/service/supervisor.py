"""Supervisor: runs a service with its HTTP API, reloads its config, and reports to systemd.

This is what ``streamseg serve`` runs; a program that embeds a service uses ``Service`` alone.
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
from streamseg.service.http_api import HttpApi
from streamseg.service.service import Service
from streamseg.service.source_set import Reloaded

log = logging.getLogger(__name__)

REPORT_EVERY = 5.0
"""Interval of reports to systemd, in seconds; shorter if its watchdog needs more."""
MAX_NAMED = 5
"""Number of sources that aren't live that a report names."""


class Supervisor:
    """Runs a service until it ends.

    Args:
        service: service, not started yet.
        config: config that it was made with.
        load: function that loads the config file again; None if there is no file.
        hangup_calls: context in which SIGHUP calls a function; None ignores the signal.

    Raises:
        ConfigError: the HTTP API's address isn't loopback and there is no token, or an environment
            variable of systemd is wrong.
        BindError: the address of the HTTP API can't be bound.
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
        self._watchdog_interval = systemd.watchdog_interval()
        self._reloading = threading.Lock()
        self._ended = threading.Event()
        reload = None if load is None else self.reload
        self._http_api = HttpApi(service, config, reload) if config.control.enabled else None

    @property
    def http_api_address(self) -> str | None:
        """Address of the HTTP API, None if it is off."""
        return None if self._http_api is None else self._http_api.address

    def run(self) -> Summary:
        """Serve until the service ends.

        Raises:
            StageError: a stage of the service failed; its cause is chained.
        """
        self._service.metrics.ready.set_function(lambda: float(self._service.ready))
        self._service.metrics.healthy.set_function(lambda: float(not self._service.health_problem))
        threading.Thread(target=self._report, name="watchdog", daemon=True).start()
        # The objects that exist now stay. Scanning all of them in each full collection would stop
        # every thread for a fifth of a second.
        gc.collect()
        gc.freeze()
        try:
            self._service.start()
            if self._http_api is not None:
                self._http_api.start()
            with self._hangup_calls(self._start_reload):
                systemd.notify_ready()  # from now on systemd may send SIGHUP
                return self._service.wait()
        finally:
            gc.unfreeze()
            self._ended.set()
            if self._http_api is not None:
                self._http_api.stop()

    def stop(self) -> None:
        """Stop the service; frames in flight are still published."""
        systemd.notify_stopping()
        self._service.stop()

    def abort(self) -> None:
        """Stop the service now; frames in flight are dropped."""
        self._service.abort()

    def reload(self) -> Reloaded:
        """Replace the sources and thresholds by those of the config file.

        Raises:
            StreamsegError: the file can't be loaded, or a source in it can't be opened; the service
                runs on unchanged.
        """
        assert self._load is not None
        with self._reloading:
            systemd.notify_reloading()
            try:
                changes = self._service.sources.reload(self._load())
            finally:
                systemd.notify_ready()
        log.warning(
            "config reloaded: added %s, removed %s, restarted %s",
            *(
                ", ".join(names) or "-"
                for names in (changes.added, changes.removed, changes.restarted)
            ),
        )
        if changes.waits:
            log.warning(
                "restart the service to apply the other changes: %s", ", ".join(changes.waits)
            )
        return changes

    def _report(self) -> None:
        """Report to systemd until the end; without health there is no watchdog notification."""
        pause = min(REPORT_EVERY, (self._watchdog_interval or math.inf) / 2)
        reported_at, reported_results = time.monotonic(), 0
        was_healthy = True
        while not self._ended.wait(pause):
            problem = self._service.health_problem
            now, results = time.monotonic(), self._published_results()
            rate = (results - reported_results) / (now - reported_at)
            reported_at, reported_results = now, results
            if problem:
                systemd.notify_status(f"not healthy: {problem}")
                if was_healthy:
                    log.error("not healthy: %s", problem)
            else:
                systemd.notify_status(f"{self._describe_sources()}, {rate:.0f} results/s")
                systemd.notify_watchdog()
            was_healthy = not problem

    def _published_results(self) -> int:
        return sum(account.published for account in self._service.metrics.snapshots())

    def _describe_sources(self) -> str:
        """Return how many of the sources are live, and the names of some that aren't."""
        sources = list(self._service.sources)
        others = [f"{s.name} {s.condition.state}" for s in sources if s.condition.state != "live"]
        named = f" ({', '.join(others[:MAX_NAMED])})" if others else ""
        return f"{len(sources) - len(others)} of {len(sources)} sources live{named}"

    def _start_reload(self) -> None:
        """Reload in a thread of its own: opening sources may take long."""
        threading.Thread(target=self._reload_or_log, name="reload", daemon=True).start()

    def _reload_or_log(self) -> None:
        if self._load is None:
            log.error("SIGHUP: the service wasn't started with a config file")
            return
        try:
            self.reload()
        except StreamsegError as error:
            log.error("the config can't be reloaded, the service runs on unchanged: %s", error)  # noqa: TRY400 - one line
