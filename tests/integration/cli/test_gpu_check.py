"""Accelerator check ``tools/gpu_check.py``, run on a CPU."""

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


def run_gpu_check(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])
    gpu_check.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--device", "cuda"],
            "torch sees 0 CUDA devices",
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="a CUDA device is available"
            ),
        ),
        (["--device", "cuda:99"], "device 'cuda:99': torch sees"),
        (["--device", "gpu"], "device"),
        (["--device", "cpu", "--models", "nanomsk"], "did you mean nanomask"),
        (["--device", "cpu", "--seconds", "0"], "--seconds must be more than 0, not 0"),
        (["--device", "cpu", "--out", "/nowhere/report.json"], "--out /nowhere/report.json: No"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(monkeypatch, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        run_gpu_check(monkeypatch, *arguments)
    assert message in exit_info.value.code  # a string as exit code is exit status 1
    assert exit_info.value.code.startswith("gpu_check: ")
    assert "\n" not in exit_info.value.code


@pytest.mark.slow
def test_report_is_printed_and_written(monkeypatch, tmp_path, capsys, frames):
    monkeypatch.setattr(
        gpu_check, "load_clip_frames", lambda: [f[::6, ::6].copy() for f in frames[:4]]
    )
    out = tmp_path / "report.json"
    run_gpu_check(
        monkeypatch,
        *("--device", "cpu", "--models", "nanomask", "--parts", "parity", "--out", str(out)),
    )
    report = msgspec.json.decode(out.read_bytes(), type=gpu_check.Report)
    assert [row.model for row in report.parity] == ["nanomask"]
    assert report.parity[0].device.relative == 0  # a CPU compared with itself
    assert 0 <= report.parity[0].batch.relative < gpu_check.MAY_DIFFER
    assert 0 < report.parity[0].bf16.relative < 0.2
    assert report.clip[0].unequal_frames == 0
    assert report.problems == []
    printed = capsys.readouterr().out
    assert "| `nanomask` | 0.0e+00 |" in printed
    assert "0 problems" in printed


@pytest.mark.slow
def test_different_weights_are_a_problem(monkeypatch, frames, capsys):
    def load_changed_model(model, device):
        model_copy = networks.load_model(model.name, device=str(device))
        with torch.no_grad():
            model_copy.network.neck.lateral[0].weight.mul_(1.1)
        return model_copy

    monkeypatch.setattr(
        gpu_check, "load_clip_frames", lambda: [f[::6, ::6].copy() for f in frames[:2]]
    )
    monkeypatch.setattr(gpu_check, "moved", load_changed_model)
    with pytest.raises(SystemExit) as exit_info:
        run_gpu_check(monkeypatch, "--device", "cpu", "--models", "nanomask", "--parts", "parity")
    assert exit_info.value.code == 1
    assert "differs on the device by" in capsys.readouterr().out


def test_failed_part_is_reported_and_others_continue(monkeypatch, capsys):
    def fail_with_runtime_error(*_arguments):
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(gpu_check, "speed", fail_with_runtime_error)
    monkeypatch.setattr(gpu_check, "_clip", lambda *_: None)
    monkeypatch.setattr(gpu_check, "_parity", lambda *_: None)
    report = gpu_check.check("cpu", ["nanomask"], ["parity", "speed"], 1.0, None)
    assert len(report.problems) == 4  # two precisions, two sizes of batches
    assert report.problems[0].startswith("nanomask, speed, fp32, 1 at once: RuntimeError at ")
    assert report.problems[0].endswith(": no kernel image is available")
    assert report.problems[0] in "\n".join(gpu_check.tables(report))


def test_differ_is_relative_to_output_norm_and_infinite_for_nan():
    outputs = {"a": torch.tensor([[3.0, -4.0]]), "b": torch.tensor([[8.0]])}
    difference = networks.differ(
        outputs, {"a": torch.tensor([[3.5, -4.0]]), "b": torch.tensor([[8.1]])}
    )
    assert (difference.relative, difference.absolute, difference.output) == (0.1, 0.5, "a")
    difference = networks.differ(outputs, {**outputs, "b": torch.tensor([[float("nan")]])})
    assert (difference.relative, difference.output) == (float("inf"), "b")


def test_settled_model_has_calibrated_batch_norms(monkeypatch, frames):
    small_model = load_model("solov2_light_r18", "none", device="cpu", input_size=64, score=0.05)
    monkeypatch.setattr(networks, "load_model", lambda *_arguments, **_options: small_model)
    before = {key: each.clone() for key, each in small_model.network.state_dict().items()}
    model = networks.settled_model("solov2_light_r18", frames[0])
    assert not torch.equal(
        model.network.backbone.bn1.running_mean, before["backbone.bn1.running_mean"]
    )
    (batch,) = model.prepare(frames[:2])
    outputs = networks.raw_outputs(model, batch.tensor)
    assert 0.6 < outputs["0.categories.0"].std() < 1.2
    assert {"0.kernels.4", "0.features", "1.0", "1.4"} < outputs.keys()
    assert all(len(each) == 2 and torch.isfinite(each).all() for each in outputs.values())


def test_speed_measures_all_stages(model, frames):
    row = parts.speed(model, frames[:2])
    assert (row.model, row.precision, row.batch, row.memory) == ("nanomask", "fp32", 2, None)
    assert min(row.prepare, row.forward, row.postprocess) > 0


def test_serve_accounts_for_all_frames(model):
    row = parts.serve(model, 1.0, cameras=2)
    assert row.balanced
    assert row.fps > 0
    assert row.decoded >= row.fps * row.seconds * 0.99
    assert row.age_ms["p99"] >= row.age_ms["p50"] > 0


@pytest.mark.slow
def test_train_has_steps_and_finite_losses():
    row = parts.train("nanomask", "fp32", torch.device("cpu"), steps=4, batch=2)
    assert row.steps == 4
    assert np.isfinite(row.losses).all()
    assert row.step_ms > 0
