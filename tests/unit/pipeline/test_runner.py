"""Ends of a pipeline: end of the sources, failures, stops and aborts."""

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
        self.outs: list[Mailbox[Item]] = [Mailbox(capacity), Mailbox(capacity)]
        self.seen: list[list[Item]] = [[], []]

    def start(
        self,
        sources: dict[str, Iterable[Item]],
        work: Callable[[Item], Item] = lambda item: item,
        sink: Callable[[int, Item], None] = lambda _, __: None,
    ) -> None:
        def drain(row: int) -> Iterator[Item]:
            for item in self.outs[row]:
                sink(row, item)
                self.seen[row].append(item)
                yield item

        p = self.pipeline
        for name, items in sources.items():
            p.spawn(f"source:{name}", p.until_stopped(items), into=[self.inbox])
        worker = (work(i) for batch in self.inbox.batches(3, 0.001) for i in batch)
        p.spawn("worker", worker, into=self.outs)
        p.spawn("publisher", drain(0))
        p.spawn("recorder", drain(1))

    def assert_no_thread_is_left(self) -> None:
        assert [t.name for t in self.pipeline._threads if t.is_alive()] == []


def numbers(source: str, count: int = 10**9, pause: float = 0) -> Iterator[Item]:
    for number in range(count):
        if pause:
            time.sleep(pause)
        yield Item(source, number)


def test_everything_arrives_in_order_and_every_thread_ends() -> None:
    run = Run()
    run.start({"a": numbers("a", 200), "b": numbers("b", 150)})
    run.pipeline.wait()
    for seen in run.seen:
        assert [i.number for i in seen if i.source == "a"] == list(range(200))
        assert [i.number for i in seen if i.source == "b"] == list(range(150))
    run.assert_no_thread_is_left()


def test_every_frame_of_a_live_source_is_read_or_reported_as_dropped() -> None:
    run = Run("drop_oldest", capacity=2)
    run.start({"a": numbers("a", 300, 0.0002)}, work=lambda i: (time.sleep(0.003), i)[1])
    run.pipeline.wait()
    assert run.dropped
    assert sorted(i.number for i in run.dropped + run.seen[0]) == list(range(300))
    assert run.seen[0][-1].number == 299


@pytest.mark.parametrize("stage", ["worker", "publisher", "recorder"])
def test_a_stage_that_fails_ends_the_run_and_is_named(stage: str) -> None:
    def work(item: Item) -> Item:
        if stage == "worker" and item.number == 20:
            raise ZeroDivisionError("worker broke")
        return item

    def sink(row: int, item: Item) -> None:
        if stage == ("publisher", "recorder")[row] and item.number == 20:
            raise OSError("sink broke")

    run = Run()
    run.start({"a": numbers("a"), "b": numbers("b", pause=0.01)}, work, sink)
    with pytest.raises(StageError, match=f"{stage}: .* broke") as raised:
        run.pipeline.wait()
    assert raised.value.__cause__ is not None
    run.assert_no_thread_is_left()


def test_a_source_that_fails_alone_leaves_the_others_running() -> None:
    def broken() -> Iterator[Item]:
        yield from numbers("a", 5)
        raise OSError("camera gone")

    run = Run()
    errors: list[Exception] = []
    p = run.pipeline
    p.spawn("source:a", broken(), into=[run.inbox], on_error=errors.append)
    run.start({"b": numbers("b", 100)})
    p.wait()
    assert [str(e) for e in errors] == ["camera gone"]
    assert sum(i.source == "a" for i in run.seen[0]) == 5
    assert sum(i.source == "b" for i in run.seen[0]) == 100


def test_stop_finishes_the_frames_in_flight() -> None:
    run = Run()
    run.start({"a": numbers("a")})
    time.sleep(0.1)
    run.pipeline.stop()
    run.pipeline.wait()
    got = [i.number for i in run.seen[1]]
    assert got == list(range(len(got)))
    assert got
    assert run.seen[0] == run.seen[1]
    run.assert_no_thread_is_left()


def test_stop_while_everything_is_blocked_ends_at_the_deadline() -> None:
    release = threading.Event()
    run = Run(capacity=1)
    run.start({"a": numbers("a")}, sink=lambda _, __: release.wait(0.8) and None)
    time.sleep(0.1)
    run.pipeline.stop()
    started = time.monotonic()
    run.pipeline.wait(deadline=0.3)
    assert time.monotonic() - started < 5
    assert run.pipeline.aborted
    release.set()


def test_abort_ends_blocked_writers_and_readers_at_once() -> None:
    run = Run(capacity=1)
    gate = threading.Event()

    def silent() -> Iterator[Item]:
        gate.wait(10)
        yield Item("c", 0)

    run.start({"a": numbers("a", pause=0.01), "c": silent()})
    time.sleep(0.05)
    started = time.monotonic()
    run.pipeline.abort()
    gate.set()
    run.pipeline.wait()
    assert time.monotonic() - started < 2
    run.assert_no_thread_is_left()


def test_a_blocked_thread_is_logged_and_left_after_an_abort(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamseg.pipeline.runner.LATE_AFTER", 0.3)
    gate = threading.Event()

    def stuck() -> Iterator[Item]:
        gate.wait(20)
        yield Item("a", 0)

    run = Run()
    run.start({"stuck": stuck()})
    run.pipeline.abort()
    run.pipeline.wait()
    assert "left behind, blocked: source:stuck" in caplog.text
    gate.set()


def test_a_signal_may_abort_at_any_point_of_a_wait() -> None:
    pipeline = Pipeline()

    def interrupted() -> None:
        with pipeline._lock:  # a signal handler interrupts the waiting thread
            pipeline.abort()

    waiting = threading.Thread(target=interrupted, daemon=True)
    waiting.start()
    waiting.join(5)
    assert pipeline.aborted
    assert not waiting.is_alive()


def test_a_source_is_closed_when_the_run_ends_before_it() -> None:
    closed = threading.Event()

    def source() -> Iterator[Item]:
        try:
            yield from numbers("a")
        finally:
            closed.set()

    run = Run()
    run.start({"a": source()})
    run.pipeline.abort()
    run.pipeline.wait()
    assert closed.wait(2)
