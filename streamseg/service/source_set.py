"""Sources of a running service: they can be added, removed, paused, resumed and reloaded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from streamseg.config import Config, SourceConfig, Thresholds, assign_source_names
from streamseg.errors import ConfigError, NoSuchSourceError, StreamsegError, redact
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.stages import SourceThresholds
from streamseg.protocol.messages import FINAL
from streamseg.service.capacity import check_capacity
from streamseg.service.source_session import OpenedSource, SourceSession
from streamseg.service.wiring import ServicePipeline
from streamseg.sources import open_source

log = logging.getLogger(__name__)

FIXED_SECTIONS = ("model", "worker", "tracker", "publish", "control", "mqtt", "sinks")
"""Sections of the config that a running service can't change."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Changes that a reloaded config made in a running service.

    Attributes:
        added: names of sources that were added.
        removed: names of sources that were removed.
        restarted: names of sources that were restarted with other options.
        waits: changed sections of the config that take effect when the service is restarted.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    restarted: tuple[str, ...]
    waits: tuple[str, ...]


class SourceSet:
    """Sources of a service at run time; safe to use from any thread.

    A source that is removed keeps its session until its last result has been published. When its
    options change, its successor starts then, so that its frames never mix with the old ones.

    Args:
        config: config of the service.
        opened: its sources, opened.
        thresholds: thresholds of each source.
        pipeline: pipeline that takes their frames.
        metrics: metrics and frame accounts of the service.

    Attributes:
        thresholds: thresholds of each source.
    """

    def __init__(
        self,
        config: Config,
        opened: Sequence[OpenedSource],
        thresholds: SourceThresholds,
        pipeline: ServicePipeline,
        metrics: Metrics,
    ) -> None:
        self.thresholds = thresholds
        self._config = config
        self._pipeline = pipeline
        self._metrics = metrics
        # Reentrant: a source without frames in flight is drained within the call that ends it.
        self._lock = threading.RLock()
        self._is_open = False
        self._problems: dict[str, str] = {}
        self._next_epochs: dict[str, int] = {}
        self._sessions: dict[str, SourceSession] = {}
        for each in opened:
            self._sessions[each.source.name] = self._new_session(each)
        pipeline.drain.on_drained = self._on_drained

    def __iter__(self) -> Iterator[SourceSession]:
        """Iterate over the sessions that there are now."""
        with self._lock:
            return iter(list(self._sessions.values()))

    def __getitem__(self, name: str) -> SourceSession:
        """Return the session of a source.

        Raises:
            NoSuchSourceError: no source has that name.
        """
        with self._lock:
            if name not in self._sessions:
                known = ", ".join(self._sessions) or "none"
                raise NoSuchSourceError(f"there is no source called {name!r}; there are: {known}")
            return self._sessions[name]

    @property
    def is_running(self) -> bool:
        """True while sources can be added: from ``start`` to ``stop``, or the end of the last."""
        return self._is_open and not self._pipeline.stopping

    @property
    def problems(self) -> list[str]:
        """Reasons of the sources that have failed."""
        with self._lock:
            return list(self._problems.values())

    def start(self) -> None:
        """Start every source."""
        with self._lock:
            self._is_open = True
            for session in list(self._sessions.values()):
                self._start_session(session)

    def stop(self) -> None:
        """Stop every source; none can be added afterwards."""
        with self._lock:
            for session in self._sessions.values():
                session.stop()
            self._close()

    def add(self, source: SourceConfig) -> str:
        """Add a source and start it.

        Returns:
            Name of the source.

        Raises:
            ConfigError: its name is taken, its options are wrong, or the service isn't running.
            SourceError: it can't be opened; a live source is opened after it was added.
        """
        known = [(session.name, session.name) for session in self]
        name = assign_source_names([*known, (source.name, source.url)])[-1]
        config = msgspec.structs.replace(source, name=name)
        opened = OpenedSource(open_source(config), config)  # may take long: not under the lock
        with self._lock:
            self._check_running()
            running = [session.source for session in self]
            check_capacity(self._config.publish, running, [opened.source])
            self._add_session(opened)
        return name

    def remove(self, name: str) -> None:
        """Remove a source; its frames in flight are still published.

        Raises:
            NoSuchSourceError: no source has that name.
        """
        with self._lock:
            self._end_session(self[name], successor=None)

    def pause(self, name: str) -> None:
        """Take no more frames of a source until ``resume``.

        Raises:
            NoSuchSourceError: no source has that name.
        """
        with self._lock:
            self[name].pause()

    def resume(self, name: str) -> None:
        """Take frames of a paused source again.

        Raises:
            NoSuchSourceError: no source has that name.
        """
        with self._lock:
            self[name].resume()

    def set_thresholds(self, thresholds: Thresholds | None, name: str | None = None) -> None:
        """Replace thresholds, from the next batch on.

        Args:
            thresholds: new thresholds; None removes a source's own.
            name: name of the source; None replaces the default of sources without their own.

        Raises:
            NoSuchSourceError: no source has that name.
            UsageError: the model has no class of a name in them.
        """
        if name is not None:
            self.thresholds.set(self[name].name, thresholds)
        elif thresholds is not None:
            self.thresholds.set_default(thresholds)

    def reload(self, config: Config) -> Reloaded:
        """Replace the sources and thresholds by those of ``config``.

        Everything is checked first: after an error, the service runs on unchanged.

        Raises:
            StreamsegError: a source can't be opened, or a threshold or another option is wrong.
        """
        SourceThresholds.from_config(config, self.thresholds.model)
        new = {source.name: source for source in config.sources}
        opened = self._open_changed(new)  # may take long: not under the lock
        with self._lock:
            self._check_running()
            sessions = dict(self._sessions)
            if any(name not in sessions and name not in opened for name in new):
                raise ConfigError("a source was removed during the reload: reload again")
            removed = [name for name in sessions if name not in new]
            restarted = [name for name in sessions if name in opened]
            added = [name for name in opened if name not in sessions]
            for name in (*removed, *restarted):
                self._end_session(sessions[name], opened.get(name))
            for name in added:
                self._add_session(opened[name])
            self.set_thresholds(config.thresholds)
            for source in config.sources:
                self.set_thresholds(source.thresholds, source.name)
        waits = [s for s in FIXED_SECTIONS if getattr(config, s) != getattr(self._config, s)]
        return Reloaded(tuple(added), tuple(removed), tuple(restarted), tuple(waits))

    def _open_changed(self, new: dict[str, SourceConfig]) -> dict[str, OpenedSource]:
        """Open the sources that are new or have changed, and check that there is room for them."""
        sessions = {session.name: session for session in self}
        opened = {
            name: OpenedSource(open_source(config), config)
            for name, config in new.items()
            if name not in sessions or sessions[name].needs_restart(config)
        }
        kept = [s.source for s in self if s.name in new and s.name not in opened]
        check_capacity(self._config.publish, kept, [each.source for each in opened.values()])
        return opened

    def _check_running(self) -> None:
        if not self.is_running:
            raise ConfigError("the service isn't running: no source can be added")

    def _new_session(self, opened: OpenedSource) -> SourceSession:
        first_epoch = self._next_epochs.get(opened.source.name, 0)
        return SourceSession(opened, first_epoch, self._metrics, self._pipeline.publish_state)

    def _add_session(self, opened: OpenedSource) -> None:
        name = opened.source.name
        if name in self._sessions:
            raise ConfigError(f"there is a source called {name!r} already")
        self.thresholds.set(name, opened.config.thresholds)
        self._sessions[name] = self._new_session(opened)
        self._start_session(self._sessions[name])

    def _start_session(self, session: SourceSession) -> None:
        def fail(error: Exception) -> None:
            if not isinstance(error, StreamsegError):
                log.error("source %s", session.name, exc_info=error)
            reason = redact(str(error))
            with self._lock:
                self._problems[session.name] = reason
            self._pipeline.drain.end_source(session.name, reason, failed=True)

        self._pipeline.start_source(session, fail)

    def _end_session(self, session: SourceSession, successor: OpenedSource | None) -> None:
        """Stop a source; once it is drained its successor starts, paused if the source is."""
        latest = session.source if session.successor is None else session.successor.source
        if successor is not None and latest.control.paused:
            successor.source.control.pause()
        session.removed = True
        session.successor = successor
        session.stop()
        if session.condition.state in FINAL:
            self._replace_session(session)

    def _on_drained(self, name: str, reason: str, failed: bool) -> None:
        """Publish the end of a source, all of whose results have been published."""
        with self._lock:
            session = self._sessions[name]
            if session.successor is None or not self.is_running:
                session.set_state("failed" if failed else "ended", reason)
            if session.removed:
                self._replace_session(session)
            elif all(other.condition.state in FINAL for other in self._sessions.values()):
                self._close()

    def _replace_session(self, session: SourceSession) -> None:
        """Drop a drained session, and start its successor if it has one."""
        self._next_epochs[session.name] = session.next_epoch
        self._problems.pop(session.name, None)
        del self._sessions[session.name]
        if session.successor is not None and self.is_running:
            self._add_session(session.successor)
            return
        self.thresholds.set(session.name, None)
        self._pipeline.forget_source(session.name)

    def _close(self) -> None:
        """Let the service end when its sources have: no source can be added any more."""
        if self._is_open:
            self._is_open = False
            self._pipeline.close_inbox()
