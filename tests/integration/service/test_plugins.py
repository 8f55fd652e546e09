"""Plug-in sinks and trackers in running services, and a service inside another program."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml
from support.commands import Run
from support.plugins import install_plugin

import streamseg
from streamseg import connect, load_model
from streamseg.config import Config, PublishConfig, SourceConfig, Thresholds, TrackerConfig
from streamseg.errors import ConfigError
from streamseg.models.base import Segmenter
from streamseg.recording.process import Processor
from streamseg.service import serve
from streamseg.service.service import Service

pytestmark = pytest.mark.timeout(60)
FRAMES = 12
PATTERN = f"test:?size=64x48&frames={FRAMES}"
MODULE = """
from dataclasses import replace
from pathlib import Path
import msgspec
import numpy as np

class Lines:
    class Options(msgspec.Struct):
        path: str
        fail_at: int = -1

    def __init__(self, options):
        self.options = options

    def open(self):
        self.file = Path(self.options.path).open("w")

    def write(self, result):
        if result.frame.index == self.options.fail_at:
            raise RuntimeError("socket closed")
        tracks = result.instances.track_ids.tolist()
        self.file.write(f"{result.source} {result.frame.index} {tracks}\\n")

    def close(self):
        self.file.write("closed\\n")
        self.file.close()

class CountingTracker:
    def __init__(self):
        self.frames = 0

    def update(self, instances, pts):
        self.frames += 1
        return replace(instances, track_ids=np.full(len(instances), self.frames, np.int64))
