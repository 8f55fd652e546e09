"""Making a model of the catalogue: ``load_model`` to predict, ``start_model`` to be trained.

Torch is imported when a model is made, so that the catalogue can be printed quickly.
"""

from __future__ import annotations

import difflib
import logging
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from streamseg.config import ModelConfig, Thresholds
from streamseg.errors import UsageError, WeightsError
from streamseg.models.catalogue import CATALOGUE, Entry, Family, find

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from streamseg.models.base import ClassRows, Precision, Segmenter
    from streamseg.models.categories import Categories
    from streamseg.models.checkpoints import Weights

log = logging.getLogger(__name__)

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


def load_model(
    name: str,
    weights: str | Path = "default",
    *,
    device: str = "auto",
    input_size: int | None = None,
    precision: Precision = "fp32",
    **thresholds: Any,
) -> Segmenter:
    """Make a model of the catalogue, ready to predict.

    Args:
        name: see ``streamseg models``.
        weights: ``default`` (the catalogue's), a path, or ``none`` (random, from a fixed seed).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        input_size: pixels; which side they mean is the family's. None is the model's own.
        precision: ``fp32``, or ``bf16``/``fp16`` autocast, which changes results slightly. bf16 is
            for CPUs and GPUs that have it; fp16 is for GPUs, and many times slower on a CPU.
        **thresholds: the fields of :class:`streamseg.config.Thresholds`, such as ``score=0.5``.

    Raises:
        UnknownModelError: no model of that name.
        UsageError: an argument is wrong, or names a class that the model doesn't know.
        WeightsError: the weights can't be had, are damaged or of another architecture.
    """
    entry = find(name)
    options = {"device": device, "precision": precision, "input_size": input_size}
    _check(ModelConfig, options)
    selected = _check(Thresholds, thresholds)
    place = _device(device)
    family = _family(entry)
    given = _weights(entry, family, weights)
    categories = (given and given.categories) or family.trained_on
    network = _build(entry, family, categories)
    if given is not None:
        _load_into(network, entry, family, given, str(weights))
    return family(
        name,
        network,
        categories,
        input_size=input_size or entry.default_size,
        device=place,
        precision=precision,
        thresholds=selected,
    )


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
    if given is not None:
        known = given.categories or family.trained_on
        source = _build(entry, family, known)
        _load_into(source, entry, family, given, config.weights)
        family.adopt(network, dict(given.state))  # for what the file implies beside its tensors
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


def _check(schema: type[Any], values: dict[str, Any]) -> Any:
    """``values`` as ``schema``; unknown names and impossible values are errors."""
    for key in values:
        if key not in schema.__struct_fields__:
            near = difflib.get_close_matches(key, schema.__struct_fields__, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {schema.__struct_fields__}"
            raise UsageError(f"load_model takes no {key!r}; {hint}")
    try:
        return msgspec.convert(values, schema)
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


def _family(entry: Entry) -> type[Segmenter]:
    module, name = _FAMILIES[entry.family]
    family: type[Segmenter] = getattr(import_module(f"streamseg.models.{module}"), name)
    return family


def _build(entry: Entry, family: type[Segmenter], categories: Categories) -> nn.Module:
    """The network of an entry with random weights, always the same ones."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return family.build(entry.name, categories)


def _weights(entry: Entry, family: type[Segmenter], weights: str | Path) -> Weights | None:
    """What is to be loaded, if anything is."""
    from streamseg.models import checkpoints

    if weights == "none":
        return None
    if weights != "default":
        return checkpoints.read(Path(weights))
    state = family.published(entry.name)
    if state is None:
        raise WeightsError(
            f"{entry.name}: its weights aren't downloaded by themselves: get "
            f"{entry.published[0].file} from {entry.published[0].url} and give its path as weights"
        )
    return checkpoints.Weights(state)


def _load_into(
    network: nn.Module, entry: Entry, family: type[Segmenter], given: Weights, where: str
) -> None:
    from streamseg.models import checkpoints

    adopted = family.adopt(network, dict(given.state))
    if wrong := checkpoints.differences(network, adopted):
        raise WeightsError(
            f"{where}: doesn't fit {entry.name}: {wrong}{_resemblance(entry, given)}"
        )
    network.load_state_dict(adopted)
    if restriction := family.restriction(given.state):
        _warn(f"{entry.name}: {restriction}")


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


def _resemblance(entry: Entry, given: Weights) -> str:
    """Which other model a file's tensors would fit best, if they would fit it well."""
    shares = {other.name: _share(other, given) for other in CATALOGUE if other is not entry}
    likely = max(shares, key=shares.__getitem__)
    return f"; it looks like {likely}" if shares[likely] > 0.5 else ""


def _share(entry: Entry, given: Weights) -> float:
    """Of the tensors of a model and of a file, those that they have in common."""
    import torch

    family = _family(entry)
    with torch.device("meta"):
        network = family.build(entry.name, family.trained_on)
    try:
        adopted = family.adopt(network, dict(given.state))
    except WeightsError:
        return 0.0
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in adopted.items()}
    return len(own.items() & theirs.items()) / len(own.keys() | theirs.keys())
