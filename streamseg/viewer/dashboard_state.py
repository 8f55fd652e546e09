"""State of the dashboard: rates, latencies, counters and class counts of each source.

Browsers receive only the newest frames, so they can't compute these numbers; here every masks
message is counted. Nothing here reads a clock: callers pass the time (``now``, monotonic seconds).
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

HISTORY_SECONDS = 120
"""Length of the history of class counts, in seconds."""
MAX_COUNTED_CLASSES = 32
"""Maximum number of classes of a source in each second of the history."""
MAX_DISPLAYED_CLASSES = 8
"""Maximum number of classes of a source on the page."""
MAX_DISPLAYED_SOURCES = 64
"""Maximum number of sources on the page."""
RATE_WINDOW = 5.0
"""Window of frame rates and latencies, in seconds."""
MAX_RECENT_MESSAGES = 1000
"""Maximum number of messages of a source that are kept for rates and latencies."""
SILENCE_TIMEOUT = 3.0
"""Time without a message until the service counts as silent, in seconds."""
REMOVAL_TIMEOUT = 30.0
"""Time without a message until a source is removed from the page, in seconds."""
MAX_TRANSIT_SECONDS = 60.0
"""Transit time above which the clocks of service and viewer must differ, in seconds."""

DisplayedState: TypeAlias = Literal[protocol.State, "silent"]
"""State of a source, or ``silent`` if the viewer receives nothing from the service."""


class ClassView(msgspec.Struct, frozen=True):
    """Counts of one class of a source.

    Attributes:
        name: class name.
        label: category id, which determines the color.
        now: number of instances in the latest frame.
        history: mean number of instances in each second, oldest first; None for seconds without a
            message.
    """

    name: str
    label: int
    now: int
    history: list[float | None]


class SourceView(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of one source on the page. Rates and medians are those of the last 5 seconds.

    Attributes:
        source: source name.
        state: state of the source.
        reason: reason of the state.
        epoch: number of the connection, increased by one at each reconnection.
        fps: masks messages per second.
        age_ms: median time from capture to publication, in milliseconds; None without messages.
        age_p95_ms: 95th percentile of that time.
        way_ms: median time from publication to the viewer, in milliseconds; None if the clocks
            differ.
        lost: number of messages that did not reach the viewer.
        decoded: number of decoded frames.
        published: number of frames passed to the masks socket.
        in_flight: number of frames in the pipeline.
        dropped: number of dropped frames by reason.
        failed: number of frames that could not be processed, by reason.
        timing: milliseconds per stage for the latest frame.
        model: model name.
        size: (height, width) of the latest frame.
        in_view: number of instances in the latest frame.
        classes: classes with the most instances in the latest frame, then with the most in the
            history.
    """

    source: str
    state: DisplayedState
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


class DashboardMessage(msgspec.Struct, frozen=True, tag="board", tag_field="kind"):
    """Message with all numbers of the page, sent every second and at each change of a state.

    Attributes:
        address: address of the service.
        state: state of the service; ``connecting`` before its first message.
        reason: reason of the state.
        rejected: number of messages that violate the protocol.
        hidden: number of sources beyond ``MAX_DISPLAYED_SOURCES``.
        sources: sources, sorted by name.
    """

    address: str
    state: DisplayedState
    reason: str
    rejected: int
    hidden: int
    sources: list[SourceView]


@dataclass(frozen=True, slots=True)
class _Arrival:
    """Arrival of one message: when, its age at publication, and its transit time."""

    at: float
    age_ms: float
    transit_ms: float


@dataclass(slots=True)
class _SecondOfCounts:
    """Class counts of the current second, summed over its messages."""

    messages: int = 0
    sums: Counter[str] = field(default_factory=Counter)

    def averages(self) -> dict[str, float] | None:
        """Return the mean count by class name, or None without messages."""
        if not self.messages:
            return None
        most_common = self.sums.most_common(MAX_COUNTED_CLASSES)
        return {name: round(count / self.messages, 2) for name, count in most_common}


