"""The command line: what it takes, what it prints, and how it exits.

Data goes to stdout, diagnostics to stderr. Exit 0 when the work is done, 2 for a wrong call or
config, 1 for a failure said in one line, 130 when ``process``, ``train`` or ``demo`` was
interrupted.
"""

from __future__ import annotations

import sys

from streamseg import logs
from streamseg.cli import (  # noqa: F401 - they register their commands
    ctl,
    keys,
    live,
    offline,
    recorded,
)
from streamseg.cli.app import app, fail, missing_extra
from streamseg.errors import StreamsegError, UsageError
from streamseg.shutdown import INTERRUPTED


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit as the design says; ``--debug`` and ``--log`` may stand anywhere."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        logs.configure(_taken_style(given), debug=debug)
        app([a for a in given if a != "--debug"])
    except StreamsegError as error:
        fail(str(error), trace=debug)
        sys.exit(error.exit_code)
    except ImportError as error:
        fail(missing_extra(error), trace=debug)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        reason = exhausted(error)
        if reason is None:
            raise
        fail(reason, trace=debug)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def exhausted(error: MemoryError | RuntimeError) -> str | None:
    """Return which limit of the system was reached, or None if it was something else."""
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text or 'no more can be allocated'}"
    if "can't start new thread" in text:
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
