"""Recordings come upright: all eight orientations, from the container, the stream and EXIF."""

import io
import itertools
import math
import struct
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps
from support.media import MEDIA, moving_images, read, same, write_video

from streamseg.sources.display_matrix import Orientation, TiltError, orientation_of, parse_matrix

pytestmark = pytest.mark.timeout(30)

ONE = 1 << 16
MATRICES = [
    *[(x, 0, 0, y) for x, y in itertools.product((1, -1), repeat=2)],
    *[(0, x, y, 0) for x, y in itertools.product((1, -1), repeat=2)],
]
"""a, b, c, d: a pixel at (x, y) is shown at (a x + c y, b x + d y)."""


def shown(image, matrix):
    """Move every pixel to its place, as the file format's specification says."""
    a, b, c, d = matrix
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    to_x, to_y = a * x + c * y, b * x + d * y
    result = np.zeros((np.ptp(to_y) + 1, np.ptp(to_x) + 1, 3), np.uint8)
    result[to_y - to_y.min(), to_x - to_x.min()] = image
    return result


def with_matrix(data, matrix):
    """The movie with another matrix in its track header (version 0)."""
    a, b, c, d = (value * ONE for value in matrix)
    at = data.index(b"tkhd") + 44
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_the_matrix_of_a_track_header_is_applied(tmp_path, matrix, ending):
    plain = tmp_path / f"plain.{ending}"
    write_video(plain, moving_images(3))
    path = tmp_path / f"matrix.{ending}"
    path.write_bytes(with_matrix(plain.read_bytes(), matrix))
    for before, after in zip(read(plain).frames, read(path).frames, strict=True):
        assert np.array_equal(after.image, shown(before.image, matrix))
        assert after.image.flags.c_contiguous


def display_orientation(quarter_turns, is_mirrored):
    """H.264's SEI message: flip left to right, then turn anticlockwise, until the next sequence."""
    bits = f"0{int(is_mirrored)}0{quarter_turns << 14:016b}" + "010" + "0"
    payload = int(bits + "1", 2).to_bytes(3, "big").replace(b"\0\0", b"\0\0\3")
    return b"\0\0\1\x06" + bytes([47, 3]) + payload + b"\x80"


def write_h264(path, images, messages, gop):
    """A stream without a container; each key frame has the next of the messages in front."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = images[0].shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.gop_size = "yuv420p", Fraction(1, 25), gop
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "scenecut=0"}
    packets = []
    for number, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts = number
        packets += encoder.encode(frame)
    messages = iter(messages)
    with path.open("wb") as file:
        for packet in [*packets, *encoder.encode(None)]:
            data = bytes(packet)
            if b"\0\0\1\x65" in data:
                data = data.replace(b"\0\0\1\x65", next(messages) + b"\0\0\1\x65", 1)
            file.write(data)


@pytest.mark.parametrize("quarter_turns", range(4))
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_what_the_stream_says_holds_until_its_next_key_frame(tmp_path, quarter_turns, is_mirrored):
    images = moving_images(24)
    write_h264(tmp_path / "plain.h264", images, [b""] * 3, 8)
    messages = [display_orientation(quarter_turns, is_mirrored), b"", display_orientation(1, False)]
    write_h264(tmp_path / "turned.h264", images, messages, 8)
    before, after = read(tmp_path / "plain.h264").frames, read(tmp_path / "turned.h264").frames
    assert len(before) == len(after) == 24
    for number, (plain, turned) in enumerate(zip(before, after, strict=True)):
        expected = plain.image
        if number < 8 and is_mirrored:
            expected = expected[:, ::-1]
        expected = np.rot90(expected, (quarter_turns, 0, 1)[number // 8])
        assert np.array_equal(turned.image, expected), number
    epochs = [frame.epoch for frame in after]
    first = int(quarter_turns > 0 or is_mirrored)
    assert epochs == [0] * 8 + [first] * 8 + [first + 1] * 8


def test_a_start_is_upright_even_where_the_message_is_not_repeated(tmp_path):
    stream, path = tmp_path / "turned.h264", tmp_path / "turned.ts"
    write_h264(stream, moving_images(24), [display_orientation(1, True), b"", b""], 8)
    with av.open(str(stream)) as given, av.open(str(path), "w") as out:
        track = out.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.time_base = Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.stream = track
            out.mux(packet)
    whole = read(path).frames
    assert [frame.epoch for frame in whole] == [0] * 8 + [1] * 16
    for start in (0.2, 0.5):
        part = read(path, start=start).frames
        expected = [frame for frame in whole if frame.pts >= start]
        assert all(same(a, b) for a, b in zip(part, expected, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_motion_jpeg_is_that_of_its_exif(tmp_path, orientation):
    image = Pillow.fromarray(moving_images(1)[0])
    exif = Pillow.Exif()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif, quality=95)
    path = tmp_path / "camera.mjpeg"
    path.write_bytes(data.getvalue() * 3)
    expected = np.asarray(ImageOps.exif_transpose(Pillow.open(data)), int)
    for frame in read(path).frames:
        assert frame.image.shape == expected.shape
        assert np.abs(frame.image - expected).mean() < 3


def tilted(degrees, *, mirrored=False):
    turn = math.radians(degrees)
    a, b, c, d = (round(f(turn) * ONE) for f in (math.cos, math.sin, math.sin, math.cos))
    return (-a, b, 0, c, d, 0, 0, 0, 1 << 30) if mirrored else (a, b, 0, -c, d, 0, 0, 0, 1 << 30)


@given(st.integers(0, 3), st.floats(-1.5, 1.5), st.booleans(), st.integers(1, 1 << 12))
def test_sloppy_and_scaled_matrices_are_the_nearest_orientation(turns, tilt, mirrored, scale):
    exact = parse_matrix(tilted(90 * turns, mirrored=mirrored))
    sloppy = tilted(90 * turns + tilt, mirrored=mirrored)
    assert parse_matrix(tuple(value * scale // 64 for value in sloppy)) == exact


@pytest.mark.parametrize("degrees", [5, 45, 80, 200])
def test_a_tilt_is_no_orientation(degrees):
    with pytest.raises(TiltError, match=f"rotation of -?{min(degrees, 360 - degrees)} degrees"):
        parse_matrix(tilted(degrees))


@pytest.mark.parametrize("matrix", [(0,) * 9, (ONE, 0, 0, ONE, 0, 0, 0, 0, 1 << 30)])
def test_a_matrix_that_flattens_the_frame_is_ignored(matrix):
    with pytest.raises(TiltError, match="flattens"):
        parse_matrix(matrix)


def test_a_tilted_recording_is_left_as_it_is_with_a_note(tmp_path):
    path = tmp_path / "tilted.mp4"
    write_video(path, moving_images(2))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *tilted(30))
    path.write_bytes(data)
    result = read(path)
    assert [frame.size for frame in result.frames] == [(48, 64)] * 2
    assert result.report.notes == ["a rotation of -30 degrees is ignored"]


def test_looking_for_a_matrix_does_not_keep_the_frame():
    """Frames are megabytes: a garbage collection must not be what frees them."""
    with av.open(str(MEDIA / "rotated90.mp4")) as container:
        frame = next(container.decode(video=0))
    before = sys.getrefcount(frame)
    assert orientation_of(frame) == Orientation(True, flips_rows=True)
    assert sys.getrefcount(frame) == before
