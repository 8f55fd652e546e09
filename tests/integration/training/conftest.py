"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.training import make_trainer

from streamseg.training.log import TrainingLog


@pytest.fixture
def without_plots_and_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train without plots and fsync, which take longer than the small trainings of the tests."""
    monkeypatch.setattr(TrainingLog, "plot", lambda _: None)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="session")
def finished_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training that ran to its end; tests must not write into it."""
    out = tmp_path_factory.mktemp("finished")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests that compare with it bit for bit
    torch.manual_seed(0)
    assert not make_trainer(out).run().interrupted
    torch.set_num_threads(threads)
    return out
