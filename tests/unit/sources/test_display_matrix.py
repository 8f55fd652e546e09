"""Orientation of recordings: all eight, from the container, the stream and EXIF."""

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
from support.media import MEDIA, frames_equal, moving_images, read_source, write_video

from streamseg.sources.display_matrix import (
    DisplayMatrixError,
    Orientation,
    parse_matrix,
    read_display_orientation,
)

pytestmark = pytest.mark.timeout(30)

ONE = 1 << 16
MATRICES = [
    *[(x, 0, 0, y) for x, y in itertools.product((1, -1), repeat=2)],
    *[(0, x, y, 0) for x, y in itertools.product((1, -1), repeat=2)],
]
"""a, b, c, d: a pixel at (x, y) is displayed at (a x + c y, b x + d y)."""


def apply_matrix(image, matrix):
    """Move every pixel by the definition of the display matrix."""
    a, b, c, d = matrix
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    to_x, to_y = a * x + c * y, b * x + d * y
    result = np.zeros((np.ptp(to_y) + 1, np.ptp(to_x) + 1, 3), np.uint8)
    result[to_y - to_y.min(), to_x - to_x.min()] = image
    return result


def replace_matrix(data, matrix):
    """Return the movie with another matrix in its track header (version 0)."""
    a, b, c, d = (value * ONE for value in matrix)
    at = data.index(b"tkhd") + 44
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("extension", ["mp4", "mov"])
def test_matrix_in_the_track_header_is_applied(tmp_path, matrix, extension):
    plain = tmp_path / f"plain.{extension}"
    write_video(plain, moving_images(3))
    path = tmp_path / f"matrix.{extension}"
    path.write_bytes(replace_matrix(plain.read_bytes(), matrix))
    for before, after in zip(read_source(plain).frames, read_source(path).frames, strict=True):
        assert np.array_equal(after.image, apply_matrix(before.image, matrix))
        assert after.image.flags.c_contiguous


def build_orientation_sei(quarter_turns, is_mirrored):
    """Return an H.264 display orientation message: flip horizontally, rotate counterclockwise."""
    bits = f"0{int(is_mirrored)}0{quarter_turns << 14:016b}" + "010" + "0"
    payload = int(bits + "1", 2).to_bytes(3, "big").replace(b"\0\0", b"\0\0\3")
    return b"\0\0\1\x06" + bytes([47, 3]) + payload + b"\x80"


def write_h264(path, images, messages, gop):
    """Write a bare H.264 stream; the n-th key frame follows the n-th SEI message."""
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
def test_orientation_message_applies_until_the_next_key_frame(tmp_path, quarter_turns, is_mirrored):
    images = moving_images(24)
    write_h264(tmp_path / "plain.h264", images, [b""] * 3, 8)
    messages = [
        build_orientation_sei(quarter_turns, is_mirrored),
        b"",
        build_orientation_sei(1, False),
    ]
    write_h264(tmp_path / "rotated.h264", images, messages, 8)
    before = read_source(tmp_path / "plain.h264").frames
    after = read_source(tmp_path / "rotated.h264").frames
    assert len(before) == len(after) == 24
    for number, (plain, rotated) in enumerate(zip(before, after, strict=True)):
        expected = plain.image
        if number < 8 and is_mirrored:
            expected = expected[:, ::-1]
        expected = np.rot90(expected, (quarter_turns, 0, 1)[number // 8])
        assert np.array_equal(rotated.image, expected), number
    epochs = [frame.epoch for frame in after]
    second_epoch = int(quarter_turns > 0 or is_mirrored)
    assert epochs == [0] * 8 + [second_epoch] * 8 + [second_epoch + 1] * 8


def test_start_is_upright_if_the_message_is_not_repeated(tmp_path):
    stream, path = tmp_path / "rotated.h264", tmp_path / "rotated.ts"
    write_h264(stream, moving_images(24), [build_orientation_sei(1, True), b"", b""], 8)
    with av.open(str(stream)) as source, av.open(str(path), "w") as out:
        track = out.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.time_base = Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.stream = track
            out.mux(packet)
    whole = read_source(path).frames
    assert [frame.epoch for frame in whole] == [0] * 8 + [1] * 16
    for start in (0.2, 0.5):
        part = read_source(path, start=start).frames
        expected = [frame for frame in whole if frame.pts >= start]
        assert all(frames_equal(a, b) for a, b in zip(part, expected, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_motion_jpeg_has_the_orientation_of_its_exif(tmp_path, orientation):
    image = Pillow.fromarray(moving_images(1)[0])
    exif = Pillow.Exif()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif, quality=95)
    path = tmp_path / "camera.mjpeg"
    path.write_bytes(data.getvalue() * 3)
    expected = np.asarray(ImageOps.exif_transpose(Pillow.open(data)), int)
    for frame in read_source(path).frames:
        assert frame.image.shape == expected.shape
        assert np.abs(frame.image - expected).mean() < 3


def rotation_matrix(degrees, *, mirrored=False):
    angle = math.radians(degrees)
    a, b, c, d = (round(f(angle) * ONE) for f in (math.cos, math.sin, math.sin, math.cos))
    return (-a, b, 0, c, d, 0, 0, 0, 1 << 30) if mirrored else (a, b, 0, -c, d, 0, 0, 0, 1 << 30)


@given(st.integers(0, 3), st.floats(-1.5, 1.5), st.booleans(), st.integers(1, 1 << 12))
def test_inexact_and_scaled_matrices_give_the_nearest_orientation(turns, tilt, mirrored, scale):
    exact = parse_matrix(rotation_matrix(90 * turns, mirrored=mirrored))
    inexact = rotation_matrix(90 * turns + tilt, mirrored=mirrored)
    assert parse_matrix(tuple(value * scale // 64 for value in inexact)) == exact


@pytest.mark.parametrize("degrees", [5, 45, 80, 200])
def test_tilted_matrix_is_refused(degrees):
    rotation = min(degrees, 360 - degrees)
    with pytest.raises(DisplayMatrixError, match=f"rotation of -?{rotation} degrees"):
        parse_matrix(rotation_matrix(degrees))


@pytest.mark.parametrize("matrix", [(0,) * 9, (ONE, 0, 0, ONE, 0, 0, 0, 0, 1 << 30)])
def test_degenerate_matrix_is_refused(matrix):
    with pytest.raises(DisplayMatrixError, match="degenerate"):
        parse_matrix(matrix)


def test_tilted_recording_is_read_unrotated_with_a_note(tmp_path):
    path = tmp_path / "tilted.mp4"
    write_video(path, moving_images(2))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *rotation_matrix(30))
    path.write_bytes(data)
    result = read_source(path)
    assert [frame.size for frame in result.frames] == [(48, 64)] * 2
    assert result.report.notes == ["a rotation of -30 degrees is ignored"]


def test_reading_the_orientation_keeps_no_reference_to_the_frame():
    """Frames are large, so they must be freed without a garbage collection."""
    with av.open(str(MEDIA / "rotated90.mp4")) as container:
        frame = next(container.decode(video=0))
    before = sys.getrefcount(frame)
    assert read_display_orientation(frame) == Orientation(True, flips_rows=True)
    assert sys.getrefcount(frame) == before
