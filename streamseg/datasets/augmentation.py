"""Augmentation of training samples: scale jitter, crop, flip, color jitter, copy-paste.

Image, boxes, masks and stuff are transformed by one function, :func:`_transform`, so that they stay
aligned. Images are cropped before they are resized, and colors are changed last, so that each step
processes as few pixels as possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from streamseg.config.training import AugmentConfig
from streamseg.structures.masks import BoolArray, Size
from streamseg.structures.targets import THING, Sample, Targets

Transform: TypeAlias = Callable[[Any], Any]

MAX_ENLARGEMENT = 4.0
"""Maximum scale factor; more adds no detail."""

MIN_BOX_SIDE = 2.0
"""Minimum width and height of a box, in pixels; thinner objects are dropped."""

MIN_VISIBLE_MASK = 0.2
"""Minimum fraction of a mask that pasted objects must leave visible."""

MIN_VISIBLE_BOX = 0.3
"""Minimum fraction of a box that a crop must keep, if the object has no mask (it may be cropped
off)."""

MAX_COVERED_BOX = 0.5
"""Maximum fraction of a box that pasted objects may cover, if the object has no mask."""

HUE_PROBABILITY = 0.2
"""Probability of a hue change, which costs more time than all other color changes together."""


class Augmentation:
    """Random augmentation of samples; all random draws depend on the sample's seed alone.

    The steps are large-scale jitter with a crop, horizontal flip, copy-paste (Ghiasi et al.,
    "Simple Copy-Paste Is a Strong Data Augmentation Method for Instance Segmentation", 2021), and
    changes of brightness, contrast, saturation and hue (as in Liu et al., "SSD", 2016).

    The augmented image has at most ``input_size`` pixels on each side and is not padded. Boxes of
    objects with a mask are recomputed from the mask; boxes of crowds and of objects without a mask
    are clipped to the image. Objects that are no longer visible, or too little, are dropped. An
    object without a mask becomes a crowd, neither object nor background, if most of its box is
    cropped off or covered. In the stuff map, pasted objects become things. ``image_id``, ``seed``
    and ``annotated`` are unchanged.

    Args:
        config: strength and probability of each step.
        input_size: maximum side of the augmented image, in pixels.
    """

    def __init__(self, config: AugmentConfig, input_size: int) -> None:
        self.config = config
        self.input_size = input_size
        self._change_colors = _make_color_jitter(config.photometric)

    def __call__(self, sample: Sample, donor: Callable[[], Sample] | None = None) -> Sample:
        """Return an augmented copy of ``sample``.

        The state of torch's random generator is restored afterwards.

        Args:
            sample: N objects, on the CPU.
            donor: returns the sample whose objects are pasted in. It is called only if copy-paste
                is drawn, with torch's generator seeded by ``sample``.

        Returns:
            M objects, pasted ones last; M may be 0.
        """
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the accelerators too.
            torch.default_generator.manual_seed(sample.targets.seed)
            augmented = self._jitter(sample)
            if donor is not None and _draw_bool(self.config.copy_paste):
                augmented = _paste(augmented, self._jitter(_choose_objects(donor())))
            image = _to_plain_tensor(self._change_colors(augmented.image))
            return replace(augmented, image=image)

    def _jitter(self, sample: Sample) -> Sample:
        """Scale, crop and flip a sample."""
        size = _image_size(sample)
        low, high = map(math.log, self.config.scale)
        scale = math.exp(low + (high - low) * float(torch.rand(())))
        factor = min(self.input_size * scale / max(size), MAX_ENLARGEMENT)
        scaled_size = [max(1, round(side * factor)) for side in size]
        output_size = [min(side, self.input_size) for side in scaled_size]
        crop_height, crop_width = (
            max(1, round(side * output / scaled))
            for side, output, scaled in zip(size, output_size, scaled_size, strict=True)
        )
        crop_size = (crop_height, crop_width)
        cropped = _transform(sample, partial(_crop, _choose_crop(sample, crop_size), crop_size))
        # Objects outside of the crop are dropped first, so that their masks aren't resized.
        is_inside = _box_sides(_clip_boxes(cropped)).gt(0).all(1)
        cropped = replace(cropped, targets=cropped.targets[is_inside])
        resized = _transform(cropped, partial(_resize, output_size))
        if _draw_bool(self.config.flip):
            resized = _transform(resized, functional.horizontal_flip)
        return _sanitize(resized)


def _make_color_jitter(strength: float) -> Transform:
    """Return the color changes for uint8 images (3, H, W), scaled by ``strength``, 0 to 1."""
    return v2.Compose(  # type: ignore[no-any-return]
        [
            v2.ColorJitter(0.6 * strength, 0.6 * strength, 0.8 * strength),
            v2.RandomApply([v2.ColorJitter(hue=0.1 * strength)], p=HUE_PROBABILITY),
            v2.RandomGrayscale(0.1 * strength),
            v2.RandomAdjustSharpness(0, p=0.2 * strength),  # a slight blur
        ]
    )


def _transform(sample: Sample, transform: Transform) -> Sample:
    """Apply a geometric transform of torchvision to image, boxes, masks and stuff.

    Every geometric change in this module goes through here. Boxes may extend beyond the image
    afterwards.
    """
    targets = sample.targets
    boxes = tv_tensors.BoundingBoxes(
        targets.boxes, format="XYXY", canvas_size=_image_size(sample), clamping_mode=None
    )
    masks = tv_tensors.Mask(targets.masks.view(torch.uint8))
    stuff = targets.stuff
    if stuff is not None:
        stuff = _to_plain_tensor(transform(tv_tensors.Mask(stuff)))
    transformed = replace(
        targets,
        boxes=_to_plain_tensor(transform(boxes)),
        masks=_to_plain_tensor(transform(masks)).view(torch.bool),
        stuff=stuff,
    )
    return Sample(_to_plain_tensor(transform(tv_tensors.Image(sample.image))), transformed)


def _crop(corner: tuple[int, int], size: Size, tensor: Any) -> Any:
    """Crop a tv_tensor to (height, width) ``size`` at the upper left ``corner`` (y, x)."""
    return functional.crop(tensor, *corner, *size)


def _resize(size: list[int], tensor: Any) -> Any:
    """Resize a tv_tensor to (height, width) ``size``."""
    # With torch's "nearest", masks would be shifted by up to half a pixel against the image.
    nearest, bilinear = v2.InterpolationMode.NEAREST_EXACT, v2.InterpolationMode.BILINEAR
    mode = nearest if isinstance(tensor, tv_tensors.Mask) else bilinear
    return functional.resize(tensor, size, mode)


def _to_plain_tensor(tensor: Any) -> Tensor:
    return torch.Tensor.as_subclass(tensor, Tensor)


def _choose_crop(sample: Sample, crop_size: Size) -> tuple[int, int]:
    """Draw the upper left corner (y, x) of a crop of (height, width) ``crop_size``.

    The crop contains a point of an object if there is one, because crops of background alone are
    of little use in training.
    """
    size, crop = torch.tensor(_image_size(sample)), torch.tensor(crop_size)
    boxes = sample.targets.boxes
    if len(boxes) == 0:
        point = torch.rand(2) * size
    else:
        corners = boxes[int(torch.randint(len(boxes), ()))].view(2, 2).flip(1)
        point = torch.lerp(corners[0], corners[1], torch.rand(2))
    corner = (point - torch.rand(2) * crop).round().long()
    y, x = torch.minimum(corner.clamp(min=0), size - crop).tolist()
    return y, x


def _sanitize(sample: Sample) -> Sample:
    """Recompute the boxes after a transform and drop objects that are no longer visible."""
    targets, clipped = sample.targets, _clip_boxes(sample)
    is_exact = targets.has_mask & ~targets.crowd
    boxes = torch.where(is_exact[:, None], compute_mask_boxes(targets.masks), clipped)
    is_mostly_hidden = _box_areas(clipped) < MIN_VISIBLE_BOX * _box_areas(targets.boxes)
    has_pixels = ~targets.has_mask | _count_pixels(targets.masks).gt(0)
    kept = _box_sides(boxes).ge(MIN_BOX_SIDE).all(1) & has_pixels
    crowd = targets.crowd | (~targets.has_mask & is_mostly_hidden)
    return replace(sample, targets=replace(targets, boxes=boxes, crowd=crowd)[kept])


def _choose_objects(donor: Sample) -> Sample:
    """Return the donor with a random subset of the objects that have a mask and are not crowds.

    The subset has at least one object if there is any.
    """
    rows = (donor.targets.has_mask & ~donor.targets.crowd).nonzero().flatten()
    count = int(torch.randint(len(rows), ())) + 1 if len(rows) else 0
    chosen = donor.targets[rows[torch.randperm(len(rows))[:count]]]
    return replace(donor, targets=replace(chosen, stuff=None))


def _paste(sample: Sample, donor: Sample) -> Sample:
    """Paste the objects of ``donor`` on ``sample`` at a random offset, the same for all of them.

    Their edges are not blended: it made no difference (Ghiasi et al., 2021).
    """
    if len(donor.targets) == 0:
        return sample
    size = _image_size(sample)
    low, high = donor.targets.boxes[:, :2].amin(0), donor.targets.boxes[:, 2:].amax(0)
    free = torch.tensor((size[1], size[0])) - (high - low)
    # Where the objects are larger than the image, they fill it and are clipped.
    x, y = (low - torch.rand(2) * free).round().long().tolist()
    pasted = _sanitize(_transform(donor, partial(_crop, (y, x), size)))
    covered = torch.from_numpy(pasted.targets.masks.numpy().any(0))
    image = torch.where(covered, pasted.image, sample.image)
    result = _sanitize(Sample(image, _occlude(sample.targets, covered)))
    return replace(result, targets=_concatenate(result.targets, pasted.targets))


def _occlude(targets: Targets, covered: Tensor) -> Targets:
    """Remove the ``covered`` pixels, bool (H, W), from the targets.

    Drops masks of which too little is left; makes boxes without a mask crowds if they are mostly
    covered.
    """
    masks = targets.masks & ~covered
    is_visible = _count_pixels(masks) >= MIN_VISIBLE_MASK * _count_pixels(targets.masks)
    kept = is_visible | ~targets.has_mask | targets.crowd
    is_hidden = _covered_fractions(targets.boxes, covered) > MAX_COVERED_BOX
    crowd = targets.crowd | (~targets.has_mask & is_hidden)
    stuff = None if targets.stuff is None else targets.stuff.masked_fill(covered, THING)
    return replace(targets, masks=masks, crowd=crowd, stuff=stuff)[kept]


def _concatenate(first: Targets, second: Targets) -> Targets:
    """Return ``first`` with the objects of ``second`` appended."""
    return replace(
        first,
        boxes=torch.cat([first.boxes, second.boxes]),
        labels=torch.cat([first.labels, second.labels]),
        masks=torch.cat([first.masks, second.masks]),
        has_mask=torch.cat([first.has_mask, second.has_mask]),
        crowd=torch.cat([first.crowd, second.crowd]),
    )


def compute_mask_boxes(masks: Tensor) -> Tensor:
    """Return the tight box of each mask.

    Args:
        masks: bool (N, H, W), on the CPU.

    Returns:
        float32 (N, 4) xyxy with exclusive right and lower edges; zeros for an empty mask.
    """
    array: BoolArray = masks.numpy()  # NumPy's any() over booleans is ten times as fast
    x1, x2 = _find_true_range(np.any(array, axis=1))
    y1, y2 = _find_true_range(np.any(array, axis=2))
    return torch.from_numpy(np.stack([x1, y1, x2, y2], axis=1).astype(np.float32))


def _find_true_range(rows: BoolArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the index of the first true value and one after the last, of each row of (N, L).

    Both are 0 for a row without true values.
    """
    end = rows.shape[1] - rows[:, ::-1].argmax(1)
    return rows.argmax(1), np.where(rows.any(1), end, 0)


