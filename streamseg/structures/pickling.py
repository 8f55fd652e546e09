"""Pickling and copying of frozen dataclasses through their constructors.

The invariants of the constructor (read-only images, validated columns) also hold for copies, with
every pickle protocol and with ``copy.deepcopy``.
"""

from __future__ import annotations

from dataclasses import fields
from types import MappingProxyType
from typing import Any

import numpy as np


class PickledByFields:
    """Mixin that pickles and copies a dataclass through its constructor, with all fields."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        values = [_picklable(getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]
        # Only pickle protocol 5 preserves the writeable flag of arrays; deepcopy does not.
        read_only = [
            n
            for n, value in enumerate(values)
            if isinstance(value, np.ndarray) and not value.flags.writeable
        ]
        return _rebuild, (type(self), tuple(values), tuple(read_only))


def _picklable(value: Any) -> Any:
    """Convert a read-only mapping view to a dict; return other values unchanged."""
    return dict(value) if isinstance(value, MappingProxyType) else value


def _rebuild(cls: type[Any], values: tuple[Any, ...], read_only: tuple[int, ...]) -> Any:
    for n in read_only:
        values[n].flags.writeable = False
    return cls(*values)
