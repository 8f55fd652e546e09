"""Video files through the real decoder: every sample by name, and their pixels."""

import os
import shutil
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pytest
from support.media import MEDIA, config, read, write_video

from streamseg.config import SourceConfig
from streamseg.errors import IncompleteError, NoFramesError, SourceError, TooLargeError, redact
from streamseg.sources import open_source

pytestmark = pytest.mark.timeout(60)


@dataclass(frozen=True)
class Good:
    """A sample that is read to its end: how many frames, their size, first and last time."""

    frames: int
    size: tuple[int, int]
    first: float
    last: float
    bad: int = 0
    damaged: int = 0
    epochs: int = 1
    aspect: Fraction = Fraction(1)
    notes: tuple[str, ...] = ()


USUAL = Good(50, (240, 320), 0.0, 1.96)

GOOD = {
    "a.ts": Good(50, (240, 320), 1.4, 3.36),
    "alpha_png.mov": Good(5, (64, 96), 0.0, 0.8),
    "alpha_vp9.webm": Good(10, (120, 160), 0.0, 0.9),
    "anim.gif": Good(10, (120, 160), 0.0, 0.9),
    "av.mp4": USUAL,
    "b.ts": Good(50, (360, 480), 1.4, 3.36),
    "bframes.mp4": USUAL,
    "cover_art.mp3": Good(1, (64, 64), 0.0, 0.0),
    "even_crop.mp4": Good(50, (242, 322), 0.0, 1.96),
    "flips_payload.mp4": Good(50, (240, 320), 0.0, 1.96, damaged=24),
    "flips_payload_heavy.mp4": Good(44, (240, 320), 0.0, 1.96, bad=6, damaged=39),
    "float32.mov": Good(3, (48, 64), 0.0, 2 / 3),
    "fps1.mp4": Good(4, (240, 320), 0.0, 3.0),
    "fps240.mp4": Good(240, (120, 160), 0.0, 239 / 240),
    "fragmented.mp4": USUAL,
    "fullrange.mp4": USUAL,
    "gray.mp4": USUAL,
    "gray16.mkv": Good(5, (64, 96), 0.0, 0.8),
    "gray8.mkv": Good(5, (64, 96), 0.0, 0.8),
    "hdr10.mp4": USUAL,
    "interlaced.mp4": Good(25, (240, 320), 0.0, 1.92),
    "interlaced_mpeg2.ts": Good(12, (240, 320), 133500 / 90000, 2.4),
    "long_gop_10min.mp4": Good(3000, (120, 160), 0.0, 599.8),
    "moov_end.mp4": USUAL,
    "no_keyframe_start.ts": Good(25, (240, 320), 2.4, 3.36, notes=("14 packet(s) gave no frame",)),
    "nopts.h264": USUAL,
    "odd_h264_444.mp4": Good(50, (241, 321), 0.0, 1.96),
    "odd_mjpeg.avi": Good(5, (241, 321), 0.0, 0.8),
    "odd_vp9.webm": Good(50, (241, 321), 0.0, 1.96),
    "ok.mp4": USUAL,
    "one_frame.mp4": Good(1, (240, 320), 0.0, 0.0),
    "p10_h264.mp4": USUAL,
    "p10_hevc.mp4": Good(25, (240, 320), 0.0, 0.96),
    "pal8.nut": Good(5, (64, 96), 0.0, 0.8),
    "pts_jump_100s.mp4": Good(50, (240, 320), 0.0, 101.96, epochs=2),
    "pts_wrap.ts": Good(50, (240, 320), 61408 / 90000, 61408 / 90000 + 1.96),
    "raw_rgb.nut": Good(5, (64, 96), 0.0, 0.8),
    "rotated180.mp4": USUAL,
    "rotated90.mp4": Good(50, (320, 240), 0.0, 1.96),
    "sar43.mp4": Good(50, (240, 320), 0.0, 1.96, aspect=Fraction(4, 3)),
    "still.jpg": Good(1, (240, 320), 0.0, 0.0),
    "still.png": Good(1, (240, 320), 0.0, 0.0),
    "tiny16.mp4": Good(50, (16, 16), 0.0, 1.96),
    "tiny2.mp4": Good(50, (2, 2), 0.0, 1.96),
    "ts_loss5.ts": Good(
        49, (240, 320), 1.4, 3.36, damaged=6, notes=("1 frame(s) missing, by the timestamps",)
    ),
    "two_programs.ts": Good(50, (240, 320), 1.48, 3.44),
    "two_video.mp4": USUAL,
    "vfr.mp4": Good(30, (240, 320), 0.0, 1.9),
    "webcam.mjpeg": Good(25, (240, 320), 0.0, 0.96),
    "webcam.mpjpeg": Good(25, (240, 320), 0.0, 0.96),
    "webcam422.avi": Good(25, (240, 320), 0.0, 0.96),
    "webcam_halfframe.mjpeg": Good(13, (240, 320), 0.0, 0.48),
    "yuv422.mp4": USUAL,
    "yuv444.mp4": USUAL,
}

