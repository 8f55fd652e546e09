"""Canonical forms of the values in annotation files, whichever way a tool wrote them.

A value that can only mean one thing is given as that: ids and numbers as text or with a point,
flags as text, polygons that are flat or lists of points. Null and NaN stand for "no value", as
pandas writes them. Everything else comes back unchanged, and the schema refuses it by its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Reader: TypeAlias = Callable[[Any], Any]

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,18})(?:\.0*)?")
_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?")
_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1, "0.0": 0, "1.0": 1, "": 0}
_RLE_KEYS = ("size", "counts")


def canonical_entry(entry: Any, readers: Mapping[str, Reader]) -> Any:
    """The known keys of an entry in canonical form; null and NaN are left out.

    Args:
        entry: a member of a list of the file; what isn't an object comes back as it is.
        readers: what makes the canonical form of each key.
    """
    if not isinstance(entry, dict):
        return entry
    return {
        key: read(entry[key])
        for key, read in readers.items()
        if key in entry and not _is_missing(entry[key])
    }


def as_written(value: Any) -> Any:
    """The value itself, for fields that every tool writes in the same way."""
    return value


def canonical_id(value: Any) -> Any:
    """An id: a whole number where it is one, text otherwise; ``"7"`` and 7.0 are 7."""
    if isinstance(value, str) and not _WHOLE.fullmatch(value.strip()):
        return value.strip()
    return canonical_whole(value)


def canonical_whole(value: Any) -> Any:
    """A whole number: ``"320"``, ``"320.0"`` and 320.0 are 320."""
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def canonical_length(value: Any) -> Any:
    """A length of an image; 0 and -1 say that the tool didn't know it, as None does."""
    whole = canonical_whole(value)
    return None if whole in (0, -1) and not isinstance(whole, bool) else whole


def canonical_number(value: Any) -> Any:
    """A number: ``"1.5"`` is 1.5."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return value


def canonical_flag(value: Any) -> Any:
    """A flag: ``"0"``, ``"false"``, 0.0 are 0."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower(), value)
    return canonical_whole(value)


def canonical_box(value: Any) -> Any:
    """A box x, y, width, height; an empty list is no box."""
    if isinstance(value, list):
        return [canonical_number(number) for number in value] or None
    return value


def canonical_segmentation(value: Any) -> Any:
    """Polygons as a list of x1, y1, x2, y2, …, or a run-length encoding; None for no mask."""
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], dict) and "counts" in value[0]:
            return _canonical_rle(value[0])
        return _canonical_polygons(value)
    if isinstance(value, dict):
        if not value:
            return None
        if "counts" in value:
            return _canonical_rle(value)
        ring = _ring(value)
        return value if ring is value else [ring]
    return value


def _canonical_polygons(value: list[Any]) -> Any:
    ring = _ring(value)
    rings = [ring] if ring is not value or _is_ring(value) else [_ring(each) for each in value]
    return rings if any(each != [] for each in rings) else None


def _ring(value: Any) -> Any:
    """One polygon as x1, y1, x2, y2, …; what isn't one comes back as it is."""
    if isinstance(value, dict) and {"all_points_x", "all_points_y"} <= value.keys():
        xs, ys = value["all_points_x"], value["all_points_y"]
        if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys):
            return [
                canonical_number(number) for point in zip(xs, ys, strict=True) for number in point
            ]
        return value
    if not isinstance(value, list):
        return value
    if len(value) > 2 and all(_is_point(point) for point in value):
        return [canonical_number(number) for point in value for number in _coordinates(point)]
    if any(isinstance(number, str) for number in value):
        return [canonical_number(number) for number in value]
    return value


def _is_ring(value: list[Any]) -> bool:
    """Whether a list is one polygon: it begins with a number."""
    return bool(value) and isinstance(canonical_number(value[0]), int | float)


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return {"x", "y"} <= value.keys()
    return isinstance(value, list) and len(value) == 2 and _is_ring(value)


def _coordinates(point: Any) -> tuple[Any, Any]:
    return (point["x"], point["y"]) if isinstance(point, dict) else (point[0], point[1])


def _canonical_rle(value: dict[str, Any]) -> Any:
    found = {key: value[key] for key in _RLE_KEYS if not _is_missing(value.get(key))}
    for key in _RLE_KEYS:
        if isinstance(found.get(key), list):
            found[key] = [canonical_whole(number) for number in found[key]]
    return found


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)  # noqa: PLR0124 - NaN