class SourceStatistics:
    """Statistics of one source, or of the service itself.

    Args:
        now: current time.

    Attributes:
        status: latest status message.
        last_message_at: time of the latest message.
    """

    def __init__(self, now: float) -> None:
        self.status: StatusMessage | None = None
        self.last_message_at = now
        self._latest: Received | None = None
        self._labels: dict[str, int] = {}
        self._arrivals: deque[_Arrival] = deque(maxlen=MAX_RECENT_MESSAGES)
        self._current_second = _SecondOfCounts()
        self._history: deque[dict[str, float] | None] = deque(
            [None] * HISTORY_SECONDS, maxlen=HISTORY_SECONDS
        )

    def add(self, received: Received, now: float, unix_time: float) -> None:
        """Count a masks message that arrived at ``now``, ``unix_time`` on the wall clock."""
        self.last_message_at = now
        self._latest = received
        transit_ms = (unix_time - received.published_at) * 1000
        self._arrivals.append(_Arrival(now, received.age_ms, transit_ms))
        self._current_second.messages += 1
        self._current_second.sums.update(received.instances.names)

    def update_status(self, status: StatusMessage, now: float) -> bool:
        """Store the latest status.

        Returns:
            Whether its state or reason differs from the previous one.
        """
        previous, self.status = self.status, status
        if previous is not None and _status_id(previous) == _status_id(status):
            return False
        self.last_message_at = now
        return previous is None or (
            (previous.state, previous.reason) != (status.state, status.reason)
        )

    def end_second(self) -> None:
        """Append the current second to the history of class counts."""
        self._history.append(self._current_second.averages())
        self._current_second = _SecondOfCounts()

    @property
    def is_final(self) -> bool:
        """True if no more messages will follow."""
        return self.status is not None and self.status.state in protocol.FINAL

    def displayed_state(self, silence: str) -> tuple[DisplayedState, str]:
        """Return the state and its reason.

        Args:
            silence: description of the silence of the service; empty if it is not silent.
        """
        if silence and not self.is_final:
            return "silent", silence
        if self.status is None:
            return ("live" if self._latest else "connecting"), ""
        return self.status.state, self.status.reason

    def view(self, source: str, lost: int, silence: str, now: float) -> SourceView:
        """Return the numbers for the page.

        Args:
            source: source name.
            lost: number of lost messages.
            silence: as in ``displayed_state``.
            now: current time.
        """
        recent = [arrival for arrival in self._arrivals if now - arrival.at <= RATE_WINDOW]
        ages_ms = [arrival.age_ms for arrival in recent]
        status, latest = self.status, self._latest
        state, reason = self.displayed_state(silence)
        return SourceView(
            source=source,
            state=state,
            reason=reason,
            epoch=status.epoch if status else 0,
            fps=round(_rate(recent), 1),
            age_ms=_median(ages_ms),
            age_p95_ms=_quantile(ages_ms, 0.95),
            way_ms=_transit_time([arrival.transit_ms for arrival in recent]),
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
            classes=self._class_views(),
        )

    def _class_views(self) -> list[ClassView]:
        instances = self._latest.instances if self._latest else None
        current = Counter(instances.names if instances else ())
        recent: Counter[str] = Counter()
        for counts in self._history:
            recent.update(counts or {})
        # Only labels of names that may be displayed are kept, so the memory is bounded.
        if instances:
            self._labels.update(zip(instances.names, instances.labels.tolist(), strict=True))
        self._labels = {n: i for n, i in self._labels.items() if n in current or n in recent}
        names = sorted({*current, *recent}, key=lambda n: (-current[n], -recent[n], n))
        return [
            ClassView(
                name,
                self._labels.get(name, 0),
                current[name],
                [None if counts is None else counts.get(name, 0.0) for counts in self._history],
            )
            for name in names[:MAX_DISPLAYED_CLASSES]
        ]


