"""Resumed training: bit-exact equality with an uninterrupted training."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import (
    CONFIG,
    PATTERN,
    KilledError,
    make_trainer,
    read_csv,
    train_until_killed,
    write_squares,
)

from streamseg.errors import ConfigError, DataError, TrainingError, WeightsError
from streamseg.models.weights import files
from streamseg.training import trainer as trainer_module
from streamseg.training.log import TrainingLog

pytestmark = pytest.mark.usefixtures("one_thread", "without_plots_and_fsync")

OUTPUT_NAMES = ("steps.csv", "measures.csv", "model.safetensors")
FREQUENT_SAVES: dict[str, Any] = {"batch": 2, "save_every": 2, "evaluate_every": 1}
"""Two epochs of four batches, with a checkpoint every two steps."""


def assert_same_state(first: Path, second: Path) -> None:
    """Assert that weights, averaged weights and optimizer state are equal bit for bit."""
    a, b = (files.read(folder / "last.pt") for folder in (first, second))
    assert a.state.keys() == b.state.keys()
    assert all(torch.equal(tensor, b.state[name]) for name, tensor in a.state.items())
    states = [weights.training["states"] for weights in (a, b)]
    for name, tensor in states[0]["network"].items():
        assert torch.equal(tensor, states[1]["network"][name]), name
    moments = [state["optimiser"]["state"] for state in states]
    for number, state in moments[0].items():
        assert torch.equal(state["exp_avg"], moments[1][number]["exp_avg"])


def assert_same_files(first: Path, second: Path) -> None:
    for name in OUTPUT_NAMES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def read_position(folder: Path) -> dict[str, Any]:
    return json.loads(files.read(folder / "last.pt").training["position"])


def train_until_stopped(out: Path, epoch: int, batch: int) -> None:
    def stop(phase: str, done: int, _total: int | None) -> None:
        if phase.startswith(f"epoch {epoch} ") and done == batch:
            trainer.stop()

    trainer = make_trainer(out, progress=stop)
    assert trainer.run().interrupted
    position = read_position(out)
    assert (position["epoch"], position["batch"]) == (epoch - 1, batch)


@pytest.fixture
def frequent_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "STEPS_PER_LOG_LINE", 3)


@pytest.mark.parametrize(
    ("epoch", "batch"),
    [
        pytest.param(1, 2, marks=pytest.mark.slow, id="epoch end"),
        pytest.param(2, 1, id="mid-epoch"),
    ],
)
def test_stopped_training_resumes_bit_for_bit(
    finished_training: Path, tmp_path: Path, epoch: int, batch: int
):
    train_until_stopped(tmp_path, epoch, batch)
    columns = len(read_csv(tmp_path / "steps.csv")[0])
    with (tmp_path / "steps.csv").open("a") as file:  # a line after the checkpoint, to be dropped
        file.write("99,9" + ",0" * (columns - 2) + "\n")
    assert not make_trainer(tmp_path, resume=True).run().interrupted
    assert_same_state(finished_training, tmp_path)
    assert_same_files(finished_training, tmp_path)


@pytest.mark.slow
def test_training_stopped_in_its_evaluation_evaluates_on_resume(
    finished_training: Path, tmp_path: Path
):
    evaluated = []

    def stop(phase: str, done: int, _total: int | None) -> None:
        if phase == "held out":
            evaluated.append(done)
            trainer.stop()

    trainer = make_trainer(tmp_path, progress=stop)
    assert trainer.run().interrupted
    assert evaluated == [4]  # of eight images
    assert not (tmp_path / "measures.csv").exists()
    assert not make_trainer(tmp_path, resume=True).run().interrupted
    assert_same_state(finished_training, tmp_path)
    for name in ("measures.csv", "steps.csv"):
        assert read_csv(finished_training / name) == read_csv(tmp_path / name)


@pytest.mark.slow
@pytest.mark.usefixtures("frequent_log_lines")
def test_killed_training_writes_the_same_files_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Log lines after the checkpoint are dropped, and mean losses continue from it."""
    uninterrupted = tmp_path / "uninterrupted"
    make_trainer(uninterrupted, **FREQUENT_SAVES).run()
    # The checkpoints are of the steps 2, 4 and 6, the log lines of 3, 4, 6 and 8.
    kill_points = {"before an evaluation": (1, 4), "before the last evaluation": (2, 4)}
    for name, (epoch, batch) in kill_points.items():
        train_until_killed(tmp_path / name, epoch, batch, **FREQUENT_SAVES)

    def kill(_: TrainingLog) -> None:
        raise KilledError

    out = tmp_path / "in an evaluation, after its log lines"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "plot", kill)
        with pytest.raises(KilledError):
            make_trainer(out, **FREQUENT_SAVES).run()
    assert len(read_csv(out / "measures.csv")) == 2
    for folder in (*(tmp_path / name for name in kill_points), out):
        make_trainer(folder, resume=True, **FREQUENT_SAVES).run()
        assert_same_files(folder, uninterrupted)
        assert_same_state(folder, uninterrupted)


