"""Error messages of config validation: the path of the error, and what was expected.

The messages contain no values, and no keys with unusual characters, because these may be secrets.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

_UNKNOWN = re.compile(
    r"Object contains unknown field `(?P<field>.*?)`(?: - at `\$(?P<path>[^`]*)`)?", re.DOTALL
)
_EXPECTED = re.compile(
    r"(?P<expectation>.*) - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`", re.DOTALL
)


def describe_validation_error(message: str, schema: type[msgspec.Struct]) -> str:
    """Convert an error message of msgspec: path first, with suggestions for unknown keys.

    Args:
        message: message of a ``msgspec.ValidationError``.
        schema: type that was expected.
    """
    if unknown := _UNKNOWN.fullmatch(message):
        path, key = unknown["path"] or "", unknown["field"]
        keys = _keys_at(path, schema)
        matches = difflib.get_close_matches(key, keys, 1)
        hint = f"did you mean {matches[0]!r}?" if matches else f"known are {', '.join(keys)}"
        if re.fullmatch(r"[a-z][a-z0-9_]{0,40}", key):
            return f"{_join_path(path, key)}: unknown key; {hint}"
        return f"{_join_path(path)}: a key that is unknown; {hint}"
    expected = _EXPECTED.fullmatch(message)
    if expected is None:
        return message
    expectation, path = expected["expectation"], expected["path"]
    if expectation.startswith(("Invalid enum value", "Invalid value")):
        expectation = f"Expected one of {', '.join(map(repr, _choices_at(path, schema)))}"
    return f"{_join_path(path)}: {'a key: ' if expected['key'] else ''}{expectation}"


def _join_path(path: str, key: str = "") -> str:
    """Join the path and the key of an error."""
    return ".".join(part for part in (path.lstrip("."), key) if part) or "the config"


def _keys_at(path: str, schema: type[msgspec.Struct]) -> list[str]:
    """Return the keys of ``schema`` at a path such as ``.sources[0].thresholds``.

    If several sections are allowed there, these are the keys of all of them.
    """
    sections = [section for hint in _hints_at(path, schema) for section in _sections_in(hint)]
    keys = [key for section in sections for key in _section_keys(section)]
    return list(dict.fromkeys(keys))


def _choices_at(path: str, schema: type[msgspec.Struct]) -> list[str]:
    """Return the literal values and tags that ``schema`` allows at a path."""
    literals = [literal for hint in _hints_at(path, schema) for literal in _literals_in(hint)]
    tags = [
        section.__struct_config__.tag
        for hint in _hints_at(path.removesuffix(".format"), schema)
        for section in _sections_in(hint)
        if section.__struct_config__.tag
    ]
    return list(dict.fromkeys([*literals, *map(str, tags)]))


def _hints_at(path: str, schema: type[msgspec.Struct]) -> list[Any]:
    """Return the type hints at a path such as ``.sources[0].thresholds``."""
    hints: list[Any] = [schema]
    for key in re.findall(r"[A-Za-z_]\w*", path):
        sections = [section for hint in hints for section in _sections_in(hint)]
        hints = [get_type_hints(section).get(key) for section in sections]
    return hints


def _literals_in(hint: Any) -> list[str]:
    """Return the values of every ``Literal`` in a type hint."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [literal for argument in get_args(hint) for literal in _literals_in(argument)]


def _sections_in(hint: Any) -> list[type[msgspec.Struct]]:
    """Return the sections in a type hint."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return [hint]
    return [section for argument in get_args(hint) for section in _sections_in(argument)]


def _section_keys(section: type[msgspec.Struct]) -> list[str]:
    tag = section.__struct_config__.tag_field
    return [*([tag] if tag else []), *section.__struct_fields__]
