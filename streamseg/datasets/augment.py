"""Training pictures varied: mirrored, scaled, cropped, discoloured, with others' objects pasted in.

Picture, boxes, masks and stuff move through one function, :func:`_move`, so that none is left
behind. A picture is cropped before it is resized, and colours are changed last: each step works on
the fewest pixels that it can.
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

Step: TypeAlias = Callable[[Any], Any]

MOST_ENLARGED = 4.0
"""More than that shows no detail, only larger pixels."""

THINNEST = 2.0
"""Pixels; an object whose box is thinner is nothing to learn from."""

LEAST_LEFT = 0.2
"""Of an object's mask, when others are pasted over it."""

LEAST_OF_BOX = 0.3
"""Of a box without a mask, after a crop: nobody knows what the rest of it shows."""

MOST_COVERED = 0.5
"""Of a box without a mask, by what is pasted over it."""

HUE_CHANCE = 0.2
"""Hue costs more than all the rest together."""


class Augmentation:
    """Varies a sample; every draw depends on the sample's seed alone.

    The steps are large-scale jitter with a crop, a mirror image, copy-paste (Ghiasi et al.,
    "Simple Copy-Paste Is a Strong Data Augmentation Method for Instance Segmentation", 2021), and
    changes of brightness, contrast, saturation and hue (as in Liu et al., "SSD", 2016).

    What comes out: the picture is at most ``input_size`` on each side, and isn't padded. The box
    of an object with a mask is the mask's; crowds and objects with a box alone have their box cut
    at the picture's edge. Objects of which nothing is left, or too little, are gone. An object
    with a box alone of which most is cut off or hidden has become a crowd: neither object nor
    background. A map of stuff shows what the picture does: things, where objects were pasted in.
    ``image_id``, ``seed`` and ``annotated`` stay.

    Args:
        config: how much is varied.
        input_size: pixels, the longest side of what comes out.
    """

    def __init__(self, config: AugmentConfig, input_size: int) -> None:
        self.config = config
        self.input_size = input_size
        self._discolour = _discolouring(config.photometric)

    def __call__(self, sample: Sample, donor: Callable[[], Sample] | None = None) -> Sample:
        """Another view of ``sample``, which isn't changed.

        The state of torch's generator is the same before and after.

        Args:
            sample: N objects; all on the CPU.
            donor: gives a sample whose objects may be pasted in; called only if that is drawn,
                with torch's generator seeded by ``sample``.

        Returns:
            M objects, pasted ones last; M may be 0.
        """
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the accelerators too.
            torch.default_generator.manual_seed(sample.targets.seed)
            varied = self._jitter(sample)
            if donor is not None and _happens(self.config.copy_paste):
                varied = _paste(varied, self._jitter(_some_objects(donor())))
            return replace(varied, image=_plain(self._discolour(varied.image)))

    def _jitter(self, sample: Sample) -> Sample:
        """Scaled, cropped and mirrored."""
        size = _size(sample)
        low, high = map(math.log, self.config.scale)
        factor = min(self.input_size * math.exp(_uniform(low, high)) / max(size), MOST_ENLARGED)
        scaled = [max(1, round(side * factor)) for side in size]
        shown = [min(side, self.input_size) for side in scaled]
        window = [
            max(1, round(side * part / whole))
            for side, part, whole in zip(size, shown, scaled, strict=True)
        ]
        height, width = window
        top, left = _place(sample, (height, width))
        cropped = _visible(_move(sample, partial(_crop, top, left, (height, width))))
        resized = _move(cropped, partial(_resize, shown))
        flip = _happens(self.config.flip)
        return _tidy(_move(resized, functional.horizontal_flip) if flip else resized)


def _discolouring(strength: float) -> Step:
    """Changes the colours of uint8 (3, H, W); less of everything with a lower ``strength``."""
    return v2.Compose(  # type: ignore[no-any-return]
        [
            v2.ColorJitter(0.6 * strength, 0.6 * strength, 0.8 * strength),
            v2.RandomApply([v2.ColorJitter(hue=0.1 * strength)], p=HUE_CHANCE),
            v2.RandomGrayscale(0.1 * strength),
            v2.RandomAdjustSharpness(0, p=0.2 * strength),  # a slight blur
        ]
    )


