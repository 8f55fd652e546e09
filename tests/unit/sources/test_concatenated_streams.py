"""Recordings whose codec, PID or frame size changes, and concatenated recordings."""

import io
import itertools

import numpy as np
import pytest
from support.media import FAST_HEVC, MEDIA, frames_equal, moving_images, read_source, write_video

from streamseg.errors import IncompleteError, TooLargeError
from streamseg.sources.mpegts import StreamPart, StreamPartFile, trim_part

pytestmark = pytest.mark.timeout(60)

CODECS = {
    "h264": ("libx264", {"preset": "ultrafast"}),
    "hevc": ("libx265", FAST_HEVC),
    "mpeg2": ("mpeg2video", {}),
    "mpeg4": ("mpeg4", {}),
}
FRAMES = 15
"""Frames per piece."""


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Transport streams with consecutive times: one per codec, and a larger one."""
    folder = tmp_path_factory.mktemp("pieces")
    streams = {}
    for number, (name, (codec, options)) in enumerate(CODECS.items()):
        times = range(FRAMES * number, FRAMES * (number + 1))
        path = folder / name
        write_video(
            path,
            moving_images(FRAMES),
            times=times,
            codec=codec,
            options=options,
            container_format="mpegts",
        )
        streams[name] = path.read_bytes()
    large = moving_images(FRAMES, (96, 128))
    write_video(folder / "large", large, times=range(60, 75), container_format="mpegts")
    streams["large"] = (folder / "large").read_bytes()
    return streams


def write_joined(path, pieces, names):
    """Concatenate pieces to a file."""
    path.write_bytes(b"".join(pieces[name] for name in names))
    return path


def read_piece(tmp_path, pieces, name):
    path = tmp_path / f"{name}.ts"
    path.write_bytes(pieces[name])
    return read_source(path).frames


@pytest.mark.parametrize(
    "names",
    [*itertools.permutations(("h264", "hevc", "mpeg2"), 2), ("h264", "mpeg4", "hevc", "h264")],
)
def test_every_part_is_decoded_as_an_epoch(tmp_path, pieces, names):
    result = read_source(write_joined(tmp_path / "joined.ts", pieces, names))
    assert result.error is None
    assert result.report.notes == []
    expected = [frame for name in names for frame in read_piece(tmp_path, pieces, name)]
    assert len(result.frames) == len(expected) == FRAMES * len(names)
    for number, (frame, other) in enumerate(zip(result.frames, expected, strict=True)):
        assert (frame.index, frame.epoch) == (number, number // FRAMES)
        assert frame.pts == pytest.approx(other.pts)
        assert np.array_equal(frame.image, other.image)


def test_part_of_another_size_is_read(tmp_path, pieces):
    result = read_source(write_joined(tmp_path / "joined.ts", pieces, ["hevc", "large"]))
    assert [frame.size for frame in result.frames] == [(48, 64)] * FRAMES + [(96, 128)] * FRAMES
    assert result.report.size == (96, 128)


def test_part_that_is_too_large_is_refused_after_the_first_part(tmp_path, pieces):
    result = read_source(
        write_joined(tmp_path / "joined.ts", pieces, ["hevc", "large"]), max_pixels=5000
    )
    assert len(result.frames) == FRAMES
    assert isinstance(result.error, TooLargeError)


def test_part_that_cannot_be_opened_makes_the_recording_incomplete(tmp_path, pieces):
    path = tmp_path / "joined.ts"
    path.write_bytes(pieces["h264"] + pieces["hevc"][: 188 * 3])
    result = read_source(path)
    assert len(result.frames) >= FRAMES - 1
    assert isinstance(result.error, IncompleteError)
    assert "nothing after frame 15 could be decoded" in str(result.error)


def test_part_without_the_selected_stream_makes_the_recording_incomplete(tmp_path, pieces):
    path = tmp_path / "joined.ts"
    path.write_bytes((MEDIA / "two_programs.ts").read_bytes() + pieces["hevc"])
    result = read_source(path, stream=1)
    assert len(result.frames) >= 49
    assert "the next part can't be decoded: has no video stream 1" in str(result.error)


def replace_pid(data, old, new):
    """Return the transport stream with another PID for its video, also in the PMT."""
    packets = bytearray(data)
    for at in range(0, len(packets), 188):
        pid = (packets[at + 1] & 0x1F) << 8 | packets[at + 2]
        if pid == old:
            packets[at + 1] = packets[at + 1] & 0xE0 | new >> 8
            packets[at + 2] = new & 0xFF
        elif pid == 0x1000:
            start = at + 5
            size = 3 + ((packets[start + 1] & 0x0F) << 8 | packets[start + 2])
            section = packets[start : start + size - 4]
            section[8:10] = (0xE000 | new).to_bytes(2, "big")
            section[13:15] = (0xE000 | new).to_bytes(2, "big")
            packets[start : start + size] = section + compute_crc(section)
    return bytes(packets)


def compute_crc(data):
    """Return the CRC-32 of MPEG-2 sections."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte << 24
        for _ in range(8):
            register = register << 1 ^ (0x04C11DB7 if register >> 31 else 0)
            register &= 0xFFFFFFFF
    return register.to_bytes(4, "big")


