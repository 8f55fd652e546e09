"""Reader of files of ``torch.save`` that executes none of their code.

Reads the zip archive of torch 1.6 and later, and the older sequence of pickles, as defined by
torch's ``serialization.py`` and ``_utils.py``. Tensors are returned as
:class:`~streamseg.models.weights.stored_tensors.StoredTensor`; everything but tensors, dicts,
lists, numbers and strings as :class:`~streamseg.models.weights.pickle_data.Unknown`.
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
from streamseg.models.weights.stored_tensors import StoredTensor, validate_shape
from streamseg.models.weights.zoo_pickle import ARRAYS

_BIG_ENDIAN = "was written on a big-endian machine, which isn't supported"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Pickled number at the start of the older format."""
MAX_PROGRAM_BYTES = 64 << 20
"""Maximum size of the pickle in an archive, without the data of the tensors."""

_LOCAL_HEADER = 30
"""Size of the header of a zip member before its name and extra field, in bytes."""


class ForeignArchiveError(Exception):
    """The file is an archive without a readable state dict; the message describes it."""


@dataclass(frozen=True, slots=True)
class _Region:
    """Region of a file with the data of a storage.

    Attributes:
        start: offset in bytes.
        nbytes: length in bytes.
        crc: CRC-32; 0 if the writer omitted it.
    """

    start: int
    nbytes: int
    crc: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """Data of all storages of a file; each is read once, when a tensor needs it.

    Attributes:
        path: path of the file.
        regions: region of each storage, by key.
        loaded: data read so far, by key.
    """

    path: Path
    regions: dict[str, _Region] = field(default_factory=dict)
    loaded: dict[str, bytearray] = field(default_factory=dict)

    def __getitem__(self, key: str) -> bytearray:
        if key not in self.loaded:
            with self.path.open("rb") as file:
                self.loaded[key] = _read_region(file, self.regions[key])
        return self.loaded[key]


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    """Elements that tensors are views of.

    Attributes:
        data: data of the file.
        key: key of the storage in the file.
        dtype: type of the elements; None for bytes whose type the tensor has.
        count: number of elements.
        offset: index of the first element in the data.
    """

    data: _Data
    key: str
    dtype: torch.dtype | None
    count: int
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class _View(StoredTensor):
    """A tensor as a view of a storage; offset, shape and stride are those in the file."""

    storage: _Storage
    dtype: torch.dtype
    offset: Any
    shape: Any
    stride: Any

    def _layout(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """Return the validated offset, shape and stride."""
        (offset,), shape = validate_shape((self.offset,)), validate_shape(self.shape)
        return offset, shape, validate_shape(self.stride)

    @property
    def identity(self) -> Hashable:
        return self.storage.key, self.storage.offset, self.dtype, self._layout()

    @property
    def nbytes(self) -> int:
        offset, shape, stride = self._layout()
        if len(shape) != len(stride):
            raise ValueError("shape and stride of different lengths")
        count = math.prod(shape)
        if count:
            last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
            end = (self.storage.offset + last + 1) * self.dtype.itemsize
            region = self.storage.data.regions[self.storage.key]
            if last >= self.storage.count or end > region.nbytes:
                raise ValueError("a tensor that exceeds its data")
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
    """Return the content of an archive.

    Raises:
        ForeignArchiveError: it was not written by ``torch.save``, or can't be read.
        ValueError, TypeError, IndexError, KeyError, AttributeError, struct.error, OSError: it is
            damaged.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        regions = {each.filename: _find_region(file, each) for each in archive.infolist()}
        programs = [name for name in regions if name.count("/") == 1 and name.endswith("/data.pkl")]
        if not programs:
            raise ForeignArchiveError("is a zip archive that torch.save didn't write")
        folder = programs[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in regions:
            raise ForeignArchiveError("contains a TorchScript program: save the state dict alone")
        order = regions.get(f"{folder}byteorder")
        if order and _read_region(file, order) == b"big":
            raise ForeignArchiveError(_BIG_ENDIAN)
        program = regions[programs[0]]
        if program.nbytes > MAX_PROGRAM_BYTES:
            raise ValueError("too large a pickle")
        text = _read_region(file, program)
    prefix = f"{folder}data/"
    storages = {
        n.removeprefix(prefix): region for n, region in regions.items() if n.startswith(prefix)
    }
    return read_pickle(io.BytesIO(text), _NAMES, _StorageReader(_Data(path, storages)))


def read_legacy(path: Path) -> Any:
    """Return the content of a file of the older format; raises like :func:`read_zip`."""
    storages = _StorageReader(_Data(path))
    with path.open("rb") as file:
        read_pickle(file, {})  # the magic number
        read_pickle(file, {})  # the version
        if read_pickle(file, {}).get("little_endian") is not True:
            raise ForeignArchiveError(_BIG_ENDIAN)
        content = read_pickle(file, _NAMES, storages)
        storages.find_regions(file, read_pickle(file, {}))
    return content


class _StorageReader:
    """Creates the storages described by persistent ids."""

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
        validate_shape((count, offset))
        if not isinstance(key, str):
            raise TypeError("a storage without a name")
        self._dtypes[key] = kind.dtype
        return _Storage(self._data, key, kind.dtype, count, offset)

    def find_regions(self, file: BinaryIO, keys: Any) -> None:
        """Find the data after the pickles: each storage is preceded by its number of elements."""
        start = file.tell()
        for key in keys:
            if not isinstance(key, str):
                raise TypeError("a storage without a name")
            file.seek(start)
            (count,) = validate_shape(struct.unpack("<q", file.read(8)))
            nbytes = count * (self._dtypes[key] or torch.uint8).itemsize
            self._data.regions[key] = _Region(start + 8, nbytes)
            start += 8 + nbytes
        if start > file.seek(0, io.SEEK_END):
            raise ValueError("the file is cut off")


def _find_region(file: BinaryIO, member: zipfile.ZipInfo) -> _Region:
    file.seek(member.header_offset)
    name_length, extra_length = struct.unpack_from("<HH", file.read(_LOCAL_HEADER), 26)
    start = member.header_offset + _LOCAL_HEADER + name_length + extra_length
    return _Region(start, member.file_size, member.CRC)


def _read_region(file: BinaryIO, region: _Region) -> bytearray:
    data = bytearray(region.nbytes)
    file.seek(region.start)
    if file.readinto(data) != region.nbytes:  # type: ignore[attr-defined]
        raise ValueError("the file is cut off")
    if region.crc and zlib.crc32(data) != region.crc:
        raise ValueError("a checksum is wrong")
    return data


@dataclass(frozen=True, slots=True)
class _Kind:
    """Type of storages.

    Attributes:
        dtype: type of the elements; None for bytes whose type the tensor has.
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
    count = storage.count // dtype.itemsize  # the storage counts bytes
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
