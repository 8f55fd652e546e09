"""The history of masks messages, and what it answers over real sockets, to hostile askers too."""

from __future__ import annotations

import contextlib
import time

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from support.publishers import eventually

from streamseg import protocol
from streamseg.sinks.zmq import replay
from streamseg.sinks.zmq.replay import Replay

TOPIC = b"masks/gate/"


def request(since=-1, *, source="gate", service="one", v=1) -> bytes:
    return protocol.encode(protocol.ReplayRequest(v=v, service=service, source=source, since=since))


def filled(count, *, seconds=60.0, max_bytes=replay.DEFAULT_BYTES, size=1000) -> Replay:
    history = Replay(seconds, max_bytes, "one")
    for seq in range(count):
        history.keep(TOPIC, seq, b"%06d" % seq + bytes(size - 6))
    return history


@contextlib.contextmanager
def pair(history):
    """A ROUTER that ``history`` answers on, and a function that asks it."""
    context = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    replay.set_up(router)
    router.bind("tcp://127.0.0.1:*")
    dealer.connect(router.getsockopt(zmq.LAST_ENDPOINT).decode())
    dealer.rcvtimeo = 5000

    def ask(raw):
        dealer.send(raw)
        until = time.monotonic() + 5
        while not dealer.poll(0):
            assert time.monotonic() < until, "no answer"
            if router.poll(20):
                history.answer(router)
        messages = []
        while len(parts := dealer.recv_multipart()) == 2:
            messages.append(parts)
        return messages, protocol.decode(parts[0], protocol.ReplayAnswer)

    try:
        yield router, dealer, ask
    finally:
        router.close(linger=0)
        dealer.close(linger=0)
        context.term()


def seqs(messages) -> list[int]:
    assert all(topic == TOPIC for topic, _ in messages)
    return [int(message[:6]) for _, message in messages]


def test_what_comes_after_a_number_is_given_as_it_was_published() -> None:
    with pair(filled(10)) as (_, _, ask):
        messages, end = ask(request(6))
    assert seqs(messages) == [7, 8, 9]
    assert messages[0][1] == b"000007" + bytes(994)
    assert (end.service, end.source) == ("one", "gate")
    assert (end.complete, end.first, end.last) == (True, 7, 9)


def test_all_of_a_long_history_is_had_in_several_answers() -> None:
    found, complete, since, asked = [], False, -1, 0
    with pair(filled(100)) as (_, _, ask):
        while not complete:
            messages, end = ask(request(since))
            assert len(messages) <= replay.ANSWER_MESSAGES
            found += seqs(messages)
            complete, since, asked = end.complete, end.last, asked + 1
    assert found == list(range(100))
    assert asked == 4


def test_an_answer_is_bounded_in_bytes_but_has_one_message() -> None:
    with pair(filled(4, size=replay.ANSWER_BYTES)) as (_, _, ask):
        messages, end = ask(request(0))
        assert (len(messages), end.complete, end.first, end.last) == (1, False, 1, 1)


def test_who_asks_for_what_is_not_there_is_told_so() -> None:
    with pair(filled(3)) as (_, _, ask):
        for raw in (request(2), request(10**9), request(source="other")):
            messages, end = ask(raw)
            assert (messages, end.complete, end.first, end.last) == ([], True, None, None)


def test_who_asks_another_start_of_the_service_is_told_which_this_is() -> None:
    with pair(filled(3)) as (_, _, ask):
        messages, end = ask(request(0, service="before"))
        assert (messages, end.service, end.first) == ([], "one", None)


def test_what_is_older_than_the_seconds_is_gone() -> None:
    history = filled(3, seconds=2)
    with pair(history) as (_, _, ask):
        assert seqs(ask(request())[0]) == [0, 1, 2]
        time.sleep(2.1)
        assert ask(request())[0] == []
    assert history.bytes_kept == 0


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3000)), max_size=60),
    st.integers(0, 8000),
)
def test_the_newest_that_fit_are_kept_and_the_oldest_go_first(published, max_bytes) -> None:
    history = Replay(60, max_bytes, "one")
    kept, sizes = [], []
    for seq, (source, size) in enumerate(published):
        history.keep(f"masks/{source}/".encode(), seq, bytes(size))
        kept.append((source, seq))
        sizes.append(size + replay.OVERHEAD)
        while sum(sizes) > max_bytes:
            kept.pop(0)
            sizes.pop(0)
        assert history.bytes_kept == sum(sizes) <= max_bytes
    with pair(history) as (_, _, ask):
        for name in "abc":
            mine = [seq for source, seq in kept if source == name]
            _, end = ask(request(source=name))
            assert end.first == (mine[0] if mine else None)
            assert not end.complete or end.last == (mine[-1] if mine else None)


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
def test_what_is_no_request_is_ignored_and_the_next_is_answered(parts) -> None:
    with pair(filled(3)) as (_, dealer, ask):
        dealer.send_multipart(parts)
        assert seqs(ask(request(1))[0]) == [2]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.binary(max_size=100), min_size=1, max_size=3), max_size=6))