def test_stream_is_followed_to_another_pid(tmp_path, pieces):
    path = tmp_path / "joined.ts"
    path.write_bytes(pieces["h264"] + replace_pid(pieces["hevc"], 0x100, 0x321))
    result = read_source(path)
    assert result.error is None
    assert [frame.epoch for frame in result.frames] == [0] * FRAMES + [1] * FRAMES


def test_damaged_program_map_is_ignored(tmp_path, pieces):
    path = tmp_path / "damaged.ts"
    tables = bytearray(pieces["hevc"][: 3 * 188])  # SDT, PAT, PMT
    path.write_bytes(pieces["h264"] + tables + pieces["h264"])
    assert trim_part(path, StreamPart(), 0x100).following is not None
    tables[2 * 188 + 17] = 2  # another type of stream
    path.write_bytes(pieces["h264"] + tables + pieces["h264"])
    assert trim_part(path, StreamPart(), 0x100) == StreamPart()


@pytest.mark.parametrize("name", ["a.ts", "res_change.ts", "ts_loss5.ts", "two_programs.ts"])
def test_single_recording_has_one_part(name):
    assert trim_part(MEDIA / name, StreamPart(), 0x100) == StreamPart()


@pytest.mark.parametrize("size", [188, 192, 204])
@pytest.mark.parametrize("junk", [0, 1, 100, 5000])
def test_parts_are_found_in_every_packet_size_and_after_junk(tmp_path, pieces, size, junk):
    def store(data):
        front = (size == 192 and bytes(4)) or b""
        back = bytes(size - 188 - len(front))
        packets = [data[at : at + 188] for at in range(0, len(data), 188)]
        return b"".join(front + packet + back for packet in packets)

    first = store(pieces["h264"])
    path = tmp_path / "joined.m2ts"
    path.write_bytes(first + bytes(junk) + store(pieces["mpeg2"]))
    part = trim_part(path, StreamPart(), 0x100).following
    assert part is not None
    assert len(first) < part.start <= len(first) + junk + 3 * size
    assert len(part.pat) == size
    assert len(read_source(path).frames) == 2 * FRAMES


def test_start_and_end_apply_across_parts(tmp_path, pieces):
    path = write_joined(tmp_path / "joined.ts", pieces, ["h264", "hevc", "h264"])
    whole = read_source(path).frames
    assert len(whole) == 3 * FRAMES
    selected = read_source(path, start=0.4, end=1.4).frames
    assert selected[0].index == 10
    assert selected[-1].index == pytest.approx(34, abs=3)  # B-frames make the parts overlap in time
    assert all(frames_equal(a, b) for a, b in zip(selected, whole[10:], strict=False))


def test_part_file_behaves_like_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    expected = io.BytesIO(b"xyz" + bytes(range(10, 50)))
    with StreamPartFile(path, StreamPart(10, 50, b"xyz")) as part:
        for offset, whence, size in [(0, 0, 2), (0, 1, 5), (-4, 2, 9), (1, 0, 1), (5, 0, -1)]:
            assert part.seek(offset, whence) == expected.seek(offset, whence)
            assert part.read(size) == expected.read(size)
            assert part.tell() == expected.tell()


@pytest.mark.parametrize("extension", ["mp4", "mov", "flv"])
@pytest.mark.parametrize("codec", ["same", "other"])
def test_second_recording_is_reported(tmp_path, extension, codec):
    write_video(tmp_path / f"a.{extension}", moving_images(10))
    if codec == "other":
        other = "flv" if extension == "flv" else "mpeg4"
        write_video(tmp_path / f"b.{extension}", moving_images(10), codec=other, options={})
    else:
        write_video(tmp_path / f"b.{extension}", moving_images(10))
    first = (tmp_path / f"a.{extension}").read_bytes()
    path = tmp_path / f"joined.{extension}"
    path.write_bytes(first + (tmp_path / f"b.{extension}").read_bytes())
    result = read_source(path)
    assert len(result.frames) == 10
    assert isinstance(result.error, IncompleteError)
    assert f"a second recording starts at byte {len(first)}" in str(result.error)


def test_flv_with_a_codec_change_is_incomplete(tmp_path):
    write_video(tmp_path / "a.flv", moving_images(10))
    write_video(tmp_path / "b.flv", moving_images(10), codec="flv", options={})
    path = tmp_path / "joined.flv"
    path.write_bytes((tmp_path / "a.flv").read_bytes() + (tmp_path / "b.flv").read_bytes()[13:])
    result = read_source(path)
    assert len(result.frames) == 10
    assert "the video codec changes at byte" in str(result.error)


@pytest.mark.parametrize(("extension", "codec"), [("mkv", "mpeg4"), ("avi", "mjpeg")])
def test_long_undecodable_end_is_reported(tmp_path, extension, codec):
    write_video(tmp_path / f"a.{extension}", moving_images(15))
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    images = moving_images(15)
    other = {"codec": codec, "options": {}, "pixel_format": pixel_format}
    write_video(tmp_path / f"b.{extension}", images, **other)
    path = tmp_path / f"joined.{extension}"
    path.write_bytes(
        (tmp_path / f"a.{extension}").read_bytes() + (tmp_path / f"b.{extension}").read_bytes()
    )
    result = read_source(path)
    assert len(result.frames) == 15
    assert "none of the last 15 packets could be decoded" in str(result.error)
