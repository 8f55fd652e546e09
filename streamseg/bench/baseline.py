"""Baseline: the single-threaded loop of typical tutorials.

The loop reads a frame with OpenCV, runs the model on it, pastes every mask into a full-size frame,
blends each over the whole frame, run-length encodes each full-size mask and sends the result. With
the same weights it gives the same masks as streamseg.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
import zmq
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from streamseg.models.base import Segmenter
from streamseg.models.layers.masks import BoxMasks
from streamseg.models.mask_rcnn.segmenter import MaskRCNN
from streamseg.structures.results import Image
from streamseg.visualization import FILL_ALPHA, PALETTE


@dataclass(frozen=True, slots=True, eq=False)
class BaselineDetections:
    """Detections of one frame with full-size masks.

    Attributes:
        boxes: float32 (N, 4) xyxy.
        scores: float32 (N,).
        labels: int64 (N,).
        masks: bool (N, H, W), full frames.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


def read_frames(path: Path) -> Iterator[Image]:
    """Yield the frames of a video, BGR."""
    capture = cv2.VideoCapture(str(path))
    while True:
        good, frame = capture.read()
        if not good:
            break
        yield np.asarray(frame, np.uint8)
    capture.release()


@torch.inference_mode()
def detect_instances(model: Segmenter, rgb: Image) -> BaselineDetections:
    """Run the model on one frame and paste the masks into full-size frames."""
    if isinstance(model, MaskRCNN):
        image = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255
        found = model.network([image])[0]
        masks = found["masks"][:, 0] > model.thresholds.mask
        return BaselineDetections(found["boxes"], found["scores"], found["labels"], masks)
    (detected,) = model.forward(model.prepare([rgb]))
    assert isinstance(detected.masks, BoxMasks)
    assert detected.boxes is not None
    masks = paste_full_size(detected.masks.probabilities, detected.masks.boxes, rgb.shape[:2])
    return BaselineDetections(
        detected.boxes, detected.scores, detected.labels, masks > model.thresholds.mask
    )


def paste_full_size(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Paste every mask into a full-size frame with torchvision, float32 (N, H, W)."""
    pasted: Tensor = paste_masks_in_image(probabilities[:, None], boxes, size)[:, 0]
    return pasted


def encode_masks(masks: Tensor) -> list[str]:
    """Encode full-size masks as COCO run lengths, one at a time."""
    return [
        coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))["counts"].decode()
        for mask in masks
    ]


def draw_masks(frame: Image, masks: Tensor) -> Image:
    """Blend each mask over the whole frame, one at a time."""
    for row, mask in enumerate(masks.numpy()):
        overlay = frame.copy()
        overlay[mask] = PALETTE[row % len(PALETTE)]
        frame = np.asarray(cv2.addWeighted(frame, 1 - FILL_ALPHA, overlay, FILL_ALPHA, 0), np.uint8)
    return frame


@dataclass(frozen=True, slots=True)
class LoopTimes:
    """Times of a run of the baseline.

    Attributes:
        frames: number of frames.
        seconds: duration of the run.
        age_ms: age of each result when it was sent, from the capture of its frame.
        timing_ms: milliseconds of each frame, by stage.
    """

    frames: int
    seconds: float
    age_ms: tuple[float, ...]
    timing_ms: dict[str, tuple[float, ...]]


def run_loop(model: Segmenter, path: Path, address: str, frames: int) -> LoopTimes:
    """Read, segment, draw, encode and send ``frames`` frames, one after the other.

    Args:
        model: model to run.
        path: video file.
        address: ZeroMQ address to bind.
        frames: maximum number of frames.
    """
    timing: dict[str, list[float]] = {}
    ages = []
    context = zmq.Context()
    sock = context.socket(zmq.PUB)
    sock.bind(address)
    start_time = time.perf_counter()
    source = read_frames(path)
    count = 0
    while count < frames:
        marks = [("read", time.perf_counter())]
        bgr = next(source, None)
        if bgr is None:
            break
        captured = time.perf_counter()
        rgb = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
        marks.append(("model and paste", time.perf_counter()))
        found = detect_instances(model, rgb)
        marks.append(("draw", time.perf_counter()))
        drawn = draw_masks(rgb, found.masks)
        marks.append(("encode", time.perf_counter()))
        rles = encode_masks(found.masks)
        marks.append(("jpeg and send", time.perf_counter()))
        _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
        rows = [found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), rles]
        sock.send_multipart([b"frame", json.dumps(rows).encode(), jpeg.tobytes()])
        marks.append(("", time.perf_counter()))
        ages.append((time.perf_counter() - captured) * 1000)
        for (stage, start), (_, end) in pairwise(marks):
            timing.setdefault(stage, []).append((end - start) * 1000)
        count += 1
    seconds = time.perf_counter() - start_time
    sock.close(linger=0)
    context.term()
    return LoopTimes(
        count, seconds, tuple(ages), {stage: tuple(ms) for stage, ms in timing.items()}
    )
