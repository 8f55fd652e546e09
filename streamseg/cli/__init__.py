"""Command line interface; ``main`` runs one command.

The commands are imported when ``main`` is called: stop signals must be handled before imports that
take seconds.
"""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> None:
    """Run a command and raise ``SystemExit`` with its exit code.

    Args:
        arguments: of the command line, without the program's name; None reads ``sys.argv``.
    """
    from streamseg.cli.program import run_program

    run_program(arguments)
