"""Numpy arrays in pickles: the format of detectron2's model zoo; also used in torch files."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamseg.models.weights.pickle_data import (
    DICTS,
    Built,
    Constructor,
    Name,
    Unknown,
    read_pickle,
)
from streamseg.models.weights.stored_tensors import StoredTensor, validate_shape

_NUMBERS = re.compile(r"f[248]|[iu][1248]|b1")
"""Types of arrays that become tensors."""


def read_zoo_pickle(path: Path) -> Any:
    """Return the content of a pickle, with its arrays as stored tensors.

    Raises:
        ValueError, TypeError, IndexError, KeyError: see :func:`read_pickle`.
    """
    with path.open("rb") as file:
        return read_pickle(file, ARRAYS, lambda _id: Unknown("an object of another file"))


class _Type(Built):
    """A numpy dtype in a pickle."""

    def __init__(self, name: Any = "", *_rest: Any) -> None:
        self.name = name if isinstance(name, str) else ""
        self.order = "<"

    def build(self, state: Any) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "<"

    def dtype(self) -> np.dtype[Any]:
        """Return the dtype; raises ValueError if it isn't numeric."""
        if not _NUMBERS.fullmatch(self.name):
            raise ValueError("an array of another type than numbers")
        return np.dtype(self.order + self.name)


class _Array(Built, StoredTensor):
    """A numpy array, created by ``_reconstruct`` and filled by its state."""

    def __init__(self, *_kind: Any) -> None:
        self._raw: Any = b""
        self._type: Any = _Type("f4")
        self._shape: Any = (0,)
        self._order: Any = "C"

    def build(self, state: Any) -> None:
        _version, self._shape, self._type, fortran, self._raw = state
        self._order = "F" if fortran else "C"

    @classmethod
    def from_buffer(cls, raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
        """Return an array of pickle protocol 5."""
        array = cls()
        array._raw, array._type, array._shape, array._order = raw, kind, shape, order
        return array

    @property
    def identity(self) -> Hashable:
        return id(self)

    @property
    def nbytes(self) -> int:
        shape = validate_shape(self._shape)
        if not isinstance(self._type, _Type) or not isinstance(self._raw, str | bytes | bytearray):
            raise TypeError("an array without a type or data")
        nbytes = math.prod(shape) * self._type.dtype().itemsize
        if nbytes != len(self._raw) or self._order not in ("C", "F"):
            raise ValueError("an array of another size than its data")
        return nbytes

    def read(self) -> Tensor:
        data = self._raw.encode("latin1") if isinstance(self._raw, str) else self._raw
        values = np.frombuffer(data, self._type.dtype()).reshape(self._shape, order=self._order)
        native = values.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(values, native, order="C"))


def _bytes_from_text(text: Any = b"", *_codec: Any) -> Any:
    """Return bytes that Python 3 wrote as text for Python 2; they are encoded when read."""
    return text


ARRAYS: dict[Name, Any] = {
    **DICTS,
    ("numpy.core.multiarray", "_reconstruct"): Constructor(_Array),
    ("numpy._core.multiarray", "_reconstruct"): Constructor(_Array),
    ("numpy", "dtype"): Constructor(_Type),
    ("numpy.core.numeric", "_frombuffer"): Constructor(_Array.from_buffer),
    ("numpy._core.numeric", "_frombuffer"): Constructor(_Array.from_buffer),
    ("_codecs", "encode"): Constructor(_bytes_from_text),
    ("__builtin__", "bytes"): Constructor(_bytes_from_text),
}
"""Replacements of the names in pickles of arrays."""
