"""Training samples: an image and its annotations as tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

THING: Final = 0
"""Value of thing pixels in a stuff map."""
UNKNOWN: Final = 255
"""Value of pixels without an annotation, or of a class that the model does not have."""
MAX_STUFF_CLASSES: Final = UNKNOWN - 1
"""Maximum number of stuff classes in a stuff map."""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Annotations of one image: N objects of C classes.

    Attributes:
        image_id: id of the image in the dataset.
        seed: seed of random sampling in the losses; it depends on the seed of the training config,
            the epoch and the image.
        boxes: float32 (N, 4) xyxy, pixels of the image.
        labels: int64 (N,), class indices, 0 to C - 1.
        masks: bool (N, H, W); zeros for objects without a mask.
        has_mask: bool (N,), false for objects that are annotated by a box only.
        crowd: bool (N,), true for regions of many objects: neither object nor background.
        annotated: bool (C,), true for classes whose objects are all annotated; for the others, the
            absence of an annotation has no meaning.
        stuff: uint8 (H, W), stuff map: ``THING`` (0), class index + 1, or ``UNKNOWN`` (255); None
            if no stuff is annotated or the model has no stuff classes.
    """

    image_id: int | str
    seed: int
    boxes: Tensor
    labels: Tensor
    masks: Tensor
    has_mask: Tensor
    crowd: Tensor
    annotated: Tensor
    stuff: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Targets:
        """Select objects by an index or boolean tensor."""
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            masks=self.masks[rows],
            has_mask=self.has_mask[rows],
            crowd=self.crowd[rows],
        )

    def to(self, device: torch.device) -> Targets:
        """Move the tensors to a device."""
        names = ("boxes", "labels", "masks", "has_mask", "crowd", "annotated", "stuff")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{n: t.to(device) for n, t in tensors.items() if t is not None})


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One training sample.

    Attributes:
        image: uint8 (3, H, W) RGB.
        targets: annotations of the image.
    """

    image: Tensor
    targets: Targets
