"""What a run came to: counted while it goes, shown in the closing table and in ``summary.json``."""

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
"""Told how far a run is: a name, frames done, and frames expected (None if nobody knows)."""

REMEMBERED = 10_000
"""Frames whose ages and timings are kept for the percentiles: the latest ones."""


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """What became of one source.

    Attributes:
        source: its name.
        account: where its frames went.
        instances: found in all its frames.
        tracks: identities it had.
        size: (height, width) of the latest frame, None if there was none.
    """

    source: str
    account: AccountSnapshot
    instances: int
    tracks: int
    size: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to.

    Attributes:
        model: the model's name.
        seconds: wall time from the first decoded frame to the last result.
        frames: results that came out.
        sources: each source's part.
        age_ms: p50 and p99 of the time from a frame's capture to its publication.
        timing_ms: median milliseconds a frame, by stage.
        pictures_dropped: pictures that weren't painted because the painter was late.
    """

    model: str
    seconds: float
    frames: int
    sources: tuple[SourceSummary, ...]
    age_ms: Mapping[str, float]
    timing_ms: Mapping[str, float]
    pictures_dropped: int = 0

    @property
    def fps(self) -> float:
        """Results a second, over all sources."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self) | {"fps": self.fps}


class RunStatistics:
    """Counts results as they pass; bounded, whatever the length of the run."""

    def __init__(self, model: str, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics
        self._lock = threading.Lock()
        self._started: float | None = None
        self._latest = 0.0
        self._frames = 0
        self._instances: dict[str, int] = {}
        self._tracks: dict[str, int] = {}
        self._newest_track: dict[str, tuple[int, int]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._ages: deque[float] = deque(maxlen=REMEMBERED)
        self._timings: deque[Mapping[str, float]] = deque(maxlen=REMEMBERED)

    def count(self, results: Iterable[Result]) -> Iterator[Result]:
        """Pass results through, counting each after whoever takes it here is done with it."""
        for result in results:
            self._count(result)
            yield result

    def summary(self) -> Summary:
        """The run so far."""
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
                pictures_dropped=self._metrics.pictures_dropped_total(),
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
        """Identities rise within an epoch, so only the newest one has to be remembered."""
        name, epoch = result.source, result.frame.epoch
        newest = self._newest_track.get(name, (epoch, -1))
        last = newest[1] if newest[0] == epoch else -1
        fresh = [track for track in result.instances.track_ids.tolist() if track > last]
        self._tracks[name] = self._tracks.get(name, 0) + len(fresh)
        self._newest_track[name] = (epoch, max([last, *fresh]))


def _percentiles(values: Iterable[float]) -> dict[str, float]:
    numbers = list(values)
    if not numbers:
        return {}
    p50, p99 = np.percentile(numbers, [50, 99])
    return {"p50": float(p50), "p99": float(p99)}
