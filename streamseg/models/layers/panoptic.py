"""Things and stuff merged into parts of an image that don't overlap.

Kirillov et al., "Panoptic Feature Pyramid Networks", 2019, section 3.3, with detectron2's numbers:
things come first, the surest on top; what stuff there is gets the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import interpolate

from streamseg.models.layers.resampling import bilinear_twice
from streamseg.structures.masks import BoolArray, Masks, Size
from streamseg.structures.results import Instances, Segment

SURE = 0.5
"""The least score of a thing that is part of the image."""
HIDDEN = 0.5
"""A thing of which surer ones cover more isn't part of the image."""
LEAST_STUFF = 4096
"""Pixels; less stuff of a class isn't part of the image."""
BAND = 64
"""Rows of the image whose classes are compared at once."""
STRIDE = 4
"""Pixels of the prepared image for one of the logits."""


@dataclass(frozen=True, slots=True, eq=False)
class StuffLogits:
    """What an image's stuff is made from.

    Attributes:
        logits: float32 (1 + S, h, w), things first, for each 4 x 4 pixels of the padded image.
        shape: (height, width) of the prepared image without its padding.
        size: (height, width) of the image as it was given.
        stuff: the name of each category id, in the order of the logits.
    """

    logits: Tensor
    shape: Size
    size: Size
    stuff: Mapping[int, str]

    def segments(self, instances: Instances) -> tuple[Segment, ...]:
        """The things of ``instances`` that are sure enough, then stuff; numbered from 1."""
        taken = np.zeros(self.size, np.bool_)
        things = list(_place_things(instances, taken))
        regions = list(_place_stuff(self.classes(), taken, self.stuff))
        masks = Masks.from_crops(
            [crop for *_, crop, _ in things + regions],
            np.array([origin for *_, origin in things + regions], np.int64),
            self.size,
        )
        return tuple(
            Segment(number, label, name, number <= len(things), masks[number - 1])
            for number, (label, name, *_) in enumerate(things + regions, start=1)
        )

    def classes(self) -> npt.NDArray[np.uint8]:
        """The likeliest class of each pixel, uint8 (H, W), 0 for things.

        The logits are resized to the padded image, cut to ``shape`` and resized to ``size``;
        memory grows with the image's width times its classes, not with its area.
        """
        logits = self.logits.float().cpu()
        wide = _resized_rows(logits, self.shape[1], self.size[1])  # (1 + S, h, W)
        rows = bilinear_twice(
            logits.shape[1], STRIDE * logits.shape[1], self.shape[0], self.size[0]
        )
        classes = np.empty(self.size, np.uint8)
        for top in range(0, self.size[0], BAND):
            band = slice(top, min(top + BAND, self.size[0]))
            used = slice(int(rows.first[band][0]), int(rows.last[band][-1]) + 1)
            made = rows.weights[band, used] @ wide[:, used]  # (1 + S, band, W)
            classes[band] = made.argmax(dim=0).numpy()
        return classes


def _place_things(
    instances: Instances, taken: BoolArray
) -> Iterator[tuple[int, str, BoolArray, tuple[int, int]]]:
    """Label, name, crop and origin of what can be seen of each thing; ``taken`` is filled in."""
    masks = instances.masks
    rows = zip(
        instances.scores.tolist(),
        instances.labels.tolist(),
        instances.names,
        masks.crops,
        masks.windows.tolist(),
        strict=True,
    )
    for score, label, name, crop, (x, y, *_) in rows:
        if score < SURE:
            break  # the best come first
        place = taken[y : y + crop.shape[0], x : x + crop.shape[1]]
        area = np.count_nonzero(crop)
        if area == 0 or np.count_nonzero(crop & place) > HIDDEN * area:
            continue
        free = crop & ~place
        place |= crop
        yield label, name, free, (x, y)


def _place_stuff(
    classes: npt.NDArray[np.uint8], taken: BoolArray, stuff: Mapping[int, str]
) -> Iterator[tuple[int, str, BoolArray, tuple[int, int]]]:
    """The same of each class of stuff of which enough is left."""
    left = np.where(taken, 0, classes)
    areas = np.bincount(left.ravel(), minlength=len(stuff) + 1)
    for number, (label, name) in enumerate(stuff.items(), start=1):
        if areas[number] < LEAST_STUFF:
            continue
        region = left == number
        y, x = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        crop = region[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        yield label, name, crop, (int(x[0]), int(y[0]))


def _resized_rows(logits: Tensor, shown: int, width: int) -> Tensor:
    """(K, h, w) to (K, h, width) in two steps, of which the first is cut to ``shown``."""
    large = interpolate(logits, STRIDE * logits.shape[2], mode="linear", align_corners=False)
    return interpolate(large[:, :, :shown], width, mode="linear", align_corners=False)
