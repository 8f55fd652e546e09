"""Errors of a config that was validated: the path of what is wrong, and what was expected.

They say neither what a value is nor a key that does not look like one: a password may stand there.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

_UNKNOWN = re.compile(
    r"Object contains unknown field `(?P<field>.*?)`(?: - at `\$(?P<at>[^`]*)`)?", re.DOTALL
)
_EXPECTED = re.compile(r"(?P<what>.*) - at (?P<key>`key` in )?`\$(?P<at>[^`]*)`", re.DOTALL)


def explain(message: str, schema: type[msgspec.Struct]) -> str:
    """Return a message of msgspec with the path first and near matches of an unknown key."""
    if unknown := _UNKNOWN.fullmatch(message):
        at, key = unknown["at"] or "", unknown["field"]
        known = _keys_at(at, schema)
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        if re.fullmatch(r"[a-z][a-z0-9_]{0,40}", key):
            return f"{_path(at, key)}: unknown key; {hint}"
        return f"{_path(at)}: a key that is unknown; {hint}"
    expected = _EXPECTED.fullmatch(message)
    if expected is None:
        return message
    what, at = expected["what"], expected["at"]
    if what.startswith(("Invalid enum value", "Invalid value")):
        what = f"Expected one of {', '.join(map(repr, _choices_at(at, schema)))}"
    return f"{_path(at)}: {'a key: ' if expected['key'] else ''}{what}"


def _path(at: str, key: str = "") -> str:
    return ".".join(part for part in (at.lstrip("."), key) if part) or "the config"


def _keys_at(at: str, schema: type[msgspec.Struct]) -> list[str]:
    """The keys that ``schema`` has at a path such as ``.sources[0].thresholds``.

    Where one of several sections may stand, those of all of them.
    """
    sections = [section for hint in _hints_at(at, schema) for section in _sections_in(hint)]
    keys = [key for section in sections for key in _own_keys(section)]
    return list(dict.fromkeys(keys))


def _choices_at(at: str, schema: type[msgspec.Struct]) -> list[str]:
    """The values that ``schema`` allows at a path, where they are named one by one."""
    literals = [literal for hint in _hints_at(at, schema) for literal in _literals_in(hint)]
    tags = [
        section.__struct_config__.tag
        for hint in _hints_at(at.removesuffix(".format"), schema)
        for section in _sections_in(hint)
        if section.__struct_config__.tag
    ]
    return list(dict.fromkeys([*literals, *map(str, tags)]))


def _hints_at(at: str, schema: type[msgspec.Struct]) -> list[Any]:
    """The type hints at a path such as ``.sources[0].thresholds``."""
    hints: list[Any] = [schema]
    for key in re.findall(r"[A-Za-z_]\w*", at):
        sections = [section for hint in hints for section in _sections_in(hint)]
        hints = [get_type_hints(section).get(key) for section in sections]
    return hints


def _literals_in(hint: Any) -> list[str]:
    """The values of every ``Literal`` in a type hint."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [literal for argument in get_args(hint) for literal in _literals_in(argument)]


def _sections_in(hint: Any) -> list[type[msgspec.Struct]]:
    """The sections that a type hint is made of."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return [hint]
    return [section for argument in get_args(hint) for section in _sections_in(argument)]


def _own_keys(section: type[msgspec.Struct]) -> list[str]:
    tag = section.__struct_config__.tag_field
    return [*([tag] if tag else []), *section.__struct_fields__]
