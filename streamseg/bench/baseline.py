"""The loop that this project replaces, written the way tutorials write it.

Read a frame with OpenCV, run the model on it alone, paste every mask into a frame of its own,
blend each over the whole frame, run-length encode each whole frame, send and wait. It is the
baseline of the benchmark, and with the same weights it gives the same masks.
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
class Found:
    """What a model found in one frame, as the textbook has it.

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


def read(path: Path) -> Iterator[Image]:
    """The frames of a video, BGR."""
    capture = cv2.VideoCapture(str(path))
    while True:
        good, frame = capture.read()
        if not good:
            break
        yield np.asarray(frame, np.uint8)
    capture.release()


@torch.inference_mode()
def detect(model: Segmenter, rgb: Image) -> Found:
    """One frame through the same weights, its masks pasted into full frames."""
    if isinstance(model, MaskRCNN):
        image = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255
        found = model.network([image])[0]
        masks = found["masks"][:, 0] > model.thresholds.mask
        return Found(found["boxes"], found["scores"], found["labels"], masks)
    (detected,) = model.forward(model.prepare([rgb]))
    assert isinstance(detected.masks, BoxMasks)
    assert detected.boxes is not None
    masks = paste(detected.masks.probabilities, detected.masks.boxes, rgb.shape[:2])
    return Found(detected.boxes, detected.scores, detected.labels, masks > model.thresholds.mask)


def paste(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Every mask in a frame of its own, float32 (N, H, W): torchvision's own function."""
    pasted: Tensor = paste_masks_in_image(probabilities[:, None], boxes, size)[:, 0]
    return pasted


def encode(masks: Tensor) -> list[str]:
    """COCO's run lengths, from one full frame after the other."""
    return [
        coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))["counts"].decode()
        for mask in masks
    ]


def draw(frame: Image, masks: Tensor) -> Image:
    """Each mask blended over the whole frame, one after the other."""
    for row, mask in enumerate(masks.numpy()):
        overlay = frame.copy()
        overlay[mask] = PALETTE[row % len(PALETTE)]
        frame = np.asarray(cv2.addWeighted(frame, 1 - FILL_ALPHA, overlay, FILL_ALPHA, 0), np.uint8)
    return frame


@dataclass(frozen=True, slots=True)
class Loop:
    """What the textbook's loop came to.

    Attributes:
        frames: how many.
        seconds: for all of them.
        age_ms: of each result, from its frame's capture until it was sent.
        timing_ms: of each frame, by stage.
    """

    frames: int
    seconds: float
    age_ms: tuple[float, ...]
    timing_ms: dict[str, tuple[float, ...]]


def loop(model: Segmenter, path: Path, address: str, frames: int) -> Loop:
    """Read, segment, draw, encode and send ``frames`` frames, one after the other.

    Args:
        model: whose weights are used.
        path: a video.
        address: where a subscriber listens for it.
        frames: how many to take.
    """
    timing: dict[str, list[float]] = {}
    ages = []
    context = zmq.Context()
    sock = context.socket(zmq.PUB)
    sock.bind(address)
    begun = time.perf_counter()
    source = read(path)
    done = 0
    while done < frames:
        marks = [("read", time.perf_counter())]
        bgr = next(source, None)
        if bgr is None:
            break
        captured = time.perf_counter()
        rgb = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
        marks.append(("model and paste", time.perf_counter()))
        found = detect(model, rgb)
        marks.append(("draw", time.perf_counter()))
        drawn = draw(rgb, found.masks)
        marks.append(("encode", time.perf_counter()))
        rles = encode(found.masks)
        marks.append(("jpeg and send", time.perf_counter()))
        _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
        rows = [found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), rles]
        sock.send_multipart([b"frame", json.dumps(rows).encode(), jpeg.tobytes()])
        marks.append(("", time.perf_counter()))
        ages.append((time.perf_counter() - captured) * 1000)
        for (stage, start), (_, end) in pairwise(marks):
            timing.setdefault(stage, []).append((end - start) * 1000)
        done += 1
    seconds = time.perf_counter() - begun
    sock.close(linger=0)
    context.term()
    return Loop(done, seconds, tuple(ages), {stage: tuple(ms) for stage, ms in timing.items()})
