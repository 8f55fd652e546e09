"""Training loop: outputs, options, and errors before and during training."""

from __future__ import annotations

import json
import resource
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training import (
    CONFIG,
    PATTERN,
    make_config,
    make_trainer,
    read_csv,
    write_damaged_squares,
    write_squares,
)

from streamseg.errors import ConfigError, DataError, OutputError, TrainingError, WeightsError
from streamseg.models import load_model
from streamseg.models.base import Segmenter
from streamseg.models.weights import files
from streamseg.training import validation

pytestmark = pytest.mark.usefixtures("one_thread", "without_plots_and_fsync")


# Outputs


def test_finished_training_writes_weights_logs_and_plots(finished_training: Path):
    assert {path.name for path in finished_training.iterdir()} == {
        *("last.pt", "best.pt", "model.safetensors"),
        *("steps.csv", "losses.png", "measures.csv", "measures.png"),
    }
    content = torch.load(finished_training / "best.pt", weights_only=True)
    assert json.loads(content["categories"]) == {"1": "disc", "2": "box"}
    assert json.loads(content["training"]["recipe"])["epochs"] == 2
    assert json.loads(content["training"]["versions"])["torch"] == version("torch")
    metrics = json.loads(content["training"]["position"])["measures"]
    assert set(metrics) == {"held out, boxes", "held out, masks"}
    assert {row["step"] for row in read_csv(finished_training / "measures.csv")} == {"4"}


@pytest.mark.parametrize("name", ["best.pt", "model.safetensors"])
def test_trained_weights_can_be_loaded_with_their_classes(finished_training: Path, name: str):
    weights = finished_training / name
    model = load_model("nanomask", weights=weights, device="cpu", input_size=64, score=0.05)
    assert model.categories == {1: "disc", 2: "box"}
    averaged = files.read(finished_training / "best.pt").state
    assert all(torch.equal(t, averaged[n]) for n, t in model.network.state_dict().items())
    (instances,) = model.predict([np.zeros((48, 64, 3), np.uint8)])
    assert instances.categories == {1: "disc", 2: "box"}


def test_averaged_weights_differ_from_the_last_ones(finished_training: Path):
    weights = files.read(finished_training / "last.pt")
    last = weights.training["states"]["network"]
    assert any(not torch.equal(t, last[n]) for n, t in weights.state.items())


# Options


def test_batches_are_the_same_for_any_number_of_workers(tmp_path: Path):
    batches = []
    for workers in (0, 1):
        trainer = make_trainer(tmp_path / str(workers), workers=workers)
        batches.append(next(trainer._batches.load_epoch(1)))
    a, b = batches
    assert a.names == b.names
    assert torch.equal(a.images, b.images)
    for first, second in zip(a.targets, b.targets, strict=True):
        assert torch.equal(first.masks, second.masks)


def test_only_frozen_parameters_keep_their_values(tmp_path: Path):
    frozen = {"frozen": ["backbone", "neck"]}
    data = CONFIG["data"] | {"val": []}
    trainer = make_trainer(tmp_path, epochs=1, optimiser=frozen, data=data)
    before = {name: t.clone() for name, t in trainer.model.network.state_dict().items()}
    trainer.run()
    after = trainer.model.network.state_dict()
    for name, tensor in before.items():
        is_frozen = name.startswith(("backbone", "neck"))
        assert torch.equal(tensor, after[name]) == is_frozen, name


def test_accumulated_batches_are_one_step(tmp_path: Path):
    data = CONFIG["data"] | {"val": []}
    make_trainer(tmp_path, epochs=1, batch=2, accumulate=2, data=data).run()
    assert [row["step"] for row in read_csv(tmp_path / "steps.csv")] == ["2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": {"name": "sgd", "rate": 0.01}, "schedule": {"name": "steps"}},
        {"model": {**CONFIG["model"], "precision": "bf16"}},
        {"ema": 0},
        {"losses": {"distil": 1.0, "mask": 0.5}},
    ],
    ids=["sgd", "bf16", "no averaged weights", "loss weights"],
)
def test_loss_decreases_with_other_options(tmp_path: Path, changes: dict[str, Any]):
    make_trainer(tmp_path, epochs=3, evaluate_every=3, **changes).run()
    losses = [float(row["loss"]) for row in read_csv(tmp_path / "steps.csv")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("ema", [0, 0.9])
def test_network_is_in_eval_mode_during_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
):
    predict_dataset, modes = validation.predict_dataset, []

    def record_mode(model: Segmenter, *args: Any, **kwargs: Any) -> Any:
        modes.append([module.training for module in model.network.modules()])
        return predict_dataset(model, *args, **kwargs)

    monkeypatch.setattr(validation, "predict_dataset", record_mode)
    section = {"format": "pattern", "url": PATTERN.replace("frames=8", "frames=2")}
    data = {"train": [section], "val": [section]}
    make_trainer(tmp_path, ema=ema, evaluate_every=1, data=data).run()
    assert len(modes) == 2
    assert not any(map(any, modes))


