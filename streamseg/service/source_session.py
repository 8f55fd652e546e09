"""One source of a running service: its frames, the state it is in, and what may be done to it.

A source knows how to get frames; a feed knows that it is part of a service: that its frames are
accounted for, that others are told how it is, that an operator may pause it or take it away, and
that a source which comes back under its old name goes on with the next epoch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import msgspec

from streamseg.config import SourceConfig
from streamseg.errors import redact
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.stages import read
from streamseg.protocol.messages import FINAL, State
from streamseg.sources import LiveSource, Source
from streamseg.structures.results import Frame

log = logging.getLogger(__name__)

Say: TypeAlias = Callable[[str, State, str, int], None]
"""``(source, state, reason, epoch)``: tell the subscribers."""


@dataclass(frozen=True, slots=True)
class Condition:
    """How a source is.

    Attributes:
        state: as in status messages.
        reason: why, in words.
        epoch: of its latest frame.
    """

    state: State
    reason: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that has not begun.

    Attributes:
        source: gives the frames.
        config: what it was opened with.
    """

    source: Source
    config: SourceConfig


class SourceSession:
    """See above; its methods may be called from any thread.

    Args:
        opened: the source.
        first_epoch: the epoch that its first frame gets.
        metrics: take its account and its states.
        say: told every change of state.

    Attributes:
        removed: whether an operator took it away.
        successor: what takes its name when it was taken away and all of it has gone out.
    """

    def __init__(self, opened: Opened, first_epoch: int, metrics: Metrics, say: Say) -> None:
        self.source = source = opened.source
        self.config = opened.config
        self.removed = False
        self.successor: Opened | None = None
        self._first_epoch = first_epoch
        self._metrics = metrics
        self._say = say
        self._lock = threading.Lock()
        self._connections = 0
        self._away = False
        self.condition = Condition("waiting", "to begin", first_epoch)
        self._tells = isinstance(source, LiveSource)
        if isinstance(source, LiveSource):
            source.tell = self._told

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def next_epoch(self) -> int:
        """What a source of the same name begins with after this one."""
        return self.condition.epoch + 1

    @property
    def paused(self) -> bool:
        """Whether it was told to wait."""
        return self.source.control.paused

    @property
    def stopped(self) -> bool:
        """Whether it was told to end."""
        return self.source.control.stopped

    def must_reopen(self, new: SourceConfig) -> bool:
        """Whether it failed or is going, or ``new`` has other options.

        New thresholds it takes as it runs.
        """
        old, other = (msgspec.structs.replace(c, thresholds=None) for c in (self.config, new))
        return old != other or self.removed or self.condition.state == "failed"

    def frames(self) -> Iterator[Frame]:
        """The source's frames, entered into its account; says what state it is in."""
        if not self._tells and self.paused:
            self.set("waiting", "paused")
        elif not self._tells:
            self.set("connecting", "")
        for frame in read(self.source, self._metrics.account(self.name)):
            numbered = replace(frame, epoch=self._first_epoch + frame.epoch)
            self._came(numbered.epoch)
            yield numbered

    def pause(self) -> None:
        """No more frames until ``resume``."""
        self.source.control.pause()
        if self.successor is not None:
            self.successor.source.control.pause()
        if not self._tells:
            self.set("waiting", "paused")

    def resume(self) -> None:
        """Go on; the next frame says that it is live."""
        self.source.control.resume()
        if self.successor is not None:
            self.successor.source.control.resume()

    def stop(self) -> None:
        """End it, soon."""
        self.source.control.stop()

    def set(self, state: State, reason: str) -> None:
        """Note a new state, and tell of it; after a final one, nothing is said any more.

        The reason may be a library's or the camera's words: no password in them is passed on.
        """
        reason = redact(reason)
        with self._lock:
            if self.condition.state in FINAL:
                return
            self.condition = replace(self.condition, state=state, reason=reason)
            self._metrics.set_state(self.name, state)
            self._say(self.name, state, reason, self.condition.epoch)
            if self._tells:
                self._note(self.condition)

    def _note(self, now: Condition) -> None:
        """A line in the log when a camera goes and when it is back, not one an attempt."""
        if now.state in ("connecting", "ended") or not self._connections:
            return
        away = now.state != "live"
        if away == self._away and now.state != "failed":
            return
        self._away = away
        text = f"{now.state}: {now.reason}" if away else f"{now.state} again"
        log.warning(
            "%s: %s",
            self.name,
            text,
            extra={"source": self.name, "state": now.state, "epoch": now.epoch},
        )

    def _came(self, epoch: int) -> None:
        """A frame came, so it is live."""
        condition = self.condition
        if condition.epoch != epoch:
            with self._lock:
                self.condition = replace(self.condition, epoch=epoch)
        elif condition.state == "live":
            return
        if not self.paused:
            self.set("live", "")

    def _told(self, state: State, reason: str) -> None:
        """What a live source says of itself."""
        if state == "stalled":
            self._metrics.stalls.labels(self.name).inc()
        if state == "connecting":
            self._connections += 1
            if self._connections > 1:
                self._metrics.reconnects.labels(self.name).inc()
        self.set(state, reason)
