"""Which categories of an annotation file are classes.

A category that no annotation is of is no class if it only groups others (another category names it
as its ``supercategory``, as in Roboflow's exports), if it is called as a category that is used, or
if it is called background or ignore, with or without underscores. Other unused categories are
classes: a split may lack them by chance.

Categories of one name and one supercategory are one class, under the id of the first. One name in
two supercategories, and one id with two names, are refused: nothing says which is meant. Names that
differ in upper and lower case are different classes. Ids may begin at 0 and have gaps; a text id
that is no number is given the lowest free number from 1.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from streamseg.datasets.findings import Findings, Id
from streamseg.datasets.schema import Entry, Flag, convert_entry, fault_of_entry, ids_of_entry
from streamseg.datasets.spellings import as_written, canonical_entry, canonical_flag, canonical_id
from streamseg.errors import DataError

Name: TypeAlias = Annotated[str, Meta(min_length=1)]
_NO_CLASS = frozenset({"background", "ignore"})
_READERS = {
    "id": canonical_id,
    "name": as_written,
    "isthing": canonical_flag,
    "supercategory": as_written,
}


class CategoryEntry(Entry, frozen=True, kw_only=True):
    """A member of ``categories``; ``isthing`` is said in panoptic files only."""

    id: Id
    name: Name
    isthing: Flag = True
    supercategory: Any = None


@dataclass(frozen=True, slots=True)
class Category:
    """One class.

    Attributes:
        id: whole number, as the dataset has it.
        name: the class's name.
        is_thing: False for stuff.
    """

    id: int
    name: str
    is_thing: bool


def read_categories(
    entries: Sequence[Any], used: frozenset[Id], path: Path, findings: Findings
) -> dict[Id, Category]:
    """The class of each category id that the file declares; ids of no class are left out.

    Args:
        entries: the file's ``categories``.
        used: the category ids of the annotations.
        path: the file, for messages.
        findings: where entries that can't be read and that no annotation uses are noted.

    Raises:
        DataError: a category that is used can't be read, or the categories contradict each other.
    """
    declared = _declared(entries, used, path, findings)
    classes = _classes(declared, used)
    kept: dict[str, CategoryEntry] = {}
    for each in classes:
        first = kept.setdefault(each.name, each)
        if _group(first) != _group(each) or bool(first.isthing) != bool(each.isthing):
            raise DataError(
                f"{path}: categories {first.id} and {each.id} are both {each.name!r}: rename one"
            )
    numbers = _numbers(kept.values(), declared)
    made = {
        name: Category(numbers[entry.id], name, bool(entry.isthing)) for name, entry in kept.items()
    }
    return {each.id: made[each.name] for each in classes}


def _declared(
    entries: Sequence[Any], used: frozenset[Id], path: Path, findings: Findings
) -> dict[Id, CategoryEntry]:
    """The readable categories by id, in the order of the file."""
    declared: dict[Id, CategoryEntry] = {}
    for position, raw in enumerate(entries):
        entry = convert_entry(canonical_entry(raw, _READERS), CategoryEntry)
        if isinstance(entry, str):
            fault = fault_of_entry("categories", position, entry)
            if used.intersection(ids_of_entry(raw, "id")):
                raise DataError(f"{path}: {fault.what}")
            findings.add(fault)
        elif declared.setdefault(entry.id, entry).name != entry.name:
            raise DataError(
                f"{path}: the category id {entry.id} is given twice, for "
                f"{declared[entry.id].name!r} and {entry.name!r}"
            )
    return declared


def _classes(declared: Mapping[Id, CategoryEntry], used: frozenset[Id]) -> list[CategoryEntry]:
    """The categories that are classes; see the module's first lines."""
    used_names = {each.name for each in declared.values() if each.id in used}
    members: dict[str, set[Id]] = defaultdict(set)
    for each in declared.values():
        members[_group(each)].add(each.id)

    def is_class(entry: CategoryEntry) -> bool:
        name = _folded(entry.name)
        groups_others = bool(members.get(name, set()) - {entry.id})
        is_spare = entry.name in used_names or name.strip("_") in _NO_CLASS
        return entry.id in used or not (groups_others or is_spare)

    return [each for each in declared.values() if is_class(each)]


def _numbers(entries: Iterable[CategoryEntry], declared: Mapping[Id, Any]) -> dict[Id, int]:
    """A whole number for each id: itself, or the lowest from 1 that no category has."""
    free = (number for number in itertools.count(1) if number not in declared)
    return {each.id: each.id if isinstance(each.id, int) else next(free) for each in entries}


def _group(entry: CategoryEntry) -> str:
    return _folded(entry.supercategory) if isinstance(entry.supercategory, str) else ""


def _folded(text: str) -> str:
    return text.strip().casefold()
