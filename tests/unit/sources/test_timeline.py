"""Timeline: epochs, repaired times and lost frames."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamseg.sources.timeline import Timeline


def add_frames(times, interval=0.04):
    timeline = Timeline(interval)
    return [timeline.add_frame(time) for time in times], timeline


def test_regular_times_are_unchanged():
    frames, timeline = add_frames([i / 25 for i in range(100)])
    assert frames == [(0, i / 25) for i in range(100)]
    assert timeline.lost_frames == 0
    assert timeline.median_interval == pytest.approx(0.04)


def test_step_back_starts_an_epoch():
    frames, _ = add_frames([0.0, 0.04, 0.08, 5.0, 5.04, 0.0, 0.04])
    assert [epoch for epoch, _ in frames] == [0, 0, 0, 0, 0, 1, 1]


def test_wrapped_counter_starts_an_epoch():
    wrap = 2**33 / 90000
    frames, _ = add_frames([wrap - 0.08, wrap - 0.04, 0.0, 0.04])
    assert [epoch for epoch, _ in frames] == [0, 0, 1, 1]
    assert frames[2][1] == 0.0


@pytest.mark.parametrize(
    ("interval", "jump", "epochs"),
    [(0.04, 9.9, 0), (0.04, 10.1, 1), (1.0, 49.0, 0), (1.0, 51.0, 1), (60.0, 2999.0, 0)],
)
def test_step_forward_over_ten_seconds_and_fifty_intervals_starts_an_epoch(interval, jump, epochs):
    times = [interval * i for i in range(20)]
    frames, _ = add_frames([*times, times[-1] + jump])
    assert frames[-1][0] == epochs


def test_first_interval_never_starts_an_epoch():
    frames, _ = add_frames([0.0, 3600.0, 7200.0])
    assert [epoch for epoch, _ in frames] == [0, 0, 0]


def test_jitter_repeats_the_time_before():
    frames, _ = add_frames([0.0, 0.04, 0.08, 0.07, 0.12, 0.10, 0.16, 0.16])
    assert frames == [(0, t) for t in (0.0, 0.04, 0.08, 0.08, 0.12, 0.12, 0.16, 0.16)]


@pytest.mark.parametrize(
    ("interval", "step_back", "epochs"),
    [(0.04, 0.11, 0), (0.04, 0.13, 1), (1.0, 0.45, 0), (1.0, 0.55, 1), (0.001, 0.01, 1)],
)
def test_jitter_is_at_most_three_intervals_and_half_a_second(interval, step_back, epochs):
    times = [interval * i for i in range(20)]
    frames, _ = add_frames([*times, times[-1] - step_back])
    assert frames[-1] == (epochs, pytest.approx(times[-1] - step_back * epochs))


def test_missing_times_are_filled_in_without_drift():
    frames, _ = add_frames([None] * 1000)
    assert frames == [(0, i * 0.04) for i in range(1000)]
    frames, _ = add_frames([1.0, 1.5, None, None, 3.0])
    assert frames == [(0, t) for t in (1.0, 1.5, 2.0, 2.5, 3.0)]


def test_lost_frames_are_counted_at_a_constant_rate():
    whole = [i / 25 for i in range(200)]
    times = [t for i, t in enumerate(whole) if i not in (50, 120, 121, 122)]
    assert add_frames(times)[1].lost_frames == 4


def test_lost_frames_are_not_counted_at_a_variable_rate():
    times, now = [], 0.0
    for step in range(100):
        now += 0.04 * (1 + step % 5)
        times.append(now)
    assert add_frames(times)[1].lost_frames == 0


def test_lost_frames_are_not_counted_where_intervals_vary_by_a_third():
    steps = [0.03, 0.04, 0.05] * 40
    steps[60] = 0.12
    times = [sum(steps[:index]) for index in range(len(steps))]
    assert add_frames(times)[1].lost_frames == 0


def test_rounded_times_have_a_constant_rate():
    assert add_frames([round(i / 30, 3) for i in range(300)])[1].lost_frames == 0
    assert add_frames([round(i / 30, 3) for i in range(300) if i != 99])[1].lost_frames == 1


@example(times=[None, 5e-324, 1.0])
@given(st.lists(st.none() | st.floats(-1e9, 1e9), max_size=200))
def test_times_never_go_back_within_an_epoch(times):
    frames, timeline = add_frames(times)
    assert frames == sorted(frames)
    assert timeline.lost_frames >= 0
