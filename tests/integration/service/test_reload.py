"""Reload, pause and removal of sources while their frames are in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from support.ports import free_port

from streamseg import connect, load_model
from streamseg.config import Config, PublishConfig, SourceConfig, Thresholds
from streamseg.errors import ConfigError
from streamseg.models.base import Segmenter
from streamseg.service.service import Service

pytestmark = pytest.mark.timeout(60)
LIVE = "test:?live=1&size=160x120&fps=20"


class RunningService:
    """Running service whose model can be blocked."""

    def __init__(self, model: Segmenter, *sources: SourceConfig, **publish: object) -> None:
        self.unblocked = threading.Event()
        self.unblocked.set()
        self._publish = PublishConfig(bind="tcp://127.0.0.1:*", **publish)  # type: ignore[arg-type]
        self.service = Service(self.config(*sources), model)
        self._forward = model.forward
        model.forward = self._blocked_forward  # type: ignore[method-assign]
        self.service.start()
        self._thread = threading.Thread(target=self.service.wait)
        self._thread.start()

    def config(self, *sources: SourceConfig, score: float = 0.1) -> Config:
        thresholds = Thresholds(score=score)
        return Config(sources=sources, publish=self._publish, thresholds=thresholds)

    def _blocked_forward(self, *arguments: object) -> object:
        self.unblocked.wait(30)
        return self._forward(*arguments)  # type: ignore[arg-type]

    def state(self, name: str) -> str:
        return {f.name: f.condition.state for f in self.service.sources}.get(name, "gone")

    def epoch(self, name: str) -> int:
        return {f.name: f.condition.epoch for f in self.service.sources}[name]

    def wait_for_state(self, name: str, *states: str) -> None:
        deadline = time.monotonic() + 20
        while self.state(name) not in states:
            assert time.monotonic() < deadline, f"{name} is {self.state(name)}, not {states}"
            time.sleep(0.02)

    def wait_for_config(self, source: SourceConfig) -> None:
        """Wait until a session runs with this config."""
        deadline = time.monotonic() + 20
        while source not in [session.config for session in self.service.sources]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def block_frames(self, name: str) -> None:
        """Block the model while frames of a source are in flight."""
        self.wait_for_state(name, "live")
        self.unblocked.clear()
        account = self.service.metrics.account(name)
        deadline = time.monotonic() + 20
        while not account.snapshot().in_flight:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self, model: Segmenter) -> None:
        self.unblocked.set()
        self.service.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()
        model.forward = self._forward  # type: ignore[method-assign]
        for account in self.service.metrics.snapshots():
            assert account.balanced
            assert account.in_flight == 0


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return load_model("nanomask", input_size=128, score=0.1)


@pytest.fixture
def running(model: Segmenter) -> Iterator[RunningService]:
    running = RunningService(
        model, SourceConfig(url=LIVE, name="gate"), SourceConfig(url=LIVE, name="yard")
    )
    try:
        yield running
    finally:
        running.close(model)


def make_gate(seed: int) -> SourceConfig:
    return SourceConfig(url=f"{LIVE}&seed={seed}", name="gate")


def test_a_changed_source_restarts_after_its_last_frames_without_blocking_the_reload(
    running: RunningService,
) -> None:
    running.block_frames("gate")
    started_at = time.monotonic()
    config = running.config(make_gate(2), SourceConfig(url=LIVE, name="door"), score=0.3)
    changes = running.service.sources.reload(config)
    assert time.monotonic() - started_at < 5, "a reload doesn't wait for the model"
    assert (changes.restarted, changes.added, changes.removed) == (("gate",), ("door",), ("yard",))
    assert running.service.sources.thresholds.default.score == 0.3
    assert running.state("gate") != "gone"
    second = running.service.sources.reload(running.config(make_gate(3)))  # before the restart
    assert second.restarted == ("gate",)
    running.unblocked.set()
    running.wait_for_state("door", "gone")
    running.wait_for_state("yard", "gone")
    running.wait_for_config(make_gate(3))
    running.wait_for_state("gate", "live")
    assert [session.removed for session in running.service.sources] == [False]
    assert running.epoch("gate") > 0


def test_a_subscriber_of_one_source_continues_when_its_options_change(
    running: RunningService,
) -> None:
    with connect(running.service.endpoints["masks"], ["gate"], timeout=20) as results:
        assert next(iter(results)).epoch == 0
        for seed in (2, 3):
            running.service.sources.reload(running.config(make_gate(seed)))
            for received in results:
                if received.epoch == seed - 1:
                    break
            assert not results.ended
        assert results.gaps == {"gate": 0}


def test_a_source_removed_before_its_restart_stays_removed(running: RunningService) -> None:
    running.block_frames("gate")
    running.service.sources.reload(
        running.config(make_gate(2), SourceConfig(url=LIVE, name="yard"))
    )
    running.service.sources.remove("gate")
    running.unblocked.set()
    running.wait_for_state("gate", "gone")
    running.wait_for_state("yard", "live")
    time.sleep(0.3)
    assert running.state("gate") == "gone"


def test_a_paused_source_stays_paused_when_its_options_change(running: RunningService) -> None:
    running.wait_for_state("gate", "live")
    running.service.sources.pause("gate")
    running.wait_for_state("gate", "waiting")
    for seed in (2, 3):
        running.service.sources.reload(
            running.config(make_gate(seed), SourceConfig(url=LIVE, name="yard"))
        )
    running.wait_for_config(make_gate(3))
    running.wait_for_state("gate", "waiting")
    decoded = running.service.metrics.account("gate").snapshot().decoded
    time.sleep(0.5)
    assert running.service.metrics.account("gate").snapshot().decoded == decoded
    running.service.sources.resume("gate")
    running.wait_for_state("gate", "live")


def test_a_source_can_be_paused_and_resumed_before_its_restart(running: RunningService) -> None:
    running.block_frames("gate")
    running.service.sources.reload(running.config(make_gate(2)))
    running.service.sources.pause("gate")
    running.unblocked.set()
    running.wait_for_config(make_gate(2))
    running.wait_for_state("gate", "waiting")
    running.service.sources.reload(running.config(make_gate(3)))
    running.service.sources.resume("gate")
    running.unblocked.set()
    running.wait_for_config(make_gate(3))
    running.wait_for_state("gate", "live")


def test_a_source_that_waits_for_subscribers_can_be_changed_and_removed(
    model: Segmenter,
) -> None:
    running = RunningService(
        model, make_gate(1), SourceConfig(url=LIVE, name="yard"), wait_subscribers=1
    )
    try:
        running.wait_for_state("gate", "waiting")
        running.service.sources.reload(
            running.config(make_gate(2), SourceConfig(url=LIVE, name="yard"))
        )
        running.service.sources.remove("yard")
        running.wait_for_state("yard", "gone")
        running.wait_for_state("gate", "waiting")
    finally:
        running.close(model)


def test_a_replaced_source_has_no_problem_of_its_predecessor(running: RunningService) -> None:
    unreachable = SourceConfig(url=f"rtsp://127.0.0.1:{free_port()}/x", name="door", max_attempts=1)
    running.service.sources.add(unreachable)
    running.wait_for_state("door", "failed")
    assert "given up after 1 attempts" in running.service.problems[0]
    replacement = SourceConfig(url=LIVE, name="door")
    running.service.sources.reload(running.config(replacement, SourceConfig(url=LIVE, name="gate")))
    running.wait_for_state("door", "live")
    assert running.service.problems == []


def test_sources_cannot_be_added_after_the_end_of_the_last_one(model: Segmenter) -> None:
    running = RunningService(model, SourceConfig(url="test:?frames=3&size=160x120", name="short"))
    try:
        running.wait_for_state("short", "ended")
        assert not running.service.ready
        with pytest.raises(ConfigError, match="isn't running"):
            running.service.sources.add(make_gate(1))
        with pytest.raises(ConfigError, match="isn't running"):
            running.service.sources.reload(running.config(make_gate(1)))
    finally:
        running.close(model)
