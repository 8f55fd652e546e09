"""Start offsets: frames and times equal those of the whole recording, for any clock."""

from fractions import Fraction

import av
import numpy as np
import pytest
from support.media import (
    FAST_H264,
    FAST_HEVC,
    MEDIA,
    frames_equal,
    moving_images,
    read_source,
    write_video,
)

from streamseg.sources.random_access import RandomAccessFinder

pytestmark = pytest.mark.timeout(60)

INTRA_REFRESH = {
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
    "intra_refresh.mp4": {"options": INTRA_REFRESH},
    "intra_refresh.mkv": {"options": INTRA_REFRESH},
    "intra_refresh.ts": {"options": INTRA_REFRESH},
    "open.mp4": {"options": OPEN_GOP},
    "open.ts": {"options": OPEN_GOP},
    "one_key.mp4": {"options": B_FRAMES, "gop": 1000},
    "hevc.mp4": {"codec": "libx265", "options": FAST_HEVC},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "vp8.webm": {
        "codec": "libvpx",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "8", "cpu-used": "8"},
    },
    "jpeg.mov": {"codec": "mjpeg", "pixel_format": "yuvj420p", "options": {}},
}
FRAMES = 48


def check_starts(path, starts=(0.04, 0.5, 1.02, 1.7), **options):
    """Compare the frames from each start with those of the whole recording."""
    whole = read_source(path, **options)
    assert whole.error is None
    beginning = whole.frames[0].pts if whole.frames[0].pts >= 0.2 else 0.0
    for start in starts:
        part = read_source(path, start=start, **options)
        assert part.error is None
        expected = [f for f in whole.frames if f.pts - beginning >= start - 1e-9]
        assert all(frames_equal(a, b) for a, b in zip(part.frames, expected, strict=True)), start
        assert part.report.delivered + part.report.skipped == len(whole.frames)
    return whole


@pytest.mark.parametrize("name", RECORDINGS)
def test_start_gives_the_frames_of_the_whole_recording(tmp_path, name):
    write_video(tmp_path / name, moving_images(FRAMES), **RECORDINGS[name])
    assert len(check_starts(tmp_path / name).frames) == FRAMES


@pytest.mark.parametrize("name", ["flips_payload_heavy.mp4", "vfr.mp4", "pts_jump_100s.mp4"])
def test_start_gives_the_frames_of_a_damaged_or_irregular_recording(name):
    check_starts(MEDIA / name)


def trim_without_encoding(source, path, first):
    """Copy packets from the key frame before ``first`` on; an edit list hides earlier frames."""
    with (
        av.open(str(source)) as original,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as out,
    ):
        old = original.streams.video[0]
        new = out.add_stream_from_template(old)
        packets = [packet for packet in original.demux(old) if packet.size]
        keys = [n for n, p in enumerate(packets) if p.is_keyframe and p.pts * p.time_base <= first]
        for packet in packets[keys[-1] :]:
            shift = round(first / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, new
            out.mux(packet)


@pytest.mark.parametrize("name", ["closed.mp4", "open.mp4", "one_key.mp4"])
def test_start_gives_the_frames_of_a_trimmed_recording(tmp_path, name):
    write_video(tmp_path / name, moving_images(FRAMES), **RECORDINGS[name])
    trim_without_encoding(tmp_path / name, tmp_path / "trimmed.mp4", Fraction(7, 25))
    whole = check_starts(tmp_path / "trimmed.mp4", starts=(0.04, 0.2, 0.6, 1.3))
    assert len(whole.frames) == FRAMES - 7
    assert whole.report.notes == []


@pytest.mark.parametrize("extension", ["ts", "flv", "mkv"])
@pytest.mark.parametrize("first", [0, 45_000])
def test_start_and_end_count_from_the_beginning_for_any_clock(tmp_path, extension, first):
    path = tmp_path / f"part.{extension}"
    write_video(path, moving_images(FRAMES), times=range(first, first + FRAMES), options=B_FRAMES)
    delay = 0 if first or extension == "mkv" else 2  # decoding begins at 0, display later
    selected = read_source(path, start=0.6, end=1.0)
    assert len(selected.frames) == 10
    assert selected.frames[0].index == 15 - delay
    assert selected.frames[0].pts == pytest.approx(first / 25 + 0.6)


def test_times_continue_when_the_clock_wraps(tmp_path):
    path = tmp_path / "wraps.ts"
    ticks = 2**33 - 90_000
    first = ticks * 25 // 90_000
    write_video(path, moving_images(FRAMES), times=range(first, first + FRAMES), options=FAST_H264)
    whole = read_source(path)
    assert len(whole.frames) == FRAMES
    assert np.diff(whole.times) == pytest.approx(0.04)
    selected = read_source(path, start=1.0, end=1.4)
    assert [frame.index for frame in selected.frames] == list(range(25, 35))
    assert all(
        frames_equal(a, b) for a, b in zip(selected.frames, whole.frames[25:35], strict=True)
    )


def test_frames_lost_before_the_start_are_reported(tmp_path):
    path = tmp_path / "gap.mp4"
    times = [time for time in range(FRAMES) if time not in (5, 6)]
    write_video(path, moving_images(len(times)), times=times, options=FAST_H264)
    for start in (0.0, 0.3, 1.4):
        result = read_source(path, start=start)
        assert result.report.notes == ["2 frame(s) missing according to the timestamps"]


def test_start_counts_through_epochs_with_earlier_times():
    whole = read_source(MEDIA / "res_change.ts").frames
    selected = read_source(MEDIA / "res_change.ts", start=2.4, end=4.4).frames
    assert [frame.index for frame in selected] == list(range(60, 110))
    assert all(frames_equal(a, b) for a, b in zip(selected, whole[60:110], strict=True))


@pytest.mark.parametrize(
    ("name", "access_points"),
    [
        ("closed.mp4", [0, 12, 24, 35, 47]),
        ("closed.ts", [0, 12, 24, 35, 47]),
        ("jpeg.mov", list(range(FRAMES))),
        ("intra_refresh.mp4", [0]),
        ("open.mp4", [0]),
        ("mpeg4.avi", []),
    ],
)
def test_access_points_need_no_earlier_packets(tmp_path, name, access_points):
    write_video(tmp_path / name, moving_images(FRAMES), **RECORDINGS[name])
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.video[0]
        finder = RandomAccessFinder(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [n for n, packet in enumerate(packets) if finder.add_packet(packet)] == access_points
