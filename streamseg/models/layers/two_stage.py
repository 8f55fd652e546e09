"""Steps shared by two-stage families: select boxes, then predict masks for the selected ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from streamseg.models.detections import Batch, Detections
from streamseg.models.layers.masks import MaskSource
from streamseg.models.selection import Selection
from streamseg.structures.masks import Size


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Detected boxes of one image, in descending order of scores.

    Attributes:
        prepared: float32 (N, 4) xyxy, pixels of the prepared image.
        source: float32 (N, 4) xyxy, pixels of the original image.
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
    """Return the detections that pass the thresholds.

    Args:
        prepared: (N, 4) xyxy, pixels of the prepared image.
        scores: (N,), descending.
        labels: int64 (N,), category ids.
        shape: (height, width) of the prepared image without its padding.
        size: (height, width) of the original image.
        selection: thresholds of the image.
    """
    source = resize_boxes(prepared.float(), list(shape), list(size))
    rows = torch.from_numpy(
        selection.select_rows(
            source.cpu().numpy(), scores.float().cpu().numpy(), labels.cpu().numpy()
        )
    ).to(prepared.device)
    return Boxes(prepared[rows], source[rows], scores[rows], labels[rows])


def combine_detections(
    batch: Batch,
    selections: Sequence[Selection],
    boxes_by_image: Sequence[Boxes],
    masks: Sequence[MaskSource],
    features: Sequence[Tensor | None] | None = None,
) -> list[Detections]:
    """Combine boxes and raw masks into the detections of each image.

    Args:
        batch: the images.
        selections: thresholds of each image.
        boxes_by_image: selected boxes of each image.
        masks: raw mask predictions of each image.
        features: appearance features (N, D) of each image, or None.
    """
    all_features = features or [None] * len(boxes_by_image)
    rows = zip(batch.sizes, boxes_by_image, masks, selections, all_features, strict=True)
    return [
        Detections(size, boxes.source, boxes.scores, boxes.labels, raw_masks, selection, appearance)
        for size, boxes, raw_masks, selection, appearance in rows
    ]
