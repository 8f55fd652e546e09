"""Post-processing alone, one thread each: masks to pixels, to run lengths, to a painted frame."""

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
    """One number of instances at 1080p, medians in milliseconds.

    Attributes:
        instances: how many.
        textbook_ms: by stage: paste, encode, paint.
        streamseg_ms: likewise.
        ratio: median over the rounds of textbook's time over streamseg's.
        same_run_lengths: whether both gave the same run lengths.
        same_pixels: whether both gave the same painted frame.
    """

    instances: int
    textbook_ms: dict[str, float]
    streamseg_ms: dict[str, float]
    ratio: float
    same_run_lengths: bool
    same_pixels: bool


def measure(instances: int, rounds: int) -> PostprocessRow:
    """Interleaved rounds of both ways on the same mask probabilities and boxes."""
    probabilities, boxes = scene(instances)
    frame = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    old_times: list[dict[str, float]] = []
    new_times: list[dict[str, float]] = []
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        for _ in range(rounds + 1):  # the first is a warm-up
            old_times.append({})
            old = _textbook(probabilities, boxes, frame, old_times[-1])
            new_times.append({})
            new = _streamseg(probabilities, boxes, frame, new_times[-1])
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    ratios = [
        sum(a.values()) / sum(b.values()) for a, b in zip(old_times[1:], new_times[1:], strict=True)
    ]
    return PostprocessRow(
        instances,
        _medians(old_times[1:]),
        _medians(new_times[1:]),
        median(ratios),
        old[0] == new[0],
        bool((old[1] == new[1]).all()),
    )


def scene(instances: int) -> tuple[Tensor, Tensor]:
    """Blobs as a mask head gives them, float32 (N, 28, 28), and boxes of people in a street."""
    rng = np.random.default_rng(instances)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    wobble = rng.uniform(0.6, 1.1, (instances, 2, 1, 1))
    distance = (x / wobble[:, 0]) ** 2 + (y / wobble[:, 1]) ** 2
    probabilities = 1 / (1 + np.exp(8 * (distance - 0.8)))
    heights = rng.uniform(80, 400, instances)
    widths = heights * rng.uniform(0.3, 0.6, instances)
    left = rng.uniform(0, SIZE[1] - widths)
    top = rng.uniform(0, SIZE[0] - heights)
    boxes = np.stack([left, top, left + widths, top + heights], axis=1)
    return torch.from_numpy(probabilities.astype(np.float32)), torch.from_numpy(
        boxes.astype(np.float32)
    )


def _textbook(
    probabilities: Tensor, boxes: Tensor, frame: Image, times: dict[str, float]
) -> tuple[list[str], Image]:
    masks = _timed(times, "paste", lambda: baseline.paste(probabilities, boxes, SIZE) > THRESHOLD)
    rles = _timed(times, "encode", lambda: baseline.encode(masks))
    return rles, _timed(times, "paint", lambda: baseline.draw(frame, masks))


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
    """Tracked as 0, 1, …, so that both ways take the same colours."""
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
    begun = time.perf_counter()
    result = work()
    times[stage] = (time.perf_counter() - begun) * 1000
    return result


def _medians(times: list[dict[str, float]]) -> dict[str, float]:
    return {stage: median(each[stage] for each in times) for stage in times[0]}
