"""Mailboxes: order, policies and end, with one thread, many threads and random calls."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamseg.pipeline.mailbox import Closed, Mailbox

SOURCES = "abc"


@dataclass(frozen=True)
class Item:
    source: str
    number: int


def run_in_threads(*functions):
    """Run each function in a thread; fail if one blocks or raises."""
    failures = []

    def catch_errors(function):
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised in the test
            failures.append(error)

    threads = [threading.Thread(target=catch_errors, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "a thread is blocked"
    assert not failures, failures


def make_writer(mailbox, source, count):
    def write():
        for number in range(count):
            mailbox.put(Item(source, number))
        mailbox.close()

    return write


def numbers_of(items, source):
    return [item.number for item in items if item.source == source]


# One thread


def test_reading_alternates_between_sources_and_keeps_the_order_of_each() -> None:
    mailbox: Mailbox[Item] = Mailbox(10)
    mailbox.add_writer()
    for number in range(4):
        mailbox.put(Item("a", number))
    for source in "bc":
        mailbox.put(Item(source, 0))
    mailbox.close()
    assert [(i.source, i.number) for i in mailbox] == [
        ("a", 0),
        ("b", 0),
        ("c", 0),
        ("a", 1),
        ("a", 2),
        ("a", 3),
    ]


def test_drop_oldest_drops_and_reports_the_oldest_item_of_the_same_source() -> None:
    dropped: list[Item] = []
    mailbox: Mailbox[Item] = Mailbox(2, "drop_oldest", on_drop=dropped.append)
    mailbox.add_writer()
    mailbox.put(Item("b", 0))
    for number in range(5):
        mailbox.put(Item("a", number))
    mailbox.close()
    assert dropped == [Item("a", 0), Item("a", 1), Item("a", 2)]
    remaining = list(mailbox)
    assert numbers_of(remaining, "a") == [3, 4]
    assert numbers_of(remaining, "b") == [0]


def test_a_mailbox_closed_by_its_last_writer_is_read_until_it_is_empty() -> None:
    mailbox: Mailbox[Item] = Mailbox(5)
    mailbox.add_writer()
    mailbox.add_writer()
    mailbox.put(Item("a", 0))
    mailbox.close()
    assert not mailbox.finished
    mailbox.close()
    assert not mailbox.finished, "an item is left to read"
    assert mailbox.get() == Item("a", 0)
    assert mailbox.finished
    assert mailbox.get() is None


def test_a_mailbox_without_writers_yet_is_not_finished() -> None:
    mailbox: Mailbox[Item] = Mailbox(5)
    assert not mailbox.finished
    assert mailbox.get(timeout=0) is None


def test_abort_ends_readers_and_writers() -> None:
    mailbox: Mailbox[Item] = Mailbox(5)
    mailbox.add_writer()
    items = [Item("a", 0), Item("b", 0), Item("a", 1)]
    for item in items:
        mailbox.put(item)
    mailbox.abort()
    assert mailbox.finished
    assert mailbox.get() is None
    assert list(mailbox) == []
    with pytest.raises(Closed):
        mailbox.put(Item("a", 2))
    assert len(mailbox) == 3


def test_reading_an_empty_mailbox_returns_none_after_the_timeout() -> None:
    mailbox: Mailbox[Item] = Mailbox(5)
    mailbox.add_writer()
    began = time.monotonic()
    assert mailbox.get(timeout=0.1) is None
    assert 0.09 < time.monotonic() - began < 2


def test_batches_are_full_and_take_sources_in_turn() -> None:
    mailbox: Mailbox[Item] = Mailbox(10)
    mailbox.add_writer()
    for number in range(6):
        mailbox.put(Item("a", number))
    mailbox.put(Item("b", 0))
    mailbox.close()
    batches = list(mailbox.batches(4, 0))
    assert [len(batch) for batch in batches] == [4, 3]
    assert Item("b", 0) in batches[0]


def test_an_incomplete_batch_is_returned_after_the_wait() -> None:
    mailbox: Mailbox[Item] = Mailbox(10)
    mailbox.add_writer()
    mailbox.put(Item("a", 0))
    began = time.monotonic()
    assert next(mailbox.batches(4, 0.1)) == [Item("a", 0)]
    assert 0.09 < time.monotonic() - began < 2


def test_on_put_is_called_for_items_and_for_the_end() -> None:
    calls: list[str] = []
    mailbox: Mailbox[Item] = Mailbox(5, on_put=lambda: calls.append("on_put"))
    mailbox.add_writer()
    mailbox.put(Item("a", 0))
    assert len(calls) == 1
    mailbox.close()
    assert len(calls) == 2
    mailbox.abort()
    assert len(calls) == 3


def test_removed_sources_use_no_memory() -> None:
    mailbox: Mailbox[Item] = Mailbox(5, "drop_oldest")
    mailbox.add_writer()
    for number in range(100):
        mailbox.put(Item(f"source-{number}", 0))
        mailbox.get()
    assert len(mailbox._lanes) == 0


@given(
    st.integers(1, 3),
    st.lists(st.one_of(st.sampled_from(SOURCES), st.none()), max_size=40),
)
def test_dropping_keeps_the_newest_of_each_source_in_order(capacity, history) -> None:
    """Compared with a bounded deque per source; None in the history reads an item."""
    dropped: list[Item] = []
    mailbox: Mailbox[Item] = Mailbox(capacity, "drop_oldest", on_drop=dropped.append)
    mailbox.add_writer()
    model = {source: deque(maxlen=capacity) for source in SOURCES}
    put: Counter[str] = Counter()
    taken = []
    for source in history:
        if source is None:
            item = mailbox.get(timeout=0)
            if item is None:
                assert not any(model.values())
            else:
                assert item == model[item.source].popleft()
                taken.append(item)
        else:
            item = Item(source, put[source])
            put[source] += 1
            mailbox.put(item)
            model[source].append(item)
        assert len(mailbox) == sum(map(len, model.values()))
    mailbox.close()
    rest = list(mailbox)
    for source in SOURCES:
        assert numbers_of(rest, source) == [item.number for item in model[source]]
        everything = (
            numbers_of(taken, source) + numbers_of(rest, source) + numbers_of(dropped, source)
        )
        assert sorted(everything) == list(range(put[source])), "each item is in one place"


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_each_source_is_read_within_one_turn(counts) -> None:
    mailbox: Mailbox[Item] = Mailbox(10)
    mailbox.add_writer()
    for row, count in enumerate(counts):
        for number in range(count):
            mailbox.put(Item(str(row), number))
    mailbox.close()
    order = list(mailbox)
    for source in {item.source for item in order}:
        places = [i for i, item in enumerate(order) if item.source == source]
        assert places[0] < len(counts)
        assert all(b - a <= len(counts) for a, b in itertools.pairwise(places))


# Many threads


def test_a_blocking_mailbox_loses_nothing_and_keeps_the_order_of_each_source() -> None:
    mailbox: Mailbox[Item] = Mailbox(3)
    received: dict[int, list[Item]] = {0: [], 1: []}
    for _ in SOURCES:
        mailbox.add_writer()
    run_in_threads(
        *[make_writer(mailbox, source, 2000) for source in SOURCES],
        *[lambda row=row: received[row].extend(mailbox) for row in received],
    )
    for source in SOURCES:
        assert sorted(numbers_of(received[0] + received[1], source)) == list(range(2000))
        for items in received.values():
            assert numbers_of(items, source) == sorted(numbers_of(items, source))


def test_a_blocked_writer_of_one_source_does_not_stop_another() -> None:
    mailbox: Mailbox[Item] = Mailbox(1)
    mailbox.add_writer()
    mailbox.put(Item("a", 0))
    blocked = threading.Thread(target=lambda: mailbox.put(Item("a", 1)), daemon=True)
    blocked.start()
    time.sleep(0.05)
    assert blocked.is_alive()
    mailbox.put(Item("b", 0))
    assert [mailbox.get(1), mailbox.get(1)] == [Item("a", 0), Item("b", 0)]
    blocked.join(5)
    assert not blocked.is_alive()
    assert mailbox.get(1) == Item("a", 1)


def test_drop_oldest_never_blocks_and_every_item_is_read_or_reported() -> None:
    dropped: list[Item] = []
    mailbox: Mailbox[Item] = Mailbox(2, "drop_oldest", on_drop=dropped.append)
    received: list[Item] = []

    def read_slowly():
        for item in mailbox:
            received.append(item)
            time.sleep(0.001)

    for _ in SOURCES:
        mailbox.add_writer()
    run_in_threads(*[make_writer(mailbox, source, 500) for source in SOURCES], read_slowly)
    for source in SOURCES:
        assert sorted(numbers_of(received + dropped, source)) == list(range(500))
        assert numbers_of(received, source) == sorted(numbers_of(received, source))
        assert numbers_of(received, source)[-1] == 499, "the newest is never dropped"
    assert dropped


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_abort_releases_blocked_readers_and_writers_and_every_item_is_accounted_for(policy) -> None:
    dropped: list[Item] = []
    mailbox: Mailbox[Item] = Mailbox(2, policy, on_drop=dropped.append)
    received: list[Item] = []
    refused: list[Item] = []
    put: Counter[str] = Counter()

    def write(source):
        number = 0
        while True:
            item = Item(source, number)
            try:
                mailbox.put(item)
            except Closed:
                refused.append(item)
                return
            number += 1
            put[source] = number

    def read():
        received.extend(mailbox)

    def stop():
        time.sleep(0.1)
        mailbox.abort()

    mailbox.add_writer()
    run_in_threads(*[lambda s=s: write(s) for s in SOURCES], read, read, stop)
    left = [item for lane in mailbox._lanes.values() for item in lane]
    assert len(refused) == len(SOURCES)
    for source in SOURCES:
        everywhere = numbers_of(received + dropped + left, source)
        assert sorted(everywhere) == list(range(put[source]))


def test_the_last_close_releases_a_waiting_reader() -> None:
    mailbox: Mailbox[Item] = Mailbox(2)
    mailbox.add_writer()
    mailbox.add_writer()
    received: list[list[Item]] = []

    def close_both():
        time.sleep(0.05)
        mailbox.close()
        time.sleep(0.05)
        mailbox.close()

    run_in_threads(
        lambda: received.append(list(mailbox)),
        lambda: received.append([i for batch in mailbox.batches(4, 0.01) for i in batch]),
        close_both,
    )
    assert received == [[], []]
