"""Benchmark of post-processing on one thread: pasting, run-length encoding and drawing masks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from streamseg.bench import baseline
from streamseg.models.categories import COCO
from streamseg.models.layers.masks import paste_masks
from streamseg.structures.masks import Masks
from streamseg.structures.results import Image, Instances
from streamseg.visualization import FILL_ALPHA, fill_masks

SIZE = (1080, 1920)
THRESHOLD = 0.5
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PostprocessRow:
    """Result for a number of instances at 1080p; times are medians in milliseconds.

    Attributes:
        instances: number of instances.
        baseline_ms: times of the baseline by stage: paste, encode, paint.
        streamseg_ms: times of streamseg by stage.
        ratio: median over the rounds of the baseline's time divided by streamseg's.
        same_run_lengths: whether both gave the same run lengths.
        same_pixels: whether both gave the same annotated frame.
    """

    instances: int
    baseline_ms: dict[str, float]
    streamseg_ms: dict[str, float]
    ratio: float
    same_run_lengths: bool
    same_pixels: bool


def measure_postprocess(instances: int, rounds: int) -> PostprocessRow:
    """Measure interleaved rounds of both methods on the same mask probabilities and boxes."""
    probabilities, boxes = make_scene(instances)
    frame = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    baseline_times: list[dict[str, float]] = []
    streamseg_times: list[dict[str, float]] = []
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        for _ in range(rounds + 1):  # the first is a warm-up
            baseline_times.append({})
            old = _baseline(probabilities, boxes, frame, baseline_times[-1])
            streamseg_times.append({})
            new = _streamseg(probabilities, boxes, frame, streamseg_times[-1])
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    ratios = [
        sum(a.values()) / sum(b.values())
        for a, b in zip(baseline_times[1:], streamseg_times[1:], strict=True)
    ]
    return PostprocessRow(
        instances,
        _medians(baseline_times[1:]),
        _medians(streamseg_times[1:]),
        median(ratios),
        old[0] == new[0],
        bool((old[1] == new[1]).all()),
    )


def make_scene(instances: int) -> tuple[Tensor, Tensor]:
    """Return mask probabilities, float32 (N, 28, 28), and boxes with the proportions of people."""
    rng = np.random.default_rng(instances)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    radii = rng.uniform(0.6, 1.1, (instances, 2, 1, 1))
    distance = (x / radii[:, 0]) ** 2 + (y / radii[:, 1]) ** 2
    probabilities = 1 / (1 + np.exp(8 * (distance - 0.8)))
    heights = rng.uniform(80, 400, instances)
    widths = heights * rng.uniform(0.3, 0.6, instances)
    left = rng.uniform(0, SIZE[1] - widths)
    top = rng.uniform(0, SIZE[0] - heights)
    boxes = np.stack([left, top, left + widths, top + heights], axis=1)
    return torch.from_numpy(probabilities.astype(np.float32)), torch.from_numpy(
        boxes.astype(np.float32)
    )


def _baseline(
    probabilities: Tensor, boxes: Tensor, frame: Image, times: dict[str, float]
) -> tuple[list[str], Image]:
    masks = _timed(
        times, "paste", lambda: baseline.paste_full_size(probabilities, boxes, SIZE) > THRESHOLD
    )
    rles = _timed(times, "encode", lambda: baseline.encode_masks(masks))
    return rles, _timed(times, "paint", lambda: baseline.draw_masks(frame, masks))


def _streamseg(
    probabilities: Tensor, boxes: Tensor, frame: Image, times: dict[str, float]
) -> tuple[list[str], Image]:
    masks = _timed(times, "paste", lambda: paste_masks(probabilities, boxes, SIZE, THRESHOLD))
    rles = _timed(times, "encode", lambda: list(masks.counts))

    def painted() -> Image:
        canvas = frame.copy()
        fill_masks(canvas, _instances(masks, boxes), FILL_ALPHA)
        return canvas

    return rles, _timed(times, "paint", painted)


def _instances(masks: Masks, boxes: Tensor) -> Instances:
    """Return instances with track ids 0, 1, …, so that both methods use the same colors."""
    rows = len(masks)
    return Instances(
        boxes.numpy(),
        np.ones(rows, np.float32),
        np.ones(rows, np.int64),
        masks,
        COCO,
        np.arange(rows),
    )


def _timed(times: dict[str, float], stage: str, work: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = work()
    times[stage] = (time.perf_counter() - start) * 1000
    return result


def _medians(times: list[dict[str, float]]) -> dict[str, float]:
    return {stage: median(each[stage] for each in times) for stage in times[0]}
