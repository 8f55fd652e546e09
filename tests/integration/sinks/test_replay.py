"""Tests of the replay buffer and of its answers over real sockets, also to hostile clients."""

from __future__ import annotations

import contextlib
import time

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from support.publishers import wait_until

from streamseg import protocol
from streamseg.sinks.zmq import replay
from streamseg.sinks.zmq.replay import ReplayBuffer

TOPIC = b"masks/gate/"


def request(since=-1, *, source="gate", service="one", v=1) -> bytes:
    return protocol.encode(protocol.ReplayRequest(v=v, service=service, source=source, since=since))


def filled_buffer(
    count, *, seconds=60.0, max_bytes=replay.DEFAULT_BYTES, size=1000
) -> ReplayBuffer:
    history = ReplayBuffer(seconds, max_bytes, "one")
    for seq in range(count):
        history.add(TOPIC, seq, b"%06d" % seq + bytes(size - 6))
    return history


@contextlib.contextmanager
def connected_sockets(history):
    """Connect a DEALER to a ROUTER that ``history`` answers; yield both and a request function."""
    context = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    replay.set_replay_options(router)
    router.bind("tcp://127.0.0.1:*")
    dealer.connect(router.getsockopt(zmq.LAST_ENDPOINT).decode())
    dealer.rcvtimeo = 5000

    def request_replay(raw):
        dealer.send(raw)
        deadline = time.monotonic() + 5
        while not dealer.poll(0):
            assert time.monotonic() < deadline, "no answer"
            if router.poll(20):
                history.answer_requests(router)
        messages = []
        while len(parts := dealer.recv_multipart()) == 2:
            messages.append(parts)
        return messages, protocol.decode(parts[0], protocol.ReplayAnswer)

    try:
        yield router, dealer, request_replay
    finally:
        router.close(linger=0)
        dealer.close(linger=0)
        context.term()


def seqs(messages) -> list[int]:
    assert all(topic == TOPIC for topic, _ in messages)
    return [int(message[:6]) for _, message in messages]


def test_messages_after_a_seq_are_replayed_unchanged() -> None:
    with connected_sockets(filled_buffer(10)) as (_, _, request_replay):
        messages, end = request_replay(request(6))
    assert seqs(messages) == [7, 8, 9]
    assert messages[0][1] == b"000007" + bytes(994)
    assert (end.service, end.source) == ("one", "gate")
    assert (end.complete, end.first, end.last) == (True, 7, 9)


def test_a_long_history_is_replayed_in_several_answers() -> None:
    replayed, complete, since, requests = [], False, -1, 0
    with connected_sockets(filled_buffer(100)) as (_, _, request_replay):
        while not complete:
            messages, end = request_replay(request(since))
            assert len(messages) <= replay.MAX_ANSWER_MESSAGES
            replayed += seqs(messages)
            complete, since, requests = end.complete, end.last, requests + 1
    assert replayed == list(range(100))
    assert requests == 4


def test_an_answer_has_a_size_limit_but_at_least_one_message() -> None:
    history = filled_buffer(4, size=replay.MAX_ANSWER_BYTES)
    with connected_sockets(history) as (_, _, request_replay):
        messages, end = request_replay(request(0))
        assert (len(messages), end.complete, end.first, end.last) == (1, False, 1, 1)


def test_a_request_without_matching_messages_gets_an_empty_answer() -> None:
    with connected_sockets(filled_buffer(3)) as (_, _, request_replay):
        for raw in (request(2), request(10**9), request(source="other")):
            messages, end = request_replay(raw)
            assert (messages, end.complete, end.first, end.last) == ([], True, None, None)


def test_a_request_for_another_service_id_gets_the_current_service_id() -> None:
    with connected_sockets(filled_buffer(3)) as (_, _, request_replay):
        messages, end = request_replay(request(0, service="before"))
        assert (messages, end.service, end.first) == ([], "one", None)


def test_messages_older_than_the_time_limit_are_deleted() -> None:
    history = filled_buffer(3, seconds=0.5)
    with connected_sockets(history) as (_, _, request_replay):
        assert seqs(request_replay(request())[0]) == [0, 1, 2]
        time.sleep(0.6)
        assert request_replay(request())[0] == []
    assert history.size == 0


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3000)), max_size=60),
    st.integers(0, 8000),
)
def test_the_oldest_messages_are_deleted_when_the_size_limit_is_exceeded(
    published, max_bytes
) -> None:
    history = ReplayBuffer(60, max_bytes, "one")
    kept, sizes = [], []
    for seq, (source, size) in enumerate(published):
        history.add(f"masks/{source}/".encode(), seq, bytes(size))
        kept.append((source, seq))
        sizes.append(size + replay.OVERHEAD)
        while sum(sizes) > max_bytes:
            kept.pop(0)
            sizes.pop(0)
        assert history.size == sum(sizes) <= max_bytes
    with connected_sockets(history) as (_, _, request_replay):
        for name in "abc":
            expected = [seq for source, seq in kept if source == name]
            _, end = request_replay(request(source=name))
            assert end.first == (expected[0] if expected else None)
            assert not end.complete or end.last == (expected[-1] if expected else None)


