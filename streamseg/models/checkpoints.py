"""Weights files, read without running anything that is in them.

A file is judged by its content, not by its name: safetensors, or what ``torch.save`` wrote, read
with ``weights_only=True``. Sizes are checked before memory is taken for them, values before they
are used. What a file lacks or has too much is said in one line.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from streamseg.errors import WeightsError

MAX_BYTES = 4 << 30
"""Larger weights files are refused."""

_WRAPPERS = ("model", "state_dict")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80\x02"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors in a weights file, by name.

    Args:
        path: safetensors, or a state dict saved by torch, bare or under ``model`` or
            ``state_dict``.

    Raises:
        WeightsError: the file is missing, damaged, too large or no weights file, or holds a value
            that isn't finite or anything else than tensors.
    """
    start = _start(path)
    if start.startswith(_ZIP):
        _check_zip(path)
        state = _read_torch(path)
    elif start.startswith(_PICKLE):
        state = _read_torch(path)
    elif start[8:9] == b"{":
        state = _read_safetensors(path)
    else:
        raise WeightsError(
            f"{path}: is no weights file; expected is safetensors or a file made by torch.save"
        )
    _check_values(path, state)
    return state


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


def _read_torch(path: Path) -> dict[str, Tensor]:
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
    return _unwrapped(path, content)


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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is cut off or damaged: {error}") from None
    if not state:
        raise WeightsError(f"{path}: holds no tensors")
    return state


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
