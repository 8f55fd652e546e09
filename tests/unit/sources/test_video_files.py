"""Video files read with FFmpeg: every sample's frames, times, errors and pixels."""

import os
import shutil
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pytest
from support.media import MEDIA, read_source, sample_config, write_video

from streamseg.config import SourceConfig
from streamseg.errors import IncompleteError, NoFramesError, SourceError, TooLargeError
from streamseg.sources import open_source

pytestmark = pytest.mark.timeout(60)


@dataclass(frozen=True)
class Expected:
    """Expected result of a sample that is read to its end; first and last time are in seconds."""

    frames: int
    size: tuple[int, int]
    first: float
    last: float
    bad: int = 0
    damaged: int = 0
    epochs: int = 1
    aspect: Fraction = Fraction(1)
    notes: tuple[str, ...] = ()


DEFAULT = Expected(50, (240, 320), 0.0, 1.96)

READABLE = {
    "a.ts": Expected(50, (240, 320), 1.4, 3.36),
    "alpha_png.mov": Expected(5, (64, 96), 0.0, 0.8),
    "alpha_vp9.webm": Expected(10, (120, 160), 0.0, 0.9),
    "anim.gif": Expected(10, (120, 160), 0.0, 0.9),
    "av.mp4": DEFAULT,
    "b.ts": Expected(50, (360, 480), 1.4, 3.36),
    "bframes.mp4": DEFAULT,
    "cover_art.mp3": Expected(1, (64, 64), 0.0, 0.0),
    "even_crop.mp4": Expected(50, (242, 322), 0.0, 1.96),
    "flips_payload.mp4": Expected(50, (240, 320), 0.0, 1.96, damaged=24),
    "flips_payload_heavy.mp4": Expected(44, (240, 320), 0.0, 1.96, bad=6, damaged=39),
    "float32.mov": Expected(3, (48, 64), 0.0, 2 / 3),
    "fps1.mp4": Expected(4, (240, 320), 0.0, 3.0),
    "fps240.mp4": Expected(240, (120, 160), 0.0, 239 / 240),
    "fragmented.mp4": DEFAULT,
    "fullrange.mp4": DEFAULT,
    "gray.mp4": DEFAULT,
    "gray16.mkv": Expected(5, (64, 96), 0.0, 0.8),
    "gray8.mkv": Expected(5, (64, 96), 0.0, 0.8),
    "hdr10.mp4": DEFAULT,
    "interlaced.mp4": Expected(25, (240, 320), 0.0, 1.92),
    "interlaced_mpeg2.ts": Expected(12, (240, 320), 133500 / 90000, 2.4),
    "long_gop_10min.mp4": Expected(3000, (120, 160), 0.0, 599.8),
    "moov_end.mp4": DEFAULT,
    "no_keyframe_start.ts": Expected(
        25, (240, 320), 2.4, 3.36, notes=("14 packet(s) without a frame",)
    ),
    "nopts.h264": DEFAULT,
    "odd_h264_444.mp4": Expected(50, (241, 321), 0.0, 1.96),
    "odd_mjpeg.avi": Expected(5, (241, 321), 0.0, 0.8),
    "odd_vp9.webm": Expected(50, (241, 321), 0.0, 1.96),
    "ok.mp4": DEFAULT,
    "one_frame.mp4": Expected(1, (240, 320), 0.0, 0.0),
    "p10_h264.mp4": DEFAULT,
    "p10_hevc.mp4": Expected(25, (240, 320), 0.0, 0.96),
    "pal8.nut": Expected(5, (64, 96), 0.0, 0.8),
    "pts_jump_100s.mp4": Expected(50, (240, 320), 0.0, 101.96, epochs=2),
    "pts_wrap.ts": Expected(50, (240, 320), 61408 / 90000, 61408 / 90000 + 1.96),
    "raw_rgb.nut": Expected(5, (64, 96), 0.0, 0.8),
    "rotated180.mp4": DEFAULT,
    "rotated90.mp4": Expected(50, (320, 240), 0.0, 1.96),
    "sar43.mp4": Expected(50, (240, 320), 0.0, 1.96, aspect=Fraction(4, 3)),
    "still.jpg": Expected(1, (240, 320), 0.0, 0.0),
    "still.png": Expected(1, (240, 320), 0.0, 0.0),
    "tiny16.mp4": Expected(50, (16, 16), 0.0, 1.96),
    "tiny2.mp4": Expected(50, (2, 2), 0.0, 1.96),
    "ts_loss5.ts": Expected(
        49,
        (240, 320),
        1.4,
        3.36,
        damaged=6,
        notes=("1 frame(s) missing according to the timestamps",),
    ),
    "two_programs.ts": Expected(50, (240, 320), 1.48, 3.44),
    "two_video.mp4": DEFAULT,
    "vfr.mp4": Expected(30, (240, 320), 0.0, 1.9),
    "webcam.mjpeg": Expected(25, (240, 320), 0.0, 0.96),
    "webcam.mpjpeg": Expected(25, (240, 320), 0.0, 0.96),
    "webcam422.avi": Expected(25, (240, 320), 0.0, 0.96),
    "webcam_halfframe.mjpeg": Expected(13, (240, 320), 0.0, 0.48),
    "yuv422.mp4": DEFAULT,
    "yuv444.mp4": DEFAULT,
}

