"""Statistics of a run, for the summary table and ``summary.json``."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from streamseg.pipeline.metrics import AccountSnapshot, Metrics
from streamseg.structures.results import Result

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Function called with a name, the frames done and the frames expected (None if unknown)."""

MAX_STORED = 10_000
"""Number of latest frames whose ages and timings are stored for percentiles."""


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """Summary of one source.

    Attributes:
        source: name of the source.
        account: account of its frames.
        instances: number of instances in all its frames.
        tracks: number of track ids.
        size: (height, width) of the latest frame, None if there was none.
    """

    source: str
    account: AccountSnapshot
    instances: int
    tracks: int
    size: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of a run.

    Attributes:
        model: name of the model.
        seconds: wall time from the first decoded frame to the last result.
        frames: number of results.
        sources: summary of each source.
        age_ms: p50 and p99 of the time from a frame's capture to its publication.
        timing_ms: median milliseconds per frame, by stage.
        images_dropped: images that weren't encoded because the image encoder was late.
    """

    model: str
    seconds: float
    frames: int
    sources: tuple[SourceSummary, ...]
    age_ms: Mapping[str, float]
    timing_ms: Mapping[str, float]
    images_dropped: int

    @property
    def fps(self) -> float:
        """Results per second, over all sources."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, for JSON."""
        return asdict(self) | {"fps": self.fps}


class RunStatistics:
    """Counts the results of a run, in bounded memory; safe to read from any thread."""

    def __init__(self, model: str, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics
        self._lock = threading.Lock()
        self._started: float | None = None
        self._latest = 0.0
        self._frames = 0
        self._instances: dict[str, int] = {}
        self._tracks: dict[str, int] = {}
        self._highest_track: dict[str, tuple[int, int]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._ages: deque[float] = deque(maxlen=MAX_STORED)
        self._timings: deque[Mapping[str, float]] = deque(maxlen=MAX_STORED)

    def count_results(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yield the results unchanged, and count each."""
        for result in results:
            self._count(result)
            yield result

    def summary(self) -> Summary:
        """Return the summary of the run so far."""
        with self._lock:
            accounts = self._metrics.snapshots()
            stages = sorted({stage for timing in self._timings for stage in timing})
            return Summary(
                model=self._model,
                seconds=self._latest - (self._started or self._latest),
                frames=self._frames,
                sources=tuple(self._source_summary(account) for account in accounts),
                age_ms=_percentiles(self._ages),
                timing_ms={
                    s: float(np.median([t[s] for t in self._timings if s in t])) for s in stages
                },
                images_dropped=self._metrics.images_dropped_total(),
            )

    def _source_summary(self, account: AccountSnapshot) -> SourceSummary:
        name = account.source
        return SourceSummary(
            name,
            account,
            self._instances.get(name, 0),
            self._tracks.get(name, 0),
            self._sizes.get(name),
        )

    def _count(self, result: Result) -> None:
        now = time.monotonic()
        name = result.source
        with self._lock:
            if self._started is None:
                self._started = result.frame.monotonic
            self._latest = now
            self._frames += 1
            self._sizes[name] = result.frame.size
            self._instances[name] = self._instances.get(name, 0) + len(result.instances)
            self._ages.append((now - result.frame.monotonic) * 1000)
            self._timings.append(result.timing)
            self._count_tracks(result)
        self._metrics.instances.labels(name).inc(len(result.instances))

    def _count_tracks(self, result: Result) -> None:
        """Count new track ids; they rise within an epoch, so the highest one is enough."""
        name, epoch = result.source, result.frame.epoch
        last_epoch, highest = self._highest_track.get(name, (epoch, -1))
        if last_epoch != epoch:
            highest = -1
        new = [track for track in result.instances.track_ids.tolist() if track > highest]
        self._tracks[name] = self._tracks.get(name, 0) + len(new)
        self._highest_track[name] = (epoch, max([highest, *new]))


def _percentiles(values: Iterable[float]) -> dict[str, float]:
    numbers = list(values)
    if not numbers:
        return {}
    p50, p99 = np.percentile(numbers, [50, 99])
    return {"p50": float(p50), "p99": float(p99)}