def _count_pixels(masks: Tensor) -> Tensor:
    """Return the area of each mask in pixels, int64 (N,)."""
    return torch.from_numpy(np.asarray(np.count_nonzero(masks.numpy(), axis=(1, 2)), np.int64))


def _covered_fractions(boxes: Tensor, covered: Tensor) -> Tensor:
    """Return the fraction of ``covered`` pixels in each box, (N,), with a summed-area table.

    Crow, "Summed-Area Tables for Texture Mapping", 1984.

    Args:
        boxes: (N, 4) xyxy inside the image.
        covered: bool (H, W).
    """
    table = torch.zeros(covered.shape[0] + 1, covered.shape[1] + 1, dtype=torch.int32)
    table[1:, 1:] = covered.int().cumsum(0).cumsum(1)
    x1, y1, x2, y2 = boxes.round().long().T
    pixels = table[y2, x2] - table[y1, x2] - table[y2, x1] + table[y1, x1]
    fractions: Tensor = pixels / ((x2 - x1) * (y2 - y1)).clamp(min=1)
    return fractions


def _clip_boxes(sample: Sample) -> Tensor:
    """Return the boxes clipped to the image."""
    height, width = _image_size(sample)
    return sample.targets.boxes.clamp(min=0).minimum(torch.tensor((width, height) * 2))


def _image_size(sample: Sample) -> Size:
    """Return (height, width) of the image."""
    height, width = sample.image.shape[-2:]
    return height, width


def _box_sides(boxes: Tensor) -> Tensor:
    """Return width and height of each box, (N, 2)."""
    return boxes[:, 2:] - boxes[:, :2]


def _box_areas(boxes: Tensor) -> Tensor:
    return _box_sides(boxes).prod(1)


def _draw_bool(probability: float) -> bool:
    return bool(torch.rand(()) < probability)
