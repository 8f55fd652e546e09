"""Weights files, read without running anything that is in them.

A file is judged by its content, not by its name: safetensors, what ``torch.save`` wrote, or a
pickle of numpy arrays. Sizes are checked before memory is taken for them, values before they are
used. What a file lacks or has too much is said in one line.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from streamseg.config.class_names import check_class_names
from streamseg.errors import WeightsError
from streamseg.models.categories import Categories
from streamseg.models.weights import torch_file
from streamseg.models.weights.pickle_data import Unknown
from streamseg.models.weights.state_dicts import find_state_dict, plain_names
from streamseg.models.weights.stored_tensors import Budget, StoredTensor
from streamseg.models.weights.zoo_pickle import read_zoo_pickle

MAX_BYTES = 4 << 30
"""Larger weights files are refused."""

_CHECKPOINT = "streamseg checkpoint 1"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_NUMBERS = frozenset(
    (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
    )
)
"""Types of tensors that a state dict may have."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a weights file holds.

    Attributes:
        state: the tensors, by name.
        model: the catalogue's name of the model, where this project wrote the file.
        categories: what the model knows, likewise.
        training: the rest of a checkpoint, for training to go on from it.
    """

    state: Mapping[str, Tensor]
    model: str | None = None
    categories: Categories | None = None
    training: Mapping[str, Any] | None = None


def read(path: Path) -> Weights:
    """Return what is in a weights file.

    Args:
        path: safetensors, a checkpoint of this project, or a state dict saved by torch or, with
            numpy arrays, by detectron2's model zoo. It may be bare or in a training's checkpoint
            (under ``model``, ``state_dict`` or ``model_state_dict``), beside anything else.

    Raises:
        WeightsError: the file is missing, damaged, too large or no weights file, says that it
            holds more than it does, or its state dict holds anything else than finite tensors.
    """
    start = _start(path)
    try:
        if start.startswith(_ZIP):
            _check_zip(path)
            weights = _described(path, torch_file.read_zip(path))
        elif start[8:9] == b"{":  # whatever the eight bytes before it, which are a length
            weights = _read_safetensors(path)
        elif start.startswith(torch_file.LEGACY_MAGIC):
            weights = _described(path, torch_file.read_legacy(path))
        elif start.startswith(_PICKLE):
            weights = _described(path, read_zoo_pickle(path))
        else:
            raise WeightsError(
                f"{path}: is no weights file; expected is safetensors or a file made by torch.save"
            )
    except torch_file.ForeignArchiveError as error:
        raise WeightsError(f"{path}: {error}") from None
    except OverflowError:
        raise WeightsError(f"{path}: says that it holds more than it can; refused") from None
    except (
        *(ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error, OSError),
        *(MemoryError, RecursionError, zipfile.BadZipFile, NotImplementedError),
        DeprecationWarning,  # of backslashes in names, where warnings are errors
    ):
        raise WeightsError(f"{path}: is cut off, damaged or no weights file") from None
    _check_values(path, weights.state)
    return weights


def to_safetensors(weights: Weights) -> bytes:
    """A safetensors file of the tensors, with the model's name and categories in its header."""
    header = {"model": weights.model or ""} | _written(weights.categories)
    return _with_sorted_header(
        save({name: t.contiguous() for name, t in weights.state.items()}, header)
    )


