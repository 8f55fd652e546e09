"""The command line in tests: the type of the ``streamseg`` fixture, and commands as processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Ended]


def command(*arguments: object) -> list[str]:
    """Return the command line that runs ``streamseg`` with this interpreter."""
    return [sys.executable, "-m", "streamseg", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return the environment of such a process: wide, plain output."""
    return os.environ | {"COLUMNS": "200", "TERM": "dumb"}
