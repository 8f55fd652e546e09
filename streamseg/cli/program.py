"""The command line: what it takes, what it prints, and how it exits.

Data goes to stdout, diagnostics to stderr. Exit 0 when the work is done, 2 for a wrong call or
config, 1 for a failure said in one line, 130 when ``process``, ``train`` or ``demo`` was
interrupted. Output that can't be written is such a failure, reported when the work is done; a
reader that left (``| head``) isn't.
"""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper

from typer.exceptions import TyperException

from streamseg.cli import ctl, keys, live, logs, offline, recorded, stderr  # noqa: F401 - they register their commands
from streamseg.cli.app import app, fail, missing_extra
from streamseg.cli.shutdown import INTERRUPTED
from streamseg.cli.streams import guarded_output
from streamseg.errors import StreamsegError, UsageError
from streamseg.sinks.files.part_file import reason_of


def run_program(arguments: list[str] | None = None) -> None:
    """Run a command and exit as the design says; ``--debug`` and ``--log`` may stand anywhere."""
    _escape_unencodable()
    is_program = stderr.is_own()
    with guarded_output() as out:
        code = _run(list(sys.argv[1:] if arguments is None else arguments), is_program=is_program)
        out.flush()
        if out.failure is not None:
            fail(f"standard output: can't be written: {reason_of(out.failure)}")
            code = code or 1
    sys.exit(code)


def _run(given: list[str], *, is_program: bool) -> int:
    """Run a command; its exit code. In a program, all that is printed to stderr is its own."""
    debug = "--debug" in given
    try:
        logs.configure(_taken_style(given), debug=debug)
        if is_program:
            logs.take_over()
        return app([a for a in given if a != "--debug"], standalone_mode=False) or 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the interpreter would print it with its secrets
        return _report(error, debug=debug)


def _report(error: Exception, *, debug: bool) -> int:
    """Say what is wrong in one line; the exit code."""
    if isinstance(error, TyperException):  # a wrong call, or no arguments: help was shown
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
    """Return an error of the parser without the arguments that it quotes: passwords, by mistake."""
    return re.sub(r"(unexpected extra argument\S*) \(.*\)", r"\1", message, flags=re.DOTALL)


def _escape_unencodable() -> None:
    """Write what the terminal's encoding lacks as an escape sequence instead of failing.

    File names may hold bytes that are no text, and a terminal may know ASCII only.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _exhausted_limit(error: Exception) -> str | None:
    """Return which limit of the system was reached, or None if it was something else."""
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text or 'no more can be allocated'}"
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return "no more threads: raise the limit (ulimit -u; a container's --pids-limit)"
    return None


def _taken_style(given: list[str]) -> logs.Format:
    """The value of ``--log``, taken out of the arguments.

    Raises:
        UsageError: it is neither ``text`` nor ``json``.
    """
    style = "text"
    for at, argument in enumerate(given):
        if argument == "--log" and at + 1 < len(given):
            style = given[at + 1]
            del given[at : at + 2]
            break
        if argument.startswith("--log="):
            style = argument.removeprefix("--log=")
            del given[at]
            break
    if style == "json":
        return "json"
    if style != "text":
        raise UsageError(f"--log {style}: it is text or json")
    return "text"