UNREADABLE = {
    "audio_only.mp4": (NoFramesError, "has no video, only audio"),
    "bomb_30000.png": (TooLargeError, "30000 x 30000 is over the limit of 64000000 pixels"),
    "cam.sdp": (NoFramesError, "isn't a video but an SDP description"),
    "encrypted_cenc.mp4": (NoFramesError, "2 of 44 frames could be decoded"),
    "ftyp_only.mp4": (NoFramesError, r"its index \(moov\) is missing"),
    "huge_8192.mp4": (TooLargeError, "8192 x 8192 is over the limit of 64000000 pixels"),
    "missing.mp4": (SourceError, "there is no such file"),
    "never_keyframe.ts": (NoFramesError, "0 of 48 frames could be decoded"),
    "nul.mp4": (NoFramesError, "isn't a video that can be read"),
    "random.mp4": (NoFramesError, "isn't a video that can be read"),
    "sub.srt": (NoFramesError, "has no video, only subtitle"),
    "text.mp4": (NoFramesError, "isn't a video that can be read"),
    "truncated_moov_front.mp4": (IncompleteError, "16147 bytes early, 26 of 50 frames read"),
    "truncated_no_moov.mp4": (NoFramesError, r"its index \(moov\) is missing"),
    "unknown_codec.mp4": (NoFramesError, "its video codec is unknown"),
    "zero_byte.mp4": (NoFramesError, "the file is empty"),
}
OTHER = {"res_change.ts", "README.md"}


def test_every_sample_has_an_expected_result():
    expected = READABLE.keys() | UNREADABLE.keys() | OTHER
    assert {path.name for path in MEDIA.iterdir()} <= expected


@pytest.mark.parametrize("name", READABLE)
def test_readable_sample_gives_all_frames(name):
    expected = READABLE[name]
    result = read_source(MEDIA / name)
    assert result.error is None
    assert len(result.frames) == expected.frames
    assert {frame.size for frame in result.frames} == {expected.size}
    assert result.times == sorted(result.times)
    assert result.times[0] == pytest.approx(expected.first)
    assert result.times[-1] == pytest.approx(expected.last)
    assert {frame.epoch for frame in result.frames} == set(range(expected.epochs))
    assert {frame.pixel_aspect for frame in result.frames} == {expected.aspect}
    report = result.report
    assert (report.delivered, report.skipped, report.bad) == (expected.frames, 0, expected.bad)
    assert report.damaged == expected.damaged
    assert report.notes == list(expected.notes)
    assert report.incomplete == ""
    assert report.size == expected.size


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_sample_fails_with_one_line_that_names_it(name):
    kind, reason = UNREADABLE[name]
    with pytest.raises(kind, match=reason) as caught:
        list(open_source(SourceConfig(url=str(MEDIA / name))).frames())
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{MEDIA / name}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_truncated_recording_gives_its_good_frames_before_the_error():
    result = read_source(MEDIA / "truncated_moov_front.mp4")
    assert len(result.frames) == 25
    assert result.report.bad == 1
    assert "incomplete" in str(result.error)
    assert result.times[-1] == pytest.approx(0.96)


