"""Creation of models: ``load_model`` for prediction, ``start_model`` for training.

Torch is imported only when a model is created, so that the registry can be printed quickly.
"""

from __future__ import annotations

import copy
import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from streamseg.config import ModelConfig, Thresholds
from streamseg.config.class_names import ClassNames, number_class_names
from streamseg.errors import ArgumentError, UsageError, WeightsError, needs_extra
from streamseg.models.registry import REGISTRY, Family, ModelInfo, find

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from streamseg.models.base import ClassCounts, ClassRows, Precision, Segmenter, State
    from streamseg.models.categories import Categories
    from streamseg.models.weights.files import Weights

log = logging.getLogger(__name__)

MAX_CLASSES = 100_000
"""Weights for more classes are refused."""

_FAMILIES: dict[Family, tuple[str, str]] = {
    "nanomask": ("nanomask", "NanoMask"),
    "mask_rcnn": ("mask_rcnn", "MaskRCNN"),
    "mask_rcnn_d2": ("mask_rcnn_d2", "MaskRCNND2"),
    "panoptic_fpn": ("panoptic_fpn", "PanopticFPN"),
    "yolact": ("yolact", "YOLACT"),
    "solo": ("solo", "SOLO"),
    "solov2": ("solo", "SOLOv2"),
}
"""Module and class of each family, imported when one of its models is created."""


@needs_extra("server")
def load_model(
    name: str,
    weights: str | Path = "default",
    *,
    device: str = "auto",
    input_size: int | None = None,
    precision: Precision = "fp32",
    class_names: ClassNames | None = None,
    **thresholds: Any,
) -> Segmenter:
    """Load a model of the registry, ready to predict.

    The model is pickled by these arguments: the receiving process loads the same weights file, and
    refuses a changed one.

    Args:
        name: model name; see ``streamseg models``.
        weights: ``default`` (those of the registry), a path, or ``none`` (random, with a fixed
            seed).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        input_size: input size in pixels; its meaning depends on the family. None is the default of
            the model.
        precision: ``fp32``, or ``bf16``/``fp16`` autocast, which changes results slightly. bf16
            needs a CPU or GPU that supports it; fp16 is for GPUs, and many times slower on a CPU.
        class_names: classes of the weights: a list (ids from 1, in the order of the outputs) or a
            mapping of category id to name (ascending ids, in the order of the outputs); for
            panoptic models things first. None uses the names in the file, or those of COCO if the
            number of classes matches, or ``class_1``, ``class_2``, … with a warning.
        **thresholds: fields of :class:`streamseg.config.Thresholds`, such as ``score=0.5``.

    Raises:
        UnknownModelError: no model has this name.
        UsageError: an argument is invalid, or names an unknown class.
        WeightsError: the weights are missing, damaged or of another architecture.
    """
    from streamseg.models.forking import adapt_to_fork
    from streamseg.models.weights.origin import Origin, Stamp, network_state

    if not isinstance(name, str):
        raise ArgumentError(f"load_model: name must be a string, not {type(name).__name__}")
    if not isinstance(weights, str | os.PathLike):
        raise ArgumentError(
            f"load_model: weights must be default, none or a path, not {type(weights).__name__}"
        )
    entry = find(name)
    options = {"device": str(device), "precision": precision, "input_size": input_size}
    config = _check(ModelConfig, {**options, "class_names": _plain(class_names)})
    selected = _check(Thresholds, thresholds)
    place = _device(config.device)
    adapt_to_fork()
    family = _family(entry)
    stamp = Stamp.of_weights(weights)
    given = _weights(entry, family, weights)
    categories = known_categories(entry, family, given, config.class_names, str(weights))
    network = _loaded(entry, family, given, categories, str(weights))
    model = family(
        name,
        network,
        categories,
        input_size=input_size or entry.default_size,
        device=place,
        precision=precision,
        thresholds=selected,
    )
    where = str(weights) if stamp is None else str(Path(weights).absolute())
    model.origin = Origin(
        where, config.device, config.class_names, stamp, network_state(model.network)
    )
    return model


