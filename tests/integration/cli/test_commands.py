"""Commands end to end: output, files and exit codes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from support.commands import CommandResult, Run, command, environment
from support.paths import CLIP, MEDIA, ROOT
from support.ports import free_port

from streamseg import protocol
from streamseg.cli.streams import GuardedStream
from streamseg.models.nanomask.segmenter import NanoMask

PATTERN = "test:?size=96x64&frames=8"


def get_error_line(result: CommandResult) -> str:
    """Return the only error line of a command."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("streamseg: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def test_help_imports_no_heavy_modules(streamseg: Run) -> None:
    result = streamseg("--help")
    assert result.returncode == 0
    for name in ("demo", "serve", "watch", "process", "models", "bench", "train", "eval"):
        assert name in result.stdout
    code = (
        "import sys, streamseg.cli; print([m for m in ('torch', 'av', 'cv2') if m in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name", ["demo", "serve", "watch", "process", "models", "bench", "train", "eval"]
)
def test_help_of_every_command_has_an_example(streamseg: Run, name: str) -> None:
    result = streamseg(name, "--help")
    assert result.returncode == 0
    assert f"Example: streamseg {name}" in " ".join(result.stdout.split())


def test_process_writes_results_video_and_summary(streamseg: Run, tmp_path: Path) -> None:
    result = streamseg("process", CLIP, "--out", "out", "--end", "1.05")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "out" / "street"
    assert sorted(p.name for p in folder.iterdir()) == [
        "annotated.mp4",
        "results.jsonl",
        "summary.json",
    ]
    lines = (folder / "results.jsonl").read_bytes().splitlines()
    messages = [protocol.decode(line, protocol.RecordedMessage) for line in lines]
    assert [m.frame for m in messages] == list(range(11))
    assert [m.pts for m in messages] == pytest.approx([i / 10 for i in range(11)])
    assert any(i.class_name == "person" and i.track >= 0 for m in messages for i in m.instances)
    with av.open(str(folder / "annotated.mp4")) as video:
        times = [float(f.time) for f in video.decode(video=0)]
    assert times == pytest.approx([i / 10 for i in range(11)], abs=1e-3)
    summary = json.loads((folder / "summary.json").read_text())
    account = summary["sources"][0]["account"]
    assert summary["state"] == "complete"
    assert account["decoded"] == account["published"] == 11
    assert account["in_flight"] == 0


def test_recorded_results_do_not_depend_on_the_batch_size(streamseg: Run, tmp_path: Path) -> None:
    for size in (1, 4):
        out = f"out{size}"
        options = ("--end", "0.75", "--set", f"worker.max_batch={size}")
        assert streamseg("process", CLIP, "--out", out, *options).returncode == 0
    single, batched = (
        [
            protocol.decode(line, protocol.RecordedMessage)
            for line in (tmp_path / out / "street" / "results.jsonl").read_bytes().splitlines()
        ]
        for out in ("out1", "out4")
    )
    assert len(single) == len(batched) == 8
    for a, b in zip(single, batched, strict=True):
        assert [(i.track, i.label) for i in a.instances] == [
            (i.track, i.label) for i in b.instances
        ]
        for left, right in zip(a.instances, b.instances, strict=True):
            assert left.box == pytest.approx(right.box, abs=1e-2)


def test_process_accepts_example_config(streamseg: Run, tmp_path: Path) -> None:
    example = ROOT / "configs" / "process.yaml"
    result = streamseg("process", CLIP, "--out", "out", "--end", "0.35", "--config", example)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "out" / "street" / "results.jsonl").read_bytes().splitlines()
    instances = [
        i for line in lines for i in protocol.decode(line, protocol.RecordedMessage).instances
    ]
    assert {i.class_name for i in instances} <= {"person", "car", "truck", "bus"}
    assert min(i.score for i in instances) >= 0.3


def test_process_continues_after_invalid_input(streamseg: Run, tmp_path: Path) -> None:
    inputs = (MEDIA / "ok.mp4", MEDIA / "text.mp4", MEDIA / "fps1.mp4")
    result = streamseg("process", *inputs, "--out", "out", *SMALL)
    assert result.returncode == 1
    assert "text.mp4" in get_error_line(result)
    for name in ("ok", "fps1"):
        summary = json.loads((tmp_path / "out" / name / "summary.json").read_text())
        assert summary["state"] == "complete"
    assert not (tmp_path / "out" / "text").exists()


def test_process_keeps_readable_frames_of_truncated_recording(
    streamseg: Run, tmp_path: Path
) -> None:
    result = streamseg("process", MEDIA / "truncated_moov_front.mp4", "--out", "out", *SMALL)
    assert result.returncode == 1
    assert "incomplete" in get_error_line(result)
    folder = tmp_path / "out" / "truncated_moov_front"
    assert len((folder / "results.jsonl").read_bytes().splitlines()) == 25
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["state"] == "incomplete"


