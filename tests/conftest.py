"""What several tests need: the bundled model, loaded once, and the command line as a program."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from streamseg.cli import main
from streamseg.models import load_model
from streamseg.models.base import Segmenter

MEDIA = Path(__file__).parent / "media"
CLIP = Path(__file__).parents[1] / "streamseg" / "assets" / "street.mp4"
SHARED = Path(__file__).parents[2] / "shared"

PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
"""
"""For programs that tests start: their own peak of memory, in KiB.

``getrusage`` won't do: a new process begins with the peak of the one that started it.
"""


settings.register_profile(
    "streamseg", deadline=None, print_blob=True, derandomize="CI" in os.environ
)
settings.load_profile("streamseg")
"""How long an example takes says more of the machine than of the program; and what CI refuses, it
refuses for the change, not for new examples."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Ended]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random weights are those of the test, whichever tests ran in this process before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums are in one order, and threads don't wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def nanomask() -> Segmenter:
    return load_model("nanomask", score=0.35)


@pytest.fixture
def streamseg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run ``streamseg …`` in an empty folder, in this process: torch takes seconds to load."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return run


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "streamseg", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"COLUMNS": "200", "TERM": "dumb"}
