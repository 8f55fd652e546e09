"""Replay: lost results are requested again and returned in order, or counted as lost in time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from unittest import mock

import msgspec
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ports import free_port
from support.publishers import wait_until
from support.subscribers import (
    feed_and_take,
    lossy_publisher,
    masks_json,
    raw_publisher,
    status_json,
)

import streamseg
from streamseg import protocol
from streamseg.client import replay_client
from streamseg.client import session as session_module
from streamseg.client.session import Session
from streamseg.errors import ReceiveTimeout
from streamseg.sinks.zmq.replay import MAX_ANSWER_MESSAGES


@contextlib.contextmanager
def connect_subscriber(publisher, sources=None, **options):
    """Connect a subscriber that has received the replay address and the result 0."""
    with streamseg.connect(publisher.endpoint, sources, timeout=8, **options) as sub:
        publisher.wait_for_subscriber()
        publisher.publish_status()
        publisher.publish(0)
        assert sub.receive().seq == 0
        yield sub


@pytest.fixture
def long_wait(monkeypatch):
    """Raise the answer timeout so far that a result without it comes sooner on any machine."""
    monkeypatch.setattr(replay_client, "ANSWER_TIMEOUT", 20.0)
    return 10.0


def read_until_requested(sub, is_requested) -> None:
    """Read until the publisher got a replay request."""

    def is_requested_after_receive() -> object:
        with pytest.raises(ReceiveTimeout):
            sub.receive(timeout=0.05)
        return is_requested()

    wait_until(is_requested_after_receive)


def receive_seqs(sub, count) -> list[int]:
    return [sub.receive().seq for _ in range(count)]


def test_lost_results_are_returned_in_order() -> None:
    with lossy_publisher() as publisher, connect_subscriber(publisher) as sub:
        publisher.publish(1, 2, 3, lost=True)
        publisher.publish(4, 5)
        assert receive_seqs(sub, 5) == [1, 2, 3, 4, 5]
        publisher.publish(6, lost=True)
        publisher.publish(7)
        assert receive_seqs(sub, 2) == [6, 7]
        assert (sub.gaps, sub.rejected) == ({"gate": 0}, 0)


def test_gap_larger_than_one_answer_and_than_the_buffer_is_filled() -> None:
    count = 3 * MAX_ANSWER_MESSAGES + session_module.MAX_BUFFERED_MESSAGES
    with lossy_publisher() as publisher, connect_subscriber(publisher) as sub:
        publisher.publish(*range(1, count), lost=True)
        publisher.publish(*range(count, count + 2 * session_module.MAX_BUFFERED_MESSAGES))
        assert receive_seqs(sub, count + 2 * session_module.MAX_BUFFERED_MESSAGES - 1) == list(
            range(1, count + 2 * session_module.MAX_BUFFERED_MESSAGES)
        )
        assert sub.gaps == {"gate": 0}


def test_replay_works_with_asyncio() -> None:
    async def read(sub) -> list[int]:
        return [(await sub.receive_async()).seq for _ in range(60)]

    with lossy_publisher() as publisher, connect_subscriber(publisher) as sub:
        publisher.publish(*range(1, 60), lost=True)
        publisher.publish(60)
        assert asyncio.run(read(sub)) == list(range(1, 61))


def test_gaps_of_one_source_do_not_delay_another() -> None:
    with lossy_publisher() as publisher, connect_subscriber(publisher) as sub:
        publisher.publish(0, source="yard")
        assert sub.receive().source == "yard"
        publisher.publish(1, 2, lost=True)
        publisher.publish(1, lost=True, source="yard")
        publisher.publish(3)
        publisher.publish(2, source="yard")
        received = [sub.receive() for _ in range(5)]
        for source, expected in (("gate", [1, 2, 3]), ("yard", [1, 2])):
            assert [r.seq for r in received if r.source == source] == expected


def test_results_no_longer_buffered_are_counted_as_lost() -> None:
    with lossy_publisher() as publisher, connect_subscriber(publisher) as sub:
        publisher.publish(1, 2, lost=True, buffered=False)
        publisher.publish(3, lost=True)
        publisher.publish(4, lost=True, buffered=False)
        publisher.publish(5, buffered=False)
        assert receive_seqs(sub, 2) == [3, 5]
        assert sub.gaps == {"gate": 3}


def test_results_lost_before_the_end_are_detected_by_the_status() -> None:
    with lossy_publisher() as publisher, connect_subscriber(publisher, ["gate"]) as sub:
        publisher.publish(1, 2, lost=True)
        publisher.publish_status("ended", 1, source="gate", published=3)
        assert [r.seq for r in sub] == [1, 2]
        assert sub.ended


def test_unanswered_request_gives_up_after_its_attempts_and_pauses(monkeypatch) -> None:
    monkeypatch.setattr(replay_client, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr(replay_client, "PAUSE", 60.0)
    with lossy_publisher(mute=True) as publisher, connect_subscriber(publisher) as sub:
        publisher.publish(1, lost=True)
        publisher.publish(2)
        started_at = time.monotonic()
        assert receive_seqs(sub, 1) == [2]
        time_limit = replay_client.MAX_ATTEMPTS * replay_client.ANSWER_TIMEOUT
        assert time_limit - 0.1 < time.monotonic() - started_at < time_limit + 5
        assert sub.gaps == {"gate": 1}
        assert [r.since for r in publisher.requests] == [0] * replay_client.MAX_ATTEMPTS
        monkeypatch.setattr(replay_client, "ANSWER_TIMEOUT", 20.0)
        publisher.publish(4)
        assert receive_seqs(sub, 1) == [4], "within the subscriber's own timeout"
        assert sub.gaps == {"gate": 2}
        assert len(publisher.requests) == replay_client.MAX_ATTEMPTS


def test_unreachable_replay_address_counts_as_no_answer(monkeypatch) -> None:
    monkeypatch.setattr(replay_client, "ANSWER_TIMEOUT", 0.1)
    with lossy_publisher() as publisher, connect_subscriber(publisher) as sub:
        publisher.publish_status(seq=1, endpoints={"replay": f"tcp://127.0.0.1:{free_port()}"})
        publisher.publish(1, lost=True)
        publisher.publish(2, 3)
        assert receive_seqs(sub, 2) == [2, 3]
        assert sub.gaps == {"gate": 1}


@pytest.mark.parametrize("endpoints", [{}, {"replay": "nonsense"}, {"replay": "tcp://127.0.0.1:0"}])
def test_gap_without_replay_address_is_lost_at_once(endpoints, long_wait) -> None:
    with lossy_publisher() as publisher, connect_subscriber(publisher) as sub:
        publisher.publish_status(seq=1, endpoints=endpoints)
        publisher.publish(2)
        started_at = time.monotonic()
        assert receive_seqs(sub, 1) == [2]
        assert time.monotonic() - started_at < long_wait
        assert sub.gaps == {"gate": 1}


@pytest.mark.parametrize("options", [{"replay": False}, {"newest": True}])
def test_disabled_replay_sends_no_request(options) -> None:
    with lossy_publisher(mute=True) as publisher, connect_subscriber(publisher, **options) as sub:
        publisher.publish(2)
        assert receive_seqs(sub, 1) == [2]
        assert (sub.gaps, publisher.requests) == ({"gate": 1}, [])


def test_service_restart_ends_an_open_request(long_wait) -> None:
    with lossy_publisher(mute=True) as publisher, connect_subscriber(publisher) as sub:
        publisher.publish(2)
        read_until_requested(sub, lambda: publisher.requests)
        publisher.service = "two"
        publisher.publish(0, 1)
        started_at = time.monotonic()
        received = [sub.receive() for _ in range(3)]
        assert time.monotonic() - started_at < long_wait
        assert [(r.service, r.seq) for r in received] == [("one", 2), ("two", 0), ("two", 1)]
        assert (sub.gaps, sub.rejected) == ({"gate": 1}, 0)


def test_new_replay_address_is_used_after_a_restart(long_wait) -> None:
    with (
        lossy_publisher(mute=True) as publisher,
        lossy_publisher(service="two") as other,
        connect_subscriber(publisher) as sub,
    ):
        publisher.publish(2)
        read_until_requested(sub, lambda: publisher.requests)
        other.publish(0, 1, 2)
        publisher.service = "two"
        publisher.publish(0)
        publisher.publish_status(endpoints={"replay": other.replay_endpoint})
        publisher.publish(2)
        time.sleep(0.1)
        started_at = time.monotonic()
        received = [sub.receive() for _ in range(4)]
        assert time.monotonic() - started_at < long_wait
        assert [(r.service, r.seq) for r in received[1:]] == [("two", 0), ("two", 1), ("two", 2)]
        assert sub.gaps == {"gate": 1}


def test_answer_of_a_restarted_service_loses_the_gap(long_wait) -> None:
    with (
        lossy_publisher(service="one") as publisher,
        lossy_publisher(service="two") as other,
        connect_subscriber(publisher) as sub,
    ):
        publisher.publish_status(seq=1, endpoints={"replay": other.replay_endpoint})
        publisher.publish(1, lost=True)
        publisher.publish(2)
        started_at = time.monotonic()
        assert receive_seqs(sub, 1) == [2]
        assert time.monotonic() - started_at < long_wait
        assert (sub.gaps, sub.rejected) == ({"gate": 1}, 0)


def test_slow_reader_does_not_time_out_the_request() -> None:
    with lossy_publisher() as publisher, connect_subscriber(publisher) as sub:
        publisher.publish(*range(1, 50), lost=True)
        publisher.publish(50)
        first = sub.receive().seq
        time.sleep(replay_client.ANSWER_TIMEOUT + 0.3)
        assert [first, *receive_seqs(sub, 49)] == list(range(1, 51))
        assert sub.gaps == {"gate": 0}


def test_wildcard_or_loopback_address_is_resolved_to_the_masks_host() -> None:
    with streamseg.connect("tcp://192.0.2.7:5555") as sub:
        for address in ("tcp://0.0.0.0:7", "tcp://[::]:7", "tcp://127.0.0.1:7"):
            assert str(sub._resolve(protocol.Address.parse(address))) == "tcp://192.0.2.7:7"
        other_host = protocol.Address.parse("tcp://192.0.2.8:7")
        assert sub._resolve(other_host) == other_host
    with streamseg.connect("ipc:///tmp/missing") as sub:
        address = protocol.Address.parse("tcp://0.0.0.0:7")
        assert str(sub._resolve(address)) == "tcp://127.0.0.1:7"


# Invalid answers


def make_session_with_gap() -> Session:
    """Return a session that lacks result 1 and has started a replay request."""
    session = Session(None, "masks", 10_000, uses_replay=True)
    status = status_json(endpoints={"replay": "tcp://127.0.0.1:7"})
    assert feed_and_take(session, [b"status//", status]) is None
    assert feed_and_take(session, [b"masks/gate/", masks_json(0)]).seq == 0
    assert feed_and_take(session, [b"masks/gate/", masks_json(2)]) is None
    assert msgspec.json.decode(session.next_request())["since"] == 0
    return session


INVALID_ANSWERS = [
    [b"masks/gate/", masks_json(1, service="two")],
    [b"masks/yard/", masks_json(1, source="yard")],
    [b"masks/yard/", masks_json(1)],
    [b"masks/gate/", masks_json(1), b""],
    [b"masks/gate/", b"{}"],
    [b"video/gate/", masks_json(1)],
    [b"{}"],
    [b""],
    [masks_json(1)],
]


@pytest.mark.parametrize("parts", INVALID_ANSWERS)
def test_invalid_answer_parts_are_counted_and_skipped(parts) -> None:
    session = make_session_with_gap()
    assert not session.feed_replay(parts)
    assert session.rejected == 1
    assert session.take() is None
    assert session.feed_replay([b"masks/gate/", masks_json(1)])
    assert not session.feed_replay([b"masks/gate/", masks_json(1)])
    assert [session.take().seq for _ in range(2)] == [1, 2]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=100), min_size=1, max_size=3))
def test_arbitrary_answers_do_not_crash_the_session(parts) -> None:
    session = make_session_with_gap()
    assert not session.feed_replay(parts)
    assert session.rejected == 1


def test_trickling_garbage_does_not_extend_the_timeout(monkeypatch) -> None:
    monkeypatch.setattr(replay_client, "ANSWER_TIMEOUT", 0.5)
    stop = threading.Event()

    def trickle(router) -> None:
        peers = set()
        while not stop.is_set():
            if router.poll(50):
                peers.add(router.recv_multipart()[0])
            for peer in peers:
                router.send_multipart([peer, b"masks/gate/", masks_json(0)])

    with raw_publisher() as (sock, at):
        router = sock.context.socket(zmq.ROUTER)
        router.bind("tcp://127.0.0.1:*")
        endpoint = router.getsockopt(zmq.LAST_ENDPOINT).decode()
        trickle_thread = threading.Thread(target=trickle, args=(router,))
        trickle_thread.start()
        try:
            with streamseg.connect(at, timeout=10) as sub:
                assert sock.poll(5000)
                sock.send_multipart([b"status//", status_json(endpoints={"replay": endpoint})])
                for seq in (0, 2):
                    sock.send_multipart([b"masks/gate/", masks_json(seq)])
                assert [sub.receive().seq for _ in range(2)] == [0, 2]
        finally:
            stop.set()
            trickle_thread.join()
            router.close(linger=0)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=100), min_size=1, max_size=3), max_size=20))
def test_garbage_before_an_answer_is_skipped(garbage) -> None:
    empty_answer = protocol.ReplayAnswer(
        v=1, service="one", source="gate", complete=True, first=None, last=None
    )
    with (
        raw_publisher() as (sock, at),
        mock.patch.object(replay_client, "ANSWER_TIMEOUT", 20.0),
        sock.context.socket(zmq.ROUTER) as router,
    ):
        router.linger = 0
        router.bind("tcp://127.0.0.1:*")
        endpoint = router.getsockopt(zmq.LAST_ENDPOINT).decode()
        with streamseg.connect(at, timeout=10) as sub:
            assert sock.poll(5000)
            sock.send_multipart([b"status//", status_json(endpoints={"replay": endpoint})])
            for seq in (0, 2):
                sock.send_multipart([b"masks/gate/", masks_json(seq)])
            assert sub.receive().seq == 0
            read_until_requested(sub, lambda: router.poll(0))
            peer = router.recv_multipart()[0]
            for parts in garbage:
                router.send_multipart([peer, *parts])
            with pytest.raises(ReceiveTimeout):
                sub.receive(timeout=0.05)
            router.send_multipart([peer, protocol.encode(empty_answer)])
            assert sub.receive().seq == 2
            assert sub.rejected == len(garbage)
