"""The numbers beside the pictures: what is known of each source, and how it was lately.

Browsers are sent the newest picture only, so they can't count; here every masks message is seen.
There is no clock in here: whoever calls says what time it is (``now`` is monotonic).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from streamseg import protocol
from streamseg.client import Received
from streamseg.protocol.messages import StatusMessage

HISTORY = 120
"""Seconds of counts that are kept."""
CLASSES_KEPT = 32
CLASSES_SHOWN = 8
"""Of a source: in its memory, and on the page."""
SOURCES_SHOWN = 64
RATE_OVER = 5.0
"""Seconds over which rates and ages are taken."""
RECENT = 1000
"""Messages of a source, at most, that rates and ages are taken from."""
SILENT_AFTER = 3.0
"""Seconds without a word from the service, which speaks every second."""
FORGET_AFTER = 30.0
"""Seconds after which a source that the service speaks no more of is taken off the page."""
CLOCKS_AGREE = 60.0
"""Seconds on the way, beyond which it must be the clocks that differ."""

Shown: TypeAlias = Literal[protocol.State, "silent"]
"""A source's state; ``silent`` is what the viewer says when nothing comes at all."""


class ClassView(msgspec.Struct, frozen=True):
    """One class of a source.

    Attributes:
        name: the class's.
        label: category id, which gives its colour.
        now: how many are in view.
        history: how many were on average, second by second, the latest last; None where no
            message came.
    """

    name: str
    label: int
    now: int
    history: list[float | None]