"""
ENTRY_POINTS = {
    "streamseg.sinks": {"lines": "demo_plugin:Lines", "broken": "demo_plugin:Nothing"},
    "streamseg.trackers": {"counting": "demo_plugin:CountingTracker"},
}


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return load_model("nanomask", input_size=128, score=0.01)


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path, monkeypatch, ENTRY_POINTS, demo_plugin=MODULE)


def config(*sinks: dict[str, object], tracker: str | None = None, subscribers: int = 1) -> Config:
    return Config(
        sources=(SourceConfig(url=PATTERN, name="gate"),),
        publish=PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=subscribers),
        tracker=TrackerConfig(type=tracker),
        thresholds=Thresholds(score=0.01),
        sinks=sinks,
    )


def numbers_in(path: Path) -> list[int]:
    *lines, end = path.read_text().splitlines()
    assert end == "closed"
    return [int(line.split()[1]) for line in lines]


def test_a_plugin_sink_gets_every_result_of_a_service(model: Segmenter, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    service = Service(config({"type": "lines", "path": str(file)}, subscribers=0), model)
    service.start()
    summary = service.wait()
    assert summary.frames == FRAMES
    assert numbers_in(file) == list(range(FRAMES))
    assert service.problems == []


@pytest.mark.parametrize("failure", ["open", "write"])
def test_a_failing_sink_ends_neither_the_masks_nor_another_sink(
    model: Segmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    failing = {"type": "lines", "path": str(tmp_path / "failing.txt"), "fail_at": 3}
    if failure == "open":
        failing["path"] = str(tmp_path / "missing" / "failing.txt")
    other = {"type": "lines", "path": str(tmp_path / "other.txt")}
    service = Service(config(failing, other), model)
    service.start()
    with connect(service.endpoints["masks"], timeout=30) as subscriber:
        assert [received.index for received in subscriber] == list(range(FRAMES))
    service.wait()
    assert numbers_in(tmp_path / "other.txt") == list(range(FRAMES))
    reason = "FileNotFoundError" if failure == "open" else "RuntimeError: socket closed"
    (problem,) = service.problems
    assert problem.startswith(f"sink lines: {reason}")
    (record,) = (each for each in caplog.records if each.levelno >= logging.ERROR)
    assert (
        record.getMessage() == f"{problem}: its results are dropped until the service is restarted"
    )
    dropped = service.metrics.registry.get_sample_value(
        "streamseg_dropped_messages_total", {"sink": "lines"}
    )
    assert dropped == (FRAMES if failure == "open" else FRAMES - 3)


def test_plugin_sinks_take_effect_with_the_next_start(model: Segmenter, tmp_path: Path) -> None:
    service = Service(config(), model)
    service.start()
    changed = service.sources.reload(config({"type": "lines", "path": str(tmp_path / "l.txt")}))
    assert changed.waits == ("sinks",)
    service.stop()
    service.wait()


def test_a_recorded_run_writes_to_plugin_sinks(model: Segmenter, tmp_path: Path) -> None:
    good = {"type": "lines", "path": str(tmp_path / "good.txt")}
    failing = {"type": "lines", "path": str(tmp_path / "failing.txt"), "fail_at": 3}
    processor = Processor(config(good, failing), model, tmp_path / "out", lambda *_: None)
    (outcome,) = processor.run()
    assert (outcome.state, outcome.reason) == (
        "incomplete",
        "sink lines-2: RuntimeError: socket closed",
    )
    assert numbers_in(tmp_path / "good.txt") == list(range(FRAMES))
    assert numbers_in(tmp_path / "failing.txt") == [0, 1, 2]
    assert (tmp_path / "out" / "gate" / "annotated.mp4").stat().st_size


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"sinks": [{"type": "broken"}]}, "plug-in 'broken' of demo-plugin 1.0 can't be imported"),
        ({"sinks": [{"type": "lines", "path": 5}]}, "sinks[0].path: Expected `str`, got `int`"),
        ({"sinks": [{"type": "x"}]}, "installed sink plug-ins: broken, lines"),
        ({"sinks": ["lines"]}, "sinks[0]: Expected `object`, got `str`"),
        ({"tracker": {"type": "x"}}, "tracker.type: 'x' isn't installed; installed tracker plug-"),
    ],
)
def test_a_wrong_plugin_ends_the_command_before_anything_starts(
    streamseg: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    section: dict[str, object],
    reason: str,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump({"sources": [{"url": PATTERN}], **section}))
    ended = streamseg("serve", file)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert reason in ended.stderr


def test_a_plugin_tracker_replaces_the_built_in_one(model: Segmenter, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    service_config = config({"type": "lines", "path": str(file)}, tracker="counting", subscribers=0)
    service = Service(service_config, model)
    service.start()
    service.wait()
    tracks = [json.loads(line.split(" ", 2)[2]) for line in file.read_text().splitlines()[:-1]]
    assert any(tracks)
    assert all(set(each) <= {number} for number, each in enumerate(tracks, start=1))
    with pytest.raises(ConfigError, match="'other' isn't installed"):
        Service(config(tracker="other"), model)


@pytest.mark.parametrize("kind", ["config", "mapping", "path"])
def test_a_service_inside_a_program_runs_as_long_as_its_block(tmp_path: Path, kind: str) -> None:
    raw = {
        "sources": [{"url": "test:?size=64x48&live=1&fps=20", "name": "gate"}],
        "publish": {"bind": "tcp://127.0.0.1:*"},
        "model": {"input_size": 128},
    }
    argument: object = raw
    if kind == "config":
        argument = streamseg.config.validate(raw, "the test")
    elif kind == "path":
        argument = tmp_path / "service.yaml"
        argument.write_text(yaml.safe_dump(raw))
    with serve(argument) as service:
        with connect(service.endpoints["masks"], timeout=30) as subscriber:
            assert next(iter(subscriber)).source == "gate"
        assert service.ready
    assert not service.ready
    (account,) = service.metrics.snapshots()
    assert account.balanced
    assert account.in_flight == 0


def test_the_exception_of_the_block_ends_the_service_and_is_the_one_raised() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        serve(
            {
                "sources": [{"url": PATTERN}],
                "publish": {"bind": "tcp://127.0.0.1:*", "wait_subscribers": 5},
                "model": {"input_size": 128},
            }
        ) as service,
    ):
        raise ZeroDivisionError
    assert not service.ready
