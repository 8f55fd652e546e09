"""Making a model of the catalogue: ``load_model`` to predict, ``start_model`` to be trained.

Torch is imported when a model is made, so that the catalogue can be printed quickly.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from streamseg.config import ModelConfig, Thresholds
from streamseg.config.class_names import ClassNames, numbered_names
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
"""The module and the class of each family, imported when one of its models is made."""


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
    """Make a model of the catalogue, ready to predict.

    It is pickled by these arguments: a process that gets it loads the same file again, and refuses
    another one.

    Args:
        name: see ``streamseg models``.
        weights: ``default`` (the catalogue's), a path, or ``none`` (random, from a fixed seed).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        input_size: pixels; which side they mean is the family's. None is the model's own.
        precision: ``fp32``, or ``bf16``/``fp16`` autocast, which changes results slightly. bf16 is
            for CPUs and GPUs that have it; fp16 is for GPUs, and many times slower on a CPU.
        class_names: what the weights were trained on: a list (ids from 1, in the order of the
            model's outputs) or a mapping of category id to name (ascending ids, in that order);
            for panoptic models things first. None takes the names that the file has, or COCO's
            where it has as many classes, or else ``class_1``, ``class_2``, …, with a warning.
        **thresholds: the fields of :class:`streamseg.config.Thresholds`, such as ``score=0.5``.

    Raises:
        UnknownModelError: no model of that name.
        UsageError: an argument is wrong, or names a class that the model doesn't know.
        WeightsError: the weights can't be had, are damaged or of another architecture.
    """
    from streamseg.models.forking import adapt_to_fork
    from streamseg.models.weights.origin import Origin, Stamp, network_state

    if not isinstance(name, str):
        raise ArgumentError(f"load_model: name must be a text, not {type(name).__name__}")
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
    """A model to be trained for ``categories``, and what of it begins with random weights.

    Where the weights are those of a model of other categories, a class takes over what they have
    for the class of its name.

    Raises:
        WeightsError, UnknownModelError, UsageError: as :func:`load_model`.
    """
    entry = find(config.name)
    family = _family(entry)
    network = _build(entry, family, categories)
    given = _weights(entry, family, config.weights)
    fresh: list[str] = ["everything"]
    if given is None and config.class_names is not None:
        raise UsageError("class_names are those of weights, and weights is none")
    if given is not None:
        known = known_categories(entry, family, given, config.class_names, config.weights)
        source = _loaded(entry, family, given, known, config.weights)
        family.convert_state_dict(
            network, dict(given.state)
        )  # for what the file implies beside its tensors
        fresh = _take_over(network, source, family, categories, known)
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
    """Whether models of that name divide pictures into things and stuff.

    Raises:
        UnknownModelError: no model of that name.
    """
    return bool(_family(find(name)).trained_on.stuff)


def _plain(names: ClassNames | None) -> Any:
    """``class_names`` as a dict or list where it can be meant as one."""
    if isinstance(names, Mapping):
        return dict(names)
    return list(names) if isinstance(names, Iterable) and not isinstance(names, str) else names


def _check(schema: type[Any], values: dict[str, Any]) -> Any:
    """``values`` as ``schema``; unknown names and impossible values are errors."""
    for key in values:
        if key not in schema.__struct_fields__:
            near = difflib.get_close_matches(key, schema.__struct_fields__, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {schema.__struct_fields__}"
            raise UsageError(f"load_model takes no {key!r}; {hint}")
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
    """Return what a model with these weights knows.

    Args:
        entry: the model's.
        family: its class.
        given: the weights, None for random ones.
        class_names: checked names, None where the user gave none.
        where: the weights, for messages.

    Raises:
        UsageError: the number of names isn't that of the classes.
    """
    from streamseg.models.base import ClassCounts

    own = (given and given.categories) or family.trained_on
    counts = family.class_counts(own)
    if given is not None and given.categories is None:
        counts = _counted(entry, family, given) or counts
    if counts.things + counts.stuff > MAX_CLASSES:
        raise WeightsError(f"{where}: has {counts.things + counts.stuff} classes, over the limit")
    if class_names is not None:
        if given is None:
            counts = ClassCounts(len(class_names))
        return _named(family, class_names, counts, where)
    if counts == family.class_counts(own):
        return own
    return _named(family, numbered_names(counts.things + counts.stuff), counts, where)


def _counted(entry: ModelInfo, family: type[Segmenter], given: Weights) -> ClassCounts | None:
    """How many classes a file of other authors is for."""
    import torch

    with torch.device("meta"):
        network = family.build(entry.name, family.trained_on)
    return family.count_classes(family.convert_state_dict(network, dict(given.state)))


def _named(
    family: type[Segmenter], names: ClassNames, counts: ClassCounts, where: str
) -> Categories:
    """Categories of these names: things, then stuff."""
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


def _build(entry: ModelInfo, family: type[Segmenter], categories: Categories) -> nn.Module:
    """The network of an entry with random weights, always the same ones."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return family.build(entry.name, categories)


def _weights(entry: ModelInfo, family: type[Segmenter], weights: str | Path) -> Weights | None:
    """What is to be loaded, if anything is."""
    from streamseg.models.weights import files

    if weights == "none":
        return None
    if weights != "default":
        return files.read(Path(weights))
    state = family.published(entry.name)
    if state is None:
        raise WeightsError(
            f"{entry.name}: its weights aren't downloaded by themselves: get "
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
    """The network of an entry for ``categories``, with the given weights or random ones."""
    import torch

    if given is None:
        return _build(entry, family, categories)
    if categories is not family.trained_on:
        # How large a network is asked for is the file's claim: it is checked before memory is
        # taken.
        with torch.device("meta"):
            claimed = family.build(entry.name, categories)
        _check_fit(claimed, _adopted(claimed, family, given), entry, given, where)
    network = _build(entry, family, categories)
    adopted = _adopted(network, family, given)
    _check_fit(network, adopted, entry, given, where)
    network.load_state_dict(adopted)
    names = [*categories.things.values(), *categories.stuff.values()]
    if given.categories is None and names == numbered_names(len(names)):
        _warn(
            f"{where}: its {len(names)} classes have no names and are called class_1 to "
            f"class_{len(names)}: name them with class_names=[…], --class-names A,B|FILE, or "
            "model.class_names in a config"
        )
    if license_notice := family.license_notice(given.state):
        _warn(f"{entry.name}: {license_notice}")
    return network


def _check_fit(
    network: nn.Module, adopted: State, entry: ModelInfo, given: Weights, where: str
) -> None:
    from streamseg.models.weights import files

    if wrong := files.differences(network, adopted):
        raise WeightsError(
            f"{where}: doesn't fit {entry.name}: {wrong}{_resemblance(entry, given)}"
        )


def _adopted(network: nn.Module, family: type[Segmenter], given: Weights) -> State:
    """The weights under the network's names.

    Batch counters of norms, which only training reads, are the network's own where the file has
    none.
    """
    expected = network.state_dict()
    counters = {key: expected[key] for key in expected if key.endswith(".num_batches_tracked")}
    return {**counters, **family.convert_state_dict(network, dict(given.state))}


@lru_cache
def _warn(message: str) -> None:
    """Say it once."""
    log.warning(message)


def _take_over(
    network: nn.Module,
    source: nn.Module,
    family: type[Segmenter],
    categories: Categories,
    known: Categories,
) -> list[str]:
    """Copy the weights of ``source`` into a network of other categories, class by class.

    Returns:
        The names of the classes that ``source`` doesn't know.
    """
    state = source.state_dict()
    own, theirs = family.class_rows(network, categories), family.class_rows(source, known)
    fresh: dict[str, None] = {}
    for key, rows in own.items():
        tensor = network.state_dict()[key].clone()
        tensor[_rest(tensor, rows)] = state[key][_rest(state[key], theirs[key])]
        for name, places in rows.items():
            if name in theirs[key]:
                tensor[list(places)] = state[key][list(theirs[key][name])]
            else:
                fresh[name] = None
        state[key] = tensor
    network.load_state_dict(state)
    return list(fresh)


def _rest(tensor: Tensor, rows: ClassRows) -> list[int]:
    """The rows that are no class's."""
    taken = {place for places in rows.values() for place in places}
    return [row for row in range(len(tensor)) if row not in taken]


def _resemblance(entry: ModelInfo, given: Weights) -> str:
    """Which other model a file's tensors would fit best, if they would fit it well."""
    shares = {other.name: _share(other, given) for other in REGISTRY if other is not entry}
    likely = max(shares, key=shares.__getitem__)
    return f"; it looks like {likely}" if shares[likely] > 0.5 else ""


def _share(entry: ModelInfo, given: Weights) -> float:
    """Of the tensors of a model and of a file, those that they have in common."""
    import torch

    family = _family(entry)
    with torch.device("meta"):
        network = family.build(entry.name, family.trained_on)
    try:
        adopted = family.convert_state_dict(network, dict(given.state))
    except WeightsError:
        return 0.0
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in adopted.items()}
    return len(own.items() & theirs.items()) / len(own.keys() | theirs.keys())
