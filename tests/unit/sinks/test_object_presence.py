"""Who is there, from what is seen: debounced, in the stream's time, each coming with one going."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamseg.sinks.mqtt.object_presence import Event, FrameTime, ObjectPresence, Observation
from streamseg.sinks.mqtt.topics import MAX_LEVEL_LENGTH, Topics, identifier, topic_level

BOX = (1.0, 2.0, 3.0, 4.0)


def seen(track: int, name: str = "person", score: float = 0.9) -> Observation:
    return Observation(track, 1, name, score, BOX)


def at(pts: float, epoch: int = 0) -> FrameTime:
    return FrameTime(epoch, pts, 1000 + pts)


def said(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.type, event.track) for event in events]


def test_an_object_counts_once_it_was_seen_for_long_enough() -> None:
    presence = ObjectPresence(appear_after=0.5, gone_after=2.0)
    assert presence.update(at(0.0), [seen(7)]) == []
    assert presence.counts == {}
    assert presence.update(at(0.4), [seen(7)]) == []
    (event,) = presence.update(at(0.5), [seen(7, score=0.7)])
    assert event == Event("appeared", 0, 7, 1, "person", 0.7, 1000.5, 1000.0, BOX)
    assert presence.update(at(0.6), [seen(7)]) == []
    assert presence.counts == {"person": 1}


def test_an_object_that_is_missed_for_a_moment_stays_and_goes_after_long_enough() -> None:
    presence = ObjectPresence(appear_after=0.0, gone_after=2.0)
    assert said(presence.update(at(0.0), [seen(7)])) == [("appeared", 7)]
    assert presence.update(at(1.9), []) == []
    assert presence.update(at(1.95), [seen(7)]) == []
    assert presence.update(at(3.9), []) == []
    assert presence.counts == {"person": 1}
    (event,) = presence.update(at(3.95), [])
    assert (event.type, event.at, event.since) == ("gone", 1001.95, 1000.0)
    assert presence.counts == {}


def test_frames_far_apart_send_nobody_away_who_is_in_each() -> None:
    presence = ObjectPresence(appear_after=0.0, gone_after=2.0)
    presence.update(at(0.0), [seen(7)])
    assert presence.update(at(5.0), [seen(7)]) == []
    assert presence.counts == {"person": 1}


def test_what_was_seen_only_for_a_moment_leaves_nothing() -> None:
    presence = ObjectPresence(appear_after=1.0, gone_after=0.5)
    assert presence.update(at(0.0), [seen(7)]) == []
    assert presence.update(at(0.6), []) == []
    assert presence.update(at(1.2), [seen(7)]) == [], "seen anew, so its time begins anew"
    assert presence.clear() == []


def test_a_new_epoch_ends_the_identities_of_the_old_one() -> None:
    presence = ObjectPresence(appear_after=0.0, gone_after=2.0)
    presence.update(at(100.0), [seen(1), seen(2)])
    events = presence.update(at(0.0, epoch=1), [seen(1)])
    assert said(events) == [("gone", 1), ("gone", 2), ("appeared", 1)]
    assert [event.epoch for event in events] == [0, 0, 1]


def test_an_object_is_gone_as_what_it_appeared_as() -> None:
    presence = ObjectPresence(appear_after=0.0, gone_after=1.0)
    presence.update(at(0.0), [seen(1, "car")])
    presence.update(at(0.1), [seen(1, "truck")])
    assert presence.counts == {"car": 1}
    assert [event.name for event in presence.update(at(2.0), [])] == ["car"]


def test_who_has_no_identity_is_not_counted() -> None:
    presence = ObjectPresence(appear_after=0.0, gone_after=1.0)
    assert presence.update(at(0.0), [seen(-1), seen(-1)]) == []
    assert presence.counts == {}


Frame = tuple[int, float, set[int]]
frames = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 0, 0, 1]),  # whether a new epoch begins
        st.floats(-0.5, 3.0, allow_nan=False),  # seconds since the frame before
        st.sets(st.integers(-1, 5)),
    ),
    max_size=40,
)


@given(frames, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.5, 2.0]))
def test_each_appearance_has_one_end_and_counts_are_who_is_there(
    given_frames: list[Frame], appear_after: float, gone_after: float
) -> None:
    presence = ObjectPresence(appear_after, gone_after)
    epoch, pts, back = 0, 0.0, 0.0
    there: dict[tuple[int, int], str] = {}
    for step, elapsed, tracks in given_frames:
        epoch, pts, back = epoch + step, pts + elapsed, back + max(0.0, -elapsed)
        names = {track: f"class{track % 2}" for track in tracks}
        events = presence.update(at(pts, epoch), [seen(t, names[t]) for t in sorted(tracks)])
        for event in events:
            key = event.epoch, event.track
            assert (event.type == "appeared") == (key not in there)
            assert event.since <= event.at + back + 1e-9, "except for pts that step back"
            if event.type == "appeared":
                there[key] = event.name
            else:
                assert there.pop(key) == event.name
        assert Counter(there.values()) == presence.counts
        assert all(key[0] == epoch and key[1] >= 0 for key in there)
    for event in presence.clear():
        assert there.pop((event.epoch, event.track)) == event.name
    assert there == {}
    assert presence.counts == {}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("person", "person"),
        ("traffic light", "traffic_light"),
        ("señal-2.b", "señal-2.b"),
        ("a/b", "a_b-c14cdd"),
        ("", "-e3b0c4"),
    ],
)
def test_names_in_topics_can_be_read(name: str, part: str) -> None:
    assert topic_level(name) == part


@given(st.text() | st.sampled_from(["#", "+", "a/b", "a\0b", "x" * 1000, "\ud800", "$SYS", "a\nb"]))
def test_whatever_a_class_is_called_its_topic_is_one_part(name: str) -> None:
    topic = Topics("home/cams").count("gate", topic_level(name))
    assert topic.count("/") == 4
    assert not set(topic) & set("+#\0\n")
    assert 0 < len(topic_level(name)) <= MAX_LEVEL_LENGTH
    topic.encode()
    assert identifier(name).isascii()
    assert 0 < len(identifier(name)) <= MAX_LEVEL_LENGTH


@given(st.sets(st.text(alphabet="ab/+# _", max_size=4)))
def test_different_names_have_different_identifiers(names: set[str]) -> None:
    assert len({identifier(name) for name in names}) == len(names)
