"""Sinks: what receives the results of a service or of a recorded run.

A sink has a mailbox of its own and runs in a thread of its own. Its mailbox drops the oldest
results in a service, where a sink that is late must not delay the masks, and blocks in ``process``,
where nothing may be lost.

Other packages add sinks by entry points of the group ``streamseg.sinks``: see ``SinkWriter``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import GenericAlias
from typing import Any, Protocol

import msgspec

from streamseg.config import Section
from streamseg.config.plugins import Plugin, find_plugins
from streamseg.config.validation_errors import describe_validation_error
from streamseg.errors import ConfigError, OutputError, StreamsegError, redact
from streamseg.pipeline.mailbox import Policy
from streamseg.structures.results import Result

DEFAULT_CAPACITY = 16
"""Results of one source that may wait for a plug-in sink, unless it has a ``capacity``."""


class SinkWriter(Protocol):
    """Interface of a plug-in sink.

    The entry point names a class, or another callable, that is called with the options of its
    section in the config: an instance of its attribute ``Options``, a ``msgspec.Struct``. Without
    that attribute it takes no options and is called without arguments. All methods are called in
    the same thread. ``open`` and ``close`` are called once by a service, and once per input by
    ``process``. An exception ends this sink only.
    """

    def open(self) -> None:
        """Connect to, or create, what the results are written to."""

    def write(self, result: Result) -> None:
        """Write one result."""

    def close(self) -> None:
        """Release what ``open`` acquired; also called after ``write`` has failed."""


class Sink(SinkWriter, Protocol):
    """Sink with what its mailbox needs.

    Attributes:
        name: name in log messages, metrics and errors.
        policy: behavior of its full mailbox.
        capacity: results of one source that may wait in its mailbox.
    """

    @property
    def name(self) -> str: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def capacity(self) -> int: ...


def run_sink(sink: Sink, results: Iterable[Result]) -> Iterator[Result]:
    """Open a sink, write each result, and close the sink, also after a failure: a stage.

    Yields:
        Each result once it was written.
    """
    sink.open()
    try:
        for result in results:
            sink.write(result)
            yield result
    except BaseException:
        with suppress(Exception):  # the first failure is the one to report
            abort_sink(sink)
        raise
    sink.close()


def abort_sink(sink: Sink) -> None:
    """Close a sink after a failure; a file, which has ``abort``, isn't completed."""
    abort: Callable[[], None] = getattr(sink, "abort", sink.close)
    abort()


@dataclass(frozen=True, slots=True)
class PluginSink:
    """Sink of another package; its exceptions become an ``OutputError`` with its name.

    Attributes:
        name: type in the config, with a number if the type is there more than once.
        policy: behavior of its full mailbox.
        writer: the plug-in's object.
    """

    name: str
    policy: Policy
    writer: SinkWriter

    @property
    def capacity(self) -> int:
        """Results of one source that may wait in its mailbox."""
        return int(getattr(self.writer, "capacity", DEFAULT_CAPACITY))

    def open(self) -> None:
        """Open the plug-in's object.

        Raises:
            OutputError: the plug-in failed.
        """
        with self._named_errors():
            self.writer.open()

    def write(self, result: Result) -> None:
        """Pass a result to the plug-in's object.

        Raises:
            OutputError: the plug-in failed.
        """
        with self._named_errors():
            self.writer.write(result)

    def close(self) -> None:
        """Close the plug-in's object.

        Raises:
            OutputError: the plug-in failed.
        """
        with self._named_errors():
            self.writer.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OutputError(f"sink {self.name}: {_describe(error)}") from error


def load_sinks(sections: Sequence[Mapping[str, Any]], policy: Policy) -> list[PluginSink]:
    """Return the plug-in sinks that a config's section ``sinks`` names, not opened yet.

    Args:
        sections: ``type`` and options of each.
        policy: behavior of their full mailboxes.

    Raises:
        ConfigError: a plug-in is unknown or can't be imported, or its options are wrong; the
            message has the path in the config.
    """
    if not sections:
        return []
    plugins = find_plugins("streamseg.sinks")
    counts: Counter[str] = Counter()
    sinks = []
    for row, section in enumerate(sections):
        type_name = section.get("type")
        if not isinstance(type_name, str) or type_name not in plugins:
            problem = "is missing" if type_name is None else f"{type_name!r} isn't installed"
            known = ", ".join(plugins) or "none"
            raise ConfigError(f"sinks[{row}].type: {problem}; installed sink plug-ins: {known}")
        counts[type_name] += 1
        number = counts[type_name]
        name = type_name if number == 1 else f"{type_name}-{number}"
        options = {key: value for key, value in section.items() if key != "type"}
        writer = _make_writer(plugins[type_name], options, row)
        sinks.append(PluginSink(name, policy, writer))
    return sinks


def _make_writer(plugin: Plugin, options: dict[str, Any], row: int) -> SinkWriter:
    factory = plugin.load()
    origin = f"plug-in {plugin.name!r} of {plugin.origin}"
    schema = getattr(factory, "Options", None)
    if schema is not None and not (isinstance(schema, type) and issubclass(schema, msgspec.Struct)):
        raise ConfigError(f"{origin}: its Options is no msgspec.Struct")
    converted = _convert_options(options, schema or Section, row)
    try:
        writer: SinkWriter = factory() if schema is None else factory(converted)
    except StreamsegError as error:
        raise ConfigError(f"sinks[{row}]: {error}") from error
    except Exception as error:
        raise ConfigError(f"sinks[{row}]: {origin}: {_describe(error)}") from error
    for method in ("open", "write", "close"):
        if not callable(getattr(writer, method, None)):
            raise ConfigError(f"{origin}: its object has no method {method}()")
    return writer


def _convert_options(options: dict[str, Any], schema: type[msgspec.Struct], row: int) -> Any:
    """Return the options as an instance of their schema; keys that it hasn't are errors."""
    # Checked at their place in a config, so that the message has the whole path.
    strict = msgspec.defstruct(schema.__name__, [], bases=(schema,), forbid_unknown_fields=True)
    config = msgspec.defstruct("Config", [("sinks", GenericAlias(tuple, (*[Any] * row, strict)))])
    try:
        msgspec.convert({"sinks": [*[None] * row, options]}, config)
    except msgspec.ValidationError as error:
        raise ConfigError(describe_validation_error(str(error), config)) from None
    return msgspec.convert(options, schema)


def _describe(error: Exception) -> str:
    """Return an exception in one line, with its type unless it is one of ours; no passwords."""
    text = redact(" ".join(str(error).split()))
    return text if isinstance(error, StreamsegError) else f"{type(error).__name__}: {text}"