HOSTILE = [
    [b""],
    [b"", request()],
    [request(), request()],
    [b"\xff" * 500],
    [b"[" * 500],
    [b"{}"],
    [request(v=2)],
    [request(source="a/b")],
    [request(source="")],
    [request(source="x" * 65)],
    [request().replace(b'"since":-1', b'"since":1e9')],
    [request().replace(b'"since":-1', b'"since":99999999999999999999')],
    [request().replace(b'"since":-1', b'"since":null')],
]


@pytest.mark.parametrize("parts", HOSTILE)
def test_an_invalid_request_is_ignored_and_the_next_one_answered(parts) -> None:
    with connected_sockets(filled_buffer(3)) as (_, dealer, request_replay):
        dealer.send_multipart(parts)
        assert seqs(request_replay(request(1))[0]) == [2]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.binary(max_size=100), min_size=1, max_size=3), max_size=6))
def test_arbitrary_bytes_do_not_prevent_later_answers(messages) -> None:
    history = filled_buffer(3)
    with connected_sockets(history) as (router, dealer, request_replay):
        for parts in messages:
            dealer.send_multipart(parts)
        dealer.send(b"")  # the last one: after it, all messages were processed
        deadline = time.monotonic() + 5
        while router.poll(20) and time.monotonic() < deadline:
            history.answer_requests(router)
        assert seqs(request_replay(request(1))[0]) == [2]


def test_a_request_over_the_size_limit_closes_only_its_connection() -> None:
    history = filled_buffer(3)
    with connected_sockets(history) as (router, _, request_replay):
        sender = zmq.Context.instance().socket(zmq.DEALER)
        sender.connect(router.getsockopt(zmq.LAST_ENDPOINT).decode())
        sender.send(bytes(10 * replay.MAX_REQUEST_BYTES))
        assert not router.poll(200)
        sender.close(linger=0)
        assert seqs(request_replay(request(1))[0]) == [2]


def test_a_client_that_requests_without_reading_does_not_delay_others() -> None:
    history = filled_buffer(1000, size=100_000, max_bytes=200_000_000)
    with connected_sockets(history) as (router, dealer, request_replay):
        flooder = dealer.context.socket(zmq.DEALER)
        flooder.rcvhwm = 1
        flooder.setsockopt(zmq.RCVBUF, 4096)
        flooder.connect(router.getsockopt(zmq.LAST_ENDPOINT).decode())
        for _ in range(200):
            flooder.send(request())
        longest_call, deadline = 0.0, time.monotonic() + 10
        while router.poll(200) and time.monotonic() < deadline:
            started_at = time.monotonic()
            history.answer_requests(router)
            longest_call = max(longest_call, time.monotonic() - started_at)
        assert longest_call < 1
        assert seqs(request_replay(request(998))[0]) == [999]
        flooder.close(linger=0)


def test_a_client_that_disconnects_before_its_answer_is_ignored() -> None:
    history = filled_buffer(3)
    with connected_sockets(history) as (router, dealer, request_replay):
        disconnected = dealer.context.socket(zmq.DEALER)
        disconnected.connect(router.getsockopt(zmq.LAST_ENDPOINT).decode())
        disconnected.send(request())
        assert router.poll(5000)
        disconnected.close(linger=0)
        time.sleep(0.1)
        history.answer_requests(router)
        assert seqs(request_replay(request(1))[0]) == [2]


def count_answers_of_one_call(history, requests: int, clients: int) -> int:
    """Count the answers of one call when each client has sent ``requests`` requests."""
    with connected_sockets(history) as (router, dealer, _):
        router.bind("inproc://requests")  # inproc delivers sent messages immediately
        sockets = [dealer.context.socket(zmq.DEALER) for _ in range(clients)]
        for socket in sockets:
            socket.connect("inproc://requests")
            for _ in range(requests):
                socket.send(request())
        history.answer_requests(router)
        answers = 0
        for socket in sockets:
            while socket.poll(100):
                answers += len(socket.recv_multipart()) == 1
            socket.close(linger=0)
        return answers


def test_one_call_answers_a_limited_number_of_requests() -> None:
    limit = replay.REQUESTS_AT_ONCE
    assert count_answers_of_one_call(filled_buffer(1), limit, 3) == limit


def test_one_call_sends_a_limited_number_of_bytes() -> None:
    size = replay.MAX_ANSWER_BYTES // 4
    assert count_answers_of_one_call(filled_buffer(4, size=size), 4, 1) == 1


def test_the_next_call_answers_the_remaining_requests() -> None:
    history = filled_buffer(1)
    with connected_sockets(history) as (router, dealer, _):
        for _ in range(3 * replay.REQUESTS_AT_ONCE):
            dealer.send(request())
        answers = 0

        def is_answered() -> bool:
            nonlocal answers
            if router.poll(0):
                history.answer_requests(router)
            with contextlib.suppress(zmq.Again):
                while True:
                    answers += len(dealer.recv_multipart(zmq.NOBLOCK)) == 1
            return answers == 3 * replay.REQUESTS_AT_ONCE

        wait_until(is_answered)
