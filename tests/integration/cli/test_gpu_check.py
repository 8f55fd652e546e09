"""The check of an accelerator: what it compares, what it does with failures; on a CPU."""

from __future__ import annotations

import sys

import msgspec
import numpy as np
import pytest
import torch
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import gpu_check
import gpu_check_networks as networks
import gpu_check_parts as parts

from streamseg.models import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return load_model("nanomask", device="cpu", input_size=96)


@pytest.fixture(scope="module")
def frames():
    return gpu_check.load_clip_frames()


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])
    gpu_check.main()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(
            ["--device", "cuda"],
            "torch sees 0 CUDA devices",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (["--device", "cuda:99"], "device 'cuda:99': torch sees"),
        (["--device", "gpu"], "device"),
        (["--device", "cpu", "--models", "nanomsk"], "did you mean nanomask"),
        (["--device", "cpu", "--seconds", "0"], "--seconds must be more than 0, not 0"),
        (["--device", "cpu", "--out", "/nowhere/report.json"], "--out /nowhere/report.json: No"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(monkeypatch, arguments, said):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *arguments)
    assert said in end.value.code  # a text as code is exit status 1
    assert end.value.code.startswith("gpu_check: ")
    assert "\n" not in end.value.code


def test_a_report_is_printed_and_written(monkeypatch, tmp_path, capsys, frames):
    monkeypatch.setattr(
        gpu_check, "load_clip_frames", lambda: [f[::6, ::6].copy() for f in frames[:4]]
    )
    out = tmp_path / "report.json"
    run(
        monkeypatch,
        *("--device", "cpu", "--models", "nanomask", "--parts", "parity", "--out", str(out)),
    )
    report = msgspec.json.decode(out.read_bytes(), type=gpu_check.Report)
    assert [row.model for row in report.parity] == ["nanomask"]
    assert report.parity[0].device.relative == 0  # a CPU beside itself
    assert 0 <= report.parity[0].batch.relative < gpu_check.MAY_DIFFER
    assert 0 < report.parity[0].bf16.relative < 0.2
    assert report.clip[0].unequal_frames == 0
    assert report.problems == []
    printed = capsys.readouterr().out
    assert "| `nanomask` | 0.0e+00 |" in printed
    assert "0 problems" in printed


@pytest.mark.slow
def test_weights_that_differ_are_a_problem(monkeypatch, frames, capsys):
    def broken(model, device):
        there = networks.load_model(model.name, device=str(device))
        with torch.no_grad():
            there.network.neck.lateral[0].weight.mul_(1.1)
        return there

    monkeypatch.setattr(
        gpu_check, "load_clip_frames", lambda: [f[::6, ::6].copy() for f in frames[:2]]
    )
    monkeypatch.setattr(gpu_check, "moved", broken)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--device", "cpu", "--models", "nanomask", "--parts", "parity")
    assert end.value.code == 1
    assert "differs on the device by" in capsys.readouterr().out


def test_a_part_that_fails_is_noted_and_the_others_go_on(monkeypatch, capsys):
    def failing(*_arguments):
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(gpu_check, "speed", failing)
    monkeypatch.setattr(gpu_check, "_clip", lambda *_: None)
    monkeypatch.setattr(gpu_check, "_parity", lambda *_: None)
    report = gpu_check.check("cpu", ["nanomask"], ["parity", "speed"], 1.0, None)
    assert len(report.problems) == 4  # two precisions, two sizes of batches
    assert report.problems[0].startswith("nanomask, speed, fp32, 1 at once: RuntimeError at ")
    assert report.problems[0].endswith(": no kernel image is available")
    assert report.problems[0] in "\n".join(gpu_check.tables(report))


def test_differences_are_parts_of_an_output_s_length_and_infinite_if_not_a_number():
    own = {"a": torch.tensor([[3.0, -4.0]]), "b": torch.tensor([[8.0]])}
    worst = networks.differ(own, {"a": torch.tensor([[3.5, -4.0]]), "b": torch.tensor([[8.1]])})
    assert (worst.relative, worst.absolute, worst.output) == (0.1, 0.5, "a")
    worst = networks.differ(own, {**own, "b": torch.tensor([[float("nan")]])})
    assert (worst.relative, worst.output) == (float("inf"), "b")


def test_random_weights_are_settled(monkeypatch, frames):
    small = load_model("solov2_light_r18", "none", device="cpu", input_size=64, score=0.05)
    monkeypatch.setattr(networks, "load_model", lambda *_arguments, **_options: small)
    before = {key: each.clone() for key, each in small.network.state_dict().items()}
    model = networks.settled_model("solov2_light_r18", frames[0])
    assert not torch.equal(
        model.network.backbone.bn1.running_mean, before["backbone.bn1.running_mean"]
    )
    (batch,) = model.prepare(frames[:2])
    said = networks.raw_outputs(model, batch.tensor)
    assert 0.6 < said["0.categories.0"].std() < 1.2
    assert {"0.kernels.4", "0.features", "1.0", "1.4"} < said.keys()
    assert all(len(each) == 2 and torch.isfinite(each).all() for each in said.values())


def test_stages_are_timed(model, frames):
    row = parts.speed(model, frames[:2])
    assert (row.model, row.precision, row.batch, row.memory) == ("nanomask", "fp32", 2, None)
    assert min(row.prepare, row.forward, row.postprocess) > 0


def test_cameras_are_served_and_accounted_for(model):
    row = parts.serve(model, 1.0, cameras=2)
    assert row.balanced
    assert row.fps > 0
    assert row.decoded >= row.fps * row.seconds * 0.99
    assert row.age_ms["p99"] >= row.age_ms["p50"] > 0


@pytest.mark.slow
def test_a_training_has_steps_and_a_loss():
    row = parts.train("nanomask", "fp32", torch.device("cpu"), steps=4, batch=2)
    assert row.steps == 4
    assert np.isfinite(row.losses).all()
    assert row.step_ms > 0
