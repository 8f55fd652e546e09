"""Session of one source in a running service: its frames, its state, and the control of it.

A source yields frames; a session makes it part of a service. It enters the frames into the
source's account, reports changes of state, and continues the epochs of an earlier session of the
same name.
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
from streamseg.pipeline.stages import read_frames
from streamseg.protocol.messages import FINAL, State
from streamseg.sources import LiveSource, Source
from streamseg.structures.results import Frame

log = logging.getLogger(__name__)

PublishState: TypeAlias = Callable[[str, State, str, int], None]
"""Function that publishes ``(source, state, reason, epoch)`` to the subscribers."""


@dataclass(frozen=True, slots=True)
class Condition:
    """State of a source, and the reason for it.

    Attributes:
        state: state, as in status messages.
        reason: explanation in words.
        epoch: epoch of the latest frame.
    """

    state: State
    reason: str
    epoch: int


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """Source that was opened and not started yet.

    Attributes:
        source: the source.
        config: config that it was opened with.
    """

    source: Source
    config: SourceConfig


class SourceSession:
    """Source running in a service; safe to use from any thread.

    Args:
        opened: the source.
        first_epoch: epoch of its first frame.
        metrics: accounts and states of the service's sources.
        publish_state: called at each change of state.

    Attributes:
        condition: the current state.
        removed: whether the source was removed, or is being replaced by its successor.
        successor: source that starts under the same name once this one is drained.
    """

    def __init__(
        self,
        opened: OpenedSource,
        first_epoch: int,
        metrics: Metrics,
        publish_state: PublishState,
    ) -> None:
        self.source = source = opened.source
        self.config = opened.config
        self.condition = Condition("waiting", "to begin", first_epoch)
        self.removed = False
        self.successor: OpenedSource | None = None
        self._first_epoch = first_epoch
        self._metrics = metrics
        self._publish_state = publish_state
        self._lock = threading.Lock()
        self._connections = 0
        self._is_lost = False
        self._reports_state = isinstance(source, LiveSource)
        if isinstance(source, LiveSource):
            source.tell = self._on_source_state

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    @property
    def next_epoch(self) -> int:
        """First epoch of the next session of the same name."""
        return self.condition.epoch + 1

    @property
    def paused(self) -> bool:
        """True if the source is paused."""
        return self.source.control.paused

    @property
    def stopped(self) -> bool:
        """True once the source was stopped."""
        return self.source.control.stopped

    def needs_restart(self, config: SourceConfig) -> bool:
        """Return whether ``config`` requires a new session.

        It does if this one failed or is being removed, or if an option other than the thresholds
        differs: thresholds can be changed in a running session.
        """
        current, new = (
            msgspec.structs.replace(each, thresholds=None) for each in (self.config, config)
        )
        return current != new or self.removed or self.condition.state == "failed"

    def frames(self) -> Iterator[Frame]:
        """Yield the source's frames, entered into its account, and update the state."""
        if not self._reports_state and self.paused:
            self.set_state("waiting", "paused")
        elif not self._reports_state:
            self.set_state("connecting", "")
        for frame in read_frames(self.source, self._metrics.account(self.name)):
            epoch = self._first_epoch + frame.epoch
            self._set_live(epoch)
            yield replace(frame, epoch=epoch)

    def pause(self) -> None:
        """Take no more frames until ``resume``."""
        self.source.control.pause()
        if self.successor is not None:
            self.successor.source.control.pause()
        if not self._reports_state:
            self.set_state("waiting", "paused")

    def resume(self) -> None:
        """Take frames again; the state becomes ``live`` with the next one."""
        self.source.control.resume()
        if self.successor is not None:
            self.successor.source.control.resume()

    def stop(self) -> None:
        """Stop the source after the frame that it is reading."""
        self.source.control.stop()

    def set_state(self, state: State, reason: str) -> None:
        """Set and publish a state; does nothing after a final one.

        Passwords in the reason, which may quote a library or a camera, are redacted.
        """
        reason = redact(reason)
        with self._lock:
            if self.condition.state in FINAL:
                return
            self.condition = replace(self.condition, state=state, reason=reason)
            self._metrics.set_state(self.name, state)
            self._publish_state(self.name, state, reason, self.condition.epoch)
            if self._reports_state:
                self._log_change(self.condition)

    def _log_change(self, condition: Condition) -> None:
        """Log that a camera was lost or is back: one line each, not one per attempt."""
        if condition.state in ("connecting", "ended") or not self._connections:
            return
        is_lost = condition.state != "live"
        if is_lost == self._is_lost and condition.state != "failed":
            return
        self._is_lost = is_lost
        change = f"{condition.state}: {condition.reason}" if is_lost else f"{condition.state} again"
        log.warning(
            "%s: %s",
            self.name,
            change,
            extra={"source": self.name, "state": condition.state, "epoch": condition.epoch},
        )

    def _set_live(self, epoch: int) -> None:
        """Set the state and epoch for a frame that was received."""
        condition = self.condition
        if condition.epoch != epoch:
            with self._lock:
                self.condition = replace(self.condition, epoch=epoch)
        elif condition.state == "live":
            return
        if not self.paused:
            self.set_state("live", "")

    def _on_source_state(self, state: State, reason: str) -> None:
        """Count and set a state that a live source reports."""
        if state == "stalled":
            self._metrics.stalls.labels(self.name).inc()
        if state == "connecting":
            self._connections += 1
            if self._connections > 1:
                self._metrics.reconnects.labels(self.name).inc()
        self.set_state(state, reason)
