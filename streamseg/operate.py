"""A service under an operator: its control endpoint, its config read again, its supervisor told.

A service alone is ``serve.Service``; this is what ``streamseg serve`` runs around one.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from streamseg import notify
from streamseg.config import Config
from streamseg.control import Control
from streamseg.errors import StreamsegError
from streamseg.serve import Reloaded, Service
from streamseg.summary import Summary

log = logging.getLogger(__name__)


class Operation:
    """Runs a service until it ends.

    Args:
        service: not started yet.
        config: what it was made with.
        load: reads the config again; None where there is no file.

    Raises:
        ConfigError: what ``Control`` says.
        BindError: the control's address can't be served on.
    """

    def __init__(self, service: Service, config: Config, load: Callable[[], Config] | None) -> None:
        self._service = service
        self._load = load
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
        threading.Thread(target=self._reassure, name="watchdog", daemon=True).start()
        try:
            self._service.start()
            if self._control is not None:
                self._control.start()
            notify.ready()
            with self._reloaded_by_signal():
                return self._service.wait()
        finally:
            self._over.set()
            if self._control is not None:
                self._control.stop()

    def stop(self) -> None:
        """Finish what was taken, and end."""
        notify.stopping()
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
            notify.reloading()
            try:
                changes = self._service.reload(self._load())
            finally:
                notify.ready()
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

    def _reassure(self) -> None:
        """Tell systemd, if it wants to hear it, that all is well; not if it isn't."""
        interval = notify.watchdog_interval()
        if interval is None:
            return
        while not self._over.wait(interval / 2):
            ailment = self._service.ailment
            if ailment:
                log.error("not well: %s", ailment)
            else:
                notify.watchdog()

    @contextmanager
    def _reloaded_by_signal(self) -> Iterator[None]:
        """SIGHUP reads the config again, in a thread: a signal's handler must not wait."""

        def handle(_number: int, _frame: FrameType | None) -> None:
            threading.Thread(target=self._reload_or_log, name="reload", daemon=True).start()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGHUP, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, before)

    def _reload_or_log(self) -> None:
        if self._load is None:
            log.error("SIGHUP: the service wasn't started with a config file")
            return
        try:
            self.reload()
        except StreamsegError as error:
            log.error("the config can't be read again, the service goes on as it was: %s", error)  # noqa: TRY400 - one line
