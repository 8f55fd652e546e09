"""What gpu_check.py measures: speed, a service of many cameras, short trainings."""

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
"""Most rounds of a measurement, and seconds after which it has enough of them."""
WARM_UP = 2
CAMERAS, CAMERA_FPS = 16, 25
CAMERA = "test:?size=640x480&fps={fps}&live=1&objects=6&seed={seed}"
PICTURES = "test:?size=320x240&frames={frames}&objects=4&fps=1&seed={seed}"


@dataclass(frozen=True, slots=True)
class Speed:
    """What one model takes; medians, milliseconds a frame.

    Attributes:
        model: its name.
        precision: fp32 (as torch has it by default) or bf16.
        batch: frames in a forward.
        prepare: resizing on the CPU, and the way to the device.
        forward: the network, and the choice of objects.
        postprocess: their masks.
        instances: found, a frame.
        memory: MiB, the most that torch had of the device; None on a CPU.
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
    """A service of many live cameras.

    Attributes:
        model: its name.
        precision: fp32 or bf16.
        cameras: how many, each of 25 frames a second.
        seconds: from the first frame to the last result.
        fps: results a second, over all cameras.
        age_ms: p50 and p99 of a result's age.
        timing_ms: of the stages, medians a frame.
        instances: found, a frame.
        decoded: frames.
        dropped: frames, by reason.
        failed: frames.
        balanced: whether all frames of each camera are accounted for, and none is on its way.
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
    """A short training.

    Attributes:
        model: its name.
        precision: fp32, bf16 or fp16.
        steps: how many.
        losses: finite; the means of the first and of the last steps noted.
        step_ms: median of the later half, with the loading of the data.
    """

    model: str
    precision: str
    steps: int
    losses: tuple[float, float]
    step_ms: float


def speed(model: Segmenter, frames: Sequence[Image]) -> Speed:
    """How long each stage takes with all ``frames`` at once."""
    times: list[tuple[float, ...]] = []
    most_memory(model.device)
    begun = time.perf_counter()
    for turn in range(WARM_UP + ROUNDS):
        if turn == WARM_UP:
            begun = time.perf_counter()
        stamps = [_now(model.device)]
        batches = model.prepare(frames)
        stamps.append(_now(model.device))
        detections = model.forward(batches)
        stamps.append(_now(model.device))
        found = model.postprocess(detections)
        stamps.append(_now(model.device))
        if turn >= WARM_UP:
            times.append(tuple(np.diff(stamps).tolist()))
        if len(times) >= 3 and time.perf_counter() - begun > ROUNDS_FOR:
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
        most_memory(model.device),
    )


def serve(model: Segmenter, seconds: float, cameras: int = CAMERAS) -> Served:
    """A service of live test patterns for so long, its model warmed up."""
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
    """So many steps on the test pattern, four or more.

    Raises:
        TrainingError: a loss isn't finite.
    """
    stamps: list[float] = []

    def progress(what: str, _done: int, _all: int | None) -> None:
        if what.startswith("epoch"):
            stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(name, precision, str(device), steps // 2, batch)
        Trainer(recipe, Path(folder), Path(folder) / "run", progress).run()
        with (Path(folder) / "run" / "steps.csv").open() as table:
            rows = list(csv.DictReader(table))
    spans = np.diff(stamps[len(stamps) // 2 :]) * 1000
    losses = float(rows[0]["loss"]), float(rows[-1]["loss"])
    return Trained(name, precision, len(stamps), losses, float(np.median(spans)))


def most_memory(device: torch.device) -> float | None:
    """The most MiB that torch had of the device since this was last asked; None for a CPU."""
    if device.type != "cuda":
        return None
    most = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return most


def _now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _recipe(name: str, precision: Precision, device: str, steps: int, batch: int) -> TrainingConfig:
    """Two epochs of so many steps, on pictures of one shape."""
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
