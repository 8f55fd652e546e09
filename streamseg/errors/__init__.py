"""Every error a user can meet, each with the exit code of the command that meets it.

StreamsegError (1)            a failure, said in one line
├── UsageError (2)            the call is wrong; nothing was started
│   ├── ConfigError           a config file, an override or an option
│   │   └── ImpossibleValueError  a value of a section
│   ├── ArgumentError         an argument of a Python call
│   ├── RowError              no row of that number; also an IndexError
│   ├── UnknownModelError     no model of that name
│   └── NoSuchSourceError     a running service has no source of that name
├── MissingExtraError         a package isn't installed; also a ModuleNotFoundError
├── SourceError               a source can't be read
│   ├── NoFramesError         there is nothing in it that could be decoded
│   ├── TooLargeError         its frames are larger than the limit
│   ├── IncompleteError       it ended before it should have, or lost much on the way
│   ├── NoAnswerError         a camera or a server that doesn't answer
│   └── StalledError          a connection that is open and gives no frames
├── WeightsError              a weights file that can't be loaded into the model
├── DataError                 an annotated dataset that can't be read or isn't sound
├── OutputError               a file or folder that can't be written
├── BindError                 an address that can't be served on
├── MaskError                 run lengths that are not a mask of that size
├── TrainingError             training can't go on: a loss isn't finite
├── WireError                 a message that is not what the protocol says
├── ReceiveTimeout            no message in the time given
├── RefusedError              a service that doesn't let us in
├── KeyFileError              a key, or a folder of keys, that can't be used
└── StageError                a stage of the pipeline failed; ``__cause__`` says why
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from streamseg.errors.redaction import printable as printable
from streamseg.errors.redaction import redact as redact
from streamseg.errors.redaction import redact_address as redact_address


class StreamsegError(Exception):
    """A failure whose message is one line for the user: what it is about, and what to do.

    The message may quote what a file or a peer holds; characters that a terminal would obey are
    escaped.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(StreamsegError):
    """The call is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file, an override or an option is wrong; the message gives its path."""


class ArgumentError(UsageError, ValueError):
    """An argument of a Python call is wrong; the message names it and what is expected."""


class RowError(UsageError, IndexError):
    """There is no row of that number."""


class ImpossibleValueError(ConfigError, ValueError):
    """A value of a config's section is impossible."""


class UnknownModelError(UsageError):
    """No model of that name; the message lists near matches."""


class NoSuchSourceError(UsageError):
    """A running service has no source of that name; the message lists those it has."""


class MissingExtraError(StreamsegError, ModuleNotFoundError):
    """A package isn't installed; the message names the extra that has it."""


class SourceError(StreamsegError):
    """A source can't be read; the message names it, without its password."""


class NoFramesError(SourceError):
    """A source has no frame that could be decoded."""


class TooLargeError(SourceError):
    """A source's frames have more pixels than the limit."""


class IncompleteError(SourceError):
    """A source ended before it should have; what came before was delivered."""


class NoAnswerError(SourceError):
    """A camera or a server didn't answer in time."""


class StalledError(SourceError):
    """A connection is open and gives no frames."""


class WeightsError(StreamsegError):
    """A weights file is missing, damaged or of another architecture."""


class DataError(StreamsegError):
    """An annotated dataset can't be read, or what it says isn't sound."""


class OutputError(StreamsegError):
    """A file or folder can't be written."""


class BindError(StreamsegError):
    """An address can't be bound."""


class MaskError(StreamsegError, ValueError):
    """Run lengths or crops that don't make a mask of the size they claim."""


class TrainingError(StreamsegError):
    """Training can't go on; the latest checkpoint is intact."""


class WireError(StreamsegError, ValueError):
    """A message that the protocol doesn't allow."""


class ReceiveTimeout(StreamsegError, TimeoutError):  # noqa: N818 - as TimeoutError
    """No message arrived in the time given."""


class RefusedError(StreamsegError):
    """A service refused our key, or asks for one."""


class KeyFileError(StreamsegError):
    """A key, or a folder of keys, can't be used; the message never has the secret in it."""


class StageError(StreamsegError):
    """A stage of the pipeline failed; its cause is chained."""

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
    """Turn a failed import within it (or within a function that it decorates) into an error.

    Raises:
        MissingExtraError: a package of the extra ``streamseg[…]`` isn't installed.
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
