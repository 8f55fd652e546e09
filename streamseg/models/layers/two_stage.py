"""What families of the Mask R-CNN kind share: boxes first, then a mask for each that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from streamseg.models.base import Batch, Detections
from streamseg.models.layers.masks import MaskSource
from streamseg.models.selection import Selection
from streamseg.structures.masks import Size


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """What was detected in one image, best score first.

    Attributes:
        prepared: float32 (N, 4) xyxy, pixels of the prepared image.
        source: the same in pixels of the image as it was given.
        scores: float32 (N,).
        labels: int64 (N,), category ids.
    """

    prepared: Tensor
    source: Tensor
    scores: Tensor
    labels: Tensor


def select_boxes(
    prepared: Tensor, scores: Tensor, labels: Tensor, shape: Size, size: Size, selection: Selection
) -> Boxes:
    """The detections that ``selection`` lets through.

    Args:
        prepared: (N, 4) xyxy, pixels of the prepared image.
        scores: (N,), descending.
        labels: int64 (N,), category ids.
        shape: (height, width) of the prepared image without its padding.
        size: (height, width) of the image as it was given.
        selection: its thresholds.
    """
    source = resize_boxes(prepared.float(), list(shape), list(size))
    rows = torch.from_numpy(
        selection.rows(source.cpu().numpy(), scores.float().cpu().numpy(), labels.cpu().numpy())
    ).to(prepared.device)
    return Boxes(prepared[rows], source[rows], scores[rows], labels[rows])


def with_masks(
    batch: Batch,
    selections: Sequence[Selection],
    found: Sequence[Boxes],
    masks: Sequence[MaskSource],
    features: Sequence[Tensor | None] | None = None,
) -> list[Detections]:
    """One result an image.

    Args:
        batch: the images.
        selections: one for each image.
        found: the selected boxes of each image.
        masks: what their masks are made from.
        features: (N, D) of each image, or None.
    """
    appearances = features or [None] * len(found)
    rows = zip(batch.sizes, found, masks, selections, appearances, strict=True)
    return [
        Detections(size, boxes.source, boxes.scores, boxes.labels, source, selection, appearance)
        for size, boxes, source, selection, appearance in rows
    ]
