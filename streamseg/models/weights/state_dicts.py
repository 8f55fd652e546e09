"""Location of the state dict in a checkpoint, and removal of prefixes of wrapper modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from streamseg.errors import WeightsError
from streamseg.models.weights.pickle_data import Unknown
from streamseg.models.weights.stored_tensors import StoredTensor

_WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Keys of the state dict in checkpoints, in order of precedence."""
_MAX_DEPTH = 4
MAX_TENSORS = 10_000
"""Maximum number of tensors; the largest built-in model has fewer than a thousand."""
_WRAPPING_MODULES = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")
"""Prefixes added by ``DataParallel``, ``DistributedDataParallel``, averaging and ``compile``."""
_AVERAGING = re.compile(r"n_averaged|ema_[^.]+")
"""The counter of ``AveragedModel``, and the copies of mmdetection's EMA."""

ValueT = TypeVar("ValueT")


def find_state_dict(path: Path, content: Any) -> dict[str, StoredTensor]:
    """Return the state dict in the content of a file, without prefixes.

    It is the content itself, the value of one of the usual keys, or the only value that is a state
    dict.

    Raises:
        WeightsError: there is none or more than one, or it contains anything but tensors.
    """
    for _ in range(_MAX_DEPTH):
        if not isinstance(content, dict):
            break
        usual = (key for key in _WRAPPERS if isinstance(content.get(key), dict | Unknown))
        key = next(usual, None)
        if key is None and not _is_state_dict(content):
            key = _only_state_dict(path, content)
        if key is None:
            break
        content = content[key]
    if isinstance(content, Unknown):
        raise WeightsError(
            f"{path}: contains more than tensors, which could execute code "
            f"({_short(content.name)}); refused: save the state dict alone (model.state_dict())"
        )
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path}: contains no state dict but a {_kind(content)}")
    for name, value in content.items():
        if isinstance(value, Unknown):
            raise WeightsError(
                f"{path}: {_short(name)} is no plain tensor but an object of "
                f"{_short(value.name)}; refused"
            )
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise WeightsError(f"{path}: {_short(name)} is no tensor but a {_kind(value)}")
    return plain_names(path, content)


def plain_names(path: Path, state: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Return the state dict without the prefixes of wrapper modules.

    Raises:
        WeightsError: two tensors would get the same name, or there are more than ``MAX_TENSORS``.
    """
    if len(state) > MAX_TENSORS:
        raise WeightsError(f"{path}: has {len(state)} tensors, over the limit of {MAX_TENSORS}")
    plain: dict[str, ValueT] = {}
    for name, value in state.items():
        if _AVERAGING.fullmatch(name):
            continue
        own = _WRAPPING_MODULES.sub("", name)
        if own in plain:
            raise WeightsError(f"{path}: contains {_short(own)} twice, with and without a prefix")
        plain[own] = value
    if plain and all(name.startswith("model.") for name in plain):  # Lightning's modules
        return {name.removeprefix("model."): value for name, value in plain.items()}
    return plain


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, StoredTensor) for v in value.values())


def _only_state_dict(path: Path, content: Mapping[Any, Any]) -> Any:
    keys = [key for key, value in content.items() if _is_state_dict(value)]
    if len(keys) > 1:
        named = ", ".join(_short(key) for key in keys[:5])
        raise WeightsError(f"{path}: has several state dicts ({named}): save only the one to load")
    return keys[0] if keys else None


def _short(name: object) -> str:
    """Return a name for a message: quoted, at most 80 characters."""
    if isinstance(name, str):
        return repr(name if len(name) <= 80 else name[:79] + "…")
    return f"a key that is a {type(name).__name__}"


def _kind(value: object) -> str:
    return "Tensor" if isinstance(value, StoredTensor) else type(value).__name__
