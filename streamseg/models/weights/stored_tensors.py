"""Tensors described in a weights file: sizes are checked before memory is allocated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any

from torch import Tensor

MAX_DIMENSIONS = 32


class StoredTensor(ABC):
    """A tensor in a file, not read yet."""

    @property
    @abstractmethod
    def identity(self) -> Hashable:
        """Key that is equal for the same bytes in the same layout, such as shared weights."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Size of the tensor in bytes, after checking its layout.

        Raises:
            ValueError, TypeError: the layout doesn't fit the data in the file.
        """

    @abstractmethod
    def read(self) -> Tensor:
        """Read the tensor; call ``nbytes`` first.

        Raises:
            ValueError, OSError: the file is damaged.
        """


class Budget:
    """Limit of the total size of the tensors of a file: the size of the file.

    Tensors with overlapping elements, as created by ``expand``, exceed it.
    """

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes
        self._read: dict[Hashable, Tensor] = {}

    def read(self, stored: StoredTensor) -> Tensor:
        """Read a tensor; shared tensors are read once.

        Raises:
            OverflowError: the tensors take more memory than the file has bytes.
            ValueError, TypeError, OSError: see :class:`StoredTensor`.
        """
        known = self._read.get(stored.identity)
        if known is not None:
            return known
        self._left -= stored.nbytes
        if self._left < 0:
            raise OverflowError("tensors are larger than the file")
        self._read[stored.identity] = stored.read()
        return self._read[stored.identity]


def validate_shape(shape: Any) -> tuple[int, ...]:
    """Validate and return a shape: at most ``MAX_DIMENSIONS`` nonnegative integers.

    Raises:
        ValueError: the shape is invalid.
    """
    if not isinstance(shape, tuple | list) or len(shape) > MAX_DIMENSIONS:
        raise ValueError("an invalid shape")
    if not all(type(side) is int and 0 <= side < 2**63 for side in shape):
        raise ValueError("an invalid side of a shape")
    return tuple(shape)