BAD = {
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
    "truncated_moov_front.mp4": (IncompleteError, "16147 bytes early, 26 of 50 frames came"),
    "truncated_no_moov.mp4": (NoFramesError, r"its index \(moov\) is missing"),
    "unknown_codec.mp4": (NoFramesError, "its video codec is unknown"),
    "zero_byte.mp4": (NoFramesError, "the file is empty"),
}
BY_ITSELF = {"res_change.ts", "README.md"}


def test_every_sample_is_told_what_must_come_of_it():
    named = GOOD.keys() | BAD.keys() | BY_ITSELF
    assert {path.name for path in MEDIA.iterdir()} <= named


@pytest.mark.parametrize("name", GOOD)
def test_a_good_sample_gives_all_its_frames(name):
    expected = GOOD[name]
    result = read(MEDIA / name)
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


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_fails_with_one_line_that_names_it(name):
    kind, reason = BAD[name]
    with pytest.raises(kind, match=reason) as caught:
        list(open_source(SourceConfig(url=str(MEDIA / name))).frames())
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{MEDIA / name}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_truncated_recording_gives_its_good_frames_before_it_fails():
    result = read(MEDIA / "truncated_moov_front.mp4")
    assert len(result.frames) == 25
    assert result.report.bad == 1
    assert "incomplete" in str(result.error)
    assert result.times[-1] == pytest.approx(0.96)


def test_a_resolution_change_comes_through_and_pasted_recordings_are_epochs():
    result = read(MEDIA / "res_change.ts")
    assert result.error is None
    runs = [(frame.epoch, frame.size) for frame in result.frames]
    assert runs == [(0, (240, 320))] * 50 + [(1, (360, 480))] * 50 + [(2, (240, 320))] * 50
    for epoch in range(3):
        times = [frame.pts for frame in result.frames if frame.epoch == epoch]
        assert times == pytest.approx([1.4 + 0.04 * i for i in range(50)])
    assert [frame.index for frame in result.frames] == list(range(150))


def test_a_size_that_grows_over_the_limit_on_the_way_is_refused_there():
    result = read(MEDIA / "res_change.ts", max_pixels=100_000)
    assert len(result.frames) == 50
    assert isinstance(result.error, TooLargeError)
    assert "480 x 360" in str(result.error)


def test_a_limit_of_exactly_the_size_is_enough():
    assert len(read(MEDIA / "even_crop.mp4", max_pixels=322 * 242).frames) == 50
    with pytest.raises(TooLargeError, match="322 x 242"):
        open_source(SourceConfig(url=str(MEDIA / "even_crop.mp4"), max_pixels=322 * 242 - 1))


def test_a_folder_called_like_a_video_fails_naming_the_endings_that_are_known(tmp_path):
    folder = tmp_path / "directory.mp4"
    folder.mkdir()
    with pytest.raises(NoFramesError, match=r"directory\.mp4: the folder has no images.*\.jpg"):
        open_source(SourceConfig(url=str(folder)))


def test_what_is_neither_file_nor_folder_is_refused_without_waiting(tmp_path):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    with pytest.raises(SourceError, match="isn't a file or a folder"):
        open_source(SourceConfig(url=str(pipe)))


