"""End of a pipeline: finished sources, failures, stop and abort."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest

from streamseg.errors import StageError
from streamseg.pipeline.mailbox import Mailbox, Policy
from streamseg.pipeline.runner import Pipeline

pytestmark = pytest.mark.timeout(30)


@dataclass(frozen=True)
class Item:
    source: str
    number: int


class Run:
    """Pipeline of sources, a worker and two sinks, like that of a service."""

    def __init__(self, policy: Policy = "block", capacity: int = 4) -> None:
        self.pipeline = Pipeline()
        self.dropped: list[Item] = []
        self.inbox: Mailbox[Item] = Mailbox(capacity, policy, on_drop=self.dropped.append)
        self.outboxes: list[Mailbox[Item]] = [Mailbox(capacity), Mailbox(capacity)]
        self.received: list[list[Item]] = [[], []]

    def start(
        self,
        sources: dict[str, Iterable[Item]],
        work: Callable[[Item], Item] = lambda item: item,
        sink: Callable[[int, Item], None] = lambda _, __: None,
    ) -> None:
        def drain(row: int) -> Iterator[Item]:
            for item in self.outboxes[row]:
                sink(row, item)
                self.received[row].append(item)
                yield item

        p = self.pipeline
        for name, items in sources.items():
            p.spawn(f"source:{name}", p.until_stopped(items), into=[self.inbox])
        worker = (work(i) for batch in self.inbox.batches(3, 0.001) for i in batch)
        p.spawn("worker", worker, into=self.outboxes)
        p.spawn("publisher", drain(0))
        p.spawn("recorder", drain(1))

    def assert_all_threads_ended(self) -> None:
        assert [t.name for t in self.pipeline._threads if t.is_alive()] == []


def generate_items(source: str, count: int = 10**9, pause: float = 0) -> Iterator[Item]:
    for number in range(count):
        if pause:
            time.sleep(pause)
        yield Item(source, number)


def test_everything_arrives_in_order_and_every_thread_ends() -> None:
    run = Run()
    run.start({"a": generate_items("a", 200), "b": generate_items("b", 150)})
    run.pipeline.wait()
    for items in run.received:
        assert [i.number for i in items if i.source == "a"] == list(range(200))
        assert [i.number for i in items if i.source == "b"] == list(range(150))
    run.assert_all_threads_ended()


def test_every_frame_of_a_live_source_is_read_or_reported_as_dropped() -> None:
    run = Run("drop_oldest", capacity=2)
    run.start({"a": generate_items("a", 300, 0.0002)}, work=lambda i: (time.sleep(0.003), i)[1])
    run.pipeline.wait()
    assert run.dropped
    assert sorted(i.number for i in run.dropped + run.received[0]) == list(range(300))
    assert run.received[0][-1].number == 299


@pytest.mark.parametrize("stage", ["worker", "publisher", "recorder"])
def test_a_stage_that_fails_ends_the_run_and_is_named(stage: str) -> None:
    def work(item: Item) -> Item:
        if stage == "worker" and item.number == 20:
            raise ZeroDivisionError("worker failed")
        return item

    def sink(row: int, item: Item) -> None:
        if stage == ("publisher", "recorder")[row] and item.number == 20:
            raise OSError("sink failed")

    run = Run()
    run.start({"a": generate_items("a"), "b": generate_items("b", pause=0.01)}, work, sink)
    with pytest.raises(StageError, match=f"{stage}: .* failed") as raised:
        run.pipeline.wait()
    assert raised.value.__cause__ is not None
    run.assert_all_threads_ended()


def test_a_source_that_fails_alone_leaves_the_others_running() -> None:
    def fail_after_five() -> Iterator[Item]:
        yield from generate_items("a", 5)
        raise OSError("camera disconnected")

    run = Run()
    errors: list[Exception] = []
    p = run.pipeline
    p.spawn("source:a", fail_after_five(), into=[run.inbox], on_error=errors.append)
    run.start({"b": generate_items("b", 100)})
    p.wait()
    assert [str(e) for e in errors] == ["camera disconnected"]
    assert sum(i.source == "a" for i in run.received[0]) == 5
    assert sum(i.source == "b" for i in run.received[0]) == 100


def test_stop_finishes_the_frames_in_flight() -> None:
    run = Run()
    run.start({"a": generate_items("a")})
    time.sleep(0.1)
    run.pipeline.stop()
    run.pipeline.wait()
    received = [i.number for i in run.received[1]]
    assert received == list(range(len(received)))
    assert received
    assert run.received[0] == run.received[1]
    run.assert_all_threads_ended()


def test_stop_while_everything_is_blocked_ends_at_the_deadline() -> None:
    release = threading.Event()
    run = Run(capacity=1)
    run.start({"a": generate_items("a")}, sink=lambda _, __: release.wait(0.8) and None)
    time.sleep(0.1)
    run.pipeline.stop()
    started_at = time.monotonic()
    run.pipeline.wait(deadline=0.3)
    assert time.monotonic() - started_at < 5
    assert run.pipeline.aborted
    release.set()


def test_abort_ends_blocked_writers_and_readers_at_once() -> None:
    run = Run(capacity=1)
    release = threading.Event()

    def wait_for_release() -> Iterator[Item]:
        release.wait(10)
        yield Item("c", 0)

    run.start({"a": generate_items("a", pause=0.01), "c": wait_for_release()})
    time.sleep(0.05)
    started_at = time.monotonic()
    run.pipeline.abort()
    release.set()
    run.pipeline.wait()
    assert time.monotonic() - started_at < 2
    run.assert_all_threads_ended()


def test_a_blocked_thread_is_logged_and_left_after_an_abort(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamseg.pipeline.runner.LATE_AFTER", 0.3)
    release = threading.Event()

    def block() -> Iterator[Item]:
        release.wait(20)
        yield Item("a", 0)

    run = Run()
    run.start({"blocked": block()})
    run.pipeline.abort()
    run.pipeline.wait()
    assert "left behind, blocked: source:blocked" in caplog.text
    release.set()


def test_abort_in_a_signal_handler_does_not_deadlock() -> None:
    pipeline = Pipeline()

    def abort_while_locked() -> None:
        with pipeline._lock:  # a signal handler interrupts the waiting thread
            pipeline.abort()

    thread = threading.Thread(target=abort_while_locked, daemon=True)
    thread.start()
    thread.join(5)
    assert pipeline.aborted
    assert not thread.is_alive()


def test_a_source_is_closed_when_the_run_ends_before_it() -> None:
    closed = threading.Event()

    def source() -> Iterator[Item]:
        try:
            yield from generate_items("a")
        finally:
            closed.set()

    run = Run()
    run.start({"a": source()})
    run.pipeline.abort()
    run.pipeline.wait()
    assert closed.wait(2)
