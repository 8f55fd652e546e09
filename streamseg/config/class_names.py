"""Class names of custom weights: validation, and parsing of ``--class-names``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from streamseg.errors import ConfigError

ClassNames: TypeAlias = Sequence[str] | Mapping[int, str]
"""Names in the order of the model outputs (ids from 1), or names by category id."""

MAX_ID = 2**53
"""Largest category id: JSON numbers are exact up to it."""
_MAX_FILE_BYTES = 1 << 20


def check_class_names(names: ClassNames) -> None:
    """Check that class names are unique and not empty, and that ids are from 0 to ``MAX_ID``.

    Raises:
        ValueError: a name or an id is invalid.
    """
    listed = list(names.values() if isinstance(names, Mapping) else names)
    if not listed:
        raise ValueError("class_names is empty: give a name for each class, or omit it")
    if any(not name.strip() for name in listed):
        raise ValueError("class_names has an empty name")
    repeated = [name for name, count in Counter(listed).items() if count > 1]
    if repeated:
        raise ValueError(f"class_names has {repeated[0]!r} twice")
    ids = names if isinstance(names, Mapping) else ()
    if invalid := [number for number in ids if not 0 <= number <= MAX_ID]:
        raise ValueError(f"class_names has the id {invalid[0]}: ids must be from 0 to {MAX_ID}")


def parse_class_names(text: str) -> list[str]:
    """Parse ``--class-names``: ``a,b``, or a file with one name per line.

    Raises:
        ConfigError: the file is missing or can't be read.
    """
    path = Path(text)
    try:
        if path.is_file():
            return _read_names(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "isn't a text file in UTF-8"
        raise ConfigError(f"--class-names {text}: can't be read: {reason}") from None
    if "," not in text and (path.suffix or len(path.parts) > 1):
        raise ConfigError(f"--class-names {text}: there is no such file; separate names by commas")
    return [name.strip() for name in text.split(",")]


def number_class_names(count: int) -> list[str]:
    """Return ``class_1``, ``class_2``, … for classes without names."""
    return [f"class_{number}" for number in range(1, count + 1)]


def _read_names(path: Path) -> list[str]:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError("too large")
    lines = data.decode("utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]
