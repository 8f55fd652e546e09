"""Training batches: image order, loading, augmentation and collation.

The order of an epoch depends on the config's seed and the epoch alone, and the augmentation of an
image on these and the image: batches are the same for any number of workers and processes. Each
batch is divided among the processes.
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
from streamseg.training.distributed import ProcessGroup
from streamseg.training.loader_workers import load_ahead


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """Images and targets of one forward pass.

    Attributes:
        images: float32 (B, 3, H, W), preprocessed as for prediction.
        targets: annotation of each image; stuff maps are (H, W), unknown in the padding.
        names: dataset and id of each image, for messages.
    """

    images: Tensor
    targets: tuple[Targets, ...]
    names: tuple[str, ...]


class BatchLoader:
    """Loads the batches of each epoch.

    Args:
        datasets: the training datasets.
        augmentation: applied to each image.
        model: preprocesses the images and defines the classes.
        size: images per batch, over all processes.
        seed: the config's seed.
        workers: number of worker processes that load and augment; 0 loads in this process.
        group: the process group of the training.

    Attributes:
        size: images per batch, over all processes; at most the number of images.
        batches_per_epoch: number of full batches in an epoch.
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
        group: ProcessGroup,
    ) -> None:
        classes, stuff = tuple(model.categories.values()), tuple(model.stuff.values())
        self._samples = _SampleLoader(datasets, classes, stuff, augmentation, seed)
        self._model = model
        self._seed = seed
        self._workers = workers
        self._group = group
        self.size = min(size, len(self._samples.entries))
        self.batches_per_epoch = len(self._samples.entries) // self.size

    def load_epoch(self, epoch: int, first: int = 0) -> Generator[TrainingBatch, None, None]:
        """Yield this process's share of each batch of an epoch, from batch ``first`` on."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, epoch, 0))
        order = torch.randperm(len(self._samples.entries), generator=generator).tolist()
        starts = range(first * self.size, self.batches_per_epoch * self.size, self.size)
        keys = [
            [(epoch, entry) for entry in self._group.shard(order[start : start + self.size])]
            for start in starts
        ]
        with closing(load_ahead(self._samples.load, keys, self._workers)) as loaded:
            for samples in loaded:
                yield self._collate(samples)

    def _collate(self, loaded: Sequence[tuple[str, Sample]]) -> TrainingBatch:
        """Preprocess named samples and pad them to one shape."""
        samples = [sample for _, sample in loaded]
        shapes = [self._model.training_shape(_image_size(sample)) for sample in samples]
        multiple = self._model.multiple
        height, width = (
            -(-max(shape[axis] for shape in shapes) // multiple) * multiple for axis in (0, 1)
        )
        images = torch.zeros(len(samples), height, width, 3).permute(0, 3, 1, 2)  # channels last
        for image, sample, shape in zip(images, samples, shapes, strict=True):
            pixels = sample.image.permute(1, 2, 0).contiguous().numpy()
            self._model.preprocess(pixels, image[:, : shape[0], : shape[1]])
        device = self._model.device
        targets = [
            _pad_stuff(
                _resize_targets(sample.targets, _image_size(sample), shape), (height, width)
            ).to(device)
            for sample, shape in zip(samples, shapes, strict=True)
        ]
        return TrainingBatch(images.to(device), tuple(targets), tuple(name for name, _ in loaded))


def derive_seed(seed: int, epoch: int, index: int) -> int:
    """Return a seed for random draws that differs for each config seed, epoch and index."""
    digest = hashlib.sha256(f"{seed} {epoch} {index}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


class _SampleLoader:
    """Loads augmented samples; runs in the worker processes.

    Attributes:
        entries: every dataset image, as often as its dataset repeats it.
    """

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
        """Return the augmented sample of each (epoch, entry index), with its name for messages."""
        loaded = []
        for epoch, entry in keys:
            dataset, image = self.entries[entry]
            sample = self._load_sample(entry, derive_seed(self._seed, epoch, entry + 1))
            sample = self._augmentation(sample, self._load_random_sample)
            loaded.append((f"{dataset.name} {image.id}", sample))
        return loaded

    def _load_random_sample(self) -> Sample:
        """Return another sample, for copy-paste; the augmentation has seeded torch's generator."""
        return self._load_sample(int(torch.randint(len(self.entries), ())), 0)

    def _load_sample(self, entry: int, seed: int) -> Sample:
        dataset, image = self.entries[entry]
        sample = load_sample(dataset, image, self._classes, seed, self._stuff)
        return replace(sample, targets=replace(sample.targets, seed=seed))


def _image_size(sample: Sample) -> Size:
    """Return (height, width) of a sample's image."""
    height, width = sample.image.shape[1:]
    return height, width


def _resize_targets(targets: Targets, size: Size, shape: Size) -> Targets:
    """Return the targets of an image of ``size`` after it is resized to ``shape``."""
    if shape == size:
        return targets
    (height, width), (old_height, old_width) = shape, size
    factors = torch.tensor((width / old_width, height / old_height) * 2)
    return replace(
        targets,
        boxes=targets.boxes * factors,
        masks=_resize_nearest(targets.masks.view(torch.uint8), shape).view(torch.bool),
        stuff=None if targets.stuff is None else _resize_nearest(targets.stuff[None], shape)[0],
    )


def _resize_nearest(maps: Tensor, shape: Size) -> Tensor:
    """Resize uint8 (N, h, w) to ``shape`` by nearest neighbor."""
    return interpolate(maps[:, None], shape, mode="nearest-exact")[:, 0]


def _pad_stuff(targets: Targets, shape: Size) -> Targets:
    """Pad the stuff map, if there is one, to the batch's shape."""
    if targets.stuff is None:
        return targets
    height, width = targets.stuff.shape
    padding = (0, shape[1] - width, 0, shape[0] - height)
    return replace(targets, stuff=pad(targets.stuff, padding, value=UNKNOWN))
