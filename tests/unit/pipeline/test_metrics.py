"""Metrics, and accounts that count each frame exactly once."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from support.cameras import require_program

from streamseg.errors import StreamsegError
from streamseg.pipeline.metrics import RECENT, AccountSnapshot, Metrics, RecentAges

CALLS = st.sampled_from(["decode", "publish", "late", "stale", "corrupt"])


def call_account(account, call) -> None:
    if call == "decode":
        account.decode()
    elif call == "publish":
        account.publish()
    elif call == "corrupt":
        account.fail(call)
    else:
        account.drop(call)


def test_an_account_counts_frames_by_outcome() -> None:
    account = Metrics().account("gate")
    for _ in range(6):
        account.decode()
    account.publish()
    account.drop("late")
    account.drop("late")
    account.drop("stale")
    account.fail("corrupt")
    assert account.snapshot() == AccountSnapshot(
        "gate", 6, 1, {"late": 2, "stale": 1}, {"corrupt": 1}, 1
    )
    assert account.snapshot().balanced


@pytest.mark.parametrize("call", ["publish", "late", "corrupt"])
def test_a_frame_cannot_be_settled_twice(call) -> None:
    account = Metrics().account("gate")
    account.decode()
    account.publish()
    before = account.snapshot()
    with pytest.raises(StreamsegError, match="gate: a frame was settled twice"):
        call_account(account, call)
    assert account.snapshot() == before, "a refused call changes nothing"
    assert before.balanced


def test_an_account_that_lost_a_frame_is_not_balanced() -> None:
    assert not AccountSnapshot("gate", 3, 1, {"late": 1}, {}, 0).balanced
    assert not AccountSnapshot("gate", 3, 2, {}, {"corrupt": 1}, 1).balanced
    assert AccountSnapshot("gate", 3, 1, {"late": 1}, {"corrupt": 1}, 0).balanced


@given(st.lists(CALLS, max_size=60))
def test_an_account_is_balanced_after_any_sequence_of_calls(history) -> None:
    account = Metrics().account("gate")
    open_frames = 0
    for call in history:
        if call != "decode" and open_frames == 0:
            with pytest.raises(StreamsegError):
                call_account(account, call)
        else:
            call_account(account, call)
            open_frames += 1 if call == "decode" else -1
        snapshot = account.snapshot()
        assert snapshot.balanced
        assert snapshot.in_flight == open_frames


def test_accounts_stay_balanced_while_many_threads_settle_frames() -> None:
    metrics = Metrics()
    account = metrics.account("gate")
    frames_per_thread, workers = 1000, 4
    unbalanced, done = [], threading.Event()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(frames_per_thread):
            account.decode()
            call_account(account, rng.choice(["publish", "late", "stale", "corrupt"]))

    def watch() -> None:
        while not done.is_set():
            unbalanced.extend(s for s in metrics.snapshots() if not s.balanced)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(workers)]
    watcher = threading.Thread(target=watch)
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    done.set()
    watcher.join(5)
    assert not unbalanced
    last = account.snapshot()
    assert last.decoded == frames_per_thread * workers
    assert last.in_flight == 0
    assert last.balanced


def test_one_frame_settled_by_two_threads_at_once_counts_once() -> None:
    for _ in range(200):
        account = Metrics().account("gate")
        account.decode()
        refused = []
        barrier = threading.Barrier(2)

        def race(call, account=account, barrier=barrier, refused=refused) -> None:
            barrier.wait(5)
            try:
                call_account(account, call)
            except StreamsegError as error:
                refused.append(error)

        threads = [threading.Thread(target=race, args=(call,)) for call in ("publish", "late")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert len(refused) == 1
        assert account.snapshot().balanced


def test_concurrent_first_calls_open_one_account() -> None:
    metrics = Metrics()
    opened = []
    threads = [
        threading.Thread(target=lambda: opened.append(metrics.account("gate"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len({id(account) for account in opened}) == 1
    metrics.account("yard")
    assert [s.source for s in metrics.snapshots()] == ["gate", "yard"]


def test_prometheus_counters_equal_the_account() -> None:
    metrics = Metrics()
    account = metrics.account("gate")
    for _ in range(5):
        account.decode()
    account.publish()
    account.publish()
    account.drop("late")
    account.fail("corrupt")
    page = generate_latest(metrics.registry).decode()
    for line in (
        'streamseg_decoded_frames_total{source="gate"} 5.0',
        'streamseg_published_frames_total{source="gate"} 2.0',
        'streamseg_dropped_frames_total{reason="late",source="gate"} 1.0',
        'streamseg_failed_frames_total{reason="corrupt",source="gate"} 1.0',
        'streamseg_in_flight_frames{source="gate"} 1.0',
    ):
        assert line in page


def test_a_source_without_frames_has_counters_of_zero() -> None:
    metrics = Metrics()
    metrics.account("gate")
    page = generate_latest(metrics.registry).decode()
    for name in ("decoded_frames", "published_frames", "reconnects", "stalls"):
        assert f'streamseg_{name}_total{{source="gate"}} 0.0' in page


def test_metrics_include_memory_open_files_and_threads_of_the_process() -> None:
    registry = Metrics().registry
    resident = registry.get_sample_value("process_resident_memory_bytes")
    assert 0 < resident < 1e12
    assert registry.get_sample_value("process_open_fds") > 0
    assert registry.get_sample_value("streamseg_threads") == threading.active_count()


def test_promtool_accepts_the_metrics() -> None:
    require_program("promtool", is_installed=shutil.which("promtool") is not None)
    metrics = Metrics()
    account = metrics.account("gate")
    for _ in range(3):
        account.decode()
    account.publish()
    account.drop("late")
    account.fail("corrupt")
    metrics.observe_age("gate", 0.1)
    metrics.set_state("gate", "live")
    completed = subprocess.run(
        ["promtool", "check", "metrics"],
        check=False,
        input=generate_latest(metrics.registry),
        capture_output=True,
        timeout=30,
    )
    assert (completed.returncode, completed.stderr) == (0, b"")


def test_two_services_in_one_process_have_separate_metrics() -> None:
    first, second = Metrics(), Metrics()
    first.account("gate").decode()
    assert second.snapshots() == []
    assert second.registry.get_sample_value("streamseg_decoded_frames_total") is None


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (100, 99), (101, 100), (150, 149)])
def test_one_age_in_a_hundred_exceeds_the_99th_percentile(count: int, expected: float) -> None:
    ages = RecentAges()
    assert ages.p99() == 0
    for number in range(count, 0, -1):
        ages.add(number)
    assert ages.p99() == expected


def test_ages_are_recent_for_a_minute() -> None:
    now = 1000.0
    ages = RecentAges(lambda: now)
    ages.add(5.0)
    now += RECENT
    ages.add(1.0)
    assert (len(ages), ages.p99()) == (2, 5.0)
    now += 0.001
    assert ages.p99() == 1.0
    ages.add(1.0)
    assert len(ages) == 2
