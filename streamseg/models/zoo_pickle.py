"""Pickles of numpy arrays, as detectron2's model zoo has them, read without running any of them.

A pickle is a program: it names functions and calls them. Here every name but those that arrays need
is refused, and what stands for these is in this file: it holds what it is given until the numbers
are taken out.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

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
    """The dict under ``model``, or the whole one where there is none, with its arrays as tensors.

    Dicts further in are left alone: they may hold themselves, or each other many times over.

    Raises:
        WeightsError: it is damaged, or holds more than dicts, text, numbers and arrays.
    """
    try:
        with path.open("rb") as file:
            _check_memo(file)
            file.seek(0)
            content = _Unpickler(file, encoding="latin1").load()
    except _ForbiddenError as error:
        raise WeightsError(
            f"{path}: holds more than tensors, which could run code ({error}); refused"
        ) from None
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
    state = content["model"] if isinstance(content.get("model"), Mapping) else content
    return {
        name: value.tensor if isinstance(value, _Array) else value for name, value in state.items()
    }


def _check_memo(file: BinaryIO) -> None:
    """Refuse a program that numbers what it remembers higher than it has steps.

    Memory is taken for all numbers up to the highest, before anything is remembered under them.
    """
    for steps, (step, number, _) in enumerate(pickletools.genops(file)):
        remembers = step.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if remembers and isinstance(number, int) and number > steps:
            raise pickle.UnpicklingError("more is remembered than made")


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
            make = _ALLOWED[module, name]
        except KeyError:
            raise _ForbiddenError(repr(f"{module}.{name}"[:80])) from None

        def own(*given: Any) -> Any:  # anew, for a pickle may set attributes of what it names
            return make(*given)

        return own

    def persistent_load(self, pid: Any) -> Any:
        del pid  # anything at all
        raise _ForbiddenError("an object of another file")