def test_process_counts_corrupt_frames(streamseg: Run, tmp_path: Path) -> None:
    result = streamseg("process", MEDIA / "flips_payload_heavy.mp4", "--out", "out", *SMALL)
    folder = tmp_path / "out" / "flips_payload_heavy"
    account = json.loads((folder / "summary.json").read_text())["sources"][0]["account"]
    assert account["failed"] == {"corrupt": 6}, result.stderr
    assert account["published"] == 44
    assert account["decoded"] == 50


SMALL = ("--weights", "none", "--set", "model.input_size=64")
"""Options of a fast model, for tests that do not check masks."""


def test_process_continues_after_unwritable_output(streamseg: Run, tmp_path: Path) -> None:
    (tmp_path / "out" / "first" / "annotated.mp4").mkdir(parents=True)
    (tmp_path / "out" / "third").symlink_to(tmp_path)
    shutil.copy(MEDIA / "ok.mp4", tmp_path / "first.mp4")
    shutil.copy(MEDIA / "ok.mp4", tmp_path / "second.mp4")
    shutil.copy(MEDIA / "ok.mp4", tmp_path / "third.mp4")
    result = streamseg("process", "third.mp4", "first.mp4", "second.mp4", "--out", "out", *SMALL)
    assert result.returncode == 1
    link_error, folder_error = [
        line for line in result.stderr.splitlines() if line.startswith("streamseg: ")
    ]
    assert "out/third: is a link" in link_error
    assert "first/annotated.mp4: can't be written: there is a folder of that name" in folder_error
    first, second = (
        json.loads((tmp_path / "out" / name / "summary.json").read_text())
        for name in ("first", "second")
    )
    assert (first["state"], second["state"]) == ("incomplete", "complete")
    assert first["failed_outputs"] == [folder_error.removeprefix("streamseg: ")]
    assert first["frames"] == second["frames"] == 50
    lines = [
        (tmp_path / "out" / name / "results.jsonl").read_bytes() for name in ("first", "second")
    ]
    assert [len(text.splitlines()) for text in lines] == [50, 50]
    assert not (tmp_path / "results.jsonl").exists()


