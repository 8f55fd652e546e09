"""Measurements of gpu_check.py: speed, a service with many cameras, short trainings."""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from gpu_check_networks import BUNDLED

from streamseg.config import Config, ModelConfig, PublishConfig, SourceConfig, WorkerConfig
from streamseg.config.training import (
    AugmentConfig,
    DataConfig,
    OptimizerConfig,
    PatternData,
    ScheduleConfig,
    TrainingConfig,
)
from streamseg.models.base import Precision, Segmenter
from streamseg.service.service import Service
from streamseg.structures.results import Image
from streamseg.training import Trainer

ROUNDS, ROUNDS_FOR = 30, 0.7
"""Maximum number of rounds and maximum duration of a measurement, in seconds."""
WARM_UP = 2
CAMERAS, CAMERA_FPS = 16, 25
CAMERA = "test:?size=640x480&fps={fps}&live=1&objects=6&seed={seed}"
PICTURES = "test:?size=320x240&frames={frames}&objects=4&fps=1&seed={seed}"


@dataclass(frozen=True, slots=True)
class Speed:
    """Times of one model: medians in milliseconds per frame.

    Attributes:
        model: name of the model.
        precision: fp32 (torch's default) or bf16.
        batch: batch size.
        prepare: resizing on the CPU and the transfer to the device.
        forward: the network and the selection of objects.
        postprocess: making the masks.
        instances: mean number of instances per frame.
        memory: peak device memory of torch in MiB; None on a CPU.
    """

    model: str
    precision: str
    batch: int
    prepare: float
    forward: float
    postprocess: float
    instances: float
    memory: float | None


@dataclass(frozen=True, slots=True)
class Served:
    """Results of a service with many live cameras.

    Attributes:
        model: name of the model.
        precision: fp32 or bf16.
        cameras: number of cameras with 25 frames per second.
        seconds: time from the first frame to the last result.
        fps: results per second over all cameras.
        age_ms: p50 and p99 of the age of results.
        timing_ms: median milliseconds per frame, by stage.
        instances: mean number of instances per frame.
        decoded: number of decoded frames.
        dropped: number of dropped frames by reason.
        failed: number of failed frames.
        balanced: whether every decoded frame was published, dropped or failed.
    """

    model: str
    precision: str
    cameras: int
    seconds: float
    fps: float
    age_ms: dict[str, float]
    timing_ms: dict[str, float]
    instances: float
    decoded: int
    dropped: dict[str, int]
    failed: int
    balanced: bool


@dataclass(frozen=True, slots=True)
class Trained:
    """Results of a short training.

    Attributes:
        model: name of the model.
        precision: fp32, bf16 or fp16.
        steps: number of steps.
        losses: mean losses of the first and of the last logged steps.
        step_ms: median time of the steps of the second half, including data loading.
    """

    model: str
    precision: str
    steps: int
    losses: tuple[float, float]
    step_ms: float


def speed(model: Segmenter, frames: Sequence[Image]) -> Speed:
    """Measure the time of each stage with all ``frames`` in one batch."""
    times: list[tuple[float, ...]] = []
    read_peak_memory(model.device)
    start = time.perf_counter()
    for turn in range(WARM_UP + ROUNDS):
        if turn == WARM_UP:
            start = time.perf_counter()
        stamps = [_now(model.device)]
        batches = model.prepare(frames)
        stamps.append(_now(model.device))
        detections = model.forward(batches)
        stamps.append(_now(model.device))
        found = model.postprocess(detections)
        stamps.append(_now(model.device))
        if turn >= WARM_UP:
            times.append(tuple(np.diff(stamps).tolist()))
        if len(times) >= 3 and time.perf_counter() - start > ROUNDS_FOR:
            break
    prepare, forward, postprocess = (
        median(stage) * 1000 / len(frames) for stage in zip(*times, strict=True)
    )
    return Speed(
        model.name,
        model.precision,
        len(frames),
        prepare,
        forward,
        postprocess,
        sum(len(each.instances) for each in found) / len(frames),
        read_peak_memory(model.device),
    )


def serve(model: Segmenter, seconds: float, cameras: int = CAMERAS) -> Served:
    """Run a service with live test patterns for ``seconds`` seconds after warming up the model."""
    for count in {1, cameras // 4 or 1, cameras}:
        model.predict([np.zeros((480, 640, 3), np.uint8)] * count)
    config = Config(
        sources=tuple(
            SourceConfig(url=CAMERA.format(fps=CAMERA_FPS, seed=n), name=f"camera-{n}")
            for n in range(cameras)
        ),
        thresholds=model.thresholds,
        worker=WorkerConfig(max_batch=cameras),
        publish=PublishConfig(bind="tcp://127.0.0.1:*"),
    )
    service = Service(config, model)
    try:
        service.start()
        time.sleep(seconds)
        service.stop()
        summary = service.wait()
    finally:
        service.close()
    accounts = [source.account for source in summary.sources]
    dropped: Counter[str] = Counter()
    for account in accounts:
        dropped.update(account.dropped)
    return Served(
        model.name,
        model.precision,
        cameras,
        summary.seconds,
        summary.fps,
        dict(summary.age_ms),
        dict(summary.timing_ms),
        sum(source.instances for source in summary.sources) / max(summary.frames, 1),
        sum(account.decoded for account in accounts),
        dict(dropped),
        sum(sum(account.failed.values()) for account in accounts),
        all(account.balanced and not account.in_flight for account in accounts),
    )


def train(
    name: str, precision: Precision, device: torch.device, steps: int, batch: int = 8
) -> Trained:
    """Train for ``steps`` steps (at least four) on the test pattern.

    Raises:
        TrainingError: a loss is not finite.
    """
    stamps: list[float] = []

    def progress(what: str, _done: int, _all: int | None) -> None:
        if what.startswith("epoch"):
            stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = _make_config(name, precision, str(device), steps // 2, batch)
        Trainer(config, Path(folder), Path(folder) / "run", progress).run()
        with (Path(folder) / "run" / "steps.csv").open() as table:
            rows = list(csv.DictReader(table))
    spans = np.diff(stamps[len(stamps) // 2 :]) * 1000
    losses = float(rows[0]["loss"]), float(rows[-1]["loss"])
    return Trained(name, precision, len(stamps), losses, float(np.median(spans)))


def read_peak_memory(device: torch.device) -> float | None:
    """Return torch's peak device memory in MiB since the last call; None for a CPU."""
    if device.type != "cuda":
        return None
    most = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return most


def _now(device: torch.device) -> float:
    """Return the time in seconds after synchronizing the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _make_config(
    name: str, precision: Precision, device: str, steps: int, batch: int
) -> TrainingConfig:
    """Return a config of two epochs of ``steps`` steps, on images of one shape."""
    bundled = name == BUNDLED
    return TrainingConfig(
        model=ModelConfig(
            name=name,
            weights="default" if bundled else "none",
            device=device,
            input_size=320 if bundled else 256,
            precision=precision,
        ),
        data=DataConfig(
            train=(PatternData(url=PICTURES.format(frames=steps * batch, seed=1)),),
            val=(PatternData(url=PICTURES.format(frames=2, seed=2)),),
        ),
        epochs=2,
        batch=batch,
        augment=AugmentConfig(scale=(1.0, 1.0)),
        optimiser=OptimizerConfig(rate=1e-3 if bundled else 1e-5),  # random weights explode easily
        schedule=ScheduleConfig(warmup=steps),
        workers=min(4, os.cpu_count() or 1),
        evaluate_every=2,
    )
