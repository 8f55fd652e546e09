"""The training loop: it learns, goes on as if never stopped, and says what is wrong."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import command, environment
from support.paths import ROOT

from streamseg.config import convert
from streamseg.config.training import TrainingConfig
from streamseg.errors import ConfigError, DataError, OutputError, TrainingError, WeightsError
from streamseg.models import load_model
from streamseg.models.weights import files
from streamseg.training import Trainer, validation
from streamseg.training import trainer as trainer_module
from streamseg.training.log import TrainingLog
from streamseg.training.optimization import freeze_parameters, set_train_mode

PATTERN = "test:?size=64x48&frames=8&objects=3&fps=1"
TINY = {
    "model": {"name": "nanomask", "weights": "none", "device": "cpu", "input_size": 64},
    "data": {
        "train": [{"format": "pattern", "url": f"{PATTERN}&seed=1"}],
        "val": [{"format": "pattern", "url": f"{PATTERN}&seed=2", "name": "held out"}],
    },
    "epochs": 4,
    "batch": 4,
    "workers": 0,
    "ema": 0.9,
    "evaluate_every": 4,
    "schedule": {"warmup": 2},
    "augment": {"copy_paste": 0.5},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(**changes):
    return convert({**TINY, **changes}, TrainingConfig, "tiny.yaml")


def trainer(out, *, resume=False, progress=lambda *_: None, **changes):
    return Trainer(recipe(**changes), ROOT, out, progress, resume=resume)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_training(first: Path, second: Path):
    """Weights, averaged weights and optimiser equal, bit for bit."""
    a, b = (files.read(folder / "last.pt") for folder in (first, second))
    assert a.state.keys() == b.state.keys()
    assert all(torch.equal(tensor, b.state[name]) for name, tensor in a.state.items())
    states = [each.training["states"] for each in (a, b)]
    for name, tensor in states[0]["network"].items():
        assert torch.equal(tensor, states[1]["network"][name]), name
    moments = [each["optimiser"]["state"] for each in states]
    for number, state in moments[0].items():
        assert torch.equal(state["exp_avg"], moments[1][number]["exp_avg"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four epochs without an interruption."""
    out = tmp_path_factory.mktemp("whole")
    report = trainer(out).run()
    assert not report.interrupted
    return out


def stop_after(out, epoch, batch):
    """Train until that batch of that epoch is done."""
    stopped = []

    def progress(what, done, _expected):
        if what.startswith(f"epoch {epoch} ") and done == batch:
            run.stop()
            stopped.append(what)

    run = trainer(out, progress=progress)
    report = run.run()
    assert stopped
    assert report.interrupted


