"""Interface of a model, as services and recorded runs use it; it loads without torch.

The model families implement it through ``Segmenter``, other packages by entry points of the group
``streamseg.models``: see ``ModelPlugin``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec

from streamseg.config import ModelConfig, Thresholds
from streamseg.config.plugins import Plugin, find_plugins
from streamseg.errors import ConfigError, PluginError, StreamsegError
from streamseg.models.registry import REGISTRY
from streamseg.models.selection import Selection
from streamseg.structures.results import Frame, Instances, Segment


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Result of a model for one image.

    Attributes:
        instances: the instances, in descending order of scores.
        segments: the panoptic segments; None for a model that doesn't predict them.
    """

    instances: Instances
    segments: tuple[Segment, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """Results of a model for a batch of frames.

    Attributes:
        predictions: one for each frame, in their order.
        seconds: time spent on the batch in seconds, by stage: ``prepare``, ``forward`` and
            ``postprocess``, or those of them that the model has.
    """

    predictions: Sequence[Prediction]
    seconds: Mapping[str, float]


class Model(ABC):
    """A model that predicts the instances in frames.

    Attributes:
        name: name in results and in the list of models.
        categories: class names of instances, by category id.
        stuff: class names of panoptic stuff segments, by category id; mostly empty.
    """

    name: str
    categories: Mapping[int, str]
    stuff: Mapping[int, str]
    class_agnostic_iou: ClassVar[float | None] = None
    """Value of ``thresholds.class_agnostic_iou: auto`` in services; None is no suppression."""

    @abstractmethod
    def infer(self, frames: Sequence[Frame], thresholds: Sequence[Thresholds]) -> Inference:
        """Predict the instances in each frame.

        Args:
            frames: frames of one or more sources; their images may differ in size.
            thresholds: thresholds of each frame.
        """

    @abstractmethod
    def warm_up(self) -> None:
        """Run the model once, if its first inference takes longer than the following ones."""


class ModelPlugin(Protocol):
    """Interface of a plug-in model.

    The entry point names a class, or another callable, that is called without arguments, once.

    Attributes:
        categories: class names of the instances, by category id; ids start at 1.
    """

    categories: Mapping[int, str]

    def predict(self, frames: Sequence[Frame]) -> Sequence[Instances]:
        """Return the instances in each frame, in the order of the frames.

        Frames of one source come in order; ``Frame.epoch`` changes when a source reconnects.
        """


class PluginModel(Model):
    """Model of a plug-in: applies the thresholds to its instances.

    Args:
        plugin: entry point of the plug-in.

    Raises:
        ConfigError: it can't be imported or created, or has no valid ``categories``.
    """

    def __init__(self, plugin: Plugin) -> None:
        self.name = plugin.name
        self._origin = f"model {plugin.name!r} of {plugin.origin}"
        factory = plugin.load()
        try:
            self._implementation: ModelPlugin = factory()
            categories = dict(self._implementation.categories)
            self.categories = msgspec.convert(categories, dict[int, str], strict=True)
        except StreamsegError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{self._origin} can't be created ({reason})") from error
        if not self.categories:
            raise ConfigError(f"{self._origin} has no categories")
        self.stuff: Mapping[int, str] = {}

    def infer(self, frames: Sequence[Frame], thresholds: Sequence[Thresholds]) -> Inference:
        """Predict the instances in each frame; see ``Model.infer``.

        Raises:
            PluginError: the plug-in fails or returns something else than instances of each frame.
        """
        started = time.monotonic()
        try:
            predicted: Sequence[Any] = list(self._implementation.predict(frames))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise PluginError(f"{self._origin} failed: {reason}") from error
        if len(predicted) != len(frames):
            raise PluginError(f"{self._origin}: {len(predicted)} results for {len(frames)} frames")
        for frame, instances in zip(frames, predicted, strict=True):
            self._check(frame, instances)
        selected = [
            self._select(instances, each)
            for instances, each in zip(predicted, thresholds, strict=True)
        ]
        predictions = [Prediction(instances) for instances in selected]
        return Inference(predictions, {"forward": time.monotonic() - started})

    def warm_up(self) -> None:
        """Do nothing: a plug-in may keep the state of its sources, which need real frames."""

    def _check(self, frame: Frame, instances: Any) -> None:
        if not isinstance(instances, Instances):
            kind = type(instances).__name__
            raise PluginError(f"{self._origin}: returned {kind} instead of Instances")
        size = frame.image.shape[:2]
        if tuple(instances.size) != size:
            raise PluginError(
                f"{self._origin}: instances of a {tuple(instances.size)} image for a {size} frame"
            )
        unknown = set(instances.labels.tolist()) - set(self.categories)
        if unknown:
            raise PluginError(f"{self._origin}: label {min(unknown)} is none of its categories")

    def _select(self, instances: Instances, thresholds: Thresholds) -> Instances:
        instances = instances[(-instances.scores).argsort(kind="stable")]
        selection = Selection.from_thresholds(thresholds, self.categories)
        rows = selection.select_rows(instances.boxes, instances.scores, instances.labels)
        return selection.apply_to_masks(instances[rows])


def find_model_plugin(config: ModelConfig) -> PluginModel | None:
    """Return the plug-in model of a config; None if it names a model of this package.

    Raises:
        ConfigError: the plug-in can't be loaded, has the name of a built-in model, or an option is
            set that it doesn't have.
    """
    plugin = find_plugins("streamseg.models").get(config.name)
    if plugin is None:
        return None
    if config.name in [entry.name for entry in REGISTRY]:
        raise ConfigError(
            f"model.name: {config.name} is a built-in model, and a plug-in of {plugin.origin}: "
            "rename the plug-in or uninstall it"
        )
    defaults = ModelConfig(name=config.name)
    for option in ModelConfig.__struct_fields__:
        if getattr(config, option) != getattr(defaults, option):
            raise ConfigError(f"model.{option}: {config.name} is a plug-in, which has no options")
    return PluginModel(plugin)