def test_a_file_that_may_not_be_read_says_so(tmp_path):
    path = tmp_path / "locked.mp4"
    shutil.copy(MEDIA / "ok.mp4", path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(SourceError, match="Permission denied"):
        open_source(SourceConfig(url=str(path)))


@pytest.mark.parametrize(
    "name", ["a b%03d.mp4", "pipe:1.mp4", "concat:a|b.mp4", "[x]*.mp4", "ü.mp4"]
)
def test_a_file_name_is_only_a_name(tmp_path, name):
    shutil.copy(MEDIA / "ok.mp4", tmp_path / name)
    assert len(read(tmp_path / name).frames) == 50


@pytest.mark.parametrize(
    "url", ["srt://cam:hunter2@10.0.0.1/live", "ftp://cam:hunter2@h/a.mp4?token=s3cret&x=1"]
)
def test_an_address_is_refused_without_its_secrets(url):
    with pytest.raises(SourceError, match=r"cam:\*\*\*@.*can't be opened") as caught:
        open_source(SourceConfig(url=url))
    assert "hunter2" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("rtsp://u:p@h/x", "rtsp://u:***@h/x"),
        (
            "can't open 'rtsp://u:p@ss@h:554/x': timed out",
            "can't open 'rtsp://u:***@h:554/x': timed out",
        ),
        ("rtsp://admin:pa/ss@h/x", "rtsp://admin:***@h/x"),
        ("rtsp://admin:it's@h/x", "rtsp://admin:***@h/x"),
        ('rtsp://admin:say"@h/x', "rtsp://admin:***@h/x"),
        ("rtsp://me@example.com:p@h/live", "rtsp://me@example.com:***@h/live"),
        ("rtsp://me@h:554/live", "rtsp://me@h:554/live"),
        ("rtsp://h:554/user=admin_password=p_channel=1", "rtsp://h:554/user=admin_password=***"),
        ("http://h/v.cgi?loginuse=me&loginpas=p'q", "http://h/v.cgi?loginuse=***&loginpas=***"),
        ("http://h/a?pwd=x: no '/a?pwd=x y'", "http://h/a?pwd=***: no '/a?pwd=*** y'"),
        ("/data/session_key=5/passes=no.mp4", "/data/session_key=5/passes=***"),
        ("rtsp://:p@h/x", "rtsp://:***@h/x"),
        ("http://h/x?user=me&password=p&api=k", "http://h/x?user=***&password=***&api=***"),
        ("http://h/x?p=q#frag: 404 not found", "http://h/x?p=***: 404 not found"),
        ("rtsp://h:554/cam@1", "rtsp://h:***@1"),
        ("rtsp://h:80/pass@g/x", "rtsp://h:***@g/x"),
        ("rtsp://admin:a b@h/x: no answer", "rtsp://admin:***@h/x: no answer"),
        ("rtsp://admin%3Ap@h/x", "rtsp://admin:***@h/x"),
        ("admin:p@h/x", "admin:***@h/x"),
        ("rtsp//admin:p@h/x", "rtsp//admin:***@h/x"),
        ("mail me@example.com: masks at tcp://127.0.0.1:5555", None),
        ("rtsp://h/x?p=***: no answer", None),
        ("/data/12:30@noon.mp4", "/data/12:30@noon.mp4"),
        ("test:?size=8x8&seed=1", "test:?size=8x8&seed=1"),
    ],
)
def test_redacting_hides_secrets_and_nothing_else(text, plain):
    assert redact(text) == (text if plain is None else plain)
    assert redact(redact(text)) == redact(text)


# --- pixels ---------------------------------------------------------------------------------------


def test_rotated_recordings_come_upright():
    plain = read(MEDIA / "moov_end.mp4").frames
    assert np.array_equal(read(MEDIA / "ok.mp4").frames[7].image, plain[7].image)
    quarter, half = read(MEDIA / "rotated90.mp4").frames, read(MEDIA / "rotated180.mp4").frames
    for turned, times in ((quarter, 1), (half, 2)):
        for a, b in zip(turned, plain, strict=True):
            assert np.array_equal(a.image, np.rot90(b.image, times))


LUMA_TOLERANCE = {"p10_hevc.mp4": 2.5, "hdr10.mp4": 2.5, "p10_h264.mp4": 2.5}


