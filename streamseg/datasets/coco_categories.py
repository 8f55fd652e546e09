"""Selection of classes among the categories of a COCO file.

A category without annotations is not a class if it only groups others (another category has it as
its ``supercategory``, as in Roboflow's exports), if a category with annotations has the same name,
or if it is named background or ignore, with or without underscores. Other categories without
annotations are classes, because a split may lack them by chance.

Categories with the same name and supercategory are one class, with the id of the first. One name in
two supercategories, and one id with two names, are errors, because they are ambiguous. Names that
differ in case are different classes. Ids may start at 0 and have gaps; a text id that isn't a
number is replaced by the lowest unused number from 1.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from streamseg.datasets.normalization import (
    keep_value,
    normalize_entry,
    normalize_flag,
    normalize_id,
)
from streamseg.datasets.problems import Id, ProblemReport
from streamseg.datasets.schema import Entry, Flag, convert_entry, make_entry_fault, read_entry_ids
from streamseg.errors import DataError

CategoryName: TypeAlias = Annotated[str, Meta(min_length=1)]
_BACKGROUND_NAMES = frozenset({"background", "ignore"})
_NORMALIZERS = {
    "id": normalize_id,
    "name": keep_value,
    "isthing": normalize_flag,
    "supercategory": keep_value,
}


class CategoryEntry(Entry, frozen=True, kw_only=True):
    """Entry of ``categories``; only panoptic files have ``isthing``."""

    id: Id
    name: CategoryName
    isthing: Flag = True
    supercategory: Any = None


@dataclass(frozen=True, slots=True)
class Category:
    """Class of a dataset.

    Attributes:
        id: category id in the dataset, an integer.
        name: class name.
        is_thing: False for stuff.
    """

    id: int
    name: str
    is_thing: bool


def read_categories(
    entries: Sequence[Any], used_ids: frozenset[Id], path: Path, report: ProblemReport
) -> dict[Id, Category]:
    """Return the class of each category id in the file; ids that are not classes are left out.

    Args:
        entries: the file's ``categories``.
        used_ids: category ids of the annotations.
        path: the file, for messages.
        report: collects the invalid entries that no annotation uses.

    Raises:
        DataError: the entry of a used category is invalid, or categories contradict each other.
    """
    declared = _convert_entries(entries, used_ids, path, report)
    classes = _select_classes(declared, used_ids)
    first_by_name: dict[str, CategoryEntry] = {}
    for entry in classes:
        first = first_by_name.setdefault(entry.name, entry)
        if _group_name(first) != _group_name(entry) or bool(first.isthing) != bool(entry.isthing):
            raise DataError(
                f"{path}: categories {first.id} and {entry.id} are both {entry.name!r}: rename one"
            )
    unused_numbers = (number for number in itertools.count(1) if number not in declared)
    categories = {
        name: Category(
            entry.id if isinstance(entry.id, int) else next(unused_numbers),
            name,
            bool(entry.isthing),
        )
        for name, entry in first_by_name.items()
    }
    return {entry.id: categories[entry.name] for entry in classes}


def _convert_entries(
    entries: Sequence[Any], used_ids: frozenset[Id], path: Path, report: ProblemReport
) -> dict[Id, CategoryEntry]:
    """Return the valid categories by id, in the order of the file."""
    declared: dict[Id, CategoryEntry] = {}
    for index, raw in enumerate(entries):
        entry = convert_entry(normalize_entry(raw, _NORMALIZERS), CategoryEntry)
        if isinstance(entry, str):
            fault = make_entry_fault("categories", index, entry)
            if used_ids.intersection(read_entry_ids(raw, "id")):
                raise DataError(f"{path}: {fault.message}")
            report.add(fault)
        elif declared.setdefault(entry.id, entry).name != entry.name:
            raise DataError(
                f"{path}: the category id {entry.id} is given twice, for "
                f"{declared[entry.id].name!r} and {entry.name!r}"
            )
    return declared


def _select_classes(
    declared: Mapping[Id, CategoryEntry], used_ids: frozenset[Id]
) -> list[CategoryEntry]:
    """Return the categories that are classes, by the rules in the module docstring."""
    used_names = {entry.name for entry in declared.values() if entry.id in used_ids}
    members: dict[str, set[Id]] = defaultdict(set)
    for entry in declared.values():
        members[_group_name(entry)].add(entry.id)

    def is_class(entry: CategoryEntry) -> bool:
        name = _fold(entry.name)
        is_group = bool(members.get(name, set()) - {entry.id})
        is_redundant = entry.name in used_names or name.strip("_") in _BACKGROUND_NAMES
        return entry.id in used_ids or not (is_group or is_redundant)

    return [entry for entry in declared.values() if is_class(entry)]


def _group_name(entry: CategoryEntry) -> str:
    return _fold(entry.supercategory) if isinstance(entry.supercategory, str) else ""


def _fold(text: str) -> str:
    return text.strip().casefold()