class SourceView(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of a source.

    Attributes:
        source: its name.
        state: see ``Shown``.
        reason: why, in words.
        epoch: goes up at each reconnection.
        fps: masks messages a second, lately.
        age_ms: from capture to publication, the median lately; None when nothing came.
        age_p95_ms: what 19 of 20 stay under.
        way_ms: from publication to the viewer, the median lately; None when the clocks differ.
        lost: messages that didn't reach the viewer.
        decoded: frames that came out of the decoder.
        published: frames handed to the masks socket.
        in_flight: frames on their way.
        dropped: frames dropped, by reason.
        failed: frames that couldn't be processed, by reason.
        timing: milliseconds spent on the latest frame, by stage.
        model: the model's name.
        size: height, width of the latest frame.
        in_view: instances in the latest frame.
        classes: those with most in view, then those with most lately.
    """

    source: str
    state: Shown
    reason: str
    epoch: int
    fps: float
    age_ms: float | None
    age_p95_ms: float | None
    way_ms: float | None
    lost: int
    decoded: int
    published: int
    in_flight: int
    dropped: dict[str, int]
    failed: dict[str, int]
    timing: dict[str, float]
    model: str
    size: tuple[int, int] | None
    in_view: int
    classes: list[ClassView]


class BoardMessage(msgspec.Struct, frozen=True, tag="board", tag_field="kind"):
    """Everything but the pictures, sent every second and at each change of state.

    Attributes:
        address: of the service.
        state: of the service; ``connecting`` until it has been heard.
        reason: why, in words.
        rejected: messages that were not what the protocol allows.
        hidden: sources beyond ``SOURCES_SHOWN``.
        sources: by name.
    """

    address: str
    state: Shown
    reason: str
    rejected: int
    hidden: int
    sources: list[SourceView]


@dataclass(frozen=True, slots=True)
class _Arrival:
    at: float
    age_ms: float
    way_ms: float


@dataclass(slots=True)
class _Second:
    """The counts of one second, as it goes on."""

    messages: int = 0
    sums: Counter[str] = field(default_factory=Counter)

    def averages(self) -> dict[str, float] | None:
        if not self.messages:
            return None
        kept = self.sums.most_common(CLASSES_KEPT)
        return {name: round(count / self.messages, 2) for name, count in kept}


class SourceBoard:
    """What is known of one source.

    Args:
        now: seconds, monotonic.
    """

    def __init__(self, now: float) -> None:
        self.status: StatusMessage | None = None
        self.heard_at = now
        self._latest: Received | None = None
        self._labels: dict[str, int] = {}
        self._arrivals: deque[_Arrival] = deque(maxlen=RECENT)
        self._second = _Second()
        self._seconds: deque[dict[str, float] | None] = deque([None] * HISTORY, maxlen=HISTORY)

    def add(self, received: Received, now: float, unix: float) -> None:
        """Count one message that came at ``now``, ``unix`` on the wall clock."""
        self.heard_at = now
        self._latest = received
        way_ms = (unix - received.published_at) * 1000
        self._arrivals.append(_Arrival(now, received.age_ms, way_ms))
        self._second.messages += 1
        self._second.sums.update(received.instances.names)

    def hear(self, status: StatusMessage, now: float) -> bool:
        """Take the latest status.

        Returns:
            Whether its state or reason is another than before.
        """
        before, self.status = self.status, status
        if before is not None and _identity(before) == _identity(status):
            return False
        self.heard_at = now
        return before is None or (before.state, before.reason) != (status.state, status.reason)

    def end_second(self) -> None:
        """Another second of the history is over."""
        self._seconds.append(self._second.averages())
        self._second = _Second()

    @property
    def is_final(self) -> bool:
        """Whether the service has said that nothing more will come."""
        return self.status is not None and self.status.state in protocol.FINAL

    def view(self, source: str, lost: int, silent: str, now: float) -> SourceView:
        """As it is ``now``; ``silent`` says since when nothing has come, if that is so."""
        recent = [arrival for arrival in self._arrivals if now - arrival.at <= RATE_OVER]
        state, reason = self._state(silent)
        status, latest = self.status, self._latest
        return SourceView(
            source=source,
            state=state,
            reason=reason,
            epoch=status.epoch if status else 0,
            fps=round(_rate(recent), 1),
            age_ms=_middle([arrival.age_ms for arrival in recent]),
            age_p95_ms=_quantile([arrival.age_ms for arrival in recent], 0.95),
            way_ms=_way([arrival.way_ms for arrival in recent]),
            lost=lost,
            decoded=status.decoded if status else 0,
            published=status.published if status else 0,
            in_flight=status.in_flight if status else 0,
            dropped=status.dropped if status else {},
            failed=status.failed if status else {},
            timing=dict(latest.timing) if latest else {},
            model=latest.model if latest else "",
            size=latest.size if latest else None,
            in_view=len(latest.instances) if latest else 0,
            classes=self._classes(),
        )

    def _state(self, silent: str) -> tuple[Shown, str]:
        if silent and not self.is_final:
            return "silent", silent
        if self.status is None:
            return ("live", "") if self._latest else ("connecting", "")
        return self.status.state, self.status.reason

    def _classes(self) -> list[ClassView]:
        found = self._latest.instances if self._latest else None
        current = Counter(found.names if found else ())
        lately: Counter[str] = Counter()
        for second in self._seconds:
            lately.update(second or {})
        self._learn_labels(current, lately)
        names = sorted({*current, *lately}, key=lambda n: (-current[n], -lately[n], n))
        return [
            ClassView(name, self._labels.get(name, 0), current[name], self._history(name))
            for name in names[:CLASSES_SHOWN]
        ]

    def _learn_labels(self, *shown: Counter[str]) -> None:
        """Keep the category ids of the names that may be shown, and no others."""
        if self._latest:
            found = self._latest.instances
            self._labels.update(zip(found.names, found.labels.tolist(), strict=True))
        self._labels = {n: i for n, i in self._labels.items() if any(n in names for names in shown)}

    def _history(self, name: str) -> list[float | None]:
        return [None if second is None else second.get(name, 0.0) for second in self._seconds]


class Board:
    """What is known of the service and all its sources.

    Args:
        address: of the service.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._sources: dict[str, SourceBoard] = {}
        self._forgotten: dict[str, tuple[str, int]] = {}
        self._service = SourceBoard(-math.inf)
        self._lost: Mapping[str, int] = {}
        self._rejected = 0

    def add(self, received: Received, now: float, unix: float) -> None:
        """Count one masks message."""
        self._service.heard_at = now
        self._source(received.source, now).add(received, now, unix)

    def hear(
        self,
        statuses: Mapping[str, StatusMessage],
        lost: Mapping[str, int],
        rejected: int,
        now: float,
    ) -> bool:
        """Take what the subscriber knows by now.

        Returns:
            Whether a state has changed.
        """
        self._lost, self._rejected = lost, rejected
        # A subscriber keeps a source's last word for good: that brings none back to the page.
        self._forgotten = {
            name: last
            for name, last in self._forgotten.items()
            if name in statuses and _identity(statuses[name]) == last
        }
        heard = [
            self._source(name, now).hear(status, now)
            for name, status in statuses.items()
            if name not in self._forgotten
        ]
        return any(heard)

    def end_second(self, now: float) -> None:
        """Another second is over; sources that the service speaks no more of are forgotten."""
        spoken = now - self._service.heard_at < SILENT_AFTER
        for name, source in list(self._sources.items()):
            source.end_second()
            if spoken and now - source.heard_at > FORGET_AFTER:
                self._forget(name)

    def following(self, names: Iterable[str]) -> frozenset[str]:
        """Those of ``names`` that are sources which can still send something."""
        known = self._sources
        return frozenset(name for name in names if name in known and not known[name].is_final)

    def message(self, now: float) -> BoardMessage:
        """All of it, as it is ``now``."""
        silent = self._silence(now)
        names = sorted(self._sources)
        state, reason = self._service_state(silent)
        return BoardMessage(
            address=self._address,
            state=state,
            reason=reason,
            rejected=self._rejected,
            hidden=max(0, len(names) - SOURCES_SHOWN),
            sources=[
                self._sources[name].view(name, self._lost.get(name, 0), silent, now)
                for name in names[:SOURCES_SHOWN]
            ],
        )

    def _forget(self, name: str) -> None:
        status = self._sources.pop(name).status
        if status is not None:
            self._forgotten[name] = _identity(status)

    def _source(self, name: str, now: float) -> SourceBoard:
        return self._sources.setdefault(name, SourceBoard(now)) if name else self._service

    def _silence(self, now: float) -> str:
        """Since when nothing has come, in words; empty while something does."""
        heard_at = max([self._service.heard_at, *(s.heard_at for s in self._sources.values())])
        seconds = now - heard_at
        if not SILENT_AFTER < seconds < math.inf:
            return ""
        return f"no word from the service for {seconds:.0f} s"

    def _service_state(self, silent: str) -> tuple[Shown, str]:
        status = self._service.status
        if status is not None and status.state in protocol.FINAL:
            return status.state, status.reason
        if silent:
            return "silent", silent
        if status is None:
            return "connecting", ""
        return status.state, status.reason


def _identity(status: StatusMessage) -> tuple[str, int]:
    """What two statuses of a source have in common only if they are one and the same."""
    return status.service, status.seq


def _rate(arrivals: list[_Arrival]) -> float:
    if len(arrivals) < 2:
        return 0.0
    return (len(arrivals) - 1) / max(arrivals[-1].at - arrivals[0].at, 1e-3)


def _middle(values: list[float]) -> float | None:
    return round(statistics.median(values), 1) if values else None


def _quantile(values: list[float], part: float) -> float | None:
    if not values:
        return None
    return round(sorted(values)[min(len(values) - 1, int(part * len(values)))], 1)


def _way(ways_ms: list[float]) -> float | None:
    """Milliseconds on the way, unless the clocks of service and viewer plainly differ."""
    way = _middle(ways_ms)
    return way if way is not None and -1 <= way <= CLOCKS_AGREE * 1000 else None
