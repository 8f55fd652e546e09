"""Session of one browser: order of its messages, replacement of old frames, and flow control."""

from __future__ import annotations

import contextlib
import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from streamseg.viewer.browser_session import MAX_UNACKNOWLEDGED, BrowserSession


def session_with(*sources: str) -> BrowserSession:
    session = BrowserSession()
    request_sources(session, *sources)
    return session


def request_sources(session: BrowserSession, *sources: str) -> None:
    session.process_message(json.dumps({"kind": "look", "sources": sources}))


def acknowledge(session: BrowserSession, source: str) -> None:
    session.process_message(json.dumps({"kind": "seen", "source": source}))


steps = st.tuples(st.sampled_from(["queue", "acknowledge", "pop"]), st.sampled_from("abc"))


@given(st.lists(steps, max_size=80))
def test_newest_frame_is_sent_within_the_acknowledgement_limit(steps) -> None:
    session = session_with("a", "b", "c")
    queued, sent, unacknowledged = (dict.fromkeys("abc", 0) for _ in range(3))
    for step, source in steps:
        if step == "queue":
            queued[source] += 1
            session.queue_frame(source, f"{source}{queued[source]}".encode())
        elif step == "acknowledge":
            acknowledge(session, source)
            unacknowledged[source] = max(0, unacknowledged[source] - 1)
        elif (message := session.pop_message()) is not None:
            name, number = message.decode()[0], int(message.decode()[1:])
            assert number == queued[name] > sent[name]
            sent[name] = number
            unacknowledged[name] += 1
            assert unacknowledged[name] <= MAX_UNACKNOWLEDGED
    is_sendable = any(
        sent[name] < queued[name] and unacknowledged[name] < MAX_UNACKNOWLEDGED for name in "abc"
    )
    assert (session.pop_message() is not None) == is_sendable


def test_sources_take_turns() -> None:
    session = session_with("a", "b")
    for _ in range(2):
        session.queue_frame("a", b"a")
        session.queue_frame("b", b"b")
        assert session.pop_message() == b"a"
        session.queue_frame("a", b"a")
        assert session.pop_message() == b"b"
        assert session.pop_message() == b"a"
        for source in "aab":
            acknowledge(session, source)


def test_frames_of_hidden_sources_are_removed() -> None:
    session = session_with("a")
    session.queue_frame("a", b"a")
    request_sources(session)
    session.queue_frame("a", b"a")
    assert session.pop_message() is None


@given(
    st.one_of(
        st.text('{}[]":,kindlooksenpgat019.e-\\ \0é', max_size=200),
        st.recursive(st.none() | st.floats(), st.lists).map(json.dumps),
    )
)
def test_invalid_message_raises_only_decode_error(text) -> None:
    with contextlib.suppress(msgspec.DecodeError):
        BrowserSession().process_message(text)