def test_truncated_checkpoint_is_an_error_that_names_the_best_weights(
    finished_training: Path, tmp_path: Path
):
    for name in ("best.pt", "steps.csv", "measures.csv"):
        (tmp_path / name).write_bytes((finished_training / name).read_bytes())
    (tmp_path / "last.pt").write_bytes((finished_training / "last.pt").read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"last\.pt: is cut off .* copy .*best\.pt to .*last"):
        make_trainer(tmp_path, resume=True)
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes())
    make_trainer(tmp_path, resume=True).run()
    assert_same_files(tmp_path, finished_training)


@pytest.mark.slow
def test_missing_image_ends_training_with_a_checkpoint(tmp_path: Path):
    data = {"train": [write_squares(tmp_path, ["disc"])], "val": []}
    changes = {"data": data, "batch": 1, "workers": 2}
    image = tmp_path / "images" / "2.png"

    def remove_image(phase: str, done: int, _total: int | None) -> None:
        if phase.startswith("epoch 1 ") and done == 4:
            image.rename(tmp_path / "2.png")

    trainer = make_trainer(tmp_path / "out", progress=remove_image, **changes)
    with pytest.raises(DataError, match=r"2\.png: can't be read: No such file or directory$"):
        trainer.run()
    assert read_position(tmp_path / "out")["epoch"] == 1
    (tmp_path / "2.png").rename(image)
    make_trainer(tmp_path / "out", resume=True, **changes).run()
    make_trainer(tmp_path / "uninterrupted", **changes).run()
    assert_same_state(tmp_path / "out", tmp_path / "uninterrupted")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_killed_worker_ends_training_with_a_checkpoint(tmp_path: Path, accumulate: int):
    """There are more batches than are loaded ahead, so that the training detects the crash."""
    train = {"format": "pattern", "url": f"{PATTERN.replace('=8', '=16')}&seed=1"}
    data = {"train": [train], "val": CONFIG["data"]["val"]}
    changes = {"data": data, "epochs": 1, "batch": 2, "workers": 1, "accumulate": accumulate}

    def kill_workers(_phase: str, done: int, _total: int | None) -> None:
        if done == 3:
            for child in multiprocessing.active_children():
                child.kill()

    trainer = make_trainer(tmp_path / "out", progress=kill_workers, **changes)
    with pytest.raises(TrainingError, match=r"was killed, .* set workers lower or to 0"):
        trainer.run()
    assert 3 <= read_position(tmp_path / "out")["batch"] < 8
    make_trainer(tmp_path / "out", resume=True, **changes | {"workers": 0}).run()
    make_trainer(tmp_path / "uninterrupted", **changes).run()
    assert_same_files(tmp_path / "out", tmp_path / "uninterrupted")
    assert_same_state(tmp_path / "out", tmp_path / "uninterrupted")


def test_new_training_does_not_overwrite_an_existing_one(finished_training: Path):
    with pytest.raises(ConfigError, match="holds a training already: continue it with --resume"):
        make_trainer(finished_training)


def test_resume_without_checkpoint_is_rejected(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"last\.pt: the weights file doesn't exist"):
        make_trainer(tmp_path, resume=True)


def test_resume_with_another_config_is_rejected(finished_training: Path):
    with pytest.raises(ConfigError, match=r"optimiser\.rate was 0\.001 and is 0\.5"):
        make_trainer(finished_training, resume=True, optimiser={"rate": 0.5})


def test_resume_with_other_classes_is_rejected(finished_training: Path, tmp_path: Path):
    data = {"train": [write_squares(tmp_path, ["disc", "box", "star"])], "val": []}
    with pytest.raises(WeightsError, match="it has 2 classes, not 3, without star"):
        make_trainer(finished_training, resume=True, data=data)
