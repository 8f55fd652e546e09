"""Reading and writing of weights files; no code in a file is executed.

The format is detected by content: safetensors, ``torch.save``, or a pickle of numpy arrays. Sizes
are checked before memory is allocated, and values before they are used. Missing and unexpected
tensors are reported in one line.
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
"""Allowed types of tensors."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Content of a weights file.

    Attributes:
        state: tensors by name.
        model: name of the model, if the file was written by this project.
        categories: categories of the model, if the file was written by this project.
        training: state of the training in a checkpoint.
    """

    state: Mapping[str, Tensor]
    model: str | None = None
    categories: Categories | None = None
    training: Mapping[str, Any] | None = None


def read(path: Path) -> Weights:
    """Read a weights file.

    Args:
        path: safetensors, a checkpoint of this project, or a state dict saved by torch or, with
            numpy arrays, by detectron2's model zoo. The state dict may be part of a training
            checkpoint (under ``model``, ``state_dict`` or ``model_state_dict``).

    Raises:
        WeightsError: the file is missing, damaged, too large or no weights file, claims more data
            than it contains, or has anything but finite tensors in its state dict.
    """
    start = _start(path)
    try:
        if start.startswith(_ZIP):
            _check_zip(path)
            weights = _read_tensors(path, torch_file.read_zip(path))
        elif start[8:9] == b"{":  # after the eight bytes of the length
            weights = _read_safetensors(path)
        elif start.startswith(torch_file.LEGACY_MAGIC):
            weights = _read_tensors(path, torch_file.read_legacy(path))
        elif start.startswith(_PICKLE):
            weights = _read_tensors(path, read_zoo_pickle(path))
        else:
            raise WeightsError(
                f"{path}: is no weights file; expected safetensors or a file of torch.save"
            )
    except torch_file.ForeignArchiveError as error:
        raise WeightsError(f"{path}: {error}") from None
    except OverflowError:
        raise WeightsError(f"{path}: claims more data than it contains; refused") from None
    except (
        *(ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error, OSError),
        *(MemoryError, RecursionError, zipfile.BadZipFile, NotImplementedError),
        DeprecationWarning,  # of backslashes in names, where warnings are errors
    ):
        raise WeightsError(f"{path}: is cut off, damaged or no weights file") from None
    _check_values(path, weights.state)
    return weights


def to_safetensors(weights: Weights) -> bytes:
    """Return a safetensors file with the model name and categories in its header."""
    header = {"model": weights.model or ""} | _encode_categories(weights.categories)
    return _with_sorted_header(
        save({name: t.contiguous() for name, t in weights.state.items()}, header)
    )


def _with_sorted_header(data: bytes) -> bytes:
    """Sort the metadata, whose order differs from run to run."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[end:]


def to_checkpoint(weights: Weights) -> dict[str, Any]:
    """Return the content of a checkpoint for ``torch.save``: tensors, numbers and strings."""
    return {
        "format": _CHECKPOINT,
        "name": weights.model,
        "model": dict(weights.state),
        "training": weights.training,
    } | _encode_categories(weights.categories)


def differences(network: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Return the differences of a state dict to a network in one line, or None."""
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
        raise WeightsError(f"weights: {str(path)[:80]!r} is no valid path") from None
    except FileNotFoundError:
        raise WeightsError(f"{path}: the weights file doesn't exist") from None
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
    """Refuse compressed archives: torch.save never compresses."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        raise WeightsError(f"{path}: is cut off or damaged; get it again") from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError(f"{path}: is compressed, which torch.save never does; refused")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path}: claims more data than it contains; refused")


def _read_tensors(path: Path, content: Any) -> Weights:
    """Read the tensors of the state dict that a pickle describes."""
    budget = Budget(path.stat().st_size)
    stored = find_state_dict(path, content)
    state = {name: budget.read(tensor) for name, tensor in stored.items()}
    if not isinstance(content, dict) or content.get("format") != _CHECKPOINT:
        return Weights(state)
    weights = _with_categories(path, state, content.get("name"), content)
    training = content.get("training")
    filled = _load_values(training, budget, {}) if isinstance(training, dict) else None
    return replace(weights, training=filled)


def _load_values(value: Any, budget: Budget, known: dict[int, Any]) -> Any:
    """Return ``value`` with its tensors read; shared objects are read once."""
    if id(value) in known:
        return known[id(value)]
    filled = value
    if isinstance(value, StoredTensor):
        filled = budget.read(value)
    elif isinstance(value, dict):
        filled = known[id(value)] = {}
        filled.update({key: _load_values(each, budget, known) for key, each in value.items()})
    elif isinstance(value, list | tuple):
        filled = type(value)(_load_values(each, budget, known) for each in value)
    elif isinstance(value, Unknown):
        raise TypeError("a training state contains another object")
    known[id(value)] = filled
    return filled


def _with_categories(
    path: Path, state: Mapping[str, Tensor], model: object, written: Mapping[str, Any]
) -> Weights:
    """Return the tensors with the model name and categories in the file."""
    try:
        things, stuff = (_names(written.get(kind, "{}")) for kind in ("categories", "stuff"))
    except (ValueError, AttributeError):
        raise WeightsError(f"{path}: its list of categories is damaged") from None
    known = Categories(things, stuff) if things or stuff else None
    return Weights(state, str(model) if model else None, known)


def _encode_categories(categories: Categories | None) -> dict[str, str]:
    """Encode the things as ``categories`` and, if there are any, ``stuff``."""
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
        raise WeightsError(f"{path}: contains no tensors")
    state = plain_names(path, state)
    if "categories" not in header:
        return Weights(state)
    return _with_categories(path, state, header.get("model"), header)


def _check_values(path: Path, state: Mapping[str, Tensor]) -> None:
    once = {id(tensor): (name, tensor) for name, tensor in state.items()}  # tensors may be shared
    for name, tensor in once.values():
        if tensor.dtype not in _NUMBERS:
            raise WeightsError(f"{path}: {name} has the unsupported type {tensor.dtype}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path}: {name} contains a value that isn't finite; refused")


def _shape_of(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return f"{tuple(tensor.shape)}{kind}"


def _some(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} {what} ({shown}{', …' if len(names) > 3 else ''})"
