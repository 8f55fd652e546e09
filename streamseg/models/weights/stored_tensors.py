"""Tensors that a weights file describes, before they are read: sizes first, then memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any

from torch import Tensor

MAX_DIMENSIONS = 32


class StoredTensor(ABC):
    """A tensor in a file."""

    @property
    @abstractmethod
    def identity(self) -> Hashable:
        """Equal for descriptions of the same bytes in the same layout, as shared weights have."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that the tensor takes, once its layout is checked.

        Raises:
            ValueError, TypeError: its layout doesn't fit what the file holds.
        """

    @abstractmethod
    def read(self) -> Tensor:
        """Read the tensor; call ``nbytes`` first.

        Raises:
            ValueError, OSError: the file is damaged.
        """


class Budget:
    """Bytes that the tensors of a file may take in all: what the file holds.

    Tensors whose elements lie over each other, as ``expand`` makes them, take more.
    """

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes
        self._read: dict[Hashable, Tensor] = {}

    def read(self, stored: StoredTensor) -> Tensor:
        """Read a tensor; one that was read before is returned again.

        Raises:
            OverflowError: the tensors take more memory than the file has bytes.
            ValueError, TypeError, OSError: see :class:`StoredTensor`.
        """
        known = self._read.get(stored.identity)
        if known is not None:
            return known
        self._left -= stored.nbytes
        if self._left < 0:
            raise OverflowError("more than there is")
        self._read[stored.identity] = stored.read()
        return self._read[stored.identity]


def checked_shape(shape: Any) -> tuple[int, ...]:
    """``shape`` as ints that are 0 or more, of at most ``MAX_DIMENSIONS``.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(shape, tuple | list) or len(shape) > MAX_DIMENSIONS:
        raise ValueError("no shape")
    if not all(type(side) is int and 0 <= side < 2**63 for side in shape):
        raise ValueError("a side that isn't a length")
    return tuple(shape)
