"""Loading, overriding and validating configs; names of sources; secrets from files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import msgspec

from streamseg.config.service import Config, SectionT, SourceConfig
from streamseg.config.validation_errors import describe_validation_error
from streamseg.config.yaml_file import MAX_DEPTH, parse_yaml, read_yaml_mapping
from streamseg.errors import ConfigError
from streamseg.errors.redaction import HIDDEN, redact_address

_MAX_SECRET_BYTES = 4096


def load(path: str | Path | None) -> dict[str, Any]:
    """Read a YAML file without validation; return an empty mapping for None.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    if path is None:
        return {}
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a config is loaded from a path, not {type(path).__name__}")
    return read_yaml_mapping(Path(path))


def override(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply overrides such as ``worker.max_batch=8`` or ``sources.0.url=…`` in place.

    Args:
        raw: content of a config file.
        overrides: ``key.key=value``; the values are YAML.

    Raises:
        ConfigError: an override has another form, or its key does not exist.
    """
    if isinstance(overrides, str) or not isinstance(overrides, Iterable):
        raise ConfigError(f"overrides must be a list of strings, not {type(overrides).__name__}")
    for text in overrides:
        if not isinstance(text, str):
            raise ConfigError(f"an override must be a string, not {type(text).__name__}")
        key, equals, value = text.partition("=")
        keys = key.split(".")
        option = f"--set {_redact_key(key)}"
        if not equals or not all(keys):
            raise ConfigError(f"{option}: must be key.key=value")
        if len(keys) > MAX_DEPTH:
            raise ConfigError(f"{option}: more than {MAX_DEPTH} nested keys")
        _set_value(raw, keys, parse_yaml(value, option), option)


def validate(raw: dict[str, Any], where: str) -> Config:
    """Validate a config; sources without a name get one derived from their ``url``.

    Args:
        raw: content of a config file, with overrides.
        where: file name for error messages.

    Raises:
        ConfigError: the config is invalid; the message has the path and what was expected.
    """
    config = convert(raw, Config, where)
    names = assign_source_names([(s.name, s.url) for s in config.sources])
    _check_unique_names(names, where)
    named = [msgspec.structs.replace(s, name=n) for s, n in zip(config.sources, names, strict=True)]
    return msgspec.structs.replace(config, sources=tuple(named))


def convert(raw: dict[str, Any], schema: type[SectionT], where: str) -> SectionT:
    """Convert a mapping to a config section.

    Args:
        raw: content of a config file, with overrides.
        schema: type of the section.
        where: file name for error messages.

    Raises:
        ConfigError: the section is invalid; the message has the path and what was expected.
    """
    try:
        return msgspec.convert(raw, schema)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {describe_validation_error(str(error), schema)}") from None


def _check_unique_names(names: Sequence[str], where: str) -> None:
    """Refuse duplicate source names, also if they only differ in case."""
    known: dict[str, str] = {}
    for name in names:
        other = known.get(name.casefold())
        if other == name:
            raise ConfigError(f"{where}: sources: the name {name!r} is used twice")
        if other is not None:
            raise ConfigError(
                f"{where}: sources: {other!r} and {name!r} differ only in case, which some file "
                f"systems ignore: rename one"
            )
        known[name.casefold()] = name


def to_source_config(source: SourceConfig | str | os.PathLike[str], **options: Any) -> SourceConfig:
    """Return a validated source config for a config, a URL or a path.

    Args:
        source: config, URL or path.
        **options: fields to replace.

    Raises:
        ConfigError: an argument has another type, or a name or a value is invalid.
    """
    if isinstance(source, str | os.PathLike):
        source = SourceConfig(url=os.fspath(source))
    if not isinstance(source, SourceConfig):
        raise ConfigError(
            f"a source must be a SourceConfig, URL or path, not {type(source).__name__}"
        )
    return convert(msgspec.structs.asdict(source) | options, SourceConfig, "the source")


def assign_source_names(named: Sequence[tuple[str, str]]) -> list[str]:
    """Return unique source names.

    Args:
        named: (name, url) of each source. Without a name, the last part of the URL is used without
            its suffix; a number is appended if the name is taken, ignoring case.
    """
    taken = {name.casefold() for name, _ in named if name}
    names = []
    for name, url in named:
        unique = name or _unique_name(_name_from_url(url), taken)
        taken.add(unique.casefold())
        names.append(unique)
    return names


def read_secret(variable: str, file: str, where: str) -> str:
    """Read a secret from an environment variable or a file; empty if neither is given.

    Error messages contain neither the variable nor the path: the secret itself may have been
    entered there by mistake.

    Args:
        variable: name of the environment variable, or empty.
        file: path of the file, or empty; a trailing newline is removed.
        where: beginning of error messages: the owner of the secret, or the option.

    Raises:
        ConfigError: the variable is not set, or the file can't be read.
    """
    if variable:
        secret = os.environ.get(variable)
        if secret is None:
            raise ConfigError(f"{where}: its environment variable isn't set")
        return secret
    if not file:
        return ""
    try:
        with Path(file).open(encoding="utf-8") as opened:
            secret = opened.read(_MAX_SECRET_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "isn't text"
        raise ConfigError(f"{where}: its file can't be read: {reason}") from None
    return secret.rstrip("\r\n")


def _unique_name(stem: str, taken: set[str]) -> str:
    """Return ``stem``, with a number appended if it is taken, ignoring case."""
    number, name = 1, stem
    while name.casefold() in taken:
        number += 1
        name = f"{stem[: 63 - len(str(number))]}-{number}"
    return name


def _name_from_url(url: str) -> str:
    plain = url
    if "://" in url:
        plain = redact_address(url).split("?", 1)[0].split("#", 1)[0]
        scheme, _, rest = plain.partition("://")
        plain = f"{scheme}://{rest.rpartition('@')[2]}".replace(HIDDEN, "")
    elif url.startswith("test:"):
        plain = url.split("?", 1)[0]
    parts = [part for part in PurePath(plain).parts if not re.search(r"[*?\[]", part)]
    stem = PurePath(parts[-1]).stem if parts else plain
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:64] or "source"


def _redact_key(key: str) -> str:
    """Return the valid beginning of a dotted key: a URL given by mistake may have a password."""
    plain = re.match(r"[A-Za-z0-9_.]*", key)
    assert plain is not None
    return plain[0] if plain[0] == key else f"{plain[0]}…"


def _set_value(raw: dict[str, Any], keys: list[str], value: Any, option: str) -> None:
    node: Any = raw
    for depth, key in enumerate(keys):
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
        else:
            path = _redact_key(".".join(keys[: depth + 1]))
            raise ConfigError(f"{option}: there is no {path} in the config")
        if depth == len(keys) - 1:
            node[index] = value
        else:
            node = node.setdefault(index, {}) if isinstance(node, dict) else node[index]