def test_no_bytes_stop_it_from_answering(messages) -> None:
    history = filled(3)
    with pair(history) as (router, dealer, ask):
        for parts in messages:
            dealer.send_multipart(parts)
        dealer.send(b"")  # the last of them: all has been heard once this has
        until = time.monotonic() + 5
        while router.poll(20) and time.monotonic() < until:
            history.answer(router)
        assert seqs(ask(request(1))[0]) == [2]


def test_a_request_that_is_too_long_costs_its_peer_the_connection_and_nobody_else() -> None:
    history = filled(3)
    with pair(history) as (router, _, ask):
        loud = zmq.Context.instance().socket(zmq.DEALER)
        loud.connect(router.getsockopt(zmq.LAST_ENDPOINT).decode())
        loud.send(bytes(10 * replay.MAX_REQUEST))
        assert not router.poll(200)
        loud.close(linger=0)
        assert seqs(ask(request(1))[0]) == [2]


def test_who_asks_without_end_and_never_reads_keeps_nobody_waiting() -> None:
    history = filled(1000, size=100_000, max_bytes=200_000_000)
    with pair(history) as (router, dealer, ask):
        greedy = dealer.context.socket(zmq.DEALER)
        greedy.rcvhwm = 1
        greedy.setsockopt(zmq.RCVBUF, 4096)
        greedy.connect(router.getsockopt(zmq.LAST_ENDPOINT).decode())
        for _ in range(200):
            greedy.send(request())
        longest, until = 0.0, time.monotonic() + 10
        while router.poll(200) and time.monotonic() < until:
            began = time.monotonic()
            history.answer(router)
            longest = max(longest, time.monotonic() - began)
        assert longest < 1
        assert seqs(ask(request(998))[0]) == [999]
        greedy.close(linger=0)


def test_a_peer_that_is_gone_before_its_answer_does_no_harm() -> None:
    history = filled(3)
    with pair(history) as (router, dealer, ask):
        gone = dealer.context.socket(zmq.DEALER)
        gone.connect(router.getsockopt(zmq.LAST_ENDPOINT).decode())
        gone.send(request())
        assert router.poll(5000)
        gone.close(linger=0)
        time.sleep(0.1)
        history.answer(router)
        assert seqs(ask(request(1))[0]) == [2]


def answers_after_one_call(history, requests: int, peers: int) -> int:
    """Of so many requests by each of several peers, all of which wait."""
    with pair(history) as (router, dealer, _):
        router.bind("inproc://asked")  # where what is sent has arrived
        asking = [dealer.context.socket(zmq.DEALER) for _ in range(peers)]
        for peer in asking:
            peer.connect("inproc://asked")
            for _ in range(requests):
                peer.send(request())
        history.answer(router)
        answers = 0
        for peer in asking:
            while peer.poll(200):
                answers += len(peer.recv_multipart()) == 1
            peer.close(linger=0)
        return answers


def test_one_call_takes_a_bounded_number_of_requests() -> None:
    at_once = replay.REQUESTS_AT_ONCE
    assert answers_after_one_call(filled(1), at_once, 3) == at_once


def test_one_call_sends_a_bounded_number_of_bytes() -> None:
    big = replay.ANSWER_BYTES // 4
    assert answers_after_one_call(filled(4, size=big), 4, 1) == 1


def test_what_one_call_leaves_the_next_one_takes() -> None:
    history = filled(1)
    with pair(history) as (router, dealer, _):
        for _ in range(3 * replay.REQUESTS_AT_ONCE):
            dealer.send(request())
        answers = 0

        def answered() -> bool:
            nonlocal answers
            if router.poll(0):
                history.answer(router)
            with contextlib.suppress(zmq.Again):
                while True:
                    answers += len(dealer.recv_multipart(zmq.NOBLOCK)) == 1
            return answers == 3 * replay.REQUESTS_AT_ONCE

        eventually(answered)