def test_weights_keep_the_classes_that_they_share_with_the_data(
    finished_training: Path, tmp_path: Path
):
    data = {"train": [write_squares(tmp_path, ["star", "box"], first_id=40)], "val": []}
    model = {**CONFIG["model"], "weights": str(finished_training / "best.pt")}
    trainer = make_trainer(tmp_path / "out", model=model, data=data)
    assert trainer.model.categories == {40: "star", 41: "box"}
    assert "new: star" in trainer.summary
    old = files.read(finished_training / "best.pt").state
    new = trainer.model.network.state_dict()
    for name in ("head.0.out.weight", "head.2.out.bias"):
        assert torch.equal(new[name][1], old[name][1])  # box
        assert not torch.equal(new[name][0], old[name][0])  # star, which was disc
        assert torch.equal(new[name][2:], old[name][2:])
    assert torch.equal(new["backbone.stem.conv.weight"], old["backbone.stem.conv.weight"])


def test_images_without_annotations_are_background(tmp_path: Path):
    section = write_damaged_squares(tmp_path, "no annotations")
    data = {"train": [*CONFIG["data"]["train"], section], "val": []}
    assert "3 batches of 4" in make_trainer(tmp_path / "out", data=data).summary


# Errors during a training


def test_loss_that_is_not_finite_names_the_images_and_keeps_the_checkpoint(tmp_path: Path):
    trainer = make_trainer(
        tmp_path, optimiser={"rate": 1e30, "clip": 0}, schedule={"warmup": 0}, save_every=1
    )
    with pytest.raises(TrainingError, match=r"isn't finite in epoch .* images pattern \d") as error:
        trainer.run()
    assert "lower optimiser.rate" in str(error.value)
    position = json.loads(files.read(tmp_path / "last.pt").training["position"])
    assert position["step"] == 1


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path):
    trainer = make_trainer(tmp_path, epochs=1, data=CONFIG["data"] | {"val": []})
    trainer.run()
    before = (tmp_path / "last.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"last\.pt: can't be written"):
            trainer._save_checkpoint("last.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "last.pt").read_bytes() == before
    files.read(tmp_path / "last.pt")


# Errors before a training


def test_weights_of_another_architecture_are_rejected(tmp_path: Path):
    other_weights = tmp_path / "other.pt"
    torch.save({"stem.weight": torch.zeros(3)}, other_weights)
    with pytest.raises(WeightsError, match=r"doesn't fit nanomask: \d+ missing .* 1 unexpected"):
        make_trainer(tmp_path / "out", model={**CONFIG["model"], "weights": str(other_weights)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("an unknown category", "77"),
        ("a damaged image", r"the data have 1 problem, .* image 3"),
    ],
)
def test_dataset_with_problems_is_rejected(tmp_path: Path, damage: str, message: str):
    section = write_damaged_squares(tmp_path, damage)
    data = {"train": [section], "val": [], "problems": "refuse"}
    with pytest.raises(DataError, match=message):
        make_trainer(tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("only crowds", r"all of its 8 annotations are marked as a crowd \(iscrowd: 1\)"),
        ("no annotations", "its 4 images have no annotations"),
        (
            "only boxes without area",
            "every annotation has a problem, the first: image 1, annotation 1: ",
        ),
    ],
)
@pytest.mark.parametrize("part", ["train", "val"])
def test_dataset_without_usable_annotations_is_rejected(
    tmp_path: Path, damage: str, reason: str, part: str
):
    data = CONFIG["data"] | {part: [write_damaged_squares(tmp_path, damage)]}
    purpose = "learn from" if part == "train" else "measure with"
    with pytest.raises(DataError, match=f"^annotations: there is nothing to {purpose}: {reason}"):
        make_trainer(tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


def test_category_id_with_two_names_is_rejected(tmp_path: Path):
    data = {"train": [CONFIG["data"]["train"][0], write_squares(tmp_path, ["car"])], "val": []}
    with pytest.raises(ConfigError, match="category 1 is 'car' here and 'disc' in another"):
        make_trainer(tmp_path / "out", data=data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"maks": 1}}, "losses.maks: no such loss; known are quality"),
        ({"optimiser": {"frozen": ["bakbone"]}}, "no parameter begins with 'bakbone'"),
        ({"optimiser": {"frozen": [""]}}, "nothing is left to be trained"),
        ({"optimiser": {"rates": {"hed": 0.1}}}, "no trained parameter begins with 'hed'"),
    ],
)
def test_option_unknown_to_the_model_is_rejected(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "tiny.yaml: epoch: unknown key; did you mean 'epochs'?"),
        ({"optimiser": {"lr": 1}}, "tiny.yaml: optimiser.lr: unknown key; known are name, rate"),
        ({"data": {"train": [{"format": "coco"}]}}, "data.train[0]: Object missing required"),
        ({"data": {"train": [{"format": "voc"}]}}, "data.train[0].format: Expected one of"),
        (
            {"data": {"train": [{"format": "pattern", "ulr": "x", "url": PATTERN}]}},
            "data.train[0].ulr: unknown key; did you mean 'url'?",
        ),
        ({"data": {"val": CONFIG["data"]["val"]}}, "data.train is empty"),
        ({"augment": {"scale": [2, 1]}}, "augment: scale: the first number must not be larger"),
    ],
)
def test_invalid_config_is_rejected_with_path_of_the_key(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as error:
        make_config(**changes)
    assert message in str(error.value)
    assert error.value.exit_code == 2
