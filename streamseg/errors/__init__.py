"""Exceptions of streamseg, with the exit codes of the command line.

StreamsegError (1)                base class; the message is one line
├── UsageError (2)                invalid call; nothing was started
│   ├── ConfigError               invalid config file, override or option
│   │   └── ImpossibleValueError  invalid value in a config section
│   ├── ArgumentError             invalid argument of a Python call; also a ValueError
│   ├── RowError                  row does not exist; also an IndexError
│   ├── UnknownModelError         model does not exist
│   └── NoSuchSourceError         a running service has no source of this name
├── MissingExtraError             a package is not installed; also a ModuleNotFoundError
├── SourceError                   a source can't be read
│   ├── NoFramesError             no frame could be decoded
│   ├── TooLargeError             frames exceed the pixel limit
│   ├── IncompleteError           a recording is truncated or damaged
│   ├── NoAnswerError             a camera or server does not answer
│   └── StalledError              a connection delivers no frames
├── WeightsError                  a weights file can't be loaded into the model
├── DataError                     an annotated dataset is unreadable or invalid
├── OutputError                   a file or folder can't be written
├── BindError                     an address can't be bound
├── MaskError                     invalid RLE, polygons or crops; also a ValueError
├── TrainingError                 training can't continue, e.g. because of a loss that is not finite
├── WireError                     invalid message; also a ValueError
├── ReceiveTimeout                no message arrived in time; also a TimeoutError
├── RefusedError                  a service refuses the key of the client
├── KeyFileError                  a key or key folder can't be used
└── StageError                    a stage of the pipeline failed; see ``__cause__``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from streamseg.errors.redaction import escape_unprintable as escape_unprintable
from streamseg.errors.redaction import redact as redact
from streamseg.errors.redaction import redact_address as redact_address


class StreamsegError(Exception):
    """Base class of all errors. The message is one line: what failed, and what to do about it.

    Control characters in the message are escaped, because it may quote a file or a peer.
    """

    exit_code = 1

    def __str__(self) -> str:
        return escape_unprintable(super().__str__())


class UsageError(StreamsegError):
    """A call is invalid: a wrong argument, option or config. Nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file, an override or an option is invalid; the message has the path."""


class ArgumentError(UsageError, ValueError):
    """An argument of a Python call is invalid; the message has its name and what is expected."""


class RowError(UsageError, IndexError):
    """A row of ``Instances`` or ``Masks`` does not exist."""


class ImpossibleValueError(ConfigError, ValueError):
    """A value in a config section is invalid."""


class UnknownModelError(UsageError):
    """A model does not exist; the message lists similar names."""


class NoSuchSourceError(UsageError):
    """A running service has no source of this name; the message lists its sources."""


class MissingExtraError(StreamsegError, ModuleNotFoundError):
    """A package is not installed; the message has the command that installs it."""


class SourceError(StreamsegError):
    """A source can't be read; the message names it, without secrets."""


class NoFramesError(SourceError):
    """No frame of a source could be decoded."""


class TooLargeError(SourceError):
    """The frames of a source exceed the pixel limit."""


class IncompleteError(SourceError):
    """A recording is truncated or damaged; its good frames were delivered."""


class NoAnswerError(SourceError):
    """A camera or server did not answer in time."""


class StalledError(SourceError):
    """A connection is open but delivers no frames."""


class WeightsError(StreamsegError):
    """A weights file is missing, damaged or of another architecture."""


class DataError(StreamsegError):
    """An annotated dataset is unreadable or invalid."""


class OutputError(StreamsegError):
    """A file or folder can't be written."""


class PluginError(StreamsegError):
    """A plug-in failed at run time; the message has its package."""


class BindError(StreamsegError):
    """An address can't be bound."""


class MaskError(StreamsegError, ValueError):
    """RLE, polygons or crops are not a mask of the given frame size."""


class TrainingError(StreamsegError):
    """Training can't continue; the latest checkpoint is intact."""


class WireError(StreamsegError, ValueError):
    """A message violates the protocol."""


class ReceiveTimeout(StreamsegError, TimeoutError):  # noqa: N818 - named like TimeoutError
    """No message arrived in time."""


class RefusedError(StreamsegError):
    """A service refused the key of the client, or requires one."""


class KeyFileError(StreamsegError):
    """A key or key folder can't be used; the message never contains the secret."""


class StageError(StreamsegError):
    """A stage of the pipeline failed; the cause is chained."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        super().__init__(f"{stage}: {cause or type(cause).__name__}")
        self.stage = stage
        self.__cause__ = cause
        if isinstance(cause, StreamsegError):
            self.exit_code = cause.exit_code

    def __reduce__(self) -> tuple[object, ...]:
        assert self.__cause__ is not None
        return StageError, (self.stage, self.__cause__)


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Convert failed imports to ``MissingExtraError``; a context manager and decorator.

    Args:
        extra: extra that installs the packages.

    Raises:
        MissingExtraError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if isinstance(error, MissingExtraError):
            raise
        package = (error.name or str(error)).partition(".")[0]
        raise MissingExtraError(
            f"{package} isn't installed: pip install 'streamseg[{extra}]'", name=package
        ) from None