@pytest.mark.parametrize(("epoch", "batch"), [(2, 2), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(whole, tmp_path, epoch, batch):
    stop_after(tmp_path, epoch, batch)
    assert not trainer(tmp_path, resume=True).run().interrupted
    assert_same_training(whole, tmp_path)
    assert rows_of(whole / "measures.csv") == rows_of(tmp_path / "measures.csv")


@pytest.mark.slow
def test_a_training_that_was_stopped_while_it_is_measured_measures_when_it_goes_on(whole, tmp_path):
    measured = []

    def progress(what, done, _expected):
        if what == "held out":
            measured.append(done)
            run.stop()

    run = trainer(tmp_path, progress=progress)
    assert run.run().interrupted
    assert measured == [4]  # of eight pictures
    assert not (tmp_path / "measures.csv").exists()
    assert not trainer(tmp_path, resume=True).run().interrupted
    assert_same_training(whole, tmp_path)
    for name in ("measures.csv", "steps.csv"):
        assert rows_of(whole / name) == rows_of(tmp_path / name)


def test_lines_after_the_checkpoint_are_dropped_when_it_goes_on(whole, tmp_path):
    stop_after(tmp_path, 3, 1)
    with (tmp_path / "steps.csv").open("a") as file:
        file.write("99,9" + ",0" * (len(rows_of(whole / "steps.csv")[0]) - 2) + "\n")
    trainer(tmp_path, resume=True).run()
    steps = [int(row["step"]) for row in rows_of(tmp_path / "steps.csv")]
    assert steps == sorted(steps)
    assert steps[-1] == 8


LOGS = ("steps.csv", "measures.csv", "model.safetensors")
LOGGED: dict[str, object] = {
    "data": {
        "train": [{"format": "pattern", "url": f"{PATTERN.replace('=8', '=16')}&seed=1"}],
        "val": TINY["data"]["val"],
    },
    "epochs": 2,
    "batch": 2,
    "save_every": 2,
    "evaluate_every": 1,
}


class Killed(BaseException):
    """As SIGKILL: nothing that happens after it is of the training."""


def kill_after(out: Path, place: tuple[int, int], **changes: object) -> None:
    """Train until that batch of that epoch is done, and leave everything as it is then."""

    def progress(what, done, _expected):
        if what.startswith(f"epoch {place[0]} ") and done == place[1]:
            raise Killed

    with pytest.raises(Killed):
        trainer(out, progress=progress, **changes).run()


@pytest.fixture
def often_logged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer_module, "STEPS_PER_LOG_LINE", 3)


@pytest.mark.usefixtures("often_logged")
@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_with_the_same_mean_losses(tmp_path):
    changes = {**LOGGED, "epochs": 1, "save_every": 4, "data": LOGGED["data"] | {"val": []}}
    trainer(tmp_path / "whole", **changes).run()
    kill_after(tmp_path / "out", (1, 5), **changes)
    trainer(tmp_path / "out", resume=True, **changes).run()
    assert len(rows_of(tmp_path / "out" / "steps.csv")) == 3
    for name in ("steps.csv", "model.safetensors"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == whole, name


@pytest.mark.slow
@pytest.mark.usefixtures("often_logged")
def test_a_training_that_was_killed_anywhere_writes_the_same_files(tmp_path):
    """At the latest checkpoint, just after a line of the log, before an epoch is measured."""
    trainer(tmp_path / "whole", **LOGGED).run()
    for number, place in enumerate([(1, 6), (1, 8), (2, 5), (2, 8)]):
        out = tmp_path / str(number)
        kill_after(out, place, **LOGGED)
        trainer(out, resume=True, **LOGGED).run()
        for name in LOGS:
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
        assert_same_training(tmp_path / "whole", out)


@pytest.mark.slow
@pytest.mark.usefixtures("often_logged")
def test_a_training_killed_while_it_measured_writes_no_line_twice(tmp_path, monkeypatch):
    trainer(tmp_path / "whole", **LOGGED).run()
    monkeypatch.setattr(trainer_module.TrainingLog, "plot", lambda _: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        trainer(tmp_path / "out", **LOGGED).run()
    monkeypatch.undo()
    monkeypatch.setattr(trainer_module, "STEPS_PER_LOG_LINE", 3)
    assert len(rows_of(tmp_path / "out" / "measures.csv")) == 2
    trainer(tmp_path / "out", resume=True, **LOGGED).run()
    for name in LOGS:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (
            name
        )


WHOLE_LOG = b"step,epoch,rate,loss,mask\n20,1,0.001,0.5,0.5\n40,2,0.0005,0.25,0.25\n"


@pytest.mark.parametrize(
    ("content", "lines", "kept", "note"),
    [
        (WHOLE_LOG, 2, 2, ""),
        (WHOLE_LOG, 1, 1, ""),
        (WHOLE_LOG + b"60,3,0.0", 2, 2, "its end is damaged, dropped"),
        (WHOLE_LOG + b"60,3,0.0002,0.1,0.1", 2, 2, "its end is damaged, dropped"),
        (WHOLE_LOG + bytes(40), 2, 2, "its end is damaged, dropped"),
        (WHOLE_LOG + b"\xff\xfe,3\n", 2, 2, "its end is damaged, dropped"),
        (WHOLE_LOG + bytes(9) + b"\n60,3,0.1,0.1,0.1\n", 2, 2, "its end is damaged, dropped"),
        (WHOLE_LOG[:-9], 2, 1, "1 of its last lines are damaged or missing, dropped"),
        (WHOLE_LOG[:30], 2, 0, "2 of its last lines are damaged or missing, dropped"),
        (b"", 2, 0, "2 of its last lines are damaged or missing, dropped"),
        (bytes(70), 2, 0, "2 of its last lines are damaged or missing, dropped"),
        (None, 2, 0, "is missing, starting a new file"),
        (WHOLE_LOG, 0, 0, ""),
    ],
)
def test_what_an_interruption_leaves_of_a_log(tmp_path, content, lines, kept, note):
    if content is not None:
        (tmp_path / "steps.csv").write_bytes(content)
    journal = TrainingLog(tmp_path, {"steps.csv": lines})
    assert journal.line_counts == {"steps.csv": kept, "measures.csv": 0, "panoptic.csv": 0}
    assert journal.notes == ([f"{tmp_path}/steps.csv: {note}"] if note else [])
    expected = b"".join(WHOLE_LOG.splitlines(keepends=True)[: kept + 1]) if kept else b""
    assert (tmp_path / "steps.csv").read_bytes() == expected
    journal.log_step(60, 3, 0.1, {"mask": 1.0})
    assert len(rows_of(tmp_path / "steps.csv")) == kept + 1


@pytest.mark.parametrize(("line", "number"), [(b"step,epoch,rate", 1), (b"20,1,0.001,0.5", 2)])
def test_a_log_that_is_damaged_in_its_middle_is_refused(tmp_path, line, number):
    damaged = WHOLE_LOG.replace(line, b"\0\xff," + line[9:])
    (tmp_path / "steps.csv").write_bytes(damaged)
    with pytest.raises(DataError, match=rf"steps\.csv: line {number} is damaged and later ones"):
        TrainingLog(tmp_path, {"steps.csv": 2})
    assert (tmp_path / "steps.csv").read_bytes() == damaged


@pytest.mark.slow
def test_a_checkpoint_that_is_cut_off_is_refused_with_what_may_be_used(whole, tmp_path):
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / "last.pt").write_bytes((whole / "last.pt").read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"last\.pt: is cut off .* copy .*best\.pt to .*last"):
        trainer(tmp_path, resume=True)
    (tmp_path / "last.pt").write_bytes((whole / "best.pt").read_bytes())
    for name in ("steps.csv", "measures.csv"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    trainer(tmp_path, resume=True).run()
    for name in LOGS:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_a_picture_that_vanishes_ends_the_training_with_its_state_saved(tmp_path):
    data = {"train": [annotated(tmp_path, ["disc"])], "val": []}
    changes = {"data": data, "batch": 1, "epochs": 2, "workers": 2}

    def progress(what, done, _expected):
        if what.startswith("epoch 1 ") and done == 4:
            (tmp_path / "pictures" / "2.png").rename(tmp_path / "2.png")

    run = trainer(tmp_path / "out", progress=progress, **changes)
    with pytest.raises(DataError, match=r"2\.png: can't be read: No such file or directory$"):
        run.run()
    position = json.loads(files.read(tmp_path / "out" / "last.pt").training["position"])
    assert position["epoch"] == 1
    (tmp_path / "2.png").rename(tmp_path / "pictures" / "2.png")
    trainer(tmp_path / "out", resume=True, **changes).run()
    trainer(tmp_path / "whole", **changes).run()
    assert_same_training(tmp_path / "out", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_worker_that_is_killed_ends_the_training_with_its_state_saved(tmp_path, accumulate):
    changes = {**LOGGED, "epochs": 1, "workers": 1, "save_every": 0}
    changes["accumulate"] = accumulate

    def progress(_what, done, _expected):
        if done == 3:
            for child in multiprocessing.active_children():
                child.kill()

    run = trainer(tmp_path / "out", progress=progress, **changes)
    with pytest.raises(TrainingError, match=r"was killed, .* set workers to 0"):
        run.run()
    position = json.loads(files.read(tmp_path / "out" / "last.pt").training["position"])
    assert 3 <= position["batch"] < 8
    trainer(tmp_path / "out", resume=True, **changes | {"workers": 0}).run()
    trainer(tmp_path / "whole", **changes).run()
    for name in LOGS:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert_same_training(tmp_path / "whole", tmp_path / "out")


def test_a_training_leaves_what_is_needed_to_serve_and_to_understand_it(whole):
    names = {path.name for path in whole.iterdir()}
    assert {"last.pt", "best.pt", "model.safetensors", "steps.csv", "measures.csv"} <= names
    assert not [name for name in names if name.endswith(".part")]
    held = torch.load(whole / "best.pt", weights_only=True)
    assert json.loads(held["categories"]) == {"1": "disc", "2": "box"}
    assert json.loads(held["training"]["recipe"])["epochs"] == 4
    assert json.loads(held["training"]["versions"])["torch"] == version("torch")
    measured = json.loads(held["training"]["position"])["measures"]
    assert set(measured) == {"held out, boxes", "held out, masks"}
    (last,) = {int(row["step"]) for row in rows_of(whole / "measures.csv")}
    assert last == 8


@pytest.mark.parametrize("name", ["best.pt", "model.safetensors"])
def test_what_was_trained_can_be_served_under_its_own_classes(whole, name):
    model = load_model("nanomask", weights=whole / name, device="cpu", input_size=64, score=0.05)
    assert model.categories == {1: "disc", 2: "box"}
    averaged = files.read(whole / "best.pt").state
    assert all(torch.equal(t, averaged[n]) for n, t in model.network.state_dict().items())
    found = model.predict([np.zeros((48, 64, 3), np.uint8)])[0]
    assert found.categories == {1: "disc", 2: "box"}


def test_the_averaged_weights_are_not_the_last_ones(whole):
    held = files.read(whole / "last.pt")
    raw = held.training["states"]["network"]
    assert any(not torch.equal(t, raw[n]) for n, t in held.state.items())


def test_the_order_and_the_pictures_do_not_depend_on_the_workers(tmp_path):
    def first_batch(workers):
        run = trainer(tmp_path / str(workers), workers=workers)
        return next(run._batches.load_epoch(1))

    here, there = first_batch(0), first_batch(1)
    assert here.names == there.names
    assert torch.equal(here.images, there.images)
    assert all(
        torch.equal(a.masks, b.masks) for a, b in zip(here.targets, there.targets, strict=True)
    )


def test_frozen_parts_stay_and_others_move(tmp_path):
    run = trainer(tmp_path, epochs=1, optimiser={"frozen": ["backbone", "neck"]})
    before = {name: t.clone() for name, t in run.model.network.state_dict().items()}
    run.run()
    after = run.model.network.state_dict()
    for name, tensor in before.items():
        frozen = name.startswith(("backbone", "neck"))
        assert torch.equal(tensor, after[name]) == frozen, name


def test_gradients_of_several_forwards_make_one_step(tmp_path):
    trainer(tmp_path, epochs=1, batch=2, accumulate=2).run()
    assert [int(row["step"]) for row in rows_of(tmp_path / "steps.csv")] == [2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": {"name": "sgd", "rate": 0.01}, "schedule": {"name": "steps"}},
        {"model": {**TINY["model"], "precision": "bf16"}},
        {"ema": 0},
        {"losses": {"distil": 1.0, "mask": 0.5}},
    ],
)
def test_other_ways_of_training_learn_as_well(tmp_path, changes):
    trainer(tmp_path, epochs=3, **changes).run()
    losses = [float(row["loss"]) for row in rows_of(tmp_path / "steps.csv")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("ema", [0, 0.9])
def test_what_is_measured_is_not_in_training(tmp_path, monkeypatch, ema):
    predict, measured = validation.predict_dataset, []

    def watched(model, *args, **kwargs):
        measured.append([m.training for m in model.network.modules()])
        return predict(model, *args, **kwargs)

    monkeypatch.setattr(validation, "predict_dataset", watched)
    trainer(tmp_path, epochs=2, ema=ema, evaluate_every=1).run()
    assert len(measured) == 2
    assert not any(map(any, measured))


def test_a_loss_that_is_not_finite_names_the_images_and_keeps_the_checkpoint(tmp_path):
    trainer(tmp_path, epochs=1).run()
    before = (tmp_path / "last.pt").read_bytes()
    out = tmp_path / "wild"
    with pytest.raises(TrainingError, match=r"isn't finite in epoch .* images pattern \d") as said:
        trainer(out, optimiser={"rate": 1e30, "clip": 0}, schedule={"warmup": 0}).run()
    assert "lower optimiser.rate" in str(said.value)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path):
    trainer(tmp_path, epochs=1).run()
    before = (tmp_path / "last.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    again = trainer(tmp_path, epochs=1, resume=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"last\.pt: can't be written"):
            again._save_checkpoint("last.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "last.pt").read_bytes() == before
    files.read(tmp_path / "last.pt")


def test_a_full_disk_is_one_line_for_the_journal_too(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = TrainingLog(tmp_path, {})
    journal.log_step(1, 1, 0.1, {"mask": 1.0})
    monkeypatch.setattr("streamseg.sinks.files.part_file.write_whole", full)
    with pytest.raises(OutputError, match=r"steps\.csv: can't be written: the disk is full"):
        journal.log_step(2, 1, 0.1, {"mask": 1.0})


def test_a_link_in_the_journal_s_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    journal = TrainingLog(tmp_path, {})
    journal.log_step(1, 1, 0.1, {"mask": 1.0})
    (tmp_path / "steps.csv").unlink()
    (tmp_path / "steps.csv").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"steps\.csv: .*links are not followed"):
        journal.log_step(2, 1, 0.1, {"mask": 1.0})
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_second_training_does_not_overwrite_the_first(whole):
    with pytest.raises(ConfigError, match="holds a training already: continue it with --resume"):
        trainer(whole)


def test_there_must_be_something_to_go_on_from(tmp_path):
    with pytest.raises(WeightsError, match=r"last\.pt: there is no such weights file"):
        trainer(tmp_path, resume=True)


def test_going_on_with_another_recipe_is_refused_with_what_differs(whole):
    with pytest.raises(ConfigError, match=r"optimiser\.rate was 0\.001 and is 0\.5"):
        trainer(whole, resume=True, optimiser={"rate": 0.5})


def test_going_on_with_other_classes_is_refused_with_what_differs(whole, tmp_path):
    images = annotated(tmp_path, ["disc", "box", "star"])
    data = {"train": [images], "val": []}
    with pytest.raises(WeightsError, match="it has 2 classes, not 3, without star"):
        trainer(whole, resume=True, data=data)


def test_weights_of_another_architecture_are_refused_with_what_differs(tmp_path):
    other = tmp_path / "other.pt"
    torch.save({"stem.weight": torch.zeros(3)}, other)
    with pytest.raises(WeightsError, match=r"doesn't fit nanomask: \d+ missing .* 1 unexpected"):
        trainer(tmp_path / "out", model={**TINY["model"], "weights": str(other)})


def test_classes_take_over_what_the_weights_know_of_their_name(whole, tmp_path):
    data = {"train": [annotated(tmp_path, ["star", "box"], first_id=40)], "val": []}
    model = {**TINY["model"], "weights": str(whole / "best.pt")}
    run = trainer(tmp_path / "out", model=model, data=data)
    assert run.model.categories == {40: "star", 41: "box"}
    assert "new: star" in run.introduction
    old = files.read(whole / "best.pt").state
    new = run.model.network.state_dict()
    for name in ("head.0.out.weight", "head.2.out.bias"):
        assert torch.equal(new[name][1], old[name][1])  # box
        assert not torch.equal(new[name][0], old[name][0])  # star isn't disc
        assert torch.equal(new[name][2:], old[name][2:])
    assert torch.equal(new["backbone.stem.conv.weight"], old["backbone.stem.conv.weight"])


def test_a_dataset_with_problems_never_starts_training(tmp_path):
    images = annotated(tmp_path, ["disc"])
    path = Path(images["annotations"])
    rows = json.loads(path.read_text())
    rows["annotations"][0]["category_id"] = 77
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="77"):
        trainer(tmp_path / "out", data={"train": [images], "val": [], "problems": "refuse"})
    assert not (tmp_path / "out").exists()


def test_a_dataset_with_a_damaged_picture_never_starts_training(tmp_path):
    images = annotated(tmp_path, ["disc"])
    (tmp_path / "pictures" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"the data have 1 problem, .* image 3"):
        trainer(tmp_path / "out", data={"train": [images], "val": [], "problems": "refuse"})
    assert not (tmp_path / "out").exists()


def spoilt(folder: Path, *spoil: str) -> dict[str, str]:
    """A dataset in which something is wrong with some rows."""
    images = annotated(folder, ["disc", "box"])
    path = Path(images["annotations"])
    content = json.loads(path.read_text())
    for kind in spoil:
        if kind == "crowd":
            content["annotations"] = [row | {"iscrowd": 1} for row in content["annotations"]]
        elif kind == "no annotations":
            content["annotations"] = []
        elif kind == "no area":
            content["annotations"][2] |= {"bbox": [5, 5, 0, 3], "segmentation": []}
        elif kind == "all without area":
            content["annotations"] = [
                row | {"bbox": [5, 5, 0, 3]} for row in content["annotations"]
            ]
        elif kind == "damaged picture":
            (folder / "pictures" / "2.png").write_bytes(b"not a picture")
        elif kind == "no picture":
            (folder / "pictures" / "0.png").unlink()
    path.write_text(json.dumps(content))
    return images


def test_rows_with_problems_are_left_out_counted_and_recorded(streamseg, tmp_path):
    images = spoilt(tmp_path, "no area", "damaged picture", "no picture")
    data = {"train": [images], "val": []}
    file = write_recipe(tmp_path / "r.yaml", data=data, epochs=1, batch=2)
    ended = streamseg("train", file, "--out", "out")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines() == [
        "nanomask: 2 classes; new: everything; 1 batches of 2 an epoch",
        "annotations: skipped 3 rows with problems (data.problems: skip):",
        "  1 x file is missing: image 1",
        "  1 x box has no area: image 2, annotation 3",
        "  1 x image can't be used: image 3",
    ]
    record = json.loads((tmp_path / "out" / "skipped.json").read_text())
    (dataset,) = record["datasets"]
    assert dataset["dataset"] == "annotations"
    found = [(row.get("image"), row.get("annotation")) for row in dataset["rows"]]
    assert found == [(1, None), (2, 3), (3, None)]
    again = streamseg("train", file, "--out", "out", "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stderr == ended.stderr


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("crowd", r"all of its 8 annotations are marked as a crowd \(iscrowd: 1\)"),
        ("no annotations", "its 4 images have no annotations"),
        ("all without area", "every annotation has a problem, the first: image 1, annotation 1: "),
    ],
)
@pytest.mark.parametrize("part", ["train", "val"])
def test_nothing_to_learn_from_or_to_measure_with_is_refused(tmp_path, spoil, why, part):
    images = spoilt(tmp_path, spoil)
    data = TINY["data"] | {part: [images]}
    what = "learn from" if part == "train" else "measure with"
    with pytest.raises(DataError, match=f"^annotations: there is nothing to {what}: {why}"):
        trainer(tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


def test_pictures_of_background_beside_others_are_learnt_from(tmp_path):
    images = spoilt(tmp_path, "no annotations")
    run = trainer(tmp_path / "out", data={"train": [*TINY["data"]["train"], images], "val": []})
    assert "3 batches of 4" in run.introduction


def test_frozen_batch_norms_keep_their_statistics():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2))
    freeze_parameters(network, ("0",))
    set_train_mode(network)
    assert [module.training for module in network] == [False, True]
    with pytest.raises(ConfigError, match="nothing is left to be trained"):
        freeze_parameters(network, ("1",))


def test_one_id_with_two_names_is_refused(tmp_path):
    data = {"train": [TINY["data"]["train"][0], annotated(tmp_path, ["car"])], "val": []}
    with pytest.raises(ConfigError, match="category 1 is 'car' here and 'disc' in another"):
        trainer(tmp_path / "out", data=data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"maks": 1}}, "losses.maks: there is no such loss; known are quality"),
        ({"optimiser": {"frozen": ["bakbone"]}}, "no parameter begins with 'bakbone'"),
        ({"optimiser": {"frozen": [""]}}, "nothing is left to be trained"),
        ({"optimiser": {"rates": {"hed": 0.1}}}, "no trained parameter begins with 'hed'"),
    ],
)
def test_what_a_recipe_says_of_things_that_are_not_there_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, **changes)


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
        ({"data": {"val": TINY["data"]["val"]}}, "data.train is empty"),
        ({"augment": {"scale": [2, 1]}}, "augment: scale: the first number must not be larger"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_path(changes, message):
    with pytest.raises(ConfigError) as refused:
        recipe(**changes)
    assert message in str(refused.value)
    assert refused.value.exit_code == 2


def annotated(folder: Path, names: list[str], first_id: int = 1) -> dict[str, str]:
    """A COCO dataset of four pictures with one square of each class, as a recipe has it."""
    import cv2

    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(4):
        canvas = np.full((48, 64, 3), 60, np.uint8)
        for index in range(len(names)):
            x = 4 + 18 * index
            canvas[10:24, x : x + 14] = 80 + 50 * index
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": first_id + index,
                    "bbox": [x, 10, 14, 14],
                    "area": 196,
                    "iscrowd": 0,
                    "segmentation": [[x, 10, x + 14, 10, x + 14, 24, x, 24]],
                }
            )
        cv2.imwrite(str(pictures / f"{number}.png"), canvas)
        size = {"width": 64, "height": 48}
        images.append({"id": number + 1, "file_name": f"{number}.png", **size})
    categories = [{"id": first_id + index, "name": name} for index, name in enumerate(names)]
    path = folder / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return {"format": "coco", "images": str(pictures), "annotations": str(path)}