def _move(sample: Sample, step: Step) -> Sample:
    """All of a sample after ``step``, which takes each of torchvision's tv_tensors.

    Nothing else in this file changes where anything is. Boxes may then reach out of the picture.
    """
    targets = sample.targets
    boxes = tv_tensors.BoundingBoxes(
        targets.boxes, format="XYXY", canvas_size=_size(sample), clamping_mode=None
    )
    masks = tv_tensors.Mask(targets.masks.view(torch.uint8))
    stuff = None if targets.stuff is None else _plain(step(tv_tensors.Mask(targets.stuff)))
    moved = replace(
        targets,
        boxes=_plain(step(boxes)),
        masks=_plain(step(masks)).view(torch.bool),
        stuff=stuff,
    )
    return Sample(_plain(step(tv_tensors.Image(sample.image))), moved)


def _crop(top: int, left: int, size: Size, part: Any) -> Any:
    return functional.crop(part, top, left, *size)


def _resize(size: list[int], part: Any) -> Any:
    # Torch's "nearest" would move masks by up to half a pixel against the picture.
    exact, smooth = v2.InterpolationMode.NEAREST_EXACT, v2.InterpolationMode.BILINEAR
    return functional.resize(part, size, exact if isinstance(part, tv_tensors.Mask) else smooth)


def _plain(tensor: Any) -> Tensor:
    return torch.Tensor.as_subclass(tensor, Tensor)


def _place(sample: Sample, window: Size) -> tuple[int, int]:
    """The top left corner of a ``window`` somewhere in the picture.

    It shows a point of an object, if there is any: crops of nothing but background teach little.
    """
    size, taken = torch.tensor(_size(sample)), torch.tensor(window)
    boxes = sample.targets.boxes
    if len(boxes) == 0:
        point = torch.rand(2) * size
    else:
        corners = boxes[int(torch.randint(len(boxes), ()))].view(2, 2).flip(1)
        point = torch.lerp(corners[0], corners[1], torch.rand(2))
    corner = (point - torch.rand(2) * taken).round().long()
    top, left = torch.minimum(corner.clamp(min=0), size - taken).tolist()
    return top, left


def _visible(sample: Sample) -> Sample:
    """Without the objects that lie outside, so that their masks needn't be resized."""
    shown = _clamped(sample)
    return replace(sample, targets=sample.targets[_sides(shown).gt(0).all(1)])


def _tidy(sample: Sample) -> Sample:
    """With boxes as they are after a move, and without what is no object any more."""
    targets, shown = sample.targets, _clamped(sample)
    exact = targets.has_mask & ~targets.crowd
    boxes = torch.where(exact[:, None], tight_boxes(targets.masks), shown)
    cut = ~targets.has_mask & (_areas(shown) < LEAST_OF_BOX * _areas(targets.boxes))
    kept = _sides(boxes).ge(THINNEST).all(1) & (~targets.has_mask | _counts(targets.masks).gt(0))
    tidied = replace(targets, boxes=boxes, crowd=targets.crowd | cut)
    return replace(sample, targets=tidied[kept])


def _some_objects(donor: Sample) -> Sample:
    """A random subset of at least one of the objects that can be cut out, if there are any."""
    rows = (donor.targets.has_mask & ~donor.targets.crowd).nonzero().flatten()
    most = int(torch.randint(len(rows), ())) + 1 if len(rows) else 0
    chosen = donor.targets[rows[torch.randperm(len(rows))[:most]]]
    return replace(donor, targets=replace(chosen, stuff=None))


