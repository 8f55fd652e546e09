"""Normalization of values in annotation files that tools write in different ways.

A value with only one possible meaning is converted: ids and numbers as text or with a decimal
point, flags as text, polygons as flat lists or lists of points. Null and NaN count as missing, as
pandas writes them. Any other value is returned unchanged, and the schema rejects it with its path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Normalizer: TypeAlias = Callable[[Any], Any]

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})(?:\.0*)?")
_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?")
_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1, "0.0": 0, "1.0": 1, "": 0}
_RLE_KEYS = ("size", "counts")


def normalize_entry(entry: Any, normalizers: Mapping[str, Normalizer]) -> Any:
    """Return an entry with normalized values, without unknown keys and missing values.

    Args:
        entry: entry of a JSON list; returned unchanged if it isn't an object.
        normalizers: function that normalizes the value of each key.
    """
    if not isinstance(entry, dict):
        return entry
    return {
        key: normalizer(entry[key])
        for key, normalizer in normalizers.items()
        if key in entry and not _is_missing(entry[key])
    }


def keep_value(value: Any) -> Any:
    """Return the value unchanged, for keys that all tools write in the same way."""
    return value


def normalize_id(value: Any) -> Any:
    """Return an id as an int where it is one, otherwise as text: ``"7"`` and 7.0 become 7."""
    if isinstance(value, str) and not _INTEGER.fullmatch(value.strip()):
        return value.strip()
    return normalize_integer(value)


def normalize_integer(value: Any) -> Any:
    """Return an integer as an int: ``"320"``, ``"320.0"`` and 320.0 become 320."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def normalize_side(value: Any) -> Any:
    """Return the width or height of an image; 0 and -1, written for an unknown one, become None."""
    side = normalize_integer(value)
    return None if side in (0, -1) and not isinstance(side, bool) else side


def normalize_number(value: Any) -> Any:
    """Return a number as a float if it is text: ``"1.5"`` becomes 1.5."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return value


def normalize_flag(value: Any) -> Any:
    """Return a flag as 0 or 1: ``"0"``, ``"false"`` and 0.0 become 0."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower(), value)
    return normalize_integer(value)


def normalize_box(value: Any) -> Any:
    """Return a box (x, y, width, height) with numbers; an empty list becomes None."""
    if isinstance(value, list):
        return [normalize_number(number) for number in value] or None
    return value


def normalize_segmentation(value: Any) -> Any:
    """Return polygons as lists x1, y1, x2, y2, …, or run lengths; None if there is no mask."""
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], dict) and "counts" in value[0]:
            return _normalize_rle(value[0])
        return _normalize_polygons(value)
    if isinstance(value, dict):
        if not value:
            return None
        if "counts" in value:
            return _normalize_rle(value)
        polygon = _normalize_polygon(value)
        return value if polygon is value else [polygon]
    return value


def _normalize_polygons(value: list[Any]) -> Any:
    """Return a list of polygons; ``value`` is such a list, or a single polygon."""
    polygon = _normalize_polygon(value)
    is_single = polygon is not value or _starts_with_number(value)
    polygons = [polygon] if is_single else [_normalize_polygon(each) for each in value]
    return polygons if any(each != [] for each in polygons) else None


def _normalize_polygon(value: Any) -> Any:
    """Return one polygon as x1, y1, x2, y2, …; any other value is returned unchanged.

    Accepts flat lists, lists of [x, y], lists of {x, y}, and {all_points_x, all_points_y}.
    """
    if isinstance(value, dict) and {"all_points_x", "all_points_y"} <= value.keys():
        xs, ys = value["all_points_x"], value["all_points_y"]
        if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys):
            return [
                normalize_number(number) for point in zip(xs, ys, strict=True) for number in point
            ]
        return value
    if not isinstance(value, list):
        return value
    if len(value) > 2 and all(_is_point(point) for point in value):
        return [normalize_number(number) for point in value for number in _get_coordinates(point)]
    if any(isinstance(number, str) for number in value):
        return [normalize_number(number) for number in value]
    return value


def _starts_with_number(value: list[Any]) -> bool:
    return bool(value) and isinstance(normalize_number(value[0]), int | float)


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return {"x", "y"} <= value.keys()
    return isinstance(value, list) and len(value) == 2 and _starts_with_number(value)


def _get_coordinates(point: Any) -> tuple[Any, Any]:
    return (point["x"], point["y"]) if isinstance(point, dict) else (point[0], point[1])


def _normalize_rle(value: dict[str, Any]) -> Any:
    rle = {key: value[key] for key in _RLE_KEYS if not _is_missing(value.get(key))}
    for key in _RLE_KEYS:
        if isinstance(rle.get(key), list):
            rle[key] = [normalize_integer(number) for number in rle[key]]
    return rle


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)  # noqa: PLR0124 - NaN
