"""Times that can be relied on, and files that are shorter than they say."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamseg.sources.container_checks import missing_bytes
from streamseg.sources.timeline import Timeline


def place(times, gap=0.04):
    timeline = Timeline(gap)
    return [timeline.place(time) for time in times], timeline


def test_steady_times_stay_as_they_are():
    placed, timeline = place([i / 25 for i in range(100)])
    assert placed == [(0, i / 25) for i in range(100)]
    assert timeline.lost == 0
    assert timeline.gap == pytest.approx(0.04)


def test_a_step_back_is_a_new_epoch():
    placed, _ = place([0.0, 0.04, 0.08, 5.0, 5.04, 0.0, 0.04])
    assert [epoch for epoch, _ in placed] == [0, 0, 0, 0, 0, 1, 1]


def test_a_counter_that_wraps_is_a_new_epoch():
    wrap = 2**33 / 90000
    placed, _ = place([wrap - 0.08, wrap - 0.04, 0.0, 0.04])
    assert [epoch for epoch, _ in placed] == [0, 0, 1, 1]
    assert placed[2][1] == 0.0


@pytest.mark.parametrize(
    ("gap", "jump", "epochs"),
    [(0.04, 9.9, 0), (0.04, 10.1, 1), (1.0, 49.0, 0), (1.0, 51.0, 1), (60.0, 2999.0, 0)],
)
def test_a_step_forward_needs_both_ten_seconds_and_fifty_gaps(gap, jump, epochs):
    times = [gap * i for i in range(20)]
    placed, _ = place([*times, times[-1] + jump])
    assert placed[-1][0] == epochs


def test_the_first_gap_is_never_a_jump():
    placed, _ = place([0.0, 3600.0, 7200.0])
    assert [epoch for epoch, _ in placed] == [0, 0, 0]


def test_times_that_tremble_are_held_and_make_no_epoch():
    placed, _ = place([0.0, 0.04, 0.08, 0.07, 0.12, 0.10, 0.16, 0.16])
    assert placed == [(0, t) for t in (0.0, 0.04, 0.08, 0.08, 0.12, 0.12, 0.16, 0.16)]


def test_missing_times_are_filled_in_without_drift():
    placed, _ = place([None] * 1000)
    assert placed == [(0, i * 0.04) for i in range(1000)]
    placed, _ = place([1.0, 1.5, None, None, 3.0])
    assert placed == [(0, t) for t in (1.0, 1.5, 2.0, 2.5, 3.0)]


def test_holes_are_counted_where_the_rate_is_constant():
    whole = [i / 25 for i in range(200)]
    holes = [t for i, t in enumerate(whole) if i not in (50, 120, 121, 122)]
    assert place(holes)[1].lost == 4


def test_holes_are_not_counted_where_the_rate_is_not_constant():
    times, now = [], 0.0
    for step in range(100):
        now += 0.04 * (1 + step % 5)
        times.append(now)
    assert place(times)[1].lost == 0


def test_rounded_times_are_still_a_constant_rate():
    assert place([round(i / 30, 3) for i in range(300)])[1].lost == 0
    assert place([round(i / 30, 3) for i in range(300) if i != 99])[1].lost == 1


@example(times=[None, 5e-324, 1.0])
@given(st.lists(st.none() | st.floats(-1e9, 1e9), max_size=200))
def test_within_an_epoch_times_never_go_back(times):
    placed, timeline = place(times)
    assert placed == sorted(placed)
    assert timeline.lost >= 0


def box(kind, body=b"", size=None):
    return (8 + len(body) if size is None else size).to_bytes(4, "big") + kind + body


def segment(length, body=b""):
    ebml = b"\x1a\x45\xdf\xa3\x84" + b"\x42\x86\x81\x01"
    return ebml + b"\x18\x53\x80\x67" + length + body


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (box(b"ftyp", b"isom") + box(b"mdat", bytes(100)), 0),
        (box(b"ftyp", b"isom") + box(b"mdat", bytes(100))[:-30], 30),
        (box(b"ftyp", b"isom") + box(b"mdat", bytes(100), size=0), 0),
        (box(b"ftyp") + (1).to_bytes(4, "big") + b"mdat" + (66).to_bytes(8, "big") + bytes(40), 10),
        (box(b"ftyp") + box(b"mdat", bytes(9)) + b"trailing junk of somebody's", 0),
        (box(b"ftyp") + b"\0\0", 0),
        (box(b"ftyp") + box(b"mdat", size=3), 0),
        (segment(b"\x84", bytes(4)), 0),
        (segment(b"\x84", bytes(1)), 3),
        (segment(b"\xff", bytes(1)), 0),
        (segment(b"\x01\xff\xff\xff\xff\xff\xff\xff", bytes(1)), 0),
        (segment(b"\x01\0\0\0\0\0\0\x0a", bytes(3)), 7),
        (b"\x1a\x45\xdf\xa3", 0),
        (b"\x1a\x45\xdf\xa3\0\0\0", 0),
        (b"RIFF" + (20).to_bytes(4, "little") + bytes(20), 0),
        (b"RIFF" + (20).to_bytes(4, "little") + bytes(15), 5),
        (b"RIFF" + bytes(4) + bytes(15), 0),
        (b"RIFF\xff\xff\xff\xff" + bytes(15), 0),
        (b"RI", 0),
        (b"", 0),
        (b"\x47" * 500, 0),
    ],
)
def test_a_file_that_is_shorter_than_it_says_is_found_out(tmp_path, data, missing):
    path = tmp_path / "file"
    path.write_bytes(data)
    assert missing_bytes(path) == missing


@given(st.binary(max_size=200), st.sampled_from([b"\0\0\0\x08ftyp", b"\x1a\x45\xdf\xa3", b"RIFF"]))
@example(b"\x01" + bytes(6), b"\x1a\x45\xdf\xa3")
def test_any_bytes_after_a_head_are_survived(tmp_path_factory, rest, head):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(head + rest)
    assert missing_bytes(path) >= 0
