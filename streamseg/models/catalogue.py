"""The models that there are, what is known of them, and ``load_model``, which makes one.

Torch is imported when a model is made, so that the list can be printed quickly.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from streamseg.config import ModelConfig, Thresholds
from streamseg.errors import UnknownModelError, UsageError, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from streamseg.models.base import Precision, Segmenter
    from streamseg.models.checkpoints import Weights

Availability = Literal["bundled", "downloaded", "yours"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a model.

    Attributes:
        name: what ``load_model`` takes.
        family: the architecture; members of one differ in size or in details.
        classes: how many, of which dataset.
        parameters: in millions.
        input_size: pixels, and which side they mean.
        default_size: the ``input_size`` that is taken where none is given.
        box_ap: COCO box AP in percent, as published, or None.
        mask_ap: COCO mask AP in percent, as published, or None.
        source: where these numbers are from.
        licence: of the default weights.
        weights: how the default weights get here.
    """

    name: str
    family: Literal["nanomask", "mask_rcnn"]
    classes: str
    parameters: float
    input_size: str
    default_size: int
    box_ap: float | None
    mask_ap: float | None
    source: str
    licence: str
    weights: Availability


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        name="nanomask",
        family="nanomask",
        classes="80 (COCO)",
        parameters=4.45,
        input_size="416, long side",
        default_size=416,
        box_ap=None,
        mask_ap=None,
        source="measured here, see the model card: streamseg/assets/nanomask.md",
        licence="Apache-2.0 (NanoDet), MIT (human-models)",
        weights="bundled",
    ),
    Entry(
        name="mask_rcnn_r50_fpn",
        family="mask_rcnn",
        classes="80 (COCO)",
        parameters=44.40,
        input_size="800, short side",
        default_size=800,
        box_ap=37.9,
        mask_ap=34.6,
        source="torchvision, MaskRCNN_ResNet50_FPN_Weights.COCO_V1, COCO val2017",
        licence="BSD-3-Clause (torchvision)",
        weights="downloaded",
    ),
    Entry(
        name="mask_rcnn_r50_fpn_v2",
        family="mask_rcnn",
        classes="80 (COCO)",
        parameters=46.36,
        input_size="800, short side",
        default_size=800,
        box_ap=47.4,
        mask_ap=41.8,
        source="torchvision, MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1, COCO val2017",
        licence="BSD-3-Clause (torchvision)",
        weights="downloaded",
    ),
)


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        UnknownModelError: there is none; near matches are listed.
    """
    names = [entry.name for entry in CATALOGUE]
    if name not in names:
        near = difflib.get_close_matches(name, names, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
        raise UnknownModelError(f"no model is called {name!r}; {hint}")
    return CATALOGUE[names.index(name)]


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
    config: ModelConfig, categories: Mapping[int, str], thresholds: Thresholds
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
    if entry.family == "nanomask":
        from streamseg.models.nanomask import NanoMask

        return NanoMask
    from streamseg.models.mask_rcnn import MaskRCNN

    return MaskRCNN


def _build(entry: Entry, family: type[Segmenter], categories: Mapping[int, str]) -> nn.Module:
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
    if weights == "default":
        return checkpoints.Weights(family.published(entry.name))
    return checkpoints.read(Path(weights))


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


def _take_over(
    network: nn.Module,
    source: nn.Module,
    family: type[Segmenter],
    categories: Mapping[int, str],
    known: Mapping[int, str],
) -> list[str]:
    """Copy the weights of ``source`` into a network of other categories, class by class.

    Returns:
        The names of the classes that ``source`` doesn't know.
    """
    state = source.state_dict()
    own, theirs = family.class_rows(categories), family.class_rows(known)
    row_of = {name: row for row, name in enumerate(known.values())}
    for key, rows in own.items():
        tensor, other = network.state_dict()[key].clone(), theirs[key]
        tensor[: rows.before] = state[key][: rows.before]
        tensor[len(tensor) - rows.after :] = state[key][len(state[key]) - rows.after :]
        for start, name in zip(rows.starts, categories.values(), strict=True):
            if name in row_of:
                of = other.starts[row_of[name]]
                tensor[start : start + rows.each] = state[key][of : of + rows.each]
        state[key] = tensor
    network.load_state_dict(state)
    return [name for name in categories.values() if name not in row_of]


def _resemblance(entry: Entry, given: Weights) -> str:
    """Which other model a file's tensors would fit best, if they would fit it well."""
    import torch

    shares = {}
    for other in CATALOGUE:
        if other is entry:
            continue
        with torch.device("meta"):
            network = _family(other).build(other.name, _family(other).trained_on)
        names = set(network.state_dict())
        adopted = _family(other).adopt(network, dict(given.state))
        shares[other.name] = len(names & set(adopted)) / len(names)
    likely = max(shares, key=shares.__getitem__)
    return f"; it looks like {likely}" if shares[likely] > 0.5 else ""