def start_model(
    config: ModelConfig, categories: Categories, thresholds: Thresholds
) -> tuple[Segmenter, list[str]]:
    """Create a model to train for ``categories``.

    If the weights are for other categories, classes of the same name are initialized from them.

    Returns:
        The model, and the names of the classes with random weights (``everything`` for all).

    Raises:
        WeightsError, UnknownModelError, UsageError: see :func:`load_model`.
    """
    entry = find(config.name)
    family = _family(entry)
    network = _build(entry, family, categories)
    given = _weights(entry, family, config.weights)
    fresh: list[str] = ["everything"]
    if given is None and config.class_names is not None:
        raise UsageError("class_names describes weights, but weights is none")
    if given is not None:
        known = known_categories(entry, family, given, config.class_names, config.weights)
        source = _loaded(entry, family, given, known, config.weights)
        family.convert_state_dict(network, dict(given.state))  # sets constants of the network
        fresh = _copy_matching_classes(network, source, family, categories, known)
    model = family(
        config.name,
        network,
        categories,
        input_size=config.input_size or entry.default_size,
        device=_device(config.device),
        precision=config.precision,
        thresholds=thresholds,
    )
    return model, fresh


def has_stuff(name: str) -> bool:
    """Return whether a model predicts panoptic segments.

    Raises:
        UnknownModelError: no model has this name.
    """
    return bool(_family(find(name)).trained_on.stuff)


def _plain(names: ClassNames | None) -> Any:
    """Convert ``class_names`` to a dict or list if it is a mapping or iterable."""
    if isinstance(names, Mapping):
        return dict(names)
    return list(names) if isinstance(names, Iterable) and not isinstance(names, str) else names