def test_each_concatenated_recording_keeps_its_size_and_is_an_epoch():
    result = read_source(MEDIA / "res_change.ts")
    assert result.error is None
    runs = [(frame.epoch, frame.size) for frame in result.frames]
    assert runs == [(0, (240, 320))] * 50 + [(1, (360, 480))] * 50 + [(2, (240, 320))] * 50
    for epoch in range(3):
        times = [frame.pts for frame in result.frames if frame.epoch == epoch]
        assert times == pytest.approx([1.4 + 0.04 * i for i in range(50)])
    assert [frame.index for frame in result.frames] == list(range(150))


def test_frame_size_is_checked_again_when_it_changes():
    result = read_source(MEDIA / "res_change.ts", max_pixels=100_000)
    assert len(result.frames) == 50
    assert isinstance(result.error, TooLargeError)
    assert "480 x 360" in str(result.error)


def test_limit_equal_to_the_size_is_sufficient():
    assert len(read_source(MEDIA / "even_crop.mp4", max_pixels=322 * 242).frames) == 50
    with pytest.raises(TooLargeError, match="322 x 242"):
        open_source(SourceConfig(url=str(MEDIA / "even_crop.mp4"), max_pixels=322 * 242 - 1))


def test_folder_named_like_a_video_is_refused_with_the_supported_extensions(tmp_path):
    folder = tmp_path / "directory.mp4"
    folder.mkdir()
    with pytest.raises(NoFramesError, match=r"directory\.mp4: the folder has no images.*\.jpg"):
        open_source(SourceConfig(url=str(folder)))


def test_named_pipe_is_refused_without_blocking(tmp_path):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    with pytest.raises(SourceError, match="isn't a file or a folder"):
        open_source(SourceConfig(url=str(pipe)))


def test_file_without_read_permission_is_refused(tmp_path):
    path = tmp_path / "locked.mp4"
    shutil.copy(MEDIA / "ok.mp4", path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user can read any file")
    with pytest.raises(SourceError, match="Permission denied"):
        open_source(SourceConfig(url=str(path)))


@pytest.mark.parametrize(
    "name", ["a b%03d.mp4", "pipe:1.mp4", "concat:a|b.mp4", "[x]*.mp4", "ü.mp4"]
)
def test_special_characters_in_a_file_name_have_no_meaning(tmp_path, name):
    shutil.copy(MEDIA / "ok.mp4", tmp_path / name)
    assert len(read_source(tmp_path / name).frames) == 50


@pytest.mark.parametrize(
    "url", ["srt://cam:hunter2@10.0.0.1/live", "ftp://cam:hunter2@h/a.mp4?token=s3cret&x=1"]
)
def test_refused_url_is_reported_without_its_secrets(url):
    with pytest.raises(SourceError, match=r"cam:\*\*\*@.*can't be opened") as caught:
        open_source(SourceConfig(url=url))
    assert "hunter2" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_rotated_recording_is_upright():
    plain = read_source(MEDIA / "moov_end.mp4").frames
    assert np.array_equal(read_source(MEDIA / "ok.mp4").frames[7].image, plain[7].image)
    quarter, half = (
        read_source(MEDIA / "rotated90.mp4").frames,
        read_source(MEDIA / "rotated180.mp4").frames,
    )
    for rotated, quarter_turns in ((quarter, 1), (half, 2)):
        for a, b in zip(rotated, plain, strict=True):
            assert np.array_equal(a.image, np.rot90(b.image, quarter_turns))


LUMA_TOLERANCE = {"p10_hevc.mp4": 2.5, "hdr10.mp4": 2.5, "p10_h264.mp4": 2.5}


@pytest.mark.parametrize(
    "name",
    [
        *("ok.mp4", "fullrange.mp4", "gray.mp4", "yuv422.mp4", "yuv444.mp4", "odd_h264_444.mp4"),
        *("webcam422.avi", "odd_vp9.webm", "p10_h264.mp4", "p10_hevc.mp4", "alpha_vp9.webm"),
    ],
)
def test_luma_range_is_converted(name):
    """BT.601 luma computed from the RGB pixels equals the decoder's luma scaled to 0..255."""
    with av.open(str(MEDIA / name)) as container:
        raw = next(container.decode(video=0))
    bits = raw.format.components[0].bits
    dtype = np.uint16 if bits > 8 else np.uint8
    plane = raw.planes[0]
    luma = np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width] / 2 ** (bits - 8)
    if "j" not in raw.format.name:  # FFmpeg's deprecated names of full-range formats
        luma = (luma - 16) * 255 / 219
    rgb = read_source(MEDIA / name).frames[0].image.astype(float)
    unclipped = ((rgb > 2) & (rgb < 253)).all(axis=2)
    rgb_luma = rgb @ (0.299, 0.587, 0.114)
    assert unclipped.mean() > 0.02
    assert np.abs(rgb_luma - luma)[unclipped].mean() < LUMA_TOLERANCE.get(name, 1.5)


