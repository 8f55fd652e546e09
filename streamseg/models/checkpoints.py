"""Weights files, read without running anything that is in them.

A file is judged by its content, not by its name: safetensors, or what ``torch.save`` wrote, read
with ``weights_only=True``. Sizes are checked before memory is taken for them, values before they
are used. What a file lacks or has too much is said in one line.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from streamseg.errors import WeightsError
from streamseg.models.categories import Categories
from streamseg.models.zoo_pickle import is_plain_pickle, read_zoo_pickle

MAX_BYTES = 4 << 30
"""Larger weights files are refused."""

_CHECKPOINT = "streamseg checkpoint 1"
_WRAPPERS = ("model", "state_dict")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80\x02"


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
    """What is in a weights file.

    Args:
        path: safetensors, a checkpoint of this project, or a state dict saved by torch or, with
            numpy arrays, by detectron2's model zoo, bare or under ``model`` or ``state_dict``.

    Raises:
        WeightsError: the file is missing, damaged, too large or no weights file, or holds a value
            that isn't finite or anything else than tensors.
    """
    start = _start(path)
    if start.startswith(_ZIP):
        _check_zip(path)
        weights = _read_torch(path)
    elif start[8:9] == b"{":  # whatever the eight bytes before it, which are a length
        weights = _read_safetensors(path)
    elif is_plain_pickle(start):
        weights = Weights(_unwrapped(path, read_zoo_pickle(path)))
    elif start.startswith(_PICKLE):
        weights = _read_torch(path)
    else:
        raise WeightsError(
            f"{path}: is no weights file; expected is safetensors or a file made by torch.save"
        )
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
        f"{name} is {_described(state[name])} instead of {_described(tensor)}"
        for name, tensor in expected.items()
        if name in state and _described(state[name]) != _described(tensor)
    ]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return "; ".join(_some(what, names) for what, names in parts.items() if names) or None


def _start(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
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


def _read_torch(path: Path) -> Weights:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise WeightsError(
                f"{path}: holds more than tensors, which could run code; refused: save the "
                "state dict alone"
            ) from None
        raise WeightsError(f"{path}: is cut off, damaged or no weights file") from None
    except (RuntimeError, EOFError, KeyError, ValueError, OSError, IndexError, TypeError):
        raise WeightsError(f"{path}: is cut off, damaged or no weights file") from None
    state = _unwrapped(path, content)
    if not isinstance(content, Mapping) or content.get("format") != _CHECKPOINT:
        return Weights(state)
    described = _described_by(path, state, content.get("name"), content)
    training = content.get("training")
    return replace(described, training=training if isinstance(training, Mapping) else None)


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
    return {int(number): str(name) for number, name in json.loads(str(written)).items()}


def _unwrapped(path: Path, content: Any) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: holds no state dict but a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {name!r} is no tensor but a {type(value).__name__}")
    return dict(content)


def _read_safetensors(path: Path) -> Weights:
    try:
        state: dict[str, Tensor] = load_file(path)
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is cut off or damaged: {error}") from None
    if not state:
        raise WeightsError(f"{path}: holds no tensors")
    if "categories" not in header:
        return Weights(state)
    return _described_by(path, state, header.get("model"), header)


def _check_values(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path}: {name} holds a value that isn't finite; refused")


def _described(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return f"{tuple(tensor.shape)}{kind}"


def _some(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} {what} ({shown}{', …' if len(names) > 3 else ''})"
