"""What a model is: images in, instances out, in three stages that can be timed one by one.

``prepare`` makes batches of images whose prepared shapes are equal, ``forward`` runs the network,
``postprocess`` makes masks at source resolution. Images of different prepared shapes never share a
forward, so an image's result doesn't depend on its neighbours. A family says how an image is
fitted to its network and what the network's outputs mean; all the rest is here.
"""

from __future__ import annotations

import copy
import os
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor, nn

from streamseg.config import Thresholds
from streamseg.errors import ArgumentError, UsageError
from streamseg.models.categories import Categories
from streamseg.models.forking import adapt_to_fork
from streamseg.models.inputs import AnyImage, is_single, read_images, read_one
from streamseg.models.layers.losses import Criterion
from streamseg.models.layers.masks import MaskSource
from streamseg.models.model import Inference, Model, Prediction
from streamseg.models.selection import Selection, checked_thresholds
from streamseg.models.weights.origin import Origin, network_state, reload, reload_arguments
from streamseg.structures.masks import Size
from streamseg.structures.results import Frame, Image, Instances, Segment

if TYPE_CHECKING:
    from typing_extensions import Self

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
State: TypeAlias = dict[str, Tensor]
ClassRows: TypeAlias = Mapping[str, tuple[int, ...]]
"""Which rows of a tensor, of its first dimension, are those of each class, by the class's name."""

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """How many classes a network has.

    Attributes:
        things: without background.
        stuff: 0 for models without panoptic results.
    """

    things: int
    stuff: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Images of equal prepared shape, ready for one forward.

    Attributes:
        rows: where each image stands among those that were given.
        sizes: (height, width) of each image as it was given.
        shapes: (height, width) that it was resized to; what is right of it and below is padding.
        tensor: float32 (B, 3, H, W), channels last, on the model's device.
    """

    rows: tuple[int, ...]
    sizes: tuple[Size, ...]
    shapes: tuple[Size, ...]
    tensor: Tensor


class PanopticSource(Protocol):
    """What the panoptic parts of one image are made from, once its instances are known."""

    def segments(self, instances: Instances) -> tuple[Segment, ...]:
        """The parts of the image, of which no two overlap."""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What the network found in one image, and what its masks are made from; already selected.

    Attributes:
        size: (height, width) of the image as it was given.
        boxes: float32 (N, 4) xyxy, pixels of the image as it was given; None where they are the
            tight boxes of the masks.
        scores: float32 (N,), descending.
        labels: int64 (N,), category ids.
        masks: what the N masks are made from.
        selection: the thresholds that the detections passed, and that their masks have to pass.
        features: float32 (N, D) appearance, of length 1, or None.
        panoptic: what the panoptic parts are made from, None for models that have none.
    """

    size: Size
    boxes: Tensor | None
    scores: Tensor
    labels: Tensor
    masks: MaskSource
    selection: Selection
    features: Tensor | None = None
    panoptic: PanopticSource | None = None


