"""Command line program: runs one command, reports its errors, and sets the exit code.

Data goes to stdout, diagnostics to stderr. Exit codes: 0 when the work is done, 1 for a failure,
2 for a wrong call or config, 130 when ``process``, ``train`` or ``demo`` was interrupted. A failure
is one line on stderr. Output that can't be written is a failure, reported when the work is done;
closing the pipe (``| head``) is not.
"""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper

from typer.exceptions import TyperException

from streamseg.cli import ctl, keys, live, logs, offline, recorded, stderr  # noqa: F401 - imported to register commands
from streamseg.cli.app import app, fail, missing_extra
from streamseg.cli.shutdown import INTERRUPTED
from streamseg.cli.streams import guarded_output
from streamseg.errors import StreamsegError, UsageError
from streamseg.sinks.files.part_file import describe_os_error


def run_program(arguments: list[str] | None = None) -> None:
    """Run a command and exit; ``--debug`` and ``--log`` are accepted at any position."""
    _escape_unencodable()
    is_program = stderr.is_own()
    with guarded_output() as out:
        code = _run_command(
            list(sys.argv[1:] if arguments is None else arguments), is_program=is_program
        )
        out.flush()
        if out.failure is not None:
            fail(f"standard output: can't be written: {describe_os_error(out.failure)}")
            code = code or 1
    sys.exit(code)


def _run_command(given: list[str], *, is_program: bool) -> int:
    """Run a command and return its exit code.

    Args:
        given: the arguments; ``--debug`` and ``--log`` are removed from it.
        is_program: whether stderr belongs to this process, so that everything printed there may be
            formatted as log records.
    """
    debug = "--debug" in given
    try:
        logs.configure(_pop_log_format(given), debug=debug)
        if is_program:
            logs.take_over()
        return app([a for a in given if a != "--debug"], standalone_mode=False) or 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the interpreter would print it unredacted
        return _report(error, debug=debug)


def _report(error: Exception, *, debug: bool) -> int:
    """Print the error as one line and return the exit code."""
    if isinstance(error, TyperException):  # a wrong call; without arguments the help was printed
        fail(_without_values(error.format_message()))
        return error.exit_code
    if isinstance(error, StreamsegError):
        fail(str(error), trace=debug)
        return error.exit_code
    if isinstance(error, ImportError):
        fail(missing_extra(error), trace=debug)
        return 1
    exhausted = _exhausted_limit(error)
    if exhausted:
        fail(exhausted, trace=debug)
        return 1
    fail(f"unexpected {type(error).__name__}: {error}", trace=True)
    return 1


def _without_values(message: str) -> str:
    """Remove the arguments that a parser error quotes: one may be a password given by mistake."""
    return re.sub(r"(unexpected extra argument\S*) \(.*\)", r"\1", message, flags=re.DOTALL)


def _escape_unencodable() -> None:
    """Write characters that the terminal's encoding lacks as escape sequences.

    File names may contain undecodable bytes, and a terminal may support ASCII only.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _exhausted_limit(error: Exception) -> str | None:
    """Return a message if the error means that memory or threads are exhausted, else None."""
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text or 'an allocation failed'}"
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return "no more threads: raise the limit (ulimit -u; --pids-limit of a container)"
    return None


def _pop_log_format(given: list[str]) -> logs.Format:
    """Remove ``--log`` from the arguments and return its value.

    Raises:
        UsageError: the value is neither ``text`` nor ``json``.
    """
    style = "text"
    for index, argument in enumerate(given):
        if argument == "--log" and index + 1 < len(given):
            style = given[index + 1]
            del given[index : index + 2]
            break
        if argument.startswith("--log="):
            style = argument.removeprefix("--log=")
            del given[index]
            break
    if style == "json":
        return "json"
    if style != "text":
        raise UsageError(f"--log {style}: must be text or json")
    return "text"
