"""Command line: type of the ``streamseg`` fixture, and commands for subprocesses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., CommandResult]


def command(*arguments: object) -> list[str]:
    """Return the command line that runs ``streamseg`` with this interpreter."""
    return [sys.executable, "-m", "streamseg", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return the environment of a subprocess: wide output without colors."""
    return os.environ | {"COLUMNS": "200", "TERM": "dumb"}