def test_gray_formats_are_gray_at_full_range():
    for name, dtype, scale in (("gray8.mkv", np.uint8, 1), ("gray16.mkv", np.uint16, 257)):
        with av.open(str(MEDIA / name)) as container:
            raw = next(container.decode(video=0))
        gray = np.frombuffer(raw.planes[0], dtype).reshape(64, -1)[:, :96] / scale
        image = read_source(MEDIA / name).frames[0].image
        assert np.ptp(image, axis=2).max() == 0
        assert np.abs(image[..., 0] - gray).max() <= 1


def test_lossless_formats_keep_their_pixels_without_alpha():
    with av.open(str(MEDIA / "alpha_png.mov")) as container:
        rgba = next(container.decode(video=0)).to_ndarray()
    assert rgba.shape == (64, 96, 4)
    assert np.array_equal(read_source(MEDIA / "alpha_png.mov").frames[0].image, rgba[..., :3])
    with av.open(str(MEDIA / "raw_rgb.nut")) as container:
        rgb = next(container.decode(video=0)).to_ndarray()
    assert np.array_equal(read_source(MEDIA / "raw_rgb.nut").frames[0].image, rgb)
    with av.open(str(MEDIA / "pal8.nut")) as container:
        indices, palette = next(container.decode(video=0)).to_ndarray()
    assert np.array_equal(
        read_source(MEDIA / "pal8.nut").frames[0].image, palette[indices][..., 1:]
    )


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "yuvj420p"])
@pytest.mark.parametrize("color", [(255, 0, 0), (0, 200, 40), (30, 60, 220), (128, 128, 128)])
def test_plain_colors_are_kept(tmp_path, pixel_format, color):
    path = tmp_path / "plain.mp4"
    pixels = np.full((48, 64, 3), color, np.uint8)
    write_video(path, [pixels] * 3, pixel_format=pixel_format)
    image = read_source(path).frames[1].image
    assert np.abs(image.astype(int) - color).max() <= 6


def test_images_are_contiguous_and_read_only():
    for name in ("odd_vp9.webm", "rotated90.mp4", "raw_rgb.nut", "still.png"):
        for frame in read_source(MEDIA / name).frames:
            assert frame.image.flags.c_contiguous
            assert not frame.image.flags.writeable


def test_frames_are_not_overwritten_by_later_ones():
    frames = read_source(MEDIA / "bframes.mp4").frames
    copies = [frame.image.copy() for frame in open_source(sample_config("bframes.mp4")).frames()]
    assert all(np.array_equal(a.image, b) for a, b in zip(frames, copies, strict=True))
    assert len({a.image.tobytes() for a in frames}) == 50


@pytest.mark.parametrize("name", ["flips_payload.mp4", "flips_payload_heavy.mp4", "ts_loss5.ts"])
def test_damaged_recording_gives_the_same_pixels_every_time(name):
    first, second = read_source(MEDIA / name).frames, read_source(MEDIA / name).frames
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))
