"""Base class of the model families: images in, instances out, in three stages.

``prepare`` resizes images and groups them into batches of equal shape, ``forward`` runs the
network, ``postprocess`` computes masks at the resolution of the original images. Images of
different prepared shapes never share a forward, so the result of an image doesn't depend on the
others. A family implements the preprocessing, the network and the decoding of its outputs.
"""

from __future__ import annotations

import copy
import os
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor, nn

from streamseg.config import Thresholds
from streamseg.errors import ArgumentError, UsageError
from streamseg.models.categories import Categories
from streamseg.models.detections import Batch, Detections
from streamseg.models.forking import adapt_to_fork
from streamseg.models.inputs import AnyImage, is_single, read_image_of_any_type, read_images
from streamseg.models.layers.losses import Criterion
from streamseg.models.model import Inference, Model, Prediction
from streamseg.models.selection import Selection, validate_thresholds
from streamseg.models.weights.origin import Origin, network_state, reload, reload_arguments
from streamseg.structures.masks import Size
from streamseg.structures.results import Frame, Image, Instances, Segment

if TYPE_CHECKING:
    from typing_extensions import Self

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
State: TypeAlias = dict[str, Tensor]
ClassRows: TypeAlias = Mapping[str, tuple[int, ...]]
"""Rows of a tensor (first dimension) that belong to each class, by class name."""

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Numbers of classes of a network.

    Attributes:
        things: classes of instances, without background.
        stuff: stuff classes; 0 for models without panoptic results.
    """

    things: int
    stuff: int = 0


class Segmenter(Model):
    """A network with its weights, ready to predict.

    Attributes:
        name: name in the registry.
        network: torch module without preprocessing and postprocessing.
        categories: class names of instances by category id.
        stuff: stuff class names by category id; empty for models without panoptic results.
        thresholds: default thresholds.
        device: device of the network.
        input_size: input size in pixels; its meaning depends on the family.
        precision: ``fp32``, or the type of autocast.
        origin: arguments of ``load_model``, by which the model is pickled; None for a trained
            model, which can't be pickled.
    """

    trained_on: ClassVar[Categories]
    """Categories of the published weights."""
    multiple: ClassVar[int] = 32
    """Images are padded with zeros on the right and at the bottom to a multiple of this."""

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
        Selection.from_thresholds(
            self.thresholds, self.categories
        )  # raises for an unknown class name

    @classmethod
    @abstractmethod
    def build(cls, name: str, categories: Categories) -> nn.Module:
        """Build the network of a model with random weights for these categories."""

    @classmethod
    @abstractmethod
    def class_rows(cls, network: nn.Module, categories: Categories) -> Mapping[str, ClassRows]:
        """Return the rows of each class in the tensors of ``network``, by tensor name.

        Rows of no class, such as those of the background, are omitted.
        """

    @classmethod
    def class_counts(cls, categories: Categories) -> ClassCounts:
        """Return how many thing and stuff classes a network for these categories has."""
        return ClassCounts(len(categories.things), len(categories.stuff))

    @classmethod
    def count_classes(cls, state: Mapping[str, Tensor]) -> ClassCounts | None:
        """Return the numbers of classes of a converted state dict; None if they are unclear.

        The other tensors are checked when they are loaded.
        """
        del state
        return None

    @abstractmethod
    def criterion(self, weights: Mapping[str, float]) -> Criterion:
        """Return the losses of the family.

        Args:
            weights: weights of losses by name; others keep the default of the family.
        """

    @classmethod
    def published(cls, name: str) -> State | None:
        """Return the default weights if they are bundled or can be downloaded, otherwise None."""
        del name
        return None

    @classmethod
    def convert_state_dict(cls, network: nn.Module, state: State) -> State:
        """Rename the tensors of a published file to the names in ``network``.

        Also sets constants of ``network`` that the file implies but doesn't contain.
        """
        del network
        return state

    @classmethod
    def license_notice(cls, state: Mapping[str, Tensor]) -> str | None:
        """Return restrictions of use of a published file, recognized by its keys, or None."""
        del state
        return None

    @abstractmethod
    def resized_shape(self, size: Size) -> Size:
        """Return the (height, width) that an image of ``size`` is resized to, without padding."""

    @abstractmethod
    def preprocess(self, image: Image, into: Tensor) -> None:
        """Resize and normalize an image into ``into``, a float32 (3, h, w) view of the batch."""

    def training_shape(self, shape: Size) -> Size:
        """Return the (height, width) to which an augmented image is resized before padding.

        Args:
            shape: (height, width) of the image, at most ``input_size`` on each side.
        """
        return shape

    @abstractmethod
    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        """Run the network on a batch, with one selection and one result per image."""

    @property
    def all_categories(self) -> Categories:
        """Categories of things and stuff."""
        return Categories(self.categories, self.stuff)

    def with_network(self, network: nn.Module) -> Self:
        """Return a copy of the model with another network of the same architecture."""
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

    @overload  # arrays and paths are iterables, too: the first matching signature applies
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
        """Predict the instances in one or several images.

        Args:
            images: an array uint8 (H, W, 3) RGB (not BGR, as OpenCV reads files), or another type
                of :func:`streamseg.models.inputs.read_images`; or an iterable or batch of images.
                Their sizes may differ; they are not modified.
            thresholds: thresholds of all images, or one for each; None uses those of the model.

        Returns:
            For one image its instances, in descending order of scores and in pixels of the image;
            for several images a list.

        Raises:
            ArgumentError: an image is of an unknown or ambiguous type, the number of thresholds
                differs from that of the images, or they name an unknown class.
            SourceError: an image file can't be read.
        """
        single, predictions = self._predict(images, thresholds)
        return predictions[0].instances if single else [each.instances for each in predictions]

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
        """Predict the panoptic segments of one or several images.

        Args:
            images: see :meth:`predict`.
            thresholds: see :meth:`predict`.

        Raises:
            UsageError: the model has no panoptic results.
            ArgumentError, SourceError: see :meth:`predict`.
        """
        if not self.stuff:
            raise UsageError(f"{self.name} has no panoptic results")
        single, predictions = self._predict(images, thresholds)
        segments = [each.segments or () for each in predictions]
        return segments[0] if single else segments

    def _predict(
        self,
        images: AnyImage | Iterable[AnyImage],
        thresholds: Thresholds | Sequence[Thresholds] | None,
    ) -> tuple[bool, list[Prediction]]:
        """Return whether ``images`` is a single image, and the prediction of each."""
        if isinstance(thresholds, Thresholds):
            thresholds = validate_thresholds(thresholds)
        elif isinstance(thresholds, list | tuple):
            thresholds = [validate_thresholds(each) for each in thresholds]
        single = is_single(images)
        read = [read_image_of_any_type(images, "the image")] if single else read_images(images)
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
        """Resize, normalize and pad images; those of equal padded shape form one batch."""
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
        """Run the network; detections excluded by box, score or class get no mask."""
        self._check_process()
        count = sum(len(batch.rows) for batch in batches)
        selections = self._selections(thresholds, count)
        detections: dict[int, Detections] = {}
        with torch.autocast(
            self.device.type, AUTOCAST[self.precision], enabled=self.precision != "fp32"
        ):
            for batch in batches:
                chosen = [selections[row] for row in batch.rows]
                detections.update(zip(batch.rows, self.detect(batch, chosen), strict=True))
        return [detections[row] for row in range(count)]

    @torch.inference_mode()
    def postprocess(self, detections: Sequence[Detections]) -> list[Prediction]:
        """Compute masks at the resolution of the images, and apply the thresholds on masks."""
        return [self._make_prediction(each) for each in detections]

    def _check_process(self) -> None:
        """Adapt torch to a forked process; raise if the model can't be used in it."""
        if self._process == os.getpid():
            return
        if self.device.type != "cpu":
            raise UsageError(
                f"{self.name} is on {self.device} of the parent process of this fork: "
                "load it in a process started with spawn"
            )
        adapt_to_fork()

    def _batch(
        self, images: Sequence[Image], shapes: Sequence[Size], rows: list[int], padded: Size
    ) -> Batch:
        tensor = torch.zeros(len(rows), *padded, 3).permute(0, 3, 1, 2)  # channels last
        for view, row in zip(tensor, rows, strict=True):
            height, width = shapes[row]
            self.preprocess(images[row], view[:, :height, :width])
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
            return [
                Selection.from_thresholds(thresholds or self.thresholds, self.categories)
            ] * count
        if not isinstance(thresholds, list | tuple):
            raise ArgumentError(f"thresholds must be Thresholds, not {type(thresholds).__name__}")
        if len(thresholds) != count:
            raise ArgumentError(
                f"{len(thresholds)} thresholds for {count} images: give one, or one for each"
            )
        return [Selection.from_thresholds(each, self.categories) for each in thresholds]

    def _make_prediction(self, detections: Detections) -> Prediction:
        instances = self._make_instances(detections)
        panoptic = detections.panoptic
        segments = None if panoptic is None else panoptic.segments(instances)
        return Prediction(instances, segments)

    def _make_instances(self, detections: Detections) -> Instances:
        selection, boxes, features = detections.selection, detections.boxes, detections.features
        masks = detections.masks.masks(detections.size, selection.thresholds.mask)
        instances = Instances(
            masks.boxes if boxes is None else boxes.float().cpu().numpy(),
            detections.scores.float().cpu().numpy(),
            detections.labels.cpu().numpy(),
            masks,
            self.categories,
            features=None if features is None else features.float().cpu().numpy(),
        )
        return selection.apply_to_masks(instances)


def _checked_size(image: Image, row: int) -> Size:
    if not isinstance(image, np.ndarray):
        raise ArgumentError(f"image {row} must be an array, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ArgumentError(f"image {row} must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
    return image.shape[0], image.shape[1]


def count_rows(state: Mapping[str, Tensor], key: str) -> int:
    """Return the length of a vector in a state dict; 0 if it is missing or no vector."""
    tensor = state.get(key)
    return len(tensor) if tensor is not None and tensor.ndim == 1 else 0


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
