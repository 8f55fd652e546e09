"""Recordings that are begun in the middle, or whose clock does not begin at 0: as in the whole."""

from fractions import Fraction

import av
import numpy as np
import pytest
from support.media import FAST, MEDIA, QUIET_HEVC, moving_images, read, same, write_video

from streamseg.sources.random_access import AccessPoints

pytestmark = pytest.mark.timeout(60)

BY_COLUMNS = {
    "preset": "ultrafast",
    "tune": "zerolatency",
    "x264-params": "keyint=10:intra-refresh=1",
}
OPEN_GOP = {"preset": "veryfast", "x264-params": "keyint=10:open-gop=1:bframes=2"}
B_FRAMES = {"preset": "veryfast", "bf": "2"}
RECORDINGS = {
    "closed.mp4": {"options": B_FRAMES},
    "closed.mkv": {"options": B_FRAMES},
    "closed.ts": {"options": B_FRAMES},
    "closed.flv": {"options": B_FRAMES},
    "closed.avi": {"options": B_FRAMES},
    "columns.mp4": {"options": BY_COLUMNS},
    "columns.mkv": {"options": BY_COLUMNS},
    "columns.ts": {"options": BY_COLUMNS},
    "open.mp4": {"options": OPEN_GOP},
    "open.ts": {"options": OPEN_GOP},
    "one_key.mp4": {"options": B_FRAMES, "gop": 1000},
    "hevc.mp4": {"codec": "libx265", "options": QUIET_HEVC},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "vp8.webm": {
        "codec": "libvpx",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "8", "cpu-used": "8"},
    },
    "jpeg.mov": {"codec": "mjpeg", "pixel_format": "yuvj420p", "options": {}},
}
COUNT = 48


def check_starts(path, starts=(0.04, 0.5, 1.02, 1.7), **options):
    """Compare reading from each start with the whole, counted from the first frame."""
    whole = read(path, **options)
    assert whole.error is None
    origin = whole.frames[0].pts if whole.frames[0].pts >= 0.2 else 0.0
    for start in starts:
        part = read(path, start=start, **options)
        assert part.error is None
        expected = [f for f in whole.frames if f.pts - origin >= start - 1e-9]
        assert all(same(a, b) for a, b in zip(part.frames, expected, strict=True)), start
        assert part.report.delivered + part.report.skipped == len(whole.frames)
    return whole


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_start_gives_the_frames_of_the_whole(tmp_path, name):
    write_video(tmp_path / name, moving_images(COUNT), **RECORDINGS[name])
    assert len(check_starts(tmp_path / name).frames) == COUNT


@pytest.mark.parametrize("name", ["flips_payload_heavy.mp4", "vfr.mp4", "pts_jump_100s.mp4"])
def test_a_start_gives_the_frames_of_a_recording_with_faults(name):
    check_starts(MEDIA / name)


def cut_without_encoding(source, path, first):
    """Copy from the key frame before ``first`` on; an edit list hides what comes before it."""
    with (
        av.open(str(source)) as given,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as out,
    ):
        old = given.streams.video[0]
        new = out.add_stream_from_template(old)
        packets = [packet for packet in given.demux(old) if packet.size]
        keys = [n for n, p in enumerate(packets) if p.is_keyframe and p.pts * p.time_base <= first]
        for packet in packets[keys[-1] :]:
            shift = round(first / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, new
            out.mux(packet)


@pytest.mark.parametrize("name", ["closed.mp4", "open.mp4", "one_key.mp4"])
def test_a_recording_that_was_cut_without_encoding_again(tmp_path, name):
    write_video(tmp_path / name, moving_images(COUNT), **RECORDINGS[name])
    cut_without_encoding(tmp_path / name, tmp_path / "cut.mp4", Fraction(7, 25))
    whole = check_starts(tmp_path / "cut.mp4", starts=(0.04, 0.2, 0.6, 1.3))
    assert len(whole.frames) == COUNT - 7
    assert whole.report.notes == []


@pytest.mark.parametrize("ending", ["ts", "flv", "mkv"])
@pytest.mark.parametrize("first", [0, 45_000])
def test_start_and_end_count_from_the_beginning_whatever_the_clock_says(tmp_path, ending, first):
    path = tmp_path / f"part.{ending}"
    write_video(path, moving_images(COUNT), times=range(first, first + COUNT), options=B_FRAMES)
    shown_late = 0 if first or ending == "mkv" else 2  # decoding begins at 0
    cut = read(path, start=0.6, end=1.0)
    assert len(cut.frames) == 10
    assert cut.frames[0].index == 15 - shown_late
    assert cut.frames[0].pts == pytest.approx(first / 25 + 0.6)


def test_a_clock_that_wraps_within_the_file_goes_on(tmp_path):
    path = tmp_path / "wraps.ts"
    ticks = 2**33 - 90_000
    first = ticks * 25 // 90_000
    write_video(path, moving_images(COUNT), times=range(first, first + COUNT), options=FAST)
    whole = read(path)
    assert len(whole.frames) == COUNT
    assert np.diff(whole.times) == pytest.approx(0.04)
    cut = read(path, start=1.0, end=1.4)
    assert [frame.index for frame in cut.frames] == list(range(25, 35))
    assert all(same(a, b) for a, b in zip(cut.frames, whole.frames[25:35], strict=True))


def test_what_was_lost_before_the_start_is_told_as_well(tmp_path):
    path = tmp_path / "hole.mp4"
    times = [time for time in range(COUNT) if time not in (5, 6)]
    write_video(path, moving_images(len(times)), times=times, options=FAST)
    for start in (0.0, 0.3, 1.4):
        result = read(path, start=start)
        assert result.report.notes == ["2 frame(s) missing, by the timestamps"]


def test_an_epoch_that_goes_back_goes_on_counting():
    whole = read(MEDIA / "res_change.ts").frames
    cut = read(MEDIA / "res_change.ts", start=2.4, end=4.4).frames
    assert [frame.index for frame in cut] == list(range(60, 110))
    assert all(same(a, b) for a, b in zip(cut, whole[60:110], strict=True))


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("closed.mp4", [0, 12, 24, 35, 47]),
        ("closed.ts", [0, 12, 24, 35, 47]),
        ("jpeg.mov", list(range(COUNT))),
        ("columns.mp4", [0]),
        ("open.mp4", [0]),
        ("mpeg4.avi", []),
    ],
)
def test_decoding_begins_only_where_nothing_before_is_needed(tmp_path, name, points):
    write_video(tmp_path / name, moving_images(COUNT), **RECORDINGS[name])
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.video[0]
        search = AccessPoints(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [n for n, packet in enumerate(packets) if search.examine(packet)] == points
