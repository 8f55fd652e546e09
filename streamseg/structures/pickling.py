"""Pickling and copying of frozen dataclasses: by their fields, through the constructor.

What the constructor guarantees (read-only images, checked columns) then holds for the copy, too,
with every pickle protocol, and ``copy.deepcopy`` needs nothing more.
"""

from __future__ import annotations

from dataclasses import fields
from types import MappingProxyType
from typing import Any

import numpy as np


class PickledByFields:
    """Mixin for dataclasses whose fields are the arguments of their constructor."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        values = [_picklable(getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]
        # Only protocol 5 keeps the flag of an array, and deepcopy never does.
        read_only = [
            n
            for n, value in enumerate(values)
            if isinstance(value, np.ndarray) and not value.flags.writeable
        ]
        return _rebuild, (type(self), tuple(values), tuple(read_only))


def _picklable(value: Any) -> Any:
    """``value``, or a dict of what a read-only view of a mapping shows."""
    return dict(value) if isinstance(value, MappingProxyType) else value


def _rebuild(cls: type[Any], values: tuple[Any, ...], read_only: tuple[int, ...]) -> Any:
    for n in read_only:
        values[n].flags.writeable = False
    return cls(*values)