def _paste(sample: Sample, donor: Sample) -> Sample:
    """``sample`` with the objects of ``donor`` on top, somewhere, as they lie to each other.

    Their edges stay sharp: blending them made no difference (Ghiasi et al., 2021).
    """
    if len(donor.targets) == 0:
        return sample
    size = _size(sample)
    low, high = donor.targets.boxes[:, :2].amin(0), donor.targets.boxes[:, 2:].amax(0)
    room = torch.tensor((size[1], size[0])) - (high - low)
    # What is larger than the picture fills it, and is cut off.
    left, top = (low - torch.rand(2) * room).round().long().tolist()
    pasted = _tidy(_move(donor, partial(_crop, top, left, size)))
    over = torch.from_numpy(pasted.targets.masks.numpy().any(0))
    image = torch.where(over, pasted.image, sample.image)
    hidden = _tidy(Sample(image, _hide(sample.targets, over)))
    return replace(hidden, targets=_join(hidden.targets, pasted.targets))


def _hide(targets: Targets, over: Tensor) -> Targets:
    """What is left of ``targets`` under ``over``, bool (H, W)."""
    masks = targets.masks & ~over
    enough = _counts(masks) >= LEAST_LEFT * _counts(targets.masks)
    kept = enough | ~targets.has_mask | targets.crowd
    crowd = targets.crowd | (~targets.has_mask & (_covered(targets.boxes, over) > MOST_COVERED))
    stuff = None if targets.stuff is None else targets.stuff.masked_fill(over, THING)
    return replace(targets, masks=masks, crowd=crowd, stuff=stuff)[kept]


def _join(first: Targets, second: Targets) -> Targets:
    """The objects of both; everything else is of ``first``."""
    return replace(
        first,
        boxes=torch.cat([first.boxes, second.boxes]),
        labels=torch.cat([first.labels, second.labels]),
        masks=torch.cat([first.masks, second.masks]),
        has_mask=torch.cat([first.has_mask, second.has_mask]),
        crowd=torch.cat([first.crowd, second.crowd]),
    )


def tight_boxes(masks: Tensor) -> Tensor:
    """The smallest box around each mask.

    Args:
        masks: bool (N, H, W), on the CPU.

    Returns:
        float32 (N, 4) xyxy with exclusive right and lower edges; zeros for an empty mask.
    """
    bits: BoolArray = masks.numpy()  # NumPy finds out about bits ten times as fast
    (x1, x2), (y1, y2) = _ends(np.any(bits, axis=1)), _ends(np.any(bits, axis=2))
    return torch.from_numpy(np.stack([x1, y1, x2, y2], axis=1).astype(np.float32))


def _ends(lines: BoolArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of bool (N, L): where each line's first true is, and one after its last; 0 where none is."""
    past = lines.shape[1] - lines[:, ::-1].argmax(1)
    return lines.argmax(1), np.where(lines.any(1), past, 0)


def _counts(masks: Tensor) -> Tensor:
    """Pixels of each mask, int64 (N,)."""
    return torch.from_numpy(np.asarray(np.count_nonzero(masks.numpy(), axis=(1, 2)), np.int64))


def _covered(boxes: Tensor, over: Tensor) -> Tensor:
    """The fraction of each box, (N, 4) inside the picture, that ``over``, bool (H, W), covers.

    From a summed-area table (Crow, 1984).
    """
    table = torch.zeros(over.shape[0] + 1, over.shape[1] + 1, dtype=torch.int32)
    table[1:, 1:] = over.int().cumsum(0).cumsum(1)
    x1, y1, x2, y2 = boxes.round().long().T
    covered = table[y2, x2] - table[y1, x2] - table[y2, x1] + table[y1, x1]
    fractions: Tensor = covered / ((x2 - x1) * (y2 - y1)).clamp(min=1)
    return fractions


def _clamped(sample: Sample) -> Tensor:
    """The boxes without what lies outside the picture."""
    height, width = _size(sample)
    return sample.targets.boxes.clamp(min=0).minimum(torch.tensor((width, height) * 2))


def _size(sample: Sample) -> Size:
    """(height, width) of the picture."""
    height, width = sample.image.shape[-2:]
    return height, width


def _sides(boxes: Tensor) -> Tensor:
    """Widths and heights, (N, 2)."""
    return boxes[:, 2:] - boxes[:, :2]


def _areas(boxes: Tensor) -> Tensor:
    return _sides(boxes).prod(1)


def _happens(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
