"""Truncated, damaged and unusual recordings: good frames are kept, and files are closed."""

import resource
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.media import (
    MEDIA,
    count_open_files,
    frames_equal,
    read_source,
    sample_config,
    write_video,
)
from support.processes import PEAK

from streamseg.config import SourceConfig
from streamseg.errors import IncompleteError, NoFramesError, SourceError
from streamseg.sources import open_source

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    "name",
    ["ok.mp4", "fragmented.mp4", "odd_vp9.webm", "gray8.mkv", "webcam422.avi", "webcam.mpjpeg"],
)
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_truncated_recording_is_incomplete_in_any_container(tmp_path, name, share):
    data = (MEDIA / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share)])
    whole, truncated = read_source(MEDIA / name), read_source(path)
    assert isinstance(truncated.error, IncompleteError)
    assert 0 < len(truncated.frames) <= len(whole.frames)
    # Errors in the last frame may be concealed.
    for a, b in zip(truncated.frames[:-1], whole.frames, strict=False):
        assert frames_equal(a, b)


def test_frames_in_the_index_without_data_are_missing(tmp_path):
    """The media data box is open-ended, so the container itself looks complete."""
    data = bytearray((MEDIA / "ok.mp4").read_bytes())
    box = data.index(b"mdat") - 4
    data[box : box + 4] = bytes(4)
    with av.open(str(MEDIA / "ok.mp4")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        end = packets[30].pos
    path = tmp_path / "truncated.mp4"
    path.write_bytes(data[:end])
    result = read_source(path)
    assert len(result.frames) == 30
    assert isinstance(result.error, IncompleteError)
    assert "30 of 50 frames read" in str(result.error)


def test_frames_left_out_by_an_edit_list_are_not_missing(tmp_path):
    """Frames before time 0 are stored and counted in the index, but an edit list omits them."""
    path = tmp_path / "edited.mp4"
    images = [np.full((32, 32, 3), i, np.uint8) for i in range(50)]
    write_video(path, images, times=range(-25, 25))
    result = read_source(path)
    assert result.report.expected == 50
    assert len(result.frames) < 50
    assert result.error is None


def test_sparse_and_irregular_times_are_not_counted_as_losses(tmp_path):
    images = [np.full((32, 32, 3), i, np.uint8) for i in range(12)]
    cases = {
        "timelapse": [60 * 25 * i for i in range(12)],
        "irregular": [0, 3, 4, 9, 15, 16, 18, 40, 41, 44, 60, 61],
        "pause": [0, 1, 2, 3, 4, 5, 200, 201, 202, 203, 204, 205],
    }
    for name, times in cases.items():
        write_video(tmp_path / f"{name}.mp4", images, times=times)
        result = read_source(tmp_path / f"{name}.mp4")
        assert result.error is None, name
        assert result.times == pytest.approx([t / 25 for t in times]), name
        assert {f.epoch for f in result.frames} == {0}, name
        assert result.report.incomplete == "", name


def test_jump_of_a_minute_at_25_fps_starts_an_epoch(tmp_path):
    images = [np.full((32, 32, 3), i, np.uint8) for i in range(20)]
    write_video(tmp_path / "jump.mp4", images, times=[*range(10), *range(1510, 1520)])
    frames = read_source(tmp_path / "jump.mp4").frames
    assert [f.epoch for f in frames] == [0] * 10 + [1] * 10
    assert frames[10].pts == pytest.approx(60.4)


def test_stream_that_appears_while_reading_does_not_end_the_frames(tmp_path):
    path = tmp_path / "late.ts"
    path.write_bytes((MEDIA / "a.ts").read_bytes() + (MEDIA / "two_programs.ts").read_bytes())
    result = read_source(path)
    assert len(result.frames) >= 50
    assert result.error is None


def test_ffmpeg_writes_nothing_to_stderr(capfd):
    for name in ("flips_payload_heavy.mp4", "never_keyframe.ts", "ts_loss5.ts", "still.jpg"):
        with suppress(NoFramesError):
            list(open_source(sample_config(name)).frames())
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_files_are_closed_after_an_end_an_error_and_a_close():
    before = count_open_files()
    for _ in range(3):
        for name in sorted(path.name for path in MEDIA.iterdir()):
            if name == "long_gop_10min.mp4":
                continue
            with suppress(SourceError):
                source = open_source(sample_config(name, start=0.01))
                assert count_open_files() == before, name
                frames = source.frames()
                next(frames)
                frames.close()
                assert count_open_files() == before, name
                list(source.frames())
            assert count_open_files() == before, name


@pytest.mark.parametrize("name", ["huge_8192.mp4", "bomb_30000.png"])
def test_too_large_frame_is_refused_without_allocating_it(name):
    program = f"""{PEAK}
import streamseg.sources as s
from streamseg.config import SourceConfig
from streamseg.errors import TooLargeError
list(s.open_source(SourceConfig(url={str(MEDIA / "ok.mp4")!r})).frames())
before = peak()
try:
    list(s.open_source(SourceConfig(url={str(MEDIA / name)!r})).frames())
except TooLargeError:
    print(peak() - before)
"""
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(completed.stdout) * 1024 < 60e6


SMALL_SAMPLES = [
    "tiny16.mp4",
    "gray8.mkv",
    "odd_mjpeg.avi",
    "anim.gif",
    "one_frame.mp4",
    "pal8.nut",
    "a.ts",
    "alpha_vp9.webm",
    "p10_hevc.mp4",
    "fragmented.mp4",
    "still.png",
    "still.jpg",
    "nopts.h264",
]


@settings(
    max_examples=120,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=st.sampled_from(SMALL_SAMPLES),
    share=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=30),
    at_start=st.booleans(),
)
def test_damaged_file_gives_frames_or_a_one_line_error(tmp_path, name, share, flips, at_start):
    data = bytearray((MEDIA / name).read_bytes())
    data = data[: max(1, int(len(data) * share))]
    damaged_bytes = min(len(data), 1500) if at_start else len(data)
    for position, bits in flips:
        data[int(position * damaged_bytes)] ^= bits
    path = tmp_path / name
    path.write_bytes(data)
    before = count_open_files() if Path("/proc/self/fd").exists() else 0
    frames, error = [], None
    try:
        source = open_source(SourceConfig(url=str(path)))
        for frame in source.frames():
            frames.append(frame)  # noqa: PERF402
    except SourceError as caught:
        error = caught
    assert frames or error
    assert error is None or (str(path) in str(error) and "\n" not in str(error))
    for a, b in pairwise(frames):
        assert (a.epoch, a.pts) <= (b.epoch, b.pts)
        assert a.index < b.index
    if before:
        assert count_open_files() == before


@pytest.mark.slow
def test_memory_does_not_grow_over_many_opens():
    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    for _ in range(30):
        read_source(MEDIA / "flips_payload_heavy.mp4")
    before = resident_bytes()
    tracemalloc.start()
    for _ in range(300):
        read_source(MEDIA / "flips_payload_heavy.mp4")
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert allocated < 5e6
    assert resident_bytes() - before < 30e6