def test_your_own_data_becomes_a_served_model(streamseg, tmp_path):
    """docs/training.md, from the first command to the last."""
    config = ROOT / "configs" / "train" / "own-data.yaml"
    for part in ("train", "val"):
        (tmp_path / "made").mkdir(exist_ok=True)
        annotated(tmp_path / "made", ["person", "gnome"], first_id=70)
        (tmp_path / "made" / "pictures").rename(tmp_path / part)
        (tmp_path / "made" / "annotations.json").rename(tmp_path / f"{part}.json")
    here = ("--set", f"data.root={tmp_path}")
    checked = streamseg("eval", "--check", config, *here)
    assert checked.returncode == 0, checked.stderr
    assert "8 images, 16 annotations: no problems" in checked.stdout
    small = ("epochs=1", "batch=2", "workers=0", "model.input_size=64", "model.device=cpu")
    sets = [argument for text in small for argument in ("--set", text)]
    trained = streamseg("train", config, *here, *sets, "--out", "runs/mine")
    assert trained.returncode == 0, trained.stderr
    assert "2 classes; new: gnome" in trained.stderr
    weights = ("--weights", "runs/mine/model.safetensors")
    ended = streamseg("process", tmp_path / "val", "--out", "results", *weights)
    assert ended.returncode == 0, ended.stderr
    lines = (tmp_path / "results" / "val" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 4
    val = ("--set", "data.val.0.images=val", "--set", "data.val.0.annotations=val.json")
    measured = streamseg("eval", config.parents[1] / "eval" / "coco.yaml", *here, *weights, *val)
    assert measured.returncode == 0, measured.stderr


def write_recipe(path: Path, **changes) -> Path:
    path.write_text(json.dumps({**TINY, **changes}))  # JSON is YAML
    return path


def test_the_command_trains_and_shows_what_was_measured(streamseg, tmp_path):
    ended = streamseg("train", write_recipe(tmp_path / "tiny.yaml", epochs=1))
    assert ended.returncode == 0, ended.stderr
    assert "held out, masks" in ended.stdout
    assert "nanomask: 2 classes; new: everything; 2 batches of 4 an epoch" in ended.stderr
    assert (tmp_path / "runs" / "tiny" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_an_interrupt_saves_and_exits_with_130(tmp_path):
    file = write_recipe(tmp_path / "tiny.yaml", epochs=500, evaluate_every=500)
    out = tmp_path / "out"
    env = environment() | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command("train", file, "--out", out), env=env) as run:
        wait_for((out / "last.pt").exists)
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
    assert files.read(out / "last.pt").training is not None
    assert not list(out.glob("*.part"))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_stop_signal_to_the_whole_group_saves_and_leaves_no_worker(tmp_path):
    """As a scheduler's time limit sends it, or Ctrl-C: workers go on until the step is done."""
    data = {
        "train": [{"format": "pattern", "url": f"{PATTERN.replace('frames=8', 'frames=1200')}"}]
    }
    file = write_recipe(
        tmp_path / "tiny.yaml", epochs=9, evaluate_every=9, workers=2, data=data | {"val": []}
    )
    out = tmp_path / "out"
    env = environment() | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command("train", file, "--out", out),
        env=env,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        wait_for((out / "steps.csv").exists)
        workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        for worker in workers:
            os.kill(int(worker), signal.SIGTERM)
            os.kill(int(worker), signal.SIGINT)
        lines = len(rows_of(out / "steps.csv"))
        wait_for(lambda: len(rows_of(out / "steps.csv")) > lines + 2)  # all was used that waited
        os.killpg(run.pid, signal.SIGTERM)
        _, err = run.communicate(timeout=60)
        assert run.returncode == 130, err
        assert "Traceback" not in err
        assert workers
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert files.read(out / "last.pt").training is not None


def wait_for(condition, seconds=100):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_learn_what_one_learns(tmp_path):
    file = write_recipe(tmp_path / "tiny.yaml", epochs=3, evaluate_every=3)
    env = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    script = str(ROOT / "tools" / "train.py")
    alone = [sys.executable, script, str(file), "--out", str(tmp_path / "one")]
    subprocess.run(alone, env=env, check=True, timeout=100)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", script, str(file)]
    subprocess.run([*launcher, "--out", str(tmp_path / "two")], env=env, check=True, timeout=200)
    one, two = (rows_of(tmp_path / name / "steps.csv") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for alone_row, shared_row in zip(one, two, strict=True):
        for name, value in alone_row.items():
            assert float(shared_row[name]) == pytest.approx(float(value), abs=1e-4), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tiny_recipe_learns_the_synthetic_pattern(tmp_path):
    """Mask AP on frames of a pattern that it has never seen."""
    run = [*command("train", ROOT / "configs" / "train" / "tiny.yaml"), "--out", tmp_path / "out"]
    subprocess.run(list(map(str, run)), env=environment(), check=True, timeout=500)
    masks = [row for row in rows_of(tmp_path / "out" / "measures.csv") if row["on"] == "masks"]
    assert float(masks[-1]["ap"]) >= 0.80
