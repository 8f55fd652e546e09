"""Which pictures come when, and as what: the same for any number of workers or processes.

An epoch's order follows from the recipe's seed and the epoch; how a picture is varied follows from
these and the picture itself. A batch of the whole training is dealt out to the processes. What is
annotated is brought to the shape in which the model is shown the picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from streamseg.datasets import AnnotatedImage, Augmentation, Dataset, load_sample
from streamseg.models.base import Segmenter
from streamseg.structures.masks import Size
from streamseg.structures.targets import UNKNOWN, Sample, Targets
from streamseg.training.distributed import Processes
from streamseg.training.workers import load_ahead


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """Pictures of one forward.

    Attributes:
        images: float32 (B, 3, H, W), prepared as for prediction.
        targets: what is annotated in each; maps of stuff are (H, W), unknown in the padding.
        names: of each picture, for messages.
    """

    images: Tensor
    targets: tuple[Targets, ...]
    names: tuple[str, ...]


class Batches:
    """The training data as batches.

    Args:
        datasets: what to learn from.
        augmentation: how pictures are varied.
        model: prepares them, and says which classes they are to show.
        size: pictures in a batch, over all processes together.
        seed: the recipe's.
        workers: processes that load and vary pictures; 0 does it in between.
        processes: those that train together.

    Attributes:
        size: pictures in a batch, over all processes together.
        in_epoch: batches in an epoch.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        augmentation: Augmentation,
        model: Segmenter,
        *,
        size: int,
        seed: int,
        workers: int,
        processes: Processes,
    ) -> None:
        classes, stuff = tuple(model.categories.values()), tuple(model.stuff.values())
        self._samples = _Samples(datasets, classes, stuff, augmentation, seed)
        self._model = model
        self._seed = seed
        self._workers = workers
        self._processes = processes
        self.size = min(size, len(self._samples.entries))
        self.in_epoch = len(self._samples.entries) // self.size

    def epoch(self, number: int, first: int = 0) -> Generator[TrainingBatch, None, None]:
        """This process's part of the batches of an epoch, from batch ``first`` on."""
        order = self._order(number, first)
        with closing(load_ahead(self._samples.load, order, self._workers)) as loaded:
            for samples in loaded:
                yield self._prepared(samples)

    def _order(self, number: int, first: int) -> list[list[tuple[int, int]]]:
        """(epoch, entry) of the pictures of each batch."""
        draws = torch.Generator().manual_seed(draw_seed(self._seed, number, 0))
        order = torch.randperm(len(self._samples.entries), generator=draws).tolist()
        starts = range(first * self.size, self.in_epoch * self.size, self.size)
        return [
            [(number, entry) for entry in self._processes.share(order[at : at + self.size])]
            for at in starts
        ]

    def _prepared(self, loaded: Sequence[tuple[str, Sample]]) -> TrainingBatch:
        samples = [sample for _, sample in loaded]
        shapes = [self._model.training_shape(_size(sample)) for sample in samples]
        multiple = self._model.multiple
        height, width = (
            -(-max(shape[axis] for shape in shapes) // multiple) * multiple for axis in (0, 1)
        )
        images = torch.zeros(len(samples), height, width, 3).permute(0, 3, 1, 2)  # channels last
        for place, sample, shape in zip(images, samples, shapes, strict=True):
            pixels = sample.image.permute(1, 2, 0).contiguous().numpy()
            self._model.preprocess(pixels, place[:, : shape[0], : shape[1]])
        device = self._model.device
        targets = [
            _padded(_resized(sample.targets, _size(sample), shape), (height, width))
            for sample, shape in zip(samples, shapes, strict=True)
        ]
        return TrainingBatch(
            images.to(device),
            tuple(each.to(device) for each in targets),
            tuple(name for name, _ in loaded),
        )


def draw_seed(seed: int, epoch: int, image: int) -> int:
    """A seed for random draws, unlike those of other epochs and pictures."""
    digest = hashlib.sha256(f"{seed} {epoch} {image}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


class _Samples:
    """Varied pictures by (epoch, entry)."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        classes: Sequence[str],
        stuff: Sequence[str],
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.entries: list[tuple[Dataset, AnnotatedImage]] = [
            (dataset, image)
            for dataset in datasets
            for image in dataset.images
            for _ in range(dataset.repeat)
        ]
        self._classes = classes
        self._stuff = stuff
        self._augmentation = augmentation
        self._seed = seed

    def load(self, keys: Sequence[tuple[int, int]]) -> list[tuple[str, Sample]]:
        """The pictures of some keys, each with its name for messages."""
        return [self._varied(epoch, entry) for epoch, entry in keys]

    def _varied(self, epoch: int, entry: int) -> tuple[str, Sample]:
        dataset, image = self.entries[entry]
        seed = draw_seed(self._seed, epoch, entry + 1)
        sample = self._load(entry, seed)
        return f"{dataset.name} {image.id}", self._augmentation(sample, self._donor)

    def _donor(self) -> Sample:
        """Another picture, by a draw that the augmentation has seeded."""
        entry = int(torch.randint(len(self.entries), ()))
        return self._load(entry, 0)

    def _load(self, entry: int, seed: int) -> Sample:
        dataset, image = self.entries[entry]
        sample = load_sample(dataset, image, self._classes, seed, self._stuff)
        return replace(sample, targets=replace(sample.targets, seed=seed))


def _size(sample: Sample) -> Size:
    """(height, width) of a picture."""
    height, width = sample.image.shape[1:]
    return height, width


def _resized(targets: Targets, size: Size, shape: Size) -> Targets:
    """The targets of a picture of ``size`` that is resized to ``shape``."""
    if shape == size:
        return targets
    (height, width), (old_height, old_width) = shape, size
    factors = torch.tensor((width / old_width, height / old_height) * 2)
    return replace(
        targets,
        boxes=targets.boxes * factors,
        masks=_nearest(targets.masks.view(torch.uint8), shape).view(torch.bool),
        stuff=None if targets.stuff is None else _nearest(targets.stuff[None], shape)[0],
    )


def _nearest(maps: Tensor, shape: Size) -> Tensor:
    """uint8 (N, h, w) at another shape, each pixel a copy of the nearest one."""
    return interpolate(maps[:, None], shape, mode="nearest-exact")[:, 0]


def _padded(targets: Targets, shape: Size) -> Targets:
    """With a map of stuff, if there is one, as large as the batch."""
    if targets.stuff is None:
        return targets
    height, width = targets.stuff.shape
    edges = (0, shape[1] - width, 0, shape[0] - height)
    return replace(targets, stuff=pad(targets.stuff, edges, value=UNKNOWN))
