"""A picture and what is annotated in it, as tensors: what data gives and losses take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

THING: Final = 0
"""Where a map of stuff has a thing."""
UNKNOWN: Final = 255
"""Where nobody knows what is there, or it is of a class that the model doesn't know."""
MAX_STUFF_CLASSES: Final = UNKNOWN - 1
"""Classes of stuff that a map has numbers for."""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What is annotated in one picture: N objects, of C classes.

    Attributes:
        image_id: the dataset's id of the picture.
        seed: for random draws that losses make for this picture, so that they depend on the
            recipe's seed, the epoch and the picture alone.
        boxes: float32 (N, 4) xyxy, pixels of the picture.
        labels: int64 (N,), class indices, 0 to C - 1.
        masks: bool (N, H, W); zeros where there is none.
        has_mask: bool (N,), false for objects that are annotated by their box alone.
        crowd: bool (N,), true for regions of many objects: neither object nor background.
        annotated: bool (C,), the classes of which every object is annotated; the absence of
            others says nothing.
        stuff: uint8 (H, W), what each pixel is of S classes of stuff: 0 is a thing (``THING``), a
            class's index + 1, or 255 where nobody knows (``UNKNOWN``); None where no stuff is
            annotated, or the model knows none.
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
        """Some of the objects, by an index or boolean tensor."""
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            masks=self.masks[rows],
            has_mask=self.has_mask[rows],
            crowd=self.crowd[rows],
        )

    def to(self, device: torch.device) -> Targets:
        """The same on a device."""
        names = ("boxes", "labels", "masks", "has_mask", "crowd", "annotated", "stuff")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{n: t.to(device) for n, t in tensors.items() if t is not None})


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One picture to learn from.

    Attributes:
        image: uint8 (3, H, W) RGB.
        targets: what is annotated in it.
    """

    image: Tensor
    targets: Targets