def _with_sorted_header(data: bytes) -> bytes:
    """The same file with the metadata in one order: the library's differs from run to run."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[end:]


def to_checkpoint(weights: Weights) -> dict[str, Any]:
    """What ``torch.save`` is given: tensors, numbers and strings, which load as nothing else."""
    return {
        "format": _CHECKPOINT,
        "name": weights.model,
        "model": dict(weights.state),
        "training": weights.training,
    } | _written(weights.categories)


def differences(network: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """What keeps ``state`` from fitting ``network``, in one line, or None if it fits."""
    expected = network.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} is {_shape_of(state[name])} instead of {_shape_of(tensor)}"
        for name, tensor in expected.items()
        if name in state and _shape_of(state[name]) != _shape_of(tensor)
    ]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return "; ".join(_some(what, names) for what, names in parts.items() if names) or None


def _start(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
    except ValueError:
        raise WeightsError(f"weights: {str(path)[:80]!r} can't be a path") from None
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such weights file") from None
    except IsADirectoryError:
        raise WeightsError(f"{path}: is a folder, not a weights file") from None
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror}") from None
    if size == 0:
        raise WeightsError(f"{path}: is empty")
    if size > MAX_BYTES:
        raise WeightsError(f"{path}: is {size} bytes large, over the limit of {MAX_BYTES}")
    return start


def _check_zip(path: Path) -> None:
    """Refuse archives whose members are larger unpacked: torch.save never compresses."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        raise WeightsError(f"{path}: is cut off or damaged; get it again") from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError(f"{path}: is compressed, which torch.save never does; refused")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path}: says that it holds more than it can; refused")


def _described(path: Path, content: Any) -> Weights:
    """Read the tensors of what a pickle describes, as far as they are needed."""
    budget = Budget(path.stat().st_size)
    stored = find_state_dict(path, content)
    state = {name: budget.read(tensor) for name, tensor in stored.items()}
    if not isinstance(content, dict) or content.get("format") != _CHECKPOINT:
        return Weights(state)
    weights = _described_by(path, state, content.get("name"), content)
    training = content.get("training")
    filled = _filled(training, budget, {}) if isinstance(training, dict) else None
    return replace(weights, training=filled)


def _filled(value: Any, budget: Budget, known: dict[int, Any]) -> Any:
    """Return ``value`` with its tensors read; what it has several times is filled once."""
    if id(value) in known:
        return known[id(value)]
    filled = value
    if isinstance(value, StoredTensor):
        filled = budget.read(value)
    elif isinstance(value, dict):
        filled = known[id(value)] = {}
        filled.update({key: _filled(each, budget, known) for key, each in value.items()})
    elif isinstance(value, list | tuple):
        filled = type(value)(_filled(each, budget, known) for each in value)
    elif isinstance(value, Unknown):
        raise TypeError("training states hold no other objects")
    known[id(value)] = filled
    return filled


def _described_by(
    path: Path, state: Mapping[str, Tensor], model: object, written: Mapping[str, Any]
) -> Weights:
    """The tensors with what the file says of the model, which came as text."""
    try:
        things, stuff = (_names(written.get(kind, "{}")) for kind in ("categories", "stuff"))
    except (ValueError, AttributeError):
        raise WeightsError(f"{path}: its list of categories is damaged") from None
    known = Categories(things, stuff) if things or stuff else None
    return Weights(state, str(model) if model else None, known)


def _written(categories: Categories | None) -> dict[str, str]:
    """The things as ``categories``, and ``stuff`` where there is any."""
    known = categories or Categories({})
    things = {"categories": json.dumps({str(n): name for n, name in known.things.items()})}
    stuff = json.dumps({str(n): name for n, name in known.stuff.items()})
    return things | ({"stuff": stuff} if known.stuff else {})


def _names(written: object) -> dict[int, str]:
    names = {int(number): str(name) for number, name in json.loads(str(written)).items()}
    if names:
        check_class_names(names)
    return names


def _read_safetensors(path: Path) -> Weights:
    try:
        state: dict[str, Tensor] = load_file(path)
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: is cut off or damaged: {reason}") from None
    if not state:
        raise WeightsError(f"{path}: holds no tensors")
    state = plain_names(path, state)
    if "categories" not in header:
        return Weights(state)
    return _described_by(path, state, header.get("model"), header)


def _check_values(path: Path, state: Mapping[str, Tensor]) -> None:
    once = {id(tensor): (name, tensor) for name, tensor in state.items()}  # weights may be shared
    for name, tensor in once.values():
        if tensor.dtype not in _NUMBERS:
            raise WeightsError(f"{path}: {name} is of {tensor.dtype}, which no model here has")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path}: {name} holds a value that isn't finite; refused")


def _shape_of(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return f"{tuple(tensor.shape)}{kind}"


def _some(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} {what} ({shown}{', …' if len(names) > 3 else ''})"
