"""Camera faults in a running service: detection, reconnection and effect on other cameras.

All unprivileged faults happen at the same time, each to a separate camera of one service.
``tools/faults.py`` measures the effect of each fault on the other cameras. The test of packet loss
and of a dead connection runs this tool, because they need a network namespace.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise

import pytest
from support.camera_faults import DEFAULT_OPTIONS, FAULTS, FPS, STALL_AFTER, Fault
from support.cameras import rtsp_camera
from support.paths import ROOT
from support.recording_subscriber import ReceivedState, RecordingSubscriber, is_balanced

from streamseg import load_model
from streamseg.config import Config, PublishConfig, SourceConfig, WorkerConfig
from streamseg.models.detections import Batch, Detections
from streamseg.service.service import Service

pytestmark = [pytest.mark.alone, pytest.mark.timeout(120)]

TOOL = ROOT / "tools" / "faults.py"
OTHERS = ("other-0", "other-1")
UNPRIVILEGED = [name for name, fault in FAULTS.items() if not fault.privileged]
REPORTED = [name for name in UNPRIVILEGED if FAULTS[name].reason]
RECONNECTING = [name for name in UNPRIVILEGED if FAULTS[name].reconnects]
DISCONNECTING = ["killed", "frozen", "gone", "refused-credentials", "refused-port"]
WINDOW = 4


@dataclass(frozen=True)
class FaultRun:
    """Observations of all faults; times are monotonic seconds, by the name of the fault."""

    observer: RecordingSubscriber
    fault_started: dict[str, float]
    fault_ended: dict[str, float]
    epochs: dict[str, int]

    def get_states_during_fault(self, name: str) -> list[ReceivedState]:
        return self.observer.states_between(name, self.fault_started[name], self.fault_ended[name])


def start_service(
    sources: list[SourceConfig], model: object, stack: ExitStack
) -> RecordingSubscriber:
    """Start a service; closing ``stack`` stops it and checks that no frame is unaccounted for."""
    config = Config(
        sources=tuple(sources),
        worker=WorkerConfig(max_batch=4),
        publish=PublishConfig(bind="tcp://127.0.0.1:*"),
    )
    service = Service(config, model)
    observer = RecordingSubscriber(service.endpoints["masks"])
    stack.callback(observer.close)
    service.start()

    def stop_service() -> None:
        service.stop()
        assert all(s.account.balanced for s in service.wait().sources)

    stack.callback(stop_service)
    return observer


@pytest.fixture(scope="module")
def fault_run() -> Iterator[FaultRun]:
    """Start and end every fault, while two other cameras work."""
    with ExitStack() as stack:
        with ThreadPoolExecutor() as executor:
            healthy_cameras = list(
                executor.map(lambda _: stack.enter_context(rtsp_camera(*DEFAULT_OPTIONS)), OTHERS)
            )
            faults: list[Fault] = list(executor.map(lambda name: FAULTS[name](), UNPRIVILEGED))
        for fault in faults:
            stack.callback(fault.close)
        sources = [
            SourceConfig(url=c.url, name=n) for c, n in zip(healthy_cameras, OTHERS, strict=True)
        ]
        sources += [SourceConfig(url=f.url, name=f.name, **f.options) for f in faults]
        observer = start_service(sources, load_model("nanomask", input_size=64), stack)
        names = [source.name for source in sources]
        is_ready = lambda name: observer.is_live(name) and len(observer.results.get(name, [])) > FPS  # noqa: E731
        observer.wait_until(lambda: all(map(is_ready, names)), 20, "all sources are live")
        yield _run_faults(observer, faults)


def _run_faults(observer: RecordingSubscriber, faults: list[Fault]) -> FaultRun:
    fault_run = FaultRun(observer, {}, {}, {})
    for fault in faults:
        fault_run.fault_started[fault.name] = time.monotonic()
        fault.begin()
    time.sleep(WINDOW)
    for fault in faults:
        fault_run.epochs[fault.name] = observer.latest[fault.name].epoch
        fault.end()
        fault_run.fault_ended[fault.name] = time.monotonic()
    for fault in faults:
        after = fault_run.epochs[fault.name] + 1
        with suppress(TimeoutError):  # the tests report it in detail
            if fault.reconnects:
                observer.wait_until(
                    lambda f=fault, e=after: observer.first_result(f.name, e), 10, "back"
                )
    time.sleep(1.1)  # wait for the status with the final counts
    return fault_run


@pytest.mark.parametrize("name", REPORTED)
def test_fault_is_reported_in_time_with_reason(fault_run: FaultRun, name: str) -> None:
    states_during_fault = fault_run.get_states_during_fault(name)
    first = next(s for s in states_during_fault if s.state != "live")
    last = max(c.at for c in fault_run.observer.results[name] if c.at <= first.at)
    assert first.state == ("stalled" if FAULTS[name].stalls else "waiting")
    assert first.at - last <= STALL_AFTER + 1
    assert re.search(FAULTS[name].reason, "\n".join(s.reason for s in states_during_fault))
    assert not any("right" in s.reason or "other@" in s.reason for s in states_during_fault), (
        "a password"
    )


@pytest.mark.parametrize("name", RECONNECTING)
def test_camera_reconnects_within_five_seconds(fault_run: FaultRun, name: str) -> None:
    first = fault_run.observer.first_result(name, fault_run.epochs[name] + 1)
    assert first is not None
    assert first.at - fault_run.fault_ended[name] < 5
    assert fault_run.observer.is_live(name)
    epochs = fault_run.observer.epochs(name)
    assert epochs == list(range(len(epochs))), "consecutive epochs"


@pytest.mark.parametrize("name", DISCONNECTING)
def test_state_transitions_are_valid(fault_run: FaultRun, name: str) -> None:
    received_states = fault_run.observer.states[name]
    states = [s.state for s in received_states if s.at >= fault_run.fault_started[name]]
    assert states[0] == ("stalled" if FAULTS[name].stalls else "waiting")
    assert states[-2:] == ["connecting", "live"]
    for state, following in pairwise(states):
        # An attempt that fails immediately may end before its state is published.
        allowed = (
            ("live", "waiting", "stalled") if state == "connecting" else ("connecting", "waiting")
        )
        assert following in allowed
    assert all(s.reason for s in received_states if s.state in ("waiting", "stalled"))
    assert fault_run.observer.epochs(name) == [0, 1]


def test_delay_does_not_change_the_state(fault_run: FaultRun) -> None:
    assert fault_run.get_states_during_fault("delay") == []
    assert fault_run.observer.epochs("delay") == [0]


def test_resolution_change_starts_a_new_epoch(fault_run: FaultRun) -> None:
    assert {s.state for s in fault_run.get_states_during_fault("resolution")} <= {"live"}
    sizes = {c.epoch: c.size for c in fault_run.observer.results["resolution"]}
    assert sizes == {0: (240, 320), 1: (360, 480), 2: (240, 320)}


def test_decoding_starts_at_the_next_keyframe(fault_run: FaultRun) -> None:
    arrival_times = [c.at for c in fault_run.observer.results["half-gop"] if c.epoch == 1]
    assert len(arrival_times) > 2 * FPS, "the stream continued after the incomplete GOP"
    assert not fault_run.observer.latest["half-gop"].failed


@pytest.mark.parametrize("name", OTHERS)
def test_healthy_cameras_keep_their_rate(fault_run: FaultRun, name: str) -> None:
    started_at = max(fault_run.fault_started.values())
    counts = fault_run.observer.results_per_second(name, started_at, WINDOW - 1)
    assert sum(counts) >= 0.8 * FPS * len(counts), counts
    assert {s.state for s in fault_run.observer.states[name]} <= {"waiting", "connecting", "live"}
    assert fault_run.observer.epochs(name) == [0]


@pytest.mark.parametrize("name", [*UNPRIVILEGED, *OTHERS])
def test_every_frame_is_accounted_for(fault_run: FaultRun, name: str) -> None:
    status = fault_run.observer.latest[name]
    assert status.published > 0
    assert is_balanced(status)


def test_packet_loss_and_dead_connection() -> None:
    """Run the tool in a network namespace with nftables; it exits with 1 if a check fails."""
    if not all(map(shutil.which, ("unshare", "nft", "ip"))):
        pytest.skip("needs unshare, nft and ip")
    process = subprocess.run(["unshare", "--net", "nft", "list", "ruleset"], check=False)
    if process.returncode:
        pytest.skip("this user is not allowed to create a network namespace")
    scenarios = ["loss-udp", "black-tcp"]
    command = [sys.executable, str(TOOL), *scenarios, "--seconds", "3", "--tolerance", "0.2"]
    tool_process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert tool_process.returncode == 0, tool_process.stdout + tool_process.stderr
    rows = [line.split()[0] for line in tool_process.stdout.splitlines()[2:]]
    assert rows == scenarios


def test_sixteen_cameras_share_a_slow_model_equally() -> None:
    class SlowModel(type(load_model("nanomask", input_size=64))):  # type: ignore[misc]
        def forward(self, batches: list[Batch], thresholds: object = None) -> list[Detections]:
            time.sleep(0.015 * sum(len(batch.rows) for batch in batches))
            return super().forward(batches, thresholds)

    model = load_model("nanomask", input_size=64)
    model.__class__ = SlowModel
    names = [f"camera-{number}" for number in range(16)]
    with ExitStack() as stack:
        with ThreadPoolExecutor() as executor:
            cameras = list(
                executor.map(
                    lambda _: stack.enter_context(rtsp_camera("--fps", "5", "--gop", "5")), names
                )
            )
        sources = [SourceConfig(url=c.url, name=n) for c, n in zip(cameras, names, strict=True)]
        observer = start_service(sources, model, stack)
        observer.wait_until(lambda: all(map(observer.is_live, names)), 30, "all sources are live")
        time.sleep(1)
        started_at = time.monotonic()
        time.sleep(6)
        counts = {name: sum(observer.results_per_second(name, started_at, 6)) for name in names}
        time.sleep(1.1)
        statuses = [observer.latest[name] for name in names]
    assert min(counts.values()) > 6, counts
    assert max(counts.values()) <= 1.5 * min(counts.values()), counts
    assert all(s.state == "live" and is_balanced(s) for s in statuses)
    assert any(s.dropped.get("overtaken") for s in statuses), "the model was fast enough"
