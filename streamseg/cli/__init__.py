"""The command line: what it takes, what it prints, and how it exits.

Data goes to stdout, diagnostics to stderr. Exit 0 when the work is done, 2 for a wrong call or
config, 1 for a failure said in one line, 130 when ``process``, ``train`` or ``demo`` was
interrupted.
"""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper

from typer.exceptions import TyperException

from streamseg import logs
from streamseg.cli import (  # noqa: F401 - they register their commands
    ctl,
    keys,
    live,
    offline,
    recorded,
)
from streamseg.cli.app import INTERRUPTED, app, fail
from streamseg.errors import StreamsegError, UsageError


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit as the design says; ``--debug`` and ``--log`` may stand anywhere."""
    _escape_unencodable()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        logs.configure(_taken_style(given), debug=debug)
        logs.take_over()
        sys.exit(app([a for a in given if a != "--debug"], standalone_mode=False))
    except TyperException as error:  # a wrong call, or a command without arguments: help was shown
        fail(_without_values(error.format_message()))
        sys.exit(error.exit_code)
    except StreamsegError as error:
        fail(str(error), trace=debug)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        fail(f"{error.name} isn't installed: pip install 'streamseg[server]'", trace=debug)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the interpreter would print it with its secrets
        fail(f"unexpected {type(error).__name__}: {error}", trace=True)
        sys.exit(1)


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
