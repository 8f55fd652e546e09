"""Fixtures of all tests, and the hypothesis profile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from support.commands import CommandResult, Run

from streamseg.cli import main
from streamseg.models import load_model
from streamseg.models.base import Segmenter

settings.register_profile(
    "streamseg", deadline=None, print_blob=True, derandomize="CI" in os.environ
)
settings.load_profile("streamseg")
"""Without deadlines, because the duration of an example depends on the machine. In CI the examples
are always the same, so that a failure is caused by the change under test."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch, so that random weights do not depend on previous tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run torch with one thread, so that the order of summation is fixed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def nanomask() -> Segmenter:
    """Load the bundled model once per session."""
    return load_model("nanomask", score=0.35)


@pytest.fixture
def streamseg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run ``streamseg …`` in an empty folder, in this process because importing torch is slow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments: object) -> CommandResult:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return CommandResult(int(ended.value.code or 0), output.out, output.err)

    return run