class Segmenter(Model):
    """A network with its weights, ready to predict.

    Attributes:
        name: as in the catalogue.
        network: the torch module alone: no resizing before it, no thresholds after it.
        categories: the name of each category id: of the things, which are what instances are of.
        stuff: the name of each category id that panoptic parts may have besides; mostly none.
        thresholds: for frames that bring none of their own.
        device: where the network is.
        input_size: pixels; which side it means is said by the family.
        precision: ``fp32``, or the type that the network is autocast to.
        origin: what ``load_model`` loaded it from, by which it is pickled; None for a model that
            was trained, which can't be.
    """

    trained_on: ClassVar[Categories]
    """The categories of the published weights."""
    multiple: ClassVar[int] = 32
    """Prepared images are padded with zeros to a multiple of this, to the right and below."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        categories: Categories,
        *,
        input_size: int,
        device: torch.device,
        precision: Precision = "fp32",
        thresholds: Thresholds | None = None,
    ) -> None:
        self.name = name
        self.origin: Origin | None = None
        self._process = os.getpid()
        self.categories = categories.things
        self.stuff = categories.stuff
        self.thresholds = thresholds or Thresholds()
        self.device = device
        self.input_size = input_size
        self.precision = precision
        self.network = network.eval().to(device).to(memory_format=torch.channels_last)
        Selection.of(self.thresholds, self.categories)  # a wrong class name is said now

    @classmethod
    @abstractmethod
    def build(cls, name: str, categories: Categories) -> nn.Module:
        """The network of that name, with random weights, for these categories."""

    @classmethod
    @abstractmethod
    def class_rows(cls, network: nn.Module, categories: Categories) -> Mapping[str, ClassRows]:
        """Which tensors of ``network``, which is for these categories, have rows for them.

        Rows that are no class's, such as the background's, are left out.
        """

    @classmethod
    def class_counts(cls, categories: Categories) -> ClassCounts:
        """Return how many classes a network for these categories has."""
        return ClassCounts(len(categories.things), len(categories.stuff))

    @classmethod
    def count_classes(cls, state: Mapping[str, Tensor]) -> ClassCounts | None:
        """Return how many classes the network of an adopted state dict has; None if it is unclear.

        Whether the rest of the tensors fits is checked when they are loaded.
        """
        del state
        return None

    @abstractmethod
    def criterion(self, weights: Mapping[str, float]) -> Criterion:
        """What the network is trained to do.

        Args:
            weights: of single losses, by name, instead of the family's own.
        """

    @classmethod
    def published(cls, name: str) -> State | None:
        """The default weights of that name, where they are at hand or can be downloaded."""
        del name
        return None

    @classmethod
    def convert_state_dict(cls, network: nn.Module, state: State) -> State:
        """A file's tensors under the names that ``network`` has for them.

        Where a published file implies constants that it doesn't hold, they are set here.
        """
        del network
        return state

    @classmethod
    def license_notice(cls, state: Mapping[str, Tensor]) -> str | None:
        """What a published file mustn't be used for, if its keys tell; mostly None."""
        del state
        return None

    @abstractmethod
    def resized_shape(self, size: Size) -> Size:
        """The (height, width) that an image of ``size`` is resized to, without padding."""

    @abstractmethod
    def preprocess(self, image: Image, into: Tensor) -> None:
        """Resize and normalise ``image``; ``into`` is a float32 (3, h, w) view of its place."""

    def training_shape(self, shape: Size) -> Size:
        """The (height, width) that a varied picture is brought to before it is padded.

        Args:
            shape: its own (height, width), at most ``input_size`` on each side.
        """
        return shape

    @abstractmethod
    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        """Run the network on a batch; one selection and one result an image."""

    @property
    def all_categories(self) -> Categories:
        """Things and stuff."""
        return Categories(self.categories, self.stuff)

    def with_network(self, network: nn.Module) -> Self:
        """The same model with another network of its architecture."""
        other = copy.copy(self)
        other.network = network.eval()
        other.origin = None
        return other

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network, memo)
        if self.origin is not None and self.origin.network == network_state(self.network):
            other.origin = replace(self.origin, network=network_state(other.network))
        else:
            other.origin = None
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        return reload, reload_arguments(self)

    @overload  # arrays and paths are iterables, too: the first signature that fits counts
    def predict(  # type: ignore[overload-overlap]
        self, images: AnyImage, thresholds: Thresholds | None = None
    ) -> Instances: ...
    @overload
    def predict(
        self,
        images: Iterable[AnyImage],
        thresholds: Thresholds | Sequence[Thresholds] | None = None,
    ) -> list[Instances]: ...
    def predict(
        self,
        images: AnyImage | Iterable[AnyImage],
        thresholds: Thresholds | Sequence[Thresholds] | None = None,
    ) -> Instances | list[Instances]:
        """Find the instances in an image, or in each of several.

        Args:
            images: an array uint8 (H, W, 3) RGB (not BGR, as OpenCV reads files), or one of the
                other kinds of :func:`streamseg.models.inputs.read_images`; or a list, another
                iterable or a batch of them. They may differ in size and are never written to.
            thresholds: for all images, or one for each; None takes the model's own.

        Returns:
            Instances in the pixels of each image, best score first, in the order of the images;
            of a single image its own.

        Raises:
            ArgumentError: an image is of no kind that is known or can be meant in two ways, the
                thresholds aren't one for each image, or they name a class that the model doesn't
                know.
            SourceError: an image file can't be read.
        """
        single, found = self._predict(images, thresholds)
        return found[0].instances if single else [each.instances for each in found]

    @overload
    def predict_panoptic(  # type: ignore[overload-overlap]
        self, images: AnyImage, thresholds: Thresholds | None = None
    ) -> tuple[Segment, ...]: ...
    @overload
    def predict_panoptic(
        self,
        images: Iterable[AnyImage],
        thresholds: Thresholds | Sequence[Thresholds] | None = None,
    ) -> list[tuple[Segment, ...]]: ...
    def predict_panoptic(
        self,
        images: AnyImage | Iterable[AnyImage],
        thresholds: Thresholds | Sequence[Thresholds] | None = None,
    ) -> tuple[Segment, ...] | list[tuple[Segment, ...]]:
        """Divide an image, or each of several, into things and stuff that don't overlap.

        Takes and raises what :meth:`predict` does.

        Raises:
            UsageError: the model has no panoptic results, too.
        """
        if not self.stuff:
            raise UsageError(f"{self.name} has no panoptic results")
        single, found = self._predict(images, thresholds)
        return found[0].segments or () if single else [each.segments or () for each in found]

    def _predict(
        self,
        images: AnyImage | Iterable[AnyImage],
        thresholds: Thresholds | Sequence[Thresholds] | None,
    ) -> tuple[bool, list[Prediction]]:
        """Whether it is a single image, and what is found in each."""
        if isinstance(thresholds, Thresholds):
            thresholds = checked_thresholds(thresholds)
        elif isinstance(thresholds, list | tuple):
            thresholds = [checked_thresholds(each) for each in thresholds]
        single = is_single(images)
        read = [read_one(images, "the image")] if single else read_images(images)
        return single, self.postprocess(self.forward(self.prepare(read), thresholds))

    def infer(self, frames: Sequence[Frame], thresholds: Sequence[Thresholds]) -> Inference:
        """Predict the instances in each frame; see ``Model.infer``."""
        started = time.monotonic()
        batches = self.prepare([frame.image for frame in frames])
        prepared = time.monotonic()
        detections = self.forward(batches, thresholds)
        detected = time.monotonic()
        predictions = self.postprocess(detections)
        seconds = {
            "prepare": prepared - started,
            "forward": detected - prepared,
            "postprocess": time.monotonic() - detected,
        }
        return Inference(predictions, seconds)

    def warm_up(self) -> None:
        """Run the model once: the first forward takes several times as long as the others."""
        self.predict([np.zeros((720, 1280, 3), np.uint8)])

    def prepare(self, images: Sequence[Image]) -> list[Batch]:
        """Resize, normalise and pad; images of equal padded shape come into one batch."""
        self._check_process()
        groups: dict[Size, list[int]] = {}
        shapes = [self.resized_shape(_checked_size(image, row)) for row, image in enumerate(images)]
        for row, (height, width) in enumerate(shapes):
            padded = _round_up(height, self.multiple), _round_up(width, self.multiple)
            groups.setdefault(padded, []).append(row)
        return [self._batch(images, shapes, rows, padded) for padded, rows in groups.items()]

    @torch.inference_mode()
    def forward(
        self,
        batches: Sequence[Batch],
        thresholds: Thresholds | Sequence[Thresholds] | None = None,
    ) -> list[Detections]:
        """Run the network; what the thresholds exclude by box, score or class gets no mask."""
        self._check_process()
        count = sum(len(batch.rows) for batch in batches)
        selections = self._selections(thresholds, count)
        found: dict[int, Detections] = {}
        with torch.autocast(
            self.device.type, AUTOCAST[self.precision], enabled=self.precision != "fp32"
        ):
            for batch in batches:
                chosen = [selections[row] for row in batch.rows]
                found.update(zip(batch.rows, self.detect(batch, chosen), strict=True))
        return [found[row] for row in range(count)]

    @torch.inference_mode()
    def postprocess(self, detections: Sequence[Detections]) -> list[Prediction]:
        """Make the masks at source resolution, inside their boxes, and what follows from them."""
        return [self._prediction(found) for found in detections]

    def _check_process(self) -> None:
        """Make a forked process able to predict, or say that it can't be."""
        if self._process == os.getpid():
            return
        if self.device.type != "cpu":
            raise UsageError(
                f"{self.name} is on {self.device} of the process that this one was forked from: "
                "load it here, in a process started with spawn"
            )
        adapt_to_fork()

    def _batch(
        self, images: Sequence[Image], shapes: Sequence[Size], rows: list[int], padded: Size
    ) -> Batch:
        tensor = torch.zeros(len(rows), *padded, 3).permute(0, 3, 1, 2)  # channels last
        for place, row in zip(tensor, rows, strict=True):
            height, width = shapes[row]
            self.preprocess(images[row], place[:, :height, :width])
        return Batch(
            tuple(rows),
            tuple((images[row].shape[0], images[row].shape[1]) for row in rows),
            tuple(shapes[row] for row in rows),
            tensor.to(self.device),
        )

    def _selections(
        self, thresholds: Thresholds | Sequence[Thresholds] | None, count: int
    ) -> list[Selection]:
        if thresholds is None or isinstance(thresholds, Thresholds):
            return [Selection.of(thresholds or self.thresholds, self.categories)] * count
        if not isinstance(thresholds, list | tuple):
            raise ArgumentError(f"thresholds must be Thresholds, not {type(thresholds).__name__}")
        if len(thresholds) != count:
            raise ArgumentError(
                f"{len(thresholds)} thresholds for {count} images: give one, or one for each"
            )
        return [Selection.of(each, self.categories) for each in thresholds]

    def _prediction(self, found: Detections) -> Prediction:
        instances = self._instances(found)
        segments = None if found.panoptic is None else found.panoptic.segments(instances)
        return Prediction(instances, segments)

    def _instances(self, found: Detections) -> Instances:
        masks = found.masks.masks(found.size, found.selection.thresholds.mask)
        instances = Instances(
            masks.boxes if found.boxes is None else found.boxes.float().cpu().numpy(),
            found.scores.float().cpu().numpy(),
            found.labels.cpu().numpy(),
            masks,
            self.categories,
            features=None if found.features is None else found.features.float().cpu().numpy(),
        )
        return found.selection.finish(instances)


def _checked_size(image: Image, row: int) -> Size:
    if not isinstance(image, np.ndarray):
        raise ArgumentError(f"image {row} must be an array, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ArgumentError(f"image {row} must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
    return image.shape[0], image.shape[1]


def rows_of(state: Mapping[str, Tensor], key: str) -> int:
    """Return the length of a vector in a state dict; 0 if it isn't there or is no vector."""
    tensor = state.get(key)
    return len(tensor) if tensor is not None and tensor.ndim == 1 else 0


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
