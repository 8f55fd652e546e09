"""``streamseg train`` end to end: outputs, signals, several processes and example configs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Run, command, environment
from support.paths import ROOT
from support.training import (
    PATTERN,
    make_trainer,
    read_csv,
    write_config,
    write_damaged_squares,
    write_squares,
)

from streamseg.models.weights import files

pytestmark = pytest.mark.usefixtures("one_thread", "without_plots_and_fsync")


def wait_for(condition: Callable[[], bool], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_command_trains_and_prints_the_metrics(streamseg: Run, tmp_path: Path):
    result = streamseg("train", write_config(tmp_path / "tiny.yaml", epochs=1))
    assert result.returncode == 0, result.stderr
    assert "held out, masks" in result.stdout
    assert "nanomask: 2 classes; new: everything; 2 batches of 4 an epoch" in result.stderr
    assert (tmp_path / "runs" / "tiny" / "model.safetensors").exists()


def test_rows_with_problems_are_skipped_reported_and_recorded(streamseg: Run, tmp_path: Path):
    damages = ("a box without area", "a damaged image", "a missing image")
    data = {"train": [write_damaged_squares(tmp_path, *damages)], "val": []}
    file = write_config(tmp_path / "r.yaml", data=data, epochs=1, batch=2)
    result = streamseg("train", file, "--out", "out")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [
        "nanomask: 2 classes; new: everything; 1 batches of 2 an epoch",
        "annotations: skipped 3 rows with problems (data.problems: skip):",
        "  1 x file is missing: image 1",
        "  1 x box has no area: image 2, annotation 3",
        "  1 x image can't be used: image 3",
    ]
    (dataset,) = json.loads((tmp_path / "out" / "skipped.json").read_text())["datasets"]
    assert dataset["dataset"] == "annotations"
    skipped = [(row.get("image"), row.get("annotation")) for row in dataset["rows"]]
    assert skipped == [(1, None), (2, 3), (3, None)]
    resumed = streamseg("train", file, "--out", "out", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr == result.stderr


def test_commands_of_the_training_guide_lead_to_a_served_model(streamseg: Run, tmp_path: Path):
    """Run the commands of docs/training.md in order."""
    config = ROOT / "configs" / "train" / "own-data.yaml"
    for split in ("train", "val"):
        write_squares(tmp_path / "written", ["person", "gnome"], first_id=70)
        (tmp_path / "written" / "images").rename(tmp_path / split)
        (tmp_path / "written" / "annotations.json").rename(tmp_path / f"{split}.json")
    root = ("--set", f"data.root={tmp_path}")
    checked = streamseg("eval", "--check", config, *root)
    assert checked.returncode == 0, checked.stderr
    assert "8 images, 16 annotations: no problems" in checked.stdout
    options = ("epochs=1", "batch=2", "workers=0", "model.input_size=64", "model.device=cpu")
    sets = [argument for text in options for argument in ("--set", text)]
    trained = streamseg("train", config, *root, *sets, "--out", "runs/mine")
    assert trained.returncode == 0, trained.stderr
    assert "2 classes; new: gnome" in trained.stderr
    weights = ("--weights", "runs/mine/model.safetensors")
    processed = streamseg("process", tmp_path / "val", "--out", "results", *weights)
    assert processed.returncode == 0, processed.stderr
    lines = (tmp_path / "results" / "val" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 4
    val = ("--set", "data.val.0.images=val", "--set", "data.val.0.annotations=val.json")
    evaluated = streamseg("eval", ROOT / "configs" / "eval" / "coco.yaml", *root, *weights, *val)
    assert evaluated.returncode == 0, evaluated.stderr


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_interrupt_saves_a_checkpoint_and_exits_with_130(tmp_path: Path):
    file = write_config(tmp_path / "tiny.yaml", epochs=500, evaluate_every=500)
    out = tmp_path / "out"
    env = environment() | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command("train", file, "--out", out), env=env) as process:
        wait_for((out / "last.pt").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert files.read(out / "last.pt").training is not None
    assert not list(out.glob("*.part"))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_stop_signal_to_the_process_group_saves_and_ends_the_workers(tmp_path: Path):
    """Schedulers and Ctrl-C also send the signal to the workers, which must ignore it."""
    url = PATTERN.replace("frames=8", "frames=1200")
    file = write_config(
        tmp_path / "tiny.yaml",
        data={"train": [{"format": "pattern", "url": url}], "val": []},
        batch=1,
        workers=2,
        epochs=9,
        evaluate_every=9,
    )
    out = tmp_path / "out"
    env = environment() | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command("train", file, "--out", out),
        env=env,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for((out / "steps.csv").exists)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = children.read_text().split()
        for worker in workers:
            os.kill(int(worker), signal.SIGTERM)
            os.kill(int(worker), signal.SIGINT)
        lines = len(read_csv(out / "steps.csv"))
        # At least 20 more steps, which is more than the batches that were loaded ahead.
        wait_for(lambda: len(read_csv(out / "steps.csv")) > lines + 1)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert workers
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert files.read(out / "last.pt").training is not None


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_have_the_losses_of_one(tmp_path: Path):
    make_trainer(tmp_path / "one").run()
    file = write_config(tmp_path / "tiny.yaml")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    script = [str(ROOT / "tools" / "train.py"), str(file), "--out", str(tmp_path / "two")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    subprocess.run([*launcher, *script], env=env, check=True, timeout=200)
    one, two = (read_csv(tmp_path / name / "steps.csv") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for first, second in zip(one, two, strict=True):
        for name, value in first.items():
            assert float(second[name]) == pytest.approx(float(value), abs=1e-4), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tiny_config_reaches_its_mask_ap(tmp_path: Path):
    """Evaluate on held-out frames of the test pattern."""
    config = ROOT / "configs" / "train" / "tiny.yaml"
    arguments = command("train", config, "--out", tmp_path / "out")
    subprocess.run(arguments, env=environment(), check=True, timeout=500)
    masks = [row for row in read_csv(tmp_path / "out" / "measures.csv") if row["on"] == "masks"]
    assert float(masks[-1]["ap"]) >= 0.80
