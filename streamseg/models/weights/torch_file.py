"""Files that ``torch.save`` wrote, described without torch running anything of them.

Both formats are read: the zip archive of torch 1.6 and later, and the older sequence of pickles.
Their layout is that of torch's ``serialization.py`` and ``_utils.py``. Tensors come as
:class:`~streamseg.models.weights.stored_tensors.StoredTensor`; everything that is no tensor, dict,
list, number or text is an :class:`~streamseg.models.weights.pickle_data.Unknown`.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from streamseg.models.weights.pickle_data import Constructor, Name, Unknown, read_pickle
from streamseg.models.weights.stored_tensors import StoredTensor, checked_shape
from streamseg.models.weights.zoo_pickle import ARRAYS

_BIG_ENDIAN = "was written on a big-endian machine, which isn't supported"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number that the older format begins with."""
MAX_PROGRAM_BYTES = 64 << 20
"""Largest pickle of an archive, without its tensors' data."""

_LOCAL_HEADER = 30
"""Bytes of a zip member's header before its name and extra field."""


class ForeignArchiveError(Exception):
    """The file is an archive without a state dict that can be read; the message says what it is."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the data of a storage are in a file.

    Attributes:
        start: offset in bytes.
        nbytes: their length.
        crc: CRC-32; 0 where the writer left it out.
    """

    start: int
    nbytes: int
    crc: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """The data of all storages of a file; each is read once, when a tensor needs it.

    Attributes:
        path: of the file.
        places: where storages are, by key.
        loaded: what was read, by key.
    """

    path: Path
    places: dict[str, _Place] = field(default_factory=dict)
    loaded: dict[str, bytearray] = field(default_factory=dict)

    def __getitem__(self, key: str) -> bytearray:
        if key not in self.loaded:
            with self.path.open("rb") as file:
                self.loaded[key] = _content(file, self.places[key])
        return self.loaded[key]


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    """The elements that tensors are views of.

    Attributes:
        data: of the file.
        key: its name there.
        dtype: of its elements; None for bytes of a type that the tensor has.
        count: elements.
        offset: elements before its own first one.
    """

    data: _Data
    key: str
    dtype: torch.dtype | None
    count: int
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class _View(StoredTensor):
    """A tensor: some elements of a storage; offset, shape and stride are as the file has them."""

    storage: _Storage
    dtype: torch.dtype
    offset: Any
    shape: Any
    stride: Any

    def _layout(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """Return offset, shape and stride, checked to be numbers."""
        (offset,), shape = checked_shape((self.offset,)), checked_shape(self.shape)
        return offset, shape, checked_shape(self.stride)

    @property
    def identity(self) -> Hashable:
        return self.storage.key, self.storage.offset, self.dtype, self._layout()

    @property
    def nbytes(self) -> int:
        offset, shape, stride = self._layout()
        if len(shape) != len(stride):
            raise ValueError("a stride for each side is needed")
        count = math.prod(shape)
        if count:
            last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
            end = (self.storage.offset + last + 1) * self.dtype.itemsize
            place = self.storage.data.places[self.storage.key]
            if last >= self.storage.count or end > place.nbytes:
                raise ValueError("a tensor that reaches out of its data")
        return count * self.dtype.itemsize

    def read(self) -> Tensor:
        offset, shape, stride = self._layout()
        if math.prod(shape) == 0:
            return torch.zeros(shape, dtype=self.dtype)
        data = self.storage.data[self.storage.key]
        itemsize = self.dtype.itemsize
        elements = torch.frombuffer(data, dtype=self.dtype, count=len(data) // itemsize)
        return elements.as_strided(shape, stride, self.storage.offset + offset)


def read_zip(path: Path) -> Any:
    """Return what an archive holds.

    Raises:
        ForeignArchiveError: it isn't one of ``torch.save``, or can't be read.
        ValueError, TypeError, IndexError, KeyError, AttributeError, struct.error, OSError: it is
            damaged.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        places = {each.filename: _place(file, each) for each in archive.infolist()}
        programs = [name for name in places if name.count("/") == 1 and name.endswith("/data.pkl")]
        if not programs:
            raise ForeignArchiveError("is a zip archive that torch.save didn't write")
        folder = programs[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in places:
            raise ForeignArchiveError("holds a TorchScript program: save the state dict alone")
        order = places.get(f"{folder}byteorder")
        if order and _content(file, order) == b"big":
            raise ForeignArchiveError(_BIG_ENDIAN)
        program = places[programs[0]]
        if program.nbytes > MAX_PROGRAM_BYTES:
            raise ValueError("too large a pickle")
        text = _content(file, program)
    prefix = f"{folder}data/"
    storages = {
        n.removeprefix(prefix): place for n, place in places.items() if n.startswith(prefix)
    }
    return read_pickle(io.BytesIO(text), _NAMES, _StorageReader(_Data(path, storages)))


def read_legacy(path: Path) -> Any:
    """Return what a file of the older format holds; raises what :func:`read_zip` does."""
    storages = _StorageReader(_Data(path))
    with path.open("rb") as file:
        read_pickle(file, {})  # the magic number
        read_pickle(file, {})  # the version
        if read_pickle(file, {}).get("little_endian") is not True:
            raise ForeignArchiveError(_BIG_ENDIAN)
        content = read_pickle(file, _NAMES, storages)
        storages.find_places(file, read_pickle(file, {}))
    return content


class _StorageReader:
    """Makes the storages that persistent ids describe."""

    def __init__(self, data: _Data) -> None:
        self._data = data
        self._dtypes: dict[str, torch.dtype | None] = {}

    def __call__(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            return Unknown("an object of another file")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _Kind):
            return kind if isinstance(kind, Unknown) else Unknown("a storage")
        offset = view[0][1] if view and view[0] is not None else 0
        checked_shape((count, offset))
        if not isinstance(key, str):
            raise TypeError("a storage without a name")
        self._dtypes[key] = kind.dtype
        return _Storage(self._data, key, kind.dtype, count, offset)

    def find_places(self, file: BinaryIO, keys: Any) -> None:
        """Step over the data that follow the pickles: each storage has its count before them."""
        start = file.tell()
        for key in keys:
            if not isinstance(key, str):
                raise TypeError("a storage without a name")
            file.seek(start)
            (count,) = checked_shape(struct.unpack("<q", file.read(8)))
            nbytes = count * (self._dtypes[key] or torch.uint8).itemsize
            self._data.places[key] = _Place(start + 8, nbytes)
            start += 8 + nbytes
        if start > file.seek(0, io.SEEK_END):
            raise ValueError("the file is cut off")


def _place(file: BinaryIO, member: zipfile.ZipInfo) -> _Place:
    file.seek(member.header_offset)
    name_length, extra_length = struct.unpack_from("<HH", file.read(_LOCAL_HEADER), 26)
    start = member.header_offset + _LOCAL_HEADER + name_length + extra_length
    return _Place(start, member.file_size, member.CRC)


def _content(file: BinaryIO, place: _Place) -> bytearray:
    data = bytearray(place.nbytes)
    file.seek(place.start)
    if file.readinto(data) != place.nbytes:  # type: ignore[attr-defined]
        raise ValueError("the file is cut off")
    if place.crc and zlib.crc32(data) != place.crc:
        raise ValueError("a checksum is wrong")
    return data


@dataclass(frozen=True, slots=True)
class _Kind:
    """A class of storages.

    Attributes:
        dtype: of their elements; None for bytes of a type that the tensor knows.
    """

    dtype: torch.dtype | None


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_rest: Any) -> Any:
    if not isinstance(storage, _Storage) or storage.dtype is None:
        return storage if isinstance(storage, Unknown) else Unknown("a type that isn't supported")
    return _View(storage, storage.dtype, offset, shape, stride)


def _tensor_of_type(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
    dtype = rest[2]
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        return Unknown("a type that isn't supported")
    count = storage.count // dtype.itemsize  # it counts bytes
    typed = _Storage(storage.data, storage.key, dtype, count, storage.offset // dtype.itemsize)
    return _View(typed, dtype, offset, shape, stride)


def _first(value: Any, *_rest: Any) -> Any:
    return value


def _subclass(make: Any, _kind: Any, arguments: Sequence[Any], _state: Any) -> Any:
    return make.make(*arguments) if isinstance(make, Constructor) else make


_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}

_NAMES: dict[Name, Any] = {
    **ARRAYS,
    **{("torch", f"{name}Storage"): _Kind(dtype) for name, dtype in _DTYPES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES.values()},
    ("torch.storage", "UntypedStorage"): _Kind(None),
    ("torch", "UntypedStorage"): _Kind(None),
    ("torch._utils", "_rebuild_tensor"): Constructor(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Constructor(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Constructor(_tensor_of_type),
    ("torch._utils", "_rebuild_parameter"): Constructor(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): Constructor(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): Constructor(_subclass),
    ("torch", "Size"): Constructor(_first),
}