class DashboardState:
    """State of the dashboard: statistics of the service and of all its sources.

    Args:
        address: address of the service.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._sources: dict[str, SourceStatistics] = {}
        self._removed: dict[str, tuple[str, int]] = {}
        self._service = SourceStatistics(-math.inf)
        self._lost: Mapping[str, int] = {}
        self._rejected = 0

    def add(self, received: Received, now: float, unix_time: float) -> None:
        """Count a masks message that arrived at ``now``, ``unix_time`` on the wall clock."""
        self._service.last_message_at = now
        self._statistics(received.source, now).add(received, now, unix_time)

    def update(
        self,
        statuses: Mapping[str, StatusMessage],
        lost: Mapping[str, int],
        rejected: int,
        now: float,
    ) -> bool:
        """Store the latest statuses and counters of the subscriber.

        Args:
            statuses: latest status by source name; the name of the service is empty.
            lost: number of lost messages by source name.
            rejected: number of messages that violate the protocol.
            now: current time.

        Returns:
            Whether a state or its reason has changed.
        """
        self._lost, self._rejected = lost, rejected
        # A subscriber keeps the last status of each source. It must not restore a removed source.
        self._removed = {
            name: status_id
            for name, status_id in self._removed.items()
            if name in statuses and _status_id(statuses[name]) == status_id
        }
        changes = [
            self._statistics(name, now).update_status(status, now)
            for name, status in statuses.items()
            if name not in self._removed
        ]
        return any(changes)

    def end_second(self, now: float) -> None:
        """End the current second and remove sources without messages from a running service."""
        is_service_running = now - self._service.last_message_at < SILENCE_TIMEOUT
        for name, source in list(self._sources.items()):
            source.end_second()
            if is_service_running and now - source.last_message_at > REMOVAL_TIMEOUT:
                del self._sources[name]
                if source.status is not None:
                    self._removed[name] = _status_id(source.status)

    def running_sources(self, names: Iterable[str]) -> frozenset[str]:
        """Return the names of known sources that have not ended."""
        known = self._sources
        return frozenset(name for name in names if name in known and not known[name].is_final)

    def message(self, now: float) -> DashboardMessage:
        """Return the message for the page."""
        silence = self._describe_silence(now)
        state, reason = self._service.displayed_state(silence)
        names = sorted(self._sources)
        return DashboardMessage(
            address=self._address,
            state=state,
            reason=reason,
            rejected=self._rejected,
            hidden=max(0, len(names) - MAX_DISPLAYED_SOURCES),
            sources=[
                self._sources[name].view(name, self._lost.get(name, 0), silence, now)
                for name in names[:MAX_DISPLAYED_SOURCES]
            ],
        )

    def _statistics(self, name: str, now: float) -> SourceStatistics:
        return self._sources.setdefault(name, SourceStatistics(now)) if name else self._service

    def _describe_silence(self, now: float) -> str:
        """Describe the silence of the service; return an empty string if it is not silent."""
        statistics_of_all = [self._service, *self._sources.values()]
        seconds = now - max(each.last_message_at for each in statistics_of_all)
        if not SILENCE_TIMEOUT < seconds < math.inf:
            return ""
        return f"no word from the service for {seconds:.0f} s"


def _status_id(status: StatusMessage) -> tuple[str, int]:
    """Return the start id of the service and the sequence number, unique per status of a source."""
    return status.service, status.seq


def _rate(arrivals: list[_Arrival]) -> float:
    if len(arrivals) < 2:
        return 0.0
    return (len(arrivals) - 1) / max(arrivals[-1].at - arrivals[0].at, 1e-3)


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 1) if values else None


def _quantile(values: list[float], fraction: float) -> float | None:
    if not values:
        return None
    return round(sorted(values)[min(len(values) - 1, int(fraction * len(values)))], 1)


def _transit_time(times_ms: list[float]) -> float | None:
    """Return the median transit time, or None if the clocks of service and viewer differ."""
    median = _median(times_ms)
    is_plausible = median is not None and -1 <= median <= MAX_TRANSIT_SECONDS * 1000
    return median if is_plausible else None
