"""Entries of annotation files as typed structs, and what is wrong with those that don't fit.

Each entry is converted by itself, so that a wrong one is a problem with its id, and the others are
still read.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from streamseg.datasets.findings import Fault, Id
from streamseg.datasets.spellings import canonical_id

# No operating system opens a file that is called by a NUL or half a character; and messages name
# the file in one line.
_ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+$"
_INDEX = re.compile(r"\[\d+\]")

FileName: TypeAlias = Annotated[str, Meta(pattern=_ONE_LINE)]
EntryId: TypeAlias = (
    Annotated[int, Meta(ge=-(2**53), le=2**63 - 1)]
    | Annotated[str, Meta(pattern=_ONE_LINE, max_length=1000)]
)
Box: TypeAlias = tuple[float, float, float, float]
Flag: TypeAlias = bool | Annotated[int, Meta(ge=0, le=1)]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A member of a list of an annotation file; keys that nothing needs are left alone."""


SchemaT = TypeVar("SchemaT", bound=msgspec.Struct)


def convert_entry(entry: Any, schema: type[SchemaT]) -> SchemaT | str:
    """The entry as ``schema`` has it, or the place in it that is wrong, and what was expected."""
    try:
        return msgspec.convert(entry, schema)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$")
        return f"{at.rstrip('`')}: {what}"


def fault_of_entry(where: str, position: int, what: str) -> Fault:
    """The fault of member ``position`` of the list ``where``, from :func:`convert_entry`."""
    return Fault(f"{where}{_INDEX.sub('', what)}", f"{where}[{position}]{what}")


def ids_of_entry(entry: Any, *keys: str) -> tuple[Id | None, ...]:
    """The ids that an entry has under some keys, whatever else is wrong with it."""
    given = entry if isinstance(entry, dict) else {}
    return tuple(readable_id(given.get(key)) for key in keys)


def readable_id(value: Any) -> Id | None:
    """A value in canonical form if it is an id, None otherwise."""
    found = canonical_id(value)
    if isinstance(found, bool) or not isinstance(found, int | str):
        return None
    try:
        return msgspec.convert(found, EntryId)  # type: ignore[no-any-return]
    except msgspec.ValidationError:
        return None