def test_process_counts_frames_with_unwritten_results(streamseg: Run, tmp_path: Path) -> None:
    (tmp_path / "out" / "ok" / "results.jsonl").mkdir(parents=True)
    result = streamseg("process", MEDIA / "ok.mp4", "--out", "out", *SMALL)
    assert result.returncode == 1
    assert "results.jsonl: can't be written" in get_error_line(result)
    summary = json.loads((tmp_path / "out" / "ok" / "summary.json").read_text())
    account = summary["sources"][0]["account"]
    assert (account["published"], account["failed"]) == (0, {"unwritten": 50})
    with av.open(str(tmp_path / "out" / "ok" / "annotated.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 50


def test_process_stops_when_all_outputs_fail(streamseg: Run, tmp_path: Path) -> None:
    for name in ("results.jsonl", "annotated.mp4"):
        (tmp_path / "out" / "test" / name).mkdir(parents=True)
    pattern = "test:?size=64x64&frames=100000"
    result = streamseg("process", pattern, "--out", "out", *SMALL)
    assert result.returncode == 1
    error_line = get_error_line(result)
    assert "results.jsonl: can't" in error_line
    assert "annotated.mp4: can't" in error_line
    summary = json.loads((tmp_path / "out" / "test" / "summary.json").read_text())
    assert summary["state"] == "failed"
    assert summary["frames"] < 50


def test_process_continues_after_model_failure(
    streamseg: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = NanoMask.forward

    def failing_forward(self, batches, thresholds=None):
        if any((48, 64) in batch.sizes for batch in batches):
            raise ZeroDivisionError("the model broke")
        return forward(self, batches, thresholds)

    monkeypatch.setattr(NanoMask, "forward", failing_forward)
    inputs = ("test:?size=64x48&frames=5", "test:?size=64x64&frames=5")
    result = streamseg("process", *inputs, "--out", "out", *SMALL)
    assert result.returncode == 1
    assert "worker: the model broke" in get_error_line(result)
    assert not (tmp_path / "out" / "test" / "summary.json").exists()
    summary = json.loads((tmp_path / "out" / "test-2" / "summary.json").read_text())
    assert (summary["state"], summary["frames"]) == ("complete", 5)


def test_process_writes_results_of_image_too_wide_for_video(streamseg: Run, tmp_path: Path) -> None:
    Image.new("RGB", (17_000, 20), (90, 120, 60)).save(tmp_path / "wide.png")
    result = streamseg("process", "wide.png", PATTERN, "--out", "out", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "wide" in result.stdout
    message = protocol.decode(
        (tmp_path / "out/wide/results.jsonl").read_bytes(), protocol.RecordedMessage
    )
    assert tuple(message.size) == (20, 17_000)
    with av.open(str(tmp_path / "out" / "wide" / "annotated.mp4")) as video:
        assert [(f.height, f.width) for f in video.decode(video=0)] == [(20, 16_384)]
    assert (tmp_path / "out" / "test" / "summary.json").exists()


# Standard output


def run_in_process(*arguments: object, **streams: object) -> tuple[int, str]:
    """Run a command in a separate process; return its exit code and stderr."""
    child = subprocess.run(
        command(*arguments),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        **streams,
    )
    return child.returncode, child.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_version_matches_package_metadata(streamseg: Run) -> None:
    result = streamseg("--version")
    assert (result.returncode, result.stdout) == (0, f"streamseg {version('streamseg')}\n")


@pytest.mark.parametrize("arguments", [("models",), ("--help",), ("models", "nanomask")])
def test_full_device_is_reported_in_one_line(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        code, stderr = run_in_process(*arguments, stdout=full)
    line = "streamseg: standard output: can't be written: the disk is full: make room and run again"
    assert (code, stderr.splitlines()) == (1, [line])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_device_is_reported_as_json_record() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        code, stderr = run_in_process("models", "--log", "json", stdout=full)
    assert code == 1
    assert "standard output" in json.loads(stderr)["message"]


def test_closed_pipe_is_not_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        assert run_in_process("models", stdout=closed) == (0, "")


@pytest.mark.slow
def test_process_runs_with_closed_stdout_and_stderr(tmp_path: Path) -> None:
    shell = f'cd {tmp_path} && "$@" >&- 2>&-'
    arguments = command("process", PATTERN, "--out", "out", *SMALL)
    child = subprocess.run(
        ["sh", "-c", shell, "sh", *arguments], env=environment(), check=False, timeout=60
    )
    assert child.returncode == 0
    assert len((tmp_path / "out/test/results.jsonl").read_bytes().splitlines()) == 8


class FailingStream(io.StringIO):
    """Stream without a descriptor that raises an error on every write."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def write(self, text: str) -> int:
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EPIPE, errno.EIO])
def test_guarded_stream_keeps_first_failure_and_drops_later_text(code: int) -> None:
    stream = GuardedStream(FailingStream(code))
    for _ in range(3):
        assert stream.write("text") == 4
        stream.flush()
    assert (stream.failure is None) == (code == errno.EPIPE)
    assert stream.failure is None or stream.failure.errno == code


def test_command_restores_standard_streams(streamseg: Run) -> None:
    before = sys.stdout, sys.stderr
    assert "nanomask" in streamseg("models").stdout
    assert (sys.stdout, sys.stderr) == before


INVALID_CALLS = {
    "missing file": (["process", "gone.mp4", "--out", "o"], 1, "gone.mp4"),
    "not a video": (["process", MEDIA / "text.mp4", "--out", "o"], 1, "text.mp4"),
    "empty folder": (["process", "empty", "--out", "o"], 1, "empty"),
    "zero bytes": (["serve", "--source", MEDIA / "zero_byte.mp4"], 1, "zero_byte.mp4"),
    "serve without a source": (["serve"], 2, "sources"),
    "missing config": (["serve", "gone.yaml"], 2, "gone.yaml"),
    "bad key": (["serve", "--source", PATTERN, "--set", "worker.batch=3"], 2, "worker.batch"),
    "bad value": (["serve", "--source", PATTERN, "--set", "worker.max_batch=0"], 2, "max_batch"),
    "unknown model": (["process", PATTERN, "--out", "o", "--model", "nanomast"], 2, "nanomask"),
    "unknown class": (
        ["process", PATTERN, "--out", "o", "--set", "thresholds.classes=[persn]"],
        2,
        "person",
    ),
    "missing weights": (["process", PATTERN, "--out", "o", "--weights", "no.pt"], 1, "no.pt"),
    "weights of another architecture": (
        ["process", PATTERN, "--out", "o", "--weights", "other.pt"],
        1,
        "other.pt",
    ),
    "unwritable output": (["process", PATTERN, "--out", "file/o"], 1, "file"),
    "bad pattern": (["process", "test:?sise=3x3", "--out", "o"], 2, "sise"),
    "not loopback": (["serve", "--source", PATTERN, "--bind", "tcp://0.0.0.0:5999"], 2, "insecure"),
    "bad address to watch": (["watch", "tcp://127.0.0.1:99999"], 2, "99999"),
}


@pytest.mark.parametrize("case", INVALID_CALLS)
def test_invalid_calls_are_reported_in_one_line(streamseg: Run, tmp_path: Path, case: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    arguments, code, expected_text = INVALID_CALLS[case]
    result = streamseg(*arguments)
    assert result.returncode == code, result.stderr
    assert expected_text in get_error_line(result)
    assert not list(tmp_path.glob("o/**/*.json*"))


def test_unknown_option_exits_with_2(streamseg: Run) -> None:
    result = streamseg("serve", "--sauce", "x")
    assert result.returncode == 2
    assert "--sauce" in result.stderr


def test_debug_prints_the_traceback(streamseg: Run) -> None:
    result = streamseg("process", "gone.mp4", "--out", "o", "--model", "nope", "--debug")
    assert "Traceback" in result.stderr
    assert result.returncode == 2


def test_serve_names_port_in_use(streamseg: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        result = streamseg("serve", "--source", PATTERN, "--bind", address)
    assert result.returncode == 1
    assert address in get_error_line(result)


def test_models_lists_the_registry(streamseg: Run) -> None:
    result = streamseg("models")
    assert result.returncode == 0
    for name in ("nanomask", "mask_rcnn_r50_fpn", "mask_rcnn_r50_fpn_v2"):
        assert name in result.stdout


def test_models_shows_weights_and_license_of_a_model(streamseg: Run) -> None:
    result = streamseg("models", "solov2_r50")
    assert result.returncode == 0
    for text in ("solov2_r50_fpn_3x_coco_20220512_125856-fed092d4.pth", "Apache-2.0", "37.5"):
        assert text in result.stdout
    assert "academic use only" in result.stdout
    assert "did you mean solov2_r50" in get_error_line(streamseg("models", "solov2_r5"))


def test_process_names_url_of_missing_weights(streamseg: Run) -> None:
    result = streamseg("process", "--model", "yolact_r50", PATTERN, "--out", "out")
    assert result.returncode == 1
    assert "get yolact_resnet50_54_800000.pth from https://" in get_error_line(result)


def start_command(tmp_path: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_serve_and_watch_exit_at_end_of_file(streamseg: Run, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    server = start_command(
        tmp_path,
        *("serve", "--source", CLIP, "--bind", address, "--wait-subscribers", "1"),
        *("--set", "sources.0.end=1.05"),
        *SMALL,
    )
    files = ("--save", "w.mp4", "--jsonl", "w.jsonl")
    result = streamseg("watch", address, *files, "--timeout", "60")
    stdout, stderr = server.communicate(timeout=60)
    assert server.returncode == 0, stderr
    assert result.returncode == 0, result.stderr
    assert "11 frames" in stdout
    assert len((tmp_path / "w.jsonl").read_bytes().splitlines()) == 11
    with av.open(str(tmp_path / "w.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 11


def test_watch_fails_after_its_timeout(streamseg: Run) -> None:
    result = streamseg("watch", f"tcp://127.0.0.1:{free_port()}", "--timeout", "0.5")
    assert result.returncode == 1
    assert "0.5" in get_error_line(result)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_process_leaves_readable_outputs(tmp_path: Path, number: int) -> None:
    process = start_command(tmp_path, "process", CLIP, "--out", "out")
    part = tmp_path / "out" / "street" / "results.jsonl.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    folder = tmp_path / "out" / "street"
    summary = json.loads((folder / "summary.json").read_text())
    account = summary["sources"][0]["account"]
    lines = (folder / "results.jsonl").read_bytes().splitlines()
    assert summary["state"] == "interrupted"
    assert 0 < len(lines) == account["published"] < 201
    assert account["decoded"] == account["published"] + sum(account["dropped"].values())
    with av.open(str(folder / "annotated.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == len(lines)


def test_interrupted_serve_drains_and_exits_with_0(tmp_path: Path) -> None:
    source = ("--source", "test:?live=1&size=96x64", "--set", "sources.0.name=yard")
    process = start_command(tmp_path, "serve", *source, "--bind", "tcp://127.0.0.1:*", *SMALL)
    assert process.stderr is not None
    while "masks at" not in process.stderr.readline():
        pass
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "yard" in stdout


@pytest.mark.slow
def test_serve_ignores_hangup_and_closed_terminal(
    tmp_path: Path,
) -> None:
    process = start_command(tmp_path, "serve", "--source", CLIP, "--bind", "tcp://127.0.0.1:*")
    assert process.stderr is not None
    handles_sighup = re.compile(r"SigCgt:\s*[0-9a-f]*[13579bdf]\n")  # the lowest bit is SIGHUP's
    deadline = time.monotonic() + 60
    while not handles_sighup.search(Path(f"/proc/{process.pid}/status").read_text()):
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGHUP)
    while "control at" not in (line := process.stderr.readline()):
        assert line, "the service has ended"
    process.stderr.close()
    process.stderr = None
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "street" in stdout