@pytest.mark.parametrize(
    "name",
    [
        *("ok.mp4", "fullrange.mp4", "gray.mp4", "yuv422.mp4", "yuv444.mp4", "odd_h264_444.mp4"),
        *("webcam422.avi", "odd_vp9.webm", "p10_h264.mp4", "p10_hevc.mp4", "alpha_vp9.webm"),
    ],
)
def test_brightness_is_in_the_right_range(name):
    """Luma by BT.601 from the RGB pixels is the decoder's own luma, brought to 0..255."""
    with av.open(str(MEDIA / name)) as container:
        raw = next(container.decode(video=0))
    bits = raw.format.components[0].bits
    kind = np.uint16 if bits > 8 else np.uint8
    plane = raw.planes[0]
    luma = np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width] / 2 ** (bits - 8)
    if "j" not in raw.format.name:  # the deprecated names, which FFmpeg gives to full range
        luma = (luma - 16) * 255 / 219
    rgb = read(MEDIA / name).frames[0].image.astype(float)
    unclipped = ((rgb > 2) & (rgb < 253)).all(axis=2)
    again = rgb @ (0.299, 0.587, 0.114)
    assert unclipped.mean() > 0.02
    assert np.abs(again - luma)[unclipped].mean() < LUMA_TOLERANCE.get(name, 1.5)


def test_grey_is_grey_at_full_range():
    for name, kind, scale in (("gray8.mkv", np.uint8, 1), ("gray16.mkv", np.uint16, 257)):
        with av.open(str(MEDIA / name)) as container:
            raw = next(container.decode(video=0))
        grey = np.frombuffer(raw.planes[0], kind).reshape(64, -1)[:, :96] / scale
        image = read(MEDIA / name).frames[0].image
        assert np.ptp(image, axis=2).max() == 0
        assert np.abs(image[..., 0] - grey).max() <= 1


def test_lossless_formats_keep_their_pixels_and_lose_their_alpha():
    with av.open(str(MEDIA / "alpha_png.mov")) as container:
        rgba = next(container.decode(video=0)).to_ndarray()
    assert rgba.shape == (64, 96, 4)
    assert np.array_equal(read(MEDIA / "alpha_png.mov").frames[0].image, rgba[..., :3])
    with av.open(str(MEDIA / "raw_rgb.nut")) as container:
        rgb = next(container.decode(video=0)).to_ndarray()
    assert np.array_equal(read(MEDIA / "raw_rgb.nut").frames[0].image, rgb)
    with av.open(str(MEDIA / "pal8.nut")) as container:
        indices, palette = next(container.decode(video=0)).to_ndarray()
    assert np.array_equal(read(MEDIA / "pal8.nut").frames[0].image, palette[indices][..., 1:])


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "yuvj420p"])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 200, 40), (30, 60, 220), (128, 128, 128)])
def test_plain_colours_survive(tmp_path, pixel_format, colour):
    path = tmp_path / "plain.mp4"
    pixels = np.full((48, 64, 3), colour, np.uint8)
    write_video(path, [pixels] * 3, pixel_format=pixel_format)
    image = read(path).frames[1].image
    assert np.abs(image.astype(int) - colour).max() <= 6


def test_pictures_are_contiguous_and_read_only():
    for name in ("odd_vp9.webm", "rotated90.mp4", "raw_rgb.nut", "still.png"):
        for frame in read(MEDIA / name).frames:
            assert frame.image.flags.c_contiguous
            assert not frame.image.flags.writeable


def test_kept_frames_are_not_overwritten_by_later_ones():
    kept = read(MEDIA / "bframes.mp4").frames
    copies = [frame.image.copy() for frame in open_source(config("bframes.mp4")).frames()]
    assert all(np.array_equal(a.image, b) for a, b in zip(kept, copies, strict=True))
    assert len({a.image.tobytes() for a in kept}) == 50


@pytest.mark.parametrize("name", ["flips_payload.mp4", "flips_payload_heavy.mp4", "ts_loss5.ts"])
def test_damaged_input_gives_the_same_pixels_every_time(name):
    once, again = read(MEDIA / name).frames, read(MEDIA / name).frames
    assert all(np.array_equal(a.image, b.image) for a, b in zip(once, again, strict=True))