def _check(schema: type[Any], values: dict[str, Any]) -> Any:
    """Convert ``values`` to ``schema``; unknown names and invalid values raise UsageError."""
    for key in values:
        if key not in schema.__struct_fields__:
            near = difflib.get_close_matches(key, schema.__struct_fields__, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {schema.__struct_fields__}"
            raise UsageError(f"load_model has no argument {key!r}; {hint}")
    import numpy as np

    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
    try:
        return msgspec.convert(plain, schema)
    except msgspec.ValidationError as error:
        raise UsageError(f"load_model: {error}") from None


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def _family(entry: ModelInfo) -> type[Segmenter]:
    module, name = _FAMILIES[entry.family]
    family: type[Segmenter] = getattr(import_module(f"streamseg.models.{module}"), name)
    return family


def known_categories(
    entry: ModelInfo,
    family: type[Segmenter],
    given: Weights | None,
    class_names: ClassNames | None,
    where: str,
) -> Categories:
    """Return the categories of a model with these weights.

    Args:
        entry: entry of the model.
        family: class of the model.
        given: weights; None for random ones.
        class_names: validated names from the user, or None.
        where: name of the weights in messages.

    Raises:
        UsageError: the number of names differs from that of the classes.
    """
    from streamseg.models.base import ClassCounts

    own = (given and given.categories) or family.trained_on
    counts = family.class_counts(own)
    if given is not None and given.categories is None:
        counts = _count_classes(entry, family, given) or counts
    if counts.things + counts.stuff > MAX_CLASSES:
        raise WeightsError(f"{where}: has {counts.things + counts.stuff} classes, over the limit")
    if class_names is not None:
        if given is None:
            counts = ClassCounts(len(class_names))
        return _name_categories(family, class_names, counts, where)
    if counts == family.class_counts(own):
        return own
    return _name_categories(family, number_class_names(counts.things + counts.stuff), counts, where)


def _count_classes(entry: ModelInfo, family: type[Segmenter], given: Weights) -> ClassCounts | None:
    """Return the numbers of classes of a published file."""
    network = _build_on_meta(family, entry.name)
    return family.count_classes(family.convert_state_dict(network, dict(given.state)))


def _name_categories(
    family: type[Segmenter], names: ClassNames, counts: ClassCounts, where: str
) -> Categories:
    """Return categories with these names: things, then stuff."""
    from streamseg.models.categories import Categories

    ids = dict(sorted(names.items())) if isinstance(names, Mapping) else dict(enumerate(names, 1))
    items = list(ids.items())
    named = Categories(dict(items[: counts.things]), dict(items[counts.things :]))
    fits = len(ids) == counts.things + counts.stuff or family.class_counts(named) == counts
    if not fits:
        total = counts.things + counts.stuff
        parts = f" ({counts.things} things, {counts.stuff} stuff)" if counts.stuff else ""
        raise UsageError(f"{where}: has {total} classes{parts}, and class_names has {len(ids)}")
    return named


def _build_on_meta(family: type[Segmenter], name: str) -> nn.Module:
    """Build a network whose tensors have a shape and no values."""
    return copy.deepcopy(_meta_network(family, name))  # conversions may replace its modules


@cache
def _meta_network(family: type[Segmenter], name: str) -> nn.Module:
    import torch

    from streamseg.models.layers.initialization import SkipRandomInit

    with SkipRandomInit(), torch.device("meta"):
        return family.build(name, family.trained_on)


def _build(entry: ModelInfo, family: type[Segmenter], categories: Categories) -> nn.Module:
    """Build the network of an entry with random weights from a fixed seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return family.build(entry.name, categories)


def _weights(entry: ModelInfo, family: type[Segmenter], weights: str | Path) -> Weights | None:
    """Read the weights; None for random ones."""
    from streamseg.models.weights import files

    if weights == "none":
        return None
    if weights != "default":
        return files.read(Path(weights))
    state = family.published(entry.name)
    if state is None:
        raise WeightsError(
            f"{entry.name}: its weights are not downloaded automatically: get "
            f"{entry.published[0].file} from {entry.published[0].url} and give its path as weights"
        )
    return files.Weights(state)


def _loaded(
    entry: ModelInfo,
    family: type[Segmenter],
    given: Weights | None,
    categories: Categories,
    where: str,
) -> nn.Module:
    """Build the network of an entry for ``categories``, with the weights or random ones."""
    import torch

    from streamseg.models.layers.initialization import SkipRandomInit

    if given is None:
        return _build(entry, family, categories)
    if categories is not family.trained_on:
        # The size of the network is claimed by the file: check it before allocating memory.
        with SkipRandomInit(), torch.device("meta"):
            claimed = family.build(entry.name, categories)
        _check_fit(claimed, _convert(claimed, family, given), entry, given, where)
    with SkipRandomInit():
        network = _build(entry, family, categories)
    state = _convert(network, family, given)
    _check_fit(network, state, entry, given, where)
    network.load_state_dict(state)
    names = [*categories.things.values(), *categories.stuff.values()]
    if given.categories is None and names == number_class_names(len(names)):
        _warn(
            f"{where}: its {len(names)} classes have no names and are called class_1 to "
            f"class_{len(names)}: name them with class_names=[…], --class-names A,B|FILE, or "
            "model.class_names in a config"
        )
    if license_notice := family.license_notice(given.state):
        _warn(f"{entry.name}: {license_notice}")
    return network


def _check_fit(
    network: nn.Module, state: State, entry: ModelInfo, given: Weights, where: str
) -> None:
    from streamseg.models.weights import files

    if wrong := files.differences(network, state):
        raise WeightsError(
            f"{where}: doesn't fit {entry.name}: {wrong}{_suggest_model(entry, given)}"
        )


def _convert(network: nn.Module, family: type[Segmenter], given: Weights) -> State:
    """Return the weights under the names of the network.

    Batch counters of normalization layers, used in training only, keep their value if missing.
    """
    expected = network.state_dict()
    counters = {key: expected[key] for key in expected if key.endswith(".num_batches_tracked")}
    return {**counters, **family.convert_state_dict(network, dict(given.state))}


@lru_cache
def _warn(message: str) -> None:
    """Log a warning once."""
    log.warning(message)


def _copy_matching_classes(
    network: nn.Module,
    source: nn.Module,
    family: type[Segmenter],
    categories: Categories,
    known: Categories,
) -> list[str]:
    """Copy the weights of ``source`` into a network of other categories, class by class.

    Returns:
        The names of the classes that ``source`` doesn't have.
    """
    state = source.state_dict()
    own, theirs = family.class_rows(network, categories), family.class_rows(source, known)
    fresh: dict[str, None] = {}
    for key, rows in own.items():
        tensor = network.state_dict()[key].clone()
        tensor[_other_rows(tensor, rows)] = state[key][_other_rows(state[key], theirs[key])]
        for name, places in rows.items():
            if name in theirs[key]:
                tensor[list(places)] = state[key][list(theirs[key][name])]
            else:
                fresh[name] = None
        state[key] = tensor
    network.load_state_dict(state)
    return list(fresh)


def _other_rows(tensor: Tensor, rows: ClassRows) -> list[int]:
    """Return the rows of a tensor that no class uses."""
    taken = {place for places in rows.values() for place in places}
    return [row for row in range(len(tensor)) if row not in taken]


def _suggest_model(entry: ModelInfo, given: Weights) -> str:
    """Return a hint which other model the tensors fit best, or an empty string."""
    shares = {
        other.name: _shared_fraction(other, given) for other in REGISTRY if other is not entry
    }
    likely = max(shares, key=shares.__getitem__)
    return f"; it looks like {likely}" if shares[likely] > 0.5 else ""


def _shared_fraction(entry: ModelInfo, given: Weights) -> float:
    """Return the fraction of tensors that a model and a file have in common."""
    family = _family(entry)
    network = _build_on_meta(family, entry.name)
    try:
        state = family.convert_state_dict(network, dict(given.state))
    except WeightsError:
        return 0.0
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in state.items()}
    return len(own.items() & theirs.items()) / len(own.keys() | theirs.keys())
