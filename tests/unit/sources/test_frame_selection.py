"""Frame selection (start, end, stride, max_fps), source names and reports, and input expansion."""

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.media import (
    MEDIA,
    frames_equal,
    moving_images,
    read_source,
    sample_config,
    write_video,
)

from streamseg.config import SourceConfig
from streamseg.errors import ConfigError, NoFramesError, SourceError
from streamseg.sources import (
    ImageSequenceSource,
    TestPattern,
    VideoFileSource,
    expand_inputs,
    open_source,
)
from streamseg.sources.base import MIN_TICK, LazyFrame, _Choice

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    "name",
    [
        "bframes.mp4",
        "a.ts",
        "nopts.h264",
        "odd_vp9.webm",
        "webcam.mjpeg",
        "vfr.mp4",
        "p10_hevc.mp4",
    ],
)
def test_start_and_end_select_frames_of_the_whole_recording(name):
    whole = read_source(MEDIA / name).frames
    first = whole[0].pts
    for start, end in ((0.5, None), (0.0, 0.7), (0.3, 0.75)):
        expected = [f for f in whole if f.pts - first >= start - 1e-9]
        expected = [f for f in expected if end is None or f.pts - first < end - 1e-9]
        selected = read_source(MEDIA / name, start=start, end=end)
        assert selected.error is None
        assert expected
        assert all(frames_equal(a, b) for a, b in zip(selected.frames, expected, strict=True))


def test_start_skips_packets_before_the_key_frame(tmp_path):
    path = tmp_path / "long.mp4"
    rng = np.random.default_rng(0)
    write_video(path, [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(100)], gop=10)
    source = open_source(SourceConfig(url=str(path), start=3.72))
    indices = [frame.index for frame in source.frames()]
    assert indices == list(range(93, 100))
    with av.open(str(path)) as container:
        keys = [i for i, p in enumerate(container.demux(video=0)) if p.is_keyframe]
    assert max(key for key in keys if key <= 93) >= 90
    assert source.report.skipped == 93


def test_start_after_the_end_of_the_recording_is_an_error():
    with pytest.raises(NoFramesError, match="no frame lies between start and end"):
        list(open_source(sample_config("a.ts", start=2.0)).frames())
    with pytest.raises(NoFramesError, match="no frame lies between start and end"):
        list(open_source(sample_config("ok.mp4", start=99.0)).frames())


def test_end_before_the_damage_is_complete():
    assert read_source(MEDIA / "truncated_moov_front.mp4", end=0.5).error is None


@pytest.mark.parametrize("stride", [2, 7, 50, 1000])
def test_stride_selects_every_nth_frame(stride):
    whole, selected = read_source(MEDIA / "ok.mp4"), read_source(MEDIA / "ok.mp4", stride=stride)
    assert [f.index for f in selected.frames] == list(range(0, 50, stride))
    assert all(
        frames_equal(a, b) for a, b in zip(selected.frames, whole.frames[::stride], strict=True)
    )
    assert selected.report.delivered + selected.report.skipped == 50


@pytest.mark.parametrize(("name", "rate"), [("ok.mp4", 10), ("fps240.mp4", 30), ("vfr.mp4", 4)])
def test_max_fps_limits_the_frames_per_second(name, rate):
    times = read_source(MEDIA / name, max_fps=rate).times
    seconds = read_source(MEDIA / name).times[-1]
    assert len(times) == pytest.approx(seconds * rate, abs=2)
    for second in range(int(seconds) + 1):
        assert sum(second <= t < second + 1 for t in times) <= rate


def test_max_fps_may_exceed_the_rate_or_be_below_one():
    assert len(read_source(MEDIA / "ok.mp4", max_fps=100.0).frames) == 50
    assert read_source(MEDIA / "fps1.mp4", max_fps=0.5).times == [0.0, 2.0]


def test_start_stride_and_max_fps_combine():
    frames = read_source(MEDIA / "ok.mp4", start=0.4, end=1.6, stride=2, max_fps=5).frames
    assert [frame.index for frame in frames] == [10, 16, 20, 26, 30, 36]


def test_stream_option_selects_a_video_stream():
    assert {f.size for f in read_source(MEDIA / "two_video.mp4", stream=1).frames} == {(120, 160)}
    first = read_source(MEDIA / "two_programs.ts").frames[0].image
    second = read_source(MEDIA / "two_programs.ts", stream=1).frames[0].image
    assert not np.array_equal(first, second)
    with pytest.raises(SourceError, match="no video stream 2: there are 2, counted from 0"):
        open_source(sample_config("two_video.mp4", stream=2))


def test_indices_include_lost_frames():
    frames = read_source(MEDIA / "flips_payload_heavy.mp4").frames
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert indices[-1] == 49


def test_source_can_be_read_again():
    source = open_source(sample_config("ok.mp4", stride=10))
    assert [[f.index for f in source.frames()] for _ in range(2)] == [[0, 10, 20, 30, 40]] * 2
    assert source.report.delivered == 5


