"""End-to-end benchmark: a recording through the baseline, through streamseg and the model alone.

All use the same frames and the same weights. streamseg tracks, publishes over ZeroMQ on loopback to
a subscriber in another process, and draws and compresses images if the subscriber wants them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np

from streamseg.bench import baseline
from streamseg.config import Config, PublishConfig, SourceConfig, WorkerConfig
from streamseg.errors import StreamsegError
from streamseg.models.base import Segmenter
from streamseg.service.service import Service
from streamseg.sources import open_source
from streamseg.structures.results import Image

SUBSCRIBER = "import sys, streamseg; print(sum(1 for _ in streamseg.connect(sys.argv[1], {})))"
ALL = 10**9


@dataclass(frozen=True, slots=True)
class ThroughputRow:
    """Result of one method of processing a recording.

    Attributes:
        method: ``baseline``, ``streamseg`` or ``model alone``.
        frames: number of frames.
        fps: frames per second, median over the rounds.
        age_ms: p50 and p99 of the age of results when they are sent; empty for the model alone.
        timing_ms: median milliseconds per frame, by stage.
        received: number of messages that the subscriber received, None without a subscriber.
        ratio: fps divided by that of the model alone, median over the rounds.
    """

    method: str
    frames: int
    fps: float
    age_ms: dict[str, float]
    timing_ms: dict[str, float]
    received: int | None
    ratio: float


@dataclass(frozen=True, slots=True)
class _Run:
    frames: int
    seconds: float
    age_ms: dict[str, float]
    timing_ms: dict[str, float]
    received: int | None = None

    @property
    def fps(self) -> float:
        return self.frames / self.seconds


def measure_throughput(
    model: Segmenter, path: Path, *, frames: int, rounds: int, with_images: bool, batch: int
) -> list[ThroughputRow]:
    """Measure the baseline, streamseg and the model alone in turn, on the same frames of a video.

    Args:
        model: model to run.
        path: video file.
        frames: maximum number of frames.
        rounds: number of rounds after a warm-up round.
        with_images: whether the subscriber of streamseg receives annotated images, or masks only.
        batch: batch size of streamseg and of the model alone.
    """
    images = [f.image for f in islice(open_source(SourceConfig(url=str(path))).frames(), frames)]
    runs: dict[str, list[_Run]] = {"baseline": [], "streamseg": [], "model alone": []}
    for _ in range(rounds + 1):
        runs["model alone"].append(_alone(model, images, batch))
        runs["streamseg"].append(_streamseg(model, path, len(images), with_images, batch))
        runs["baseline"].append(_baseline(model, path, len(images)))
    counted = {method: each[1:] for method, each in runs.items()}
    alone = [run.fps for run in counted["model alone"]]
    return [_row(method, each, alone) for method, each in counted.items()]


def _alone(model: Segmenter, images: list[Image], batch: int) -> _Run:
    """Run the model on decoded images."""
    start = time.perf_counter()
    for at in range(0, len(images), batch):
        model.predict(images[at : at + batch])
    seconds = time.perf_counter() - start
    return _Run(len(images), seconds, {}, {"predict": seconds / len(images) * 1000})


def _streamseg(model: Segmenter, path: Path, frames: int, with_images: bool, batch: int) -> _Run:
    config = Config(
        sources=(SourceConfig(url=str(path), name="bench", end=_end(path, frames)),),
        thresholds=model.thresholds,
        worker=WorkerConfig(max_batch=batch),
        publish=PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=1),
    )
    service = Service(config, model)
    service.start()
    subscriber = _subscriber(service.endpoints["masks"], with_images)
    summary = service.wait()
    out, _ = subscriber.communicate(timeout=60)
    if summary.frames != frames:
        raise StreamsegError(f"bench: {summary.frames} results of {frames} frames")
    return _Run(frames, summary.seconds, dict(summary.age_ms), dict(summary.timing_ms), int(out))


def _baseline(model: Segmenter, path: Path, frames: int) -> _Run:
    run = baseline.run_loop(model, path, "tcp://127.0.0.1:*", frames)
    p50, p99 = np.percentile(run.age_ms, [50, 99])
    timing = {stage: median(times) for stage, times in run.timing_ms.items()}
    return _Run(run.frames, run.seconds, {"p50": float(p50), "p99": float(p99)}, timing)


def _subscriber(address: str, with_images: bool) -> subprocess.Popen[str]:
    code = SUBSCRIBER.format("frames='annotated'" if with_images else "")
    return subprocess.Popen(  # noqa: S603 - our own client, in our own interpreter
        [sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True
    )


def _end(path: Path, frames: int) -> float:
    """Return the time in seconds before which the recording has ``frames`` frames."""
    times = [f.pts for f in islice(open_source(SourceConfig(url=str(path))).frames(), frames + 1)]
    return times[-1] if len(times) > frames else times[-1] + 1


def _row(method: str, runs: list[_Run], alone: list[float]) -> ThroughputRow:
    return ThroughputRow(
        method,
        runs[0].frames,
        median(run.fps for run in runs),
        _medians([run.age_ms for run in runs]),
        _medians([run.timing_ms for run in runs]),
        runs[-1].received,
        median(run.fps / fps for run, fps in zip(runs, alone, strict=True)),
    )


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: median(row[key] for row in rows) for key in rows[0]}
