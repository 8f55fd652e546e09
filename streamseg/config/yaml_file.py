"""YAML parser of config files, with limits and with error messages that quote no content.

A config may contain a password at the position of an error, so messages give the line, the column
and the kind of error, but no text. Size, depth and expansion of aliases are limited while parsing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.error import Mark, MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode
from yaml.reader import ReaderError

from streamseg.errors import ConfigError

MAX_BYTES = 2**20
"""Maximum size of a config file."""
MAX_DEPTH = 32
"""Maximum nesting of mappings and lists."""
MAX_NODES = 100_000
"""Maximum number of values, including those repeated by aliases."""
MAX_NUMBER = 100
"""Maximum length of a value that is not text, in characters."""
_MERGE, _TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"
_QUOTATION = re.compile(r"'[^']*'?|\"[^\"]*\"?")
_PARSER_TOKENS = re.compile(r"'(?:[^\w\s]|\\\\?t|<[a-z ]+>)'")
"""Quoted parts of parser messages that are not from the document: punctuation, tokens."""


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file whose top level is a mapping.

    Raises:
        ConfigError: the file is missing or too large, is not YAML, or is not a mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "invalid file name"
        raise ConfigError(f"{path}: can't be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES} bytes, the limit of a config")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: can't be read: line {line} isn't UTF-8 text") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a config must be a mapping of keys, not {type(raw).__name__}")
    return raw


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML document.

    Args:
        text: document.
        where: beginning of error messages: file name or option.

    Raises:
        ConfigError: the text is not YAML, or exceeds a limit; the message has line and column.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: isn't YAML: {_describe_error(error, text)}") from None


class _Loader(yaml.SafeLoader):
    """Safe loader with limits that refuses duplicate keys."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        before = self._nodes
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConstructorError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise ConstructorError(None, None, "an alias inside of its own anchor", mark)
        self._nodes += self._sizes[id(node)] if is_alias else 1
        if self._nodes > MAX_NODES:
            raise ConstructorError(None, None, f"more than {MAX_NODES} values", mark)
        if not is_alias:
            self._sizes[id(node)] = self._nodes - before
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or key.tag == _MERGE:
                continue
            if key.value in seen:
                raise ConstructorError(None, None, "duplicate key", key.start_mark)
            seen.add(key.value)
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        is_text = node.tag == _TEXT or not isinstance(node, ScalarNode)
        if not is_text and len(node.value) > MAX_NUMBER:
            raise ConstructorError(None, None, "a number with too many digits", node.start_mark)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError, AttributeError, TypeError):
            # Raised by PyYAML for invalid dates, numbers and tags.
            raise ConstructorError(
                None, None, "a value that does not fit its type", node.start_mark
            ) from None
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise ConstructorError(None, None, "a control character or surrogate", node.start_mark)
        return value


def _describe_error(error: yaml.YAMLError, text: str) -> str:
    """Describe a parser error without quoting the document."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: a character that YAML doesn't allow"
    assert isinstance(error, MarkedYAMLError)
    mark: Mark | None = error.problem_mark or error.context_mark
    position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = _remove_quotations(error.problem or error.context or "syntax error")
    return f"{position}{problem.removeprefix('but ')}{_quoting_advice(error)}"


def _remove_quotations(problem: str) -> str:
    """Truncate a parser message at its first quotation of the document."""
    for quotation in _QUOTATION.finditer(problem):
        if not _PARSER_TOKENS.fullmatch(quotation[0]):
            return re.sub(r",?( but)?( found)?[\s:]*$", "", problem[: quotation.start()])
    return problem


def _quoting_advice(error: MarkedYAMLError) -> str:
    """Return the usual remedy: quotes around values with special characters."""
    if isinstance(error, ConstructorError):
        return ""
    return "; put values with a colon, '#', '%', '@' or brackets in quotes"
