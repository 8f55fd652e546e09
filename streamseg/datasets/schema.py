"""Schemas for entries of COCO JSON lists: msgspec structs, conversion and conversion errors.

Each entry is converted on its own, so that an invalid one becomes a problem with its id and the
others are still read.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from streamseg.datasets.normalization import normalize_id
from streamseg.datasets.problems import Fault, Id

# File names with NUL or lone surrogates can't be opened, and one with a line break would break
# the one-line messages.
_ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+$"
_LIST_INDEX = re.compile(r"\[\d+\]")

FileName: TypeAlias = Annotated[str, Meta(pattern=_ONE_LINE)]
EntryId: TypeAlias = (
    Annotated[int, Meta(ge=-(2**53), le=2**63 - 1)]
    | Annotated[str, Meta(pattern=_ONE_LINE, max_length=1000)]
)
Box: TypeAlias = tuple[float, float, float, float]
Flag: TypeAlias = bool | Annotated[int, Meta(ge=0, le=1)]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Base class of entries of a JSON list; keys without a field are ignored."""


SchemaT = TypeVar("SchemaT", bound=msgspec.Struct)


def convert_entry(entry: Any, schema: type[SchemaT]) -> SchemaT | str:
    """Return the entry as a ``schema``, or the error as text: path in the entry and reason."""
    try:
        return msgspec.convert(entry, schema)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        return f"{path.rstrip('`')}: {message}"


def make_entry_fault(list_name: str, index: int, error: str) -> Fault:
    """Return the fault for an error that :func:`convert_entry` returned.

    Args:
        list_name: key of the list in the file, such as ``annotations``.
        index: index of the entry in the list.
        error: the error text.
    """
    return Fault(f"{list_name}{_LIST_INDEX.sub('', error)}", f"{list_name}[{index}]{error}")


def read_entry_ids(entry: Any, *keys: str) -> tuple[Id | None, ...]:
    """Return the ids under ``keys`` of a raw entry, None where missing or invalid."""
    values = entry if isinstance(entry, dict) else {}
    return tuple(parse_id(values.get(key)) for key in keys)


def parse_id(value: Any) -> Id | None:
    """Return a raw value as a normalized id, or None if it isn't one."""
    number = normalize_id(value)
    if isinstance(number, bool) or not isinstance(number, int | str):
        return None
    try:
        return msgspec.convert(number, EntryId)  # type: ignore[no-any-return]
    except msgspec.ValidationError:
        return None
