"""Pickles of numpy arrays, as detectron2's model zoo has them, read without running any of them.

A pickle is a program: it names functions and calls them. Here every name but those that arrays need
is refused, and what stands for these is in this file: it holds what it is given until the numbers
are taken out.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamseg.errors import WeightsError

_NUMBERS = re.compile(r"f[248]|[iu][1248]|b1")
"""Types of numbers that become tensors."""

_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number that torch's older files begin with."""


def is_plain_pickle(start: bytes) -> bool:
    """Whether a file that begins so is a pickle, and not one that ``torch.save`` wrote."""
    return start[:1] == b"\x80" and not start.startswith(_TORCH)


def read_zoo_pickle(path: Path) -> dict[str, Any]:
    """A dict with its arrays as tensors.

    Raises:
        WeightsError: it is damaged, or holds more than dicts, text, numbers and arrays.
    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except _ForbiddenError as error:
        raise WeightsError(f"{path}: names {error}, which could run code; refused") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
        UnicodeDecodeError,
    ):
        raise WeightsError(f"{path}: is cut off, damaged or no weights file") from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds no state dict but a {type(content).__name__}")
    return {str(key): _with_tensors(value) for key, value in content.items()}


class _ForbiddenError(Exception):
    """A pickle names something that isn't an array."""


class _Type:
    """A numpy dtype, as far as a pickle says it."""

    def __init__(self, name: str = "", *_rest: Any) -> None:
        self.name = name
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "<"

    def made(self) -> np.dtype[Any]:
        """The dtype itself.

        Raises:
            ValueError: it isn't one of numbers.
        """
        if not _NUMBERS.fullmatch(self.name):
            raise ValueError(f"arrays of {self.name}")
        return np.dtype(self.order + self.name)


class _Array:
    """A numpy array: what ``_reconstruct`` makes, and its state fills."""

    def __init__(self, *_kind: Any) -> None:
        self.tensor = torch.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, kind, fortran, raw = state
        self.fill(raw, kind, shape, "F" if fortran else "C")

    def fill(self, raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
        """Take the numbers; what doesn't fit together is a TypeError or ValueError."""
        if not isinstance(kind, _Type):
            raise TypeError("an array without a type")
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        values = np.frombuffer(data, kind.made()).reshape(shape, order=order)
        native = values.dtype.newbyteorder("=")
        self.tensor = torch.from_numpy(np.array(values, native, order="C"))
        return self


class _Ndarray:
    """Stands for numpy's class, which is only ever named."""


def _to_bytes(text: str, _codec: str = "latin1") -> bytes:
    """What Python 3 writes bytes as, for Python 2 to read."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """What Python 3 writes no bytes as, likewise."""
    return b""


def _from_buffer(*parts: Any) -> _Array:
    """An array as protocol 5 has it: numbers, type, shape, order."""
    return _Array().fill(*parts)


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Type,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _to_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): dict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _ForbiddenError(f"the object {pid}")


def _with_tensors(value: Any) -> Any:
    """Arrays as tensors, also inside dicts."""
    if isinstance(value, _Array):
        return value.tensor
    if isinstance(value, dict):
        return {str(key): _with_tensors(own) for key, own in value.items()}
    if isinstance(value, _Type | _Ndarray):
        return str(value)
    return value
