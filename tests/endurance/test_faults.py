"""Cameras that fail in a real service: noticed, said, got over, and no loss to the others.

All faults that need no privilege happen to one service at once, each to a camera of its own: what
the others' cameras notice of one fault is measured, one by one, by ``tools/faults.py``. Packet loss
and a dead line are that tool's here, too, because they need a network of their own.
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
AT_ONCE = [name for name, fault in FAULTS.items() if not fault.privileged]
NOTICED = [name for name in AT_ONCE if FAULTS[name].reason]
COME_BACK = [name for name in AT_ONCE if FAULTS[name].reconnects]
SILENT_MEANWHILE = ["killed", "frozen", "gone", "refused-credentials", "refused-port"]
WINDOW = 4


@dataclass(frozen=True)
class Storm:
    """What came of it; times are monotonic seconds, by the name of the fault."""

    observer: RecordingSubscriber
    wrong: dict[str, float]
    right: dict[str, float]
    epochs: dict[str, int]

    def while_wrong(self, name: str) -> list[ReceivedState]:
        return self.observer.states_between(name, self.wrong[name], self.right[name])


def serving(sources: list[SourceConfig], model: object, held: ExitStack) -> RecordingSubscriber:
    """A service of these; stopped with ``held``, before which nothing may be lost."""
    config = Config(
        sources=tuple(sources),
        worker=WorkerConfig(max_batch=4),
        publish=PublishConfig(bind="tcp://127.0.0.1:*"),
    )
    service = Service(config, model)
    observer = RecordingSubscriber(service.endpoints["masks"])
    held.callback(observer.close)
    service.start()

    def end() -> None:
        service.stop()
        assert all(s.account.balanced for s in service.wait().sources)

    held.callback(end)
    return observer


@pytest.fixture(scope="module")
def storm() -> Iterator[Storm]:
    """Every fault begins and ends, while two cameras are well."""
    with ExitStack() as held:
        with ThreadPoolExecutor() as starting:
            well = list(
                starting.map(lambda _: held.enter_context(rtsp_camera(*DEFAULT_OPTIONS)), OTHERS)
            )
            faults: list[Fault] = list(starting.map(lambda name: FAULTS[name](), AT_ONCE))
        for fault in faults:
            held.callback(fault.close)
        sources = [SourceConfig(url=c.url, name=n) for c, n in zip(well, OTHERS, strict=True)]
        sources += [SourceConfig(url=f.url, name=f.name, **f.options) for f in faults]
        observer = serving(sources, load_model("nanomask", input_size=64), held)
        names = [source.name for source in sources]
        ready = lambda name: observer.is_live(name) and len(observer.results.get(name, [])) > FPS  # noqa: E731
        observer.wait_until(lambda: all(map(ready, names)), 20, "all are live")
        yield _pass_over(observer, faults)


def _pass_over(observer: RecordingSubscriber, faults: list[Fault]) -> Storm:
    storm = Storm(observer, {}, {}, {})
    for fault in faults:
        storm.wrong[fault.name] = time.monotonic()
        fault.begin()
    time.sleep(WINDOW)
    for fault in faults:
        storm.epochs[fault.name] = observer.latest[fault.name].epoch
        fault.end()
        storm.right[fault.name] = time.monotonic()
    for fault in faults:
        after = storm.epochs[fault.name] + 1
        with suppress(TimeoutError):  # the tests say it better
            if fault.reconnects:
                observer.wait_until(
                    lambda f=fault, e=after: observer.first_result(f.name, e), 10, "back"
                )
    time.sleep(1.1)  # the next status has the last accounts
    return storm


@pytest.mark.parametrize("name", NOTICED)
def test_a_fault_is_noticed_in_time_and_said_in_words(storm: Storm, name: str) -> None:
    said = storm.while_wrong(name)
    first = next(s for s in said if s.state != "live")
    last = max(c.at for c in storm.observer.results[name] if c.at <= first.at)
    assert first.state == ("stalled" if FAULTS[name].stalls else "waiting")
    assert first.at - last <= STALL_AFTER + 1
    assert re.search(FAULTS[name].reason, "\n".join(s.reason for s in said))
    assert not any("right" in s.reason or "other@" in s.reason for s in said), "a password"


@pytest.mark.parametrize("name", COME_BACK)
def test_a_camera_is_back_within_five_seconds_of_its_return(storm: Storm, name: str) -> None:
    first = storm.observer.first_result(name, storm.epochs[name] + 1)
    assert first is not None
    assert first.at - storm.right[name] < 5
    assert storm.observer.is_live(name)
    epochs = storm.observer.epochs(name)
    assert epochs == list(range(len(epochs))), "one more each time"


@pytest.mark.parametrize("name", SILENT_MEANWHILE)
def test_states_follow_one_another_as_they_must(storm: Storm, name: str) -> None:
    said = storm.observer.states[name]
    states = [s.state for s in said if s.at >= storm.wrong[name]]
    assert states[0] == ("stalled" if FAULTS[name].stalls else "waiting")
    assert states[-2:] == ["connecting", "live"]
    for state, following in pairwise(states):
        # An attempt that fails at once may be over before it was told of.
        after = (
            ("live", "waiting", "stalled") if state == "connecting" else ("connecting", "waiting")
        )
        assert following in after
    assert all(s.reason for s in said if s.state in ("waiting", "stalled"))
    assert storm.observer.epochs(name) == [0, 1]


def test_delay_is_no_failure(storm: Storm) -> None:
    assert storm.while_wrong("delay") == []
    assert storm.observer.epochs("delay") == [0]


def test_a_camera_that_changes_resolution_stays_connected_in_a_new_epoch(storm: Storm) -> None:
    assert {s.state for s in storm.while_wrong("resolution")} <= {"live"}
    sizes = {c.epoch: c.size for c in storm.observer.results["resolution"]}
    assert sizes == {0: (240, 320), 1: (360, 480), 2: (240, 320)}


def test_of_half_a_gop_no_frame_comes_and_from_the_next_on_all_do(storm: Storm) -> None:
    came = [c.at for c in storm.observer.results["half-gop"] if c.epoch == 1]
    assert len(came) > 2 * FPS, "it came in the middle of the GOP and went on"
    assert not storm.observer.latest["half-gop"].failed


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_keep_their_rate_whatever_happens(storm: Storm, name: str) -> None:
    begin = max(storm.wrong.values())
    counts = storm.observer.results_per_second(name, begin, WINDOW - 1)
    assert sum(counts) >= 0.8 * FPS * len(counts), counts
    assert {s.state for s in storm.observer.states[name]} <= {"waiting", "connecting", "live"}
    assert storm.observer.epochs(name) == [0]


@pytest.mark.parametrize("name", [*AT_ONCE, *OTHERS])
def test_every_frame_is_accounted_for_whatever_happens(storm: Storm, name: str) -> None:
    status = storm.observer.latest[name]
    assert status.published > 0
    assert is_balanced(status)


def test_packets_that_are_lost_and_a_line_that_is_dead() -> None:
    """In a network namespace with nftables; the tool judges."""
    if not all(map(shutil.which, ("unshare", "nft", "ip"))):
        pytest.skip("needs unshare, nft and ip")
    may = subprocess.run(["unshare", "--net", "nft", "list", "ruleset"], check=False)
    if may.returncode:
        pytest.skip("this user may not make a network namespace")
    named = ["loss-udp", "black-tcp"]
    command = [sys.executable, str(TOOL), *named, "--seconds", "3", "--tolerance", "0.2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert rows == named


def test_sixteen_cameras_have_equal_shares_of_a_model_that_is_too_slow_for_them() -> None:
    class Slow(type(load_model("nanomask", input_size=64))):  # type: ignore[misc]
        def forward(self, batches: list[Batch], thresholds: object = None) -> list[Detections]:
            time.sleep(0.015 * sum(len(batch.rows) for batch in batches))
            return super().forward(batches, thresholds)

    model = load_model("nanomask", input_size=64)
    model.__class__ = Slow
    names = [f"camera-{number}" for number in range(16)]
    with ExitStack() as held:
        with ThreadPoolExecutor() as starting:
            cameras = list(
                starting.map(
                    lambda _: held.enter_context(rtsp_camera("--fps", "5", "--gop", "5")), names
                )
            )
        sources = [SourceConfig(url=c.url, name=n) for c, n in zip(cameras, names, strict=True)]
        observer = serving(sources, model, held)
        observer.wait_until(lambda: all(map(observer.is_live, names)), 30, "all are live")
        time.sleep(1)
        begin = time.monotonic()
        time.sleep(6)
        counts = {name: sum(observer.results_per_second(name, begin, 6)) for name in names}
        time.sleep(1.1)
        statuses = [observer.latest[name] for name in names]
    assert min(counts.values()) > 6, counts
    assert max(counts.values()) <= 1.5 * min(counts.values()), counts
    assert all(s.state == "live" and is_balanced(s) for s in statuses)
    assert any(s.dropped.get("overtaken") for s in statuses), "the model was fast enough"
