"""The command line: what it takes, what it prints, and how it exits.

Data goes to stdout, diagnostics to stderr. Exit 0 when the work is done, 2 for a wrong call or
config, 1 for a failure said in one line, 130 when ``process``, ``train`` or ``demo`` was
interrupted.
"""

from __future__ import annotations

import logging
import sys
import traceback

from streamseg.cli import ctl, live, offline, recorded  # noqa: F401 - they register their commands
from streamseg.cli.app import INTERRUPTED, app, fail
from streamseg.errors import StreamsegError


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit as the design says; ``--debug`` anywhere shows tracebacks."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(message)s"
    )
    try:
        app([a for a in given if a != "--debug"])
    except StreamsegError as error:
        if debug:
            traceback.print_exc()
        fail(str(error))
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if debug:
            traceback.print_exc()
        fail(f"{error.name} isn't installed: pip install 'streamseg[server]'")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
