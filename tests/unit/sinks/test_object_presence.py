"""Object presence: debounced counts and appearance events, in stream time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamseg.sinks.mqtt.object_presence import Event, FrameTime, ObjectPresence, Observation
from streamseg.sinks.mqtt.topics import MAX_LEVEL_LENGTH, Topics, identifier, topic_level

BOX = (1.0, 2.0, 3.0, 4.0)


def observe(track: int, name: str = "person", score: float = 0.9) -> Observation:
    return Observation(track, 1, name, score, BOX)


def frame_time(pts: float, epoch: int = 0) -> FrameTime:
    return FrameTime(epoch, pts, 1000 + pts)


def event_summary(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.type, event.track) for event in events]


def test_object_is_counted_after_appear_after() -> None:
    presence = ObjectPresence(appear_after=0.5, gone_after=2.0)
    assert presence.update(frame_time(0.0), [observe(7)]) == []
    assert presence.counts == {}
    assert presence.update(frame_time(0.4), [observe(7)]) == []
    (event,) = presence.update(frame_time(0.5), [observe(7, score=0.7)])
    assert event == Event("appeared", 0, 7, 1, "person", 0.7, 1000.5, 1000.0, BOX)
    assert presence.update(frame_time(0.6), [observe(7)]) == []
    assert presence.counts == {"person": 1}


def test_object_is_gone_after_it_was_missed_for_gone_after() -> None:
    presence = ObjectPresence(appear_after=0.0, gone_after=2.0)
    assert event_summary(presence.update(frame_time(0.0), [observe(7)])) == [("appeared", 7)]
    assert presence.update(frame_time(1.9), []) == []
    assert presence.update(frame_time(1.95), [observe(7)]) == []
    assert presence.update(frame_time(3.9), []) == []
    assert presence.counts == {"person": 1}
    (event,) = presence.update(frame_time(3.95), [])
    assert (event.type, event.at, event.since) == ("gone", 1001.95, 1000.0)
    assert presence.counts == {}


def test_object_in_consecutive_frames_stays_however_far_they_are_apart() -> None:
    presence = ObjectPresence(appear_after=0.0, gone_after=2.0)
    presence.update(frame_time(0.0), [observe(7)])
    assert presence.update(frame_time(5.0), [observe(7)]) == []
    assert presence.counts == {"person": 1}


def test_briefly_observed_object_has_no_events() -> None:
    presence = ObjectPresence(appear_after=1.0, gone_after=0.5)
    assert presence.update(frame_time(0.0), [observe(7)]) == []
    assert presence.update(frame_time(0.6), []) == []
    assert presence.update(frame_time(1.2), [observe(7)]) == [], (
        "a new observation, so appear_after starts again"
    )
    assert presence.clear() == []


def test_new_epoch_ends_the_tracks_of_the_previous_epoch() -> None:
    presence = ObjectPresence(appear_after=0.0, gone_after=2.0)
    presence.update(frame_time(100.0), [observe(1), observe(2)])
    events = presence.update(frame_time(0.0, epoch=1), [observe(1)])
    assert event_summary(events) == [("gone", 1), ("gone", 2), ("appeared", 1)]
    assert [event.epoch for event in events] == [0, 0, 1]


def test_object_is_gone_with_the_class_with_which_it_appeared() -> None:
    presence = ObjectPresence(appear_after=0.0, gone_after=1.0)
    presence.update(frame_time(0.0), [observe(1, "car")])
    presence.update(frame_time(0.1), [observe(1, "truck")])
    assert presence.counts == {"car": 1}
    assert [event.name for event in presence.update(frame_time(2.0), [])] == ["car"]


def test_object_without_a_track_id_is_not_counted() -> None:
    presence = ObjectPresence(appear_after=0.0, gone_after=1.0)
    assert presence.update(frame_time(0.0), [observe(-1), observe(-1)]) == []
    assert presence.counts == {}


Frame = tuple[int, float, set[int]]
frames = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 0, 0, 1]),  # increment of the epoch
        st.floats(-0.5, 3.0, allow_nan=False),  # seconds since the previous frame
        st.sets(st.integers(-1, 5)),
    ),
    max_size=40,
)


@given(frames, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.5, 2.0]))
def test_each_appearance_has_one_end_and_counts_equal_the_present_objects(
    given_frames: list[Frame], appear_after: float, gone_after: float
) -> None:
    presence = ObjectPresence(appear_after, gone_after)
    epoch, pts, rewound = 0, 0.0, 0.0
    present: dict[tuple[int, int], str] = {}
    for step, elapsed, tracks in given_frames:
        epoch, pts, rewound = epoch + step, pts + elapsed, rewound + max(0.0, -elapsed)
        names = {track: f"class{track % 2}" for track in tracks}
        events = presence.update(
            frame_time(pts, epoch), [observe(t, names[t]) for t in sorted(tracks)]
        )
        for event in events:
            key = event.epoch, event.track
            assert (event.type == "appeared") == (key not in present)
            assert event.since <= event.at + rewound + 1e-9, "except for pts that decrease"
            if event.type == "appeared":
                present[key] = event.name
            else:
                assert present.pop(key) == event.name
        assert Counter(present.values()) == presence.counts
        assert all(key[0] == epoch and key[1] >= 0 for key in present)
    for event in presence.clear():
        assert present.pop((event.epoch, event.track)) == event.name
    assert present == {}
    assert presence.counts == {}


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("person", "person"),
        ("traffic light", "traffic_light"),
        ("señal-2.b", "señal-2.b"),
        ("a/b", "a_b-c14cdd"),
        ("", "-e3b0c4"),
    ],
)
def test_class_names_in_topics_are_readable(name: str, level: str) -> None:
    assert topic_level(name) == level


@given(st.text() | st.sampled_from(["#", "+", "a/b", "a\0b", "x" * 1000, "\ud800", "$SYS", "a\nb"]))
def test_any_class_name_is_one_level_of_a_topic(name: str) -> None:
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
