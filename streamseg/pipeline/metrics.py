"""Prometheus metrics of a service, and the frame accounts of its sources.

Each source has an :class:`Account`, for which
``decoded = published + sum(dropped) + sum(failed) + in_flight`` always holds: a decoded frame is
counted in exactly one place. ``in_flight`` is counted, not computed from the others, so that a
frame that gets lost or is settled twice is detected.
"""

from __future__ import annotations

import collections
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from streamseg.errors import StreamsegError

RECENT = 60.0
"""Window of recent ages, in seconds."""
_MOST_RECENT = 6000


@dataclass(frozen=True, slots=True)
class AccountSnapshot:
    """Account of a source at one moment.

    Attributes:
        source: name of the source.
        decoded: frames that were decoded.
        published: frames whose masks were published.
        dropped: frames dropped on purpose, by reason.
        failed: frames that couldn't be processed, by reason.
        in_flight: frames decoded and not settled yet.
    """

    source: str
    decoded: int
    published: int
    dropped: Mapping[str, int]
    failed: Mapping[str, int]
    in_flight: int

    @property
    def balanced(self) -> bool:
        """True if every decoded frame is counted in exactly one place."""
        settled = self.published + sum(self.dropped.values()) + sum(self.failed.values())
        return self.decoded == settled + self.in_flight


class Metrics:
    """Metrics of one service, in a registry of their own, and its frame accounts.

    Attributes:
        registry: Prometheus registry.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        source = ("source",)
        self.decoded = self._counter(
            "decoded_frames", "Frames that came out of the decoder", source
        )
        self.published = self._counter(
            "published_frames", "Frames handed to the masks sink", source
        )
        self.dropped = self._counter("dropped_frames", "Frames dropped", ("source", "reason"))
        self.failed = self._counter("failed_frames", "Frames that failed", ("source", "reason"))
        self.in_flight = Gauge(
            "streamseg_in_flight_frames", "Frames in flight", source, registry=self.registry
        )
        self.instances = self._counter("instances", "Instances found", source)
        self.images = self._counter("pictures", "Images annotated and encoded", source)
        self.images_dropped = self._counter(
            "dropped_pictures", "Images dropped because the encoder was late", source
        )
        self.messages_dropped = self._counter(
            "dropped_messages", "Results dropped because a sink was late", ("sink",)
        )
        self.sink_connected = Gauge(
            "streamseg_sink_connected",
            "1 while a sink is connected to its receiver",
            ("sink",),
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "streamseg_stage_seconds",
            "Seconds spent on a frame",
            ("stage",),
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
            registry=self.registry,
        )
        self.age_seconds = Histogram(
            "streamseg_result_age_seconds",
            "Seconds from capture to publication",
            source,
            buckets=(0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 100),
            registry=self.registry,
        )
        self.age_p99 = Gauge(
            "streamseg_result_age_p99_seconds",
            f"Seconds from capture to publication that 1 in 100 exceeded in the last {RECENT:g} s",
            source,
            registry=self.registry,
        )
        self.source_state = Gauge(
            "streamseg_source_state",
            "1 for the state that a source is in",
            ("source", "state"),
            registry=self.registry,
        )
        self.reconnects = self._counter(
            "reconnects", "Connections to a source after its first", source
        )
        self.stalls = self._counter("stalls", "Connections given up without frames", source)
        self.subscribers = Gauge(
            "streamseg_subscribers", "Connections of subscribers", registry=self.registry
        )
        self.refused = self._counter(
            "refused_connections", "Connections refused or aborted", ("reason",)
        )
        self.healthy = Gauge(
            "streamseg_well",
            "1 unless something is wrong with the service itself",
            registry=self.registry,
        )
        self.ready = Gauge(
            "streamseg_ready",
            "1 while it takes frames and publishes results",
            registry=self.registry,
        )
        threads = Gauge("streamseg_threads", "Threads of Python's", registry=self.registry)
        threads.set_function(threading.active_count)
        ProcessCollector(registry=self.registry)  # memory, file descriptors and CPU time
        self._ages: dict[str, RecentAges] = {}
        self._states: dict[str, str] = {}
        self._accounts: dict[str, Account] = {}
        self._lock = threading.Lock()

    def account(self, source: str) -> Account:
        """Return the account of a source; the first call opens it."""
        with self._lock:
            if source not in self._accounts:
                self._accounts[source] = Account(source, self)
            return self._accounts[source]

    def snapshots(self) -> list[AccountSnapshot]:
        """Return a snapshot of every account, in the order in which they were opened."""
        with self._lock:
            accounts = list(self._accounts.values())
        return [account.snapshot() for account in accounts]

    def observe_age(self, source: str, seconds: float) -> None:
        """Record the seconds from the capture of a frame to the publication of its result."""
        self.age_seconds.labels(source).observe(seconds)
        with self._lock:
            ages = self._ages.get(source)
            if ages is None:
                ages = self._ages[source] = RecentAges()
                self.age_p99.labels(source).set_function(ages.p99)
        ages.add(seconds)

    def age_p99_of(self, source: str) -> float:
        """Return the 99th percentile of a source's recent ages, in seconds; 0 without results."""
        ages = self._ages.get(source)
        return 0.0 if ages is None else ages.p99()

    def set_state(self, source: str, state: str) -> None:
        """Set the state of a source."""
        with self._lock:
            last, self._states[source] = self._states.get(source), state
        if last is not None:
            self.source_state.labels(source, last).set(0)
        self.source_state.labels(source, state).set(1)

    def forget_state(self, source: str) -> None:
        """Remove the gauges of a source that was removed; its counters stay, as counters must."""
        with self._lock:
            self._states.pop(source, None)
            self._ages.pop(source, None)
        for gauge in (self.source_state, self.age_p99):
            gauge.remove_by_labels({"source": source})

    def images_dropped_total(self) -> int:
        """Return the number of images dropped so far, over all sources."""
        samples = (s for metric in self.images_dropped.collect() for s in metric.samples)
        return int(sum(s.value for s in samples if s.name.endswith("_total")))

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"streamseg_{name}", text, labels, registry=self.registry)


