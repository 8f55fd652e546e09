"""Every number that an operator can watch: Prometheus metrics, declared once, and frame accounts.

Each source has an :class:`Account`, for which always
``decoded = published + sum(dropped) + sum(failed) + in_flight``: a frame that was decoded is in
exactly one place. Stages say what became of a frame; nobody computes ``in_flight`` from the
others, so that a frame that is lost or settled twice shows.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streamseg.errors import StreamsegError


@dataclass(frozen=True, slots=True)
class AccountSnapshot:
    """The account of a source at one moment; see ``balanced``."""

    source: str
    decoded: int
    published: int
    dropped: Mapping[str, int]
    failed: Mapping[str, int]
    in_flight: int

    @property
    def balanced(self) -> bool:
        """Whether every decoded frame is in exactly one place."""
        settled = self.published + sum(self.dropped.values()) + sum(self.failed.values())
        return self.decoded == settled + self.in_flight


class Metrics:
    """The metrics of one service, in a registry of its own, and its accounts."""

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
            "streamseg_in_flight_frames", "Frames on their way", source, registry=self.registry
        )
        self.instances = self._counter("instances", "Instances found", source)
        self.pictures = self._counter("pictures", "Pictures painted and compressed", source)
        self.pictures_dropped = self._counter(
            "dropped_pictures", "Pictures dropped because the painter was late", source
        )
        self.messages_dropped = self._counter(
            "dropped_messages", "Results dropped because a sink was late", ("sink",)
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
        self._accounts: dict[str, Account] = {}
        self._lock = threading.Lock()

    def account(self, source: str) -> Account:
        """The account of a source, opened when first asked for."""
        with self._lock:
            if source not in self._accounts:
                self._accounts[source] = Account(source, self)
            return self._accounts[source]

    def snapshots(self) -> list[AccountSnapshot]:
        """All accounts now, in the order they were opened."""
        with self._lock:
            accounts = list(self._accounts.values())
        return [account.snapshot() for account in accounts]

    def pictures_dropped_total(self) -> int:
        """Pictures dropped so far, over all sources."""
        samples = (s for metric in self.pictures_dropped.collect() for s in metric.samples)
        return int(sum(s.value for s in samples if s.name.endswith("_total")))

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"streamseg_{name}", text, labels, registry=self.registry)


class Account:
    """What became of one source's frames; safe to use from any thread."""

    def __init__(self, source: str, metrics: Metrics) -> None:
        self.source = source
        self._metrics = metrics
        self._lock = threading.Lock()
        self._decoded = 0
        self._published = 0
        self._dropped: Tally[str] = Tally()
        self._failed: Tally[str] = Tally()
        self._in_flight = 0

    def decode(self) -> None:
        """A frame came out of the decoder and is on its way."""
        with self._lock:
            self._decoded += 1
            self._in_flight += 1
        self._metrics.decoded.labels(self.source).inc()
        self._metrics.in_flight.labels(self.source).inc()

    def publish(self) -> None:
        """A frame was handed to the masks sink."""
        with self._lock:
            self._land()
            self._published += 1
        self._metrics.published.labels(self.source).inc()
        self._metrics.in_flight.labels(self.source).dec()

    def drop(self, reason: str) -> None:
        """A frame was given up, on purpose."""
        with self._lock:
            self._land()
            self._dropped[reason] += 1
        self._metrics.dropped.labels(self.source, reason).inc()
        self._metrics.in_flight.labels(self.source).dec()

    def fail(self, reason: str) -> None:
        """A frame couldn't be processed."""
        with self._lock:
            self._land()
            self._failed[reason] += 1
        self._metrics.failed.labels(self.source, reason).inc()
        self._metrics.in_flight.labels(self.source).dec()

    def abandon(self, reason: str) -> None:
        """Nothing works on this source any more: what is in flight was dropped."""
        for _ in range(self.snapshot().in_flight):
            self.drop(reason)

    def snapshot(self) -> AccountSnapshot:
        """The account now, as one consistent whole."""
        with self._lock:
            return AccountSnapshot(
                self.source,
                self._decoded,
                self._published,
                dict(self._dropped),
                dict(self._failed),
                self._in_flight,
            )

    def _land(self) -> None:
        if self._in_flight == 0:
            raise StreamsegError(f"{self.source}: a frame was settled twice")
        self._in_flight -= 1
