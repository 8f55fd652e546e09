"""Merging of instances and semantic segmentation into panoptic segments.

Kirillov et al., "Panoptic Feature Pyramid Networks", 2019, section 3.3, with detectron2's
constants: instances are placed first, in the order of their scores; stuff gets the remaining
pixels.
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

MIN_THING_SCORE = 0.5
"""Minimum score of an instance that becomes a segment."""
MAX_HIDDEN_FRACTION = 0.5
"""An instance of which better ones cover more becomes no segment."""
MIN_STUFF_AREA = 4096
"""Minimum area of a stuff segment, in pixels."""
BAND = 64
"""Rows of the image that are processed at once."""
STRIDE = 4
"""Stride of the logits in pixels of the prepared image."""


@dataclass(frozen=True, slots=True, eq=False)
class StuffLogits:
    """Semantic segmentation of one image.

    Attributes:
        logits: float32 (1 + S, h, w), things first, at 1/4 of the padded image.
        shape: (height, width) of the prepared image without padding.
        size: (height, width) of the original image.
        stuff: stuff names by category id, in the order of the logits.
    """

    logits: Tensor
    shape: Size
    size: Size
    stuff: Mapping[int, str]

    def segments(self, instances: Instances) -> tuple[Segment, ...]:
        """Return the segments of things, then of stuff, numbered from 1."""
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
        """Return the most probable class of each pixel, uint8 (H, W), 0 for things.

        The logits are resized to the padded image, cropped to ``shape`` and resized to ``size``;
        memory grows with width x classes of the image, not with its area.
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
            values = rows.weights[band, used] @ wide[:, used]  # (1 + S, band, W)
            classes[band] = values.argmax(dim=0).numpy()
        return classes


def _place_things(
    instances: Instances, taken: BoolArray
) -> Iterator[tuple[int, str, BoolArray, tuple[int, int]]]:
    """Yield label, name, visible crop and origin of each thing; marks its pixels in ``taken``."""
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
        if score < MIN_THING_SCORE:
            break  # in descending order
        region = taken[y : y + crop.shape[0], x : x + crop.shape[1]]
        area = np.count_nonzero(crop)
        if area == 0 or np.count_nonzero(crop & region) > MAX_HIDDEN_FRACTION * area:
            continue
        visible = crop & ~region
        region |= crop
        yield label, name, visible, (x, y)


def _place_stuff(
    classes: npt.NDArray[np.uint8], taken: BoolArray, stuff: Mapping[int, str]
) -> Iterator[tuple[int, str, BoolArray, tuple[int, int]]]:
    """Yield the same for each stuff class with enough remaining pixels."""
    left = np.where(taken, 0, classes)
    areas = np.bincount(left.ravel(), minlength=len(stuff) + 1)
    for number, (label, name) in enumerate(stuff.items(), start=1):
        if areas[number] < MIN_STUFF_AREA:
            continue
        region = left == number
        y, x = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        crop = region[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        yield label, name, crop, (int(x[0]), int(y[0]))


def _resized_rows(logits: Tensor, shown: int, width: int) -> Tensor:
    """Resize (K, h, w) to (K, h, width): enlarge by the stride, crop to ``shown``, resize."""
    large = interpolate(logits, STRIDE * logits.shape[2], mode="linear", align_corners=False)
    return interpolate(large[:, :, :shown], width, mode="linear", align_corners=False)