def test_report_has_the_stated_size_and_length_before_reading():
    report = open_source(sample_config("ok.mp4")).report
    assert (report.size, report.fps, report.expected, report.duration) == ((240, 320), 25, 50, 2)
    assert open_source(sample_config("nopts.h264")).report.expected is None


def test_name_defaults_to_the_file_name():
    assert open_source(sample_config("ok.mp4")).name == "ok"
    assert next(open_source(sample_config("ok.mp4", name="gate")).frames()).source == "gate"


def test_url_determines_the_kind_of_source():
    assert isinstance(open_source(sample_config("ok.mp4")), VideoFileSource)
    assert isinstance(open_source(sample_config("still.png")), ImageSequenceSource)
    assert isinstance(open_source(SourceConfig(url="test:")), TestPattern)
    assert not any(open_source(sample_config(n)).live for n in ("ok.mp4", "still.png"))


def test_capture_times_increase():
    frames = read_source(MEDIA / "ok.mp4").frames
    for times in ([f.captured_at for f in frames], [f.monotonic for f in frames]):
        assert times == sorted(times)
    assert frames[0].captured_at > 1.6e9


def test_folder_expands_to_videos_in_natural_order_followed_by_its_images(tmp_path):
    for name in ("clip10.mp4", "clip2.mp4", "Clip1.MKV", "b.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    videos = [str(tmp_path / n) for n in ("Clip1.MKV", "clip2.mp4", "clip10.mp4")]
    assert expand_inputs(str(tmp_path)) == [*videos, str(tmp_path)]
    assert expand_inputs(str(tmp_path / "*.mp4")) == videos[1:]
    assert expand_inputs(str(tmp_path / "*.jpg")) == [str(tmp_path / "*.jpg")]
    assert expand_inputs(videos[1]) == [videos[1]]
    assert expand_inputs("test:?frames=3") == ["test:?frames=3"]
    assert expand_inputs(str(tmp_path / "missing.mp4")) == [str(tmp_path / "missing.mp4")]


@pytest.mark.parametrize("pattern", ["", "*.mp4"])
def test_folder_or_glob_without_media_is_refused_with_the_supported_extensions(tmp_path, pattern):
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(NoFramesError, match=r"no media found; known are \.mp4.*\.png"):
        expand_inputs(str(tmp_path / pattern))


def test_test_pattern_options_are_checked_on_opening():
    with pytest.raises(ConfigError, match="'color' is unknown"):
        open_source(SourceConfig(url="test:?color=red"))


@pytest.mark.parametrize(
    ("rate", "max_fps"),
    [
        (Fraction(24000, 1001), 23.976),
        (Fraction(24000, 1001), 23.98),
        (Fraction(30000, 1001), 29.97),
        (Fraction(30), 30.0),
        (Fraction(60000, 1001), 59.94),
        (Fraction(60), 60.0),
        (Fraction(7), 7.0),
    ],
)
@pytest.mark.parametrize("extension", ["mkv", "mp4", "gif"])
def test_max_fps_at_the_rate_of_the_recording_selects_all(tmp_path, rate, max_fps, extension):
    """Matroska rounds times to milliseconds (as FLV does), GIF to hundredths of a second."""
    path = tmp_path / f"rate.{extension}"
    images = moving_images(1, (16, 16)) * 150
    codec = {"codec": "gif", "options": {}, "pixel_format": "rgb8"} if extension == "gif" else {}
    write_video(path, images, rate=rate, **codec)
    whole = read_source(path)
    selected = read_source(path, max_fps=max_fps)
    assert [f.index for f in selected.frames] == [f.index for f in whole.frames]
    half = read_source(path, max_fps=max_fps / 2)
    assert len(half.frames) == pytest.approx(len(whole.frames) / 2, abs=1)


@pytest.mark.parametrize(("max_fps", "frames"), [(29.97, 120_000), (30000 / 1001, 1000)])
def test_rounded_max_fps_selects_all_frames_for_over_an_hour(max_fps, frames):
    choice = _Choice(SourceConfig(url="-", max_fps=max_fps), MIN_TICK)
    for number in range(frames):
        pts = float(number * Fraction(1001, 30000))
        assert choice.takes(LazyFrame(number, 0, pts, load=None), pts), number


@given(st.floats(1, 120), st.lists(st.floats(0.0001, 0.2), min_size=2, max_size=200), st.booleans())
def test_max_fps_is_not_exceeded_except_by_rounding(max_fps, gaps, is_rounded):
    choice = _Choice(SourceConfig(url="-", max_fps=max_fps), MIN_TICK)
    now, selected = 0.0, []
    for number, gap in enumerate(gaps):
        now += gap
        pts = round(now, 3) if is_rounded else now
        if choice.takes(LazyFrame(number, 0, pts, load=None), pts):
            selected.append(pts)
    assert len(selected) <= (now + 2 * MIN_TICK) * max_fps * 1.001 + 1
