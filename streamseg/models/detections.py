"""Data between the stages of a model: batches of images, and detections with raw masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from streamseg.models.layers.masks import MaskSource
from streamseg.models.selection import Selection
from streamseg.structures.masks import Size
from streamseg.structures.results import Instances, Segment


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Images of equal prepared shape for one forward.

    Attributes:
        rows: index of each image in the call of ``prepare``.
        sizes: (height, width) of each original image.
        shapes: (height, width) that each image was resized to; padded on the right and at the
            bottom.
        tensor: float32 (B, 3, H, W), channels last, on the device of the model.
    """

    rows: tuple[int, ...]
    sizes: tuple[Size, ...]
    shapes: tuple[Size, ...]
    tensor: Tensor


class PanopticSource(Protocol):
    """Raw panoptic prediction of one image, to be merged with its instances."""

    def segments(self, instances: Instances) -> tuple[Segment, ...]:
        """Return the panoptic segments, which don't overlap."""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Detections of one image after the thresholds on boxes and scores, with raw masks.

    Attributes:
        size: (height, width) of the original image.
        boxes: float32 (N, 4) xyxy, pixels of the original image; None if the tight boxes of the
            masks are used.
        scores: float32 (N,), descending.
        labels: int64 (N,), category ids.
        masks: raw predictions of the N masks.
        selection: thresholds, some of which apply to the masks.
        features: float32 (N, D) appearance features of unit length, or None.
        panoptic: raw panoptic prediction; None for models without panoptic results.
    """

    size: Size
    boxes: Tensor | None
    scores: Tensor
    labels: Tensor
    masks: MaskSource
    selection: Selection
    features: Tensor | None = None
    panoptic: PanopticSource | None = None