class RecentAges:
    """Ages of one source's recent results.

    Args:
        clock: function that returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ages: deque[tuple[float, float]] = deque(maxlen=_MOST_RECENT)

    def __len__(self) -> int:
        """Return the number of ages that are stored."""
        return len(self._ages)

    def add(self, seconds: float) -> None:
        """Add the age of a result that is published now."""
        now = self._clock()
        with self._lock:
            self._ages.append((now, seconds))
            while self._ages[0][0] < now - RECENT:
                self._ages.popleft()

    def p99(self) -> float:
        """Return the 99th percentile, in seconds; 0 without results."""
        since = self._clock() - RECENT  # ``add`` alone removes old ages
        with self._lock:
            ages = sorted(age for when, age in self._ages if when >= since)
        return ages[math.ceil(0.99 * len(ages)) - 1] if ages else 0.0


class Account:
    """Account of one source's frames; safe to use from any thread."""

    def __init__(self, source: str, metrics: Metrics) -> None:
        self.source = source
        self._metrics = metrics
        # Rates need series that begin at 0, also those of a camera that never connects.
        for counted in (metrics.decoded, metrics.published, metrics.reconnects, metrics.stalls):
            counted.labels(source)
        self._lock = threading.Lock()
        self._decoded = 0
        self._published = 0
        self._dropped: collections.Counter[str] = collections.Counter()
        self._failed: collections.Counter[str] = collections.Counter()
        self._in_flight = 0

    def decode(self) -> None:
        """Count a decoded frame, which is in flight from now on."""
        with self._lock:
            self._decoded += 1
            self._in_flight += 1
        self._metrics.decoded.labels(self.source).inc()
        self._metrics.in_flight.labels(self.source).inc()

    def publish(self) -> None:
        """Settle a frame whose masks were published."""
        with self._lock:
            self._settle()
            self._published += 1
        self._metrics.published.labels(self.source).inc()
        self._metrics.in_flight.labels(self.source).dec()

    def drop(self, reason: str) -> None:
        """Settle a frame that was dropped on purpose."""
        with self._lock:
            self._settle()
            self._dropped[reason] += 1
        self._metrics.dropped.labels(self.source, reason).inc()
        self._metrics.in_flight.labels(self.source).dec()

    def fail(self, reason: str) -> None:
        """Settle a frame that couldn't be processed."""
        with self._lock:
            self._settle()
            self._failed[reason] += 1
        self._metrics.failed.labels(self.source, reason).inc()
        self._metrics.in_flight.labels(self.source).dec()

    def abandon(self, reason: str) -> None:
        """Settle all frames in flight as dropped: no stage processes them any more."""
        for _ in range(self.snapshot().in_flight):
            self.drop(reason)

    def snapshot(self) -> AccountSnapshot:
        """Return the account now, with consistent counts."""
        with self._lock:
            return AccountSnapshot(
                self.source,
                self._decoded,
                self._published,
                dict(self._dropped),
                dict(self._failed),
                self._in_flight,
            )

    def _settle(self) -> None:
        if self._in_flight == 0:
            raise StreamsegError(f"{self.source}: a frame was settled twice")
        self._in_flight -= 1
