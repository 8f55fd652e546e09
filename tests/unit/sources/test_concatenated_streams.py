"""Recordings that go on in another way: codec, PID, size, or another recording behind the first."""

import io
import itertools

import numpy as np
import pytest
from support.media import MEDIA, QUIET_HEVC, moving_images, read, same, write_video

from streamseg.errors import IncompleteError, TooLargeError
from streamseg.sources.mpegts import Part, PartFile, cut_part

pytestmark = pytest.mark.timeout(60)

CODECS = {
    "h264": ("libx264", {"preset": "ultrafast"}),
    "hevc": ("libx265", QUIET_HEVC),
    "mpeg2": ("mpeg2video", {}),
    "mpeg4": ("mpeg4", {}),
}
PIECE = 15


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Transport streams of 15 frames each, by codec, and one of another size."""
    folder = tmp_path_factory.mktemp("pieces")
    made = {}
    for number, (name, (codec, options)) in enumerate(CODECS.items()):
        times = range(PIECE * number, PIECE * (number + 1))
        path = folder / name
        write_video(
            path,
            moving_images(PIECE),
            times=times,
            codec=codec,
            options=options,
            container_format="mpegts",
        )
        made[name] = path.read_bytes()
    large = moving_images(PIECE, (96, 128))
    write_video(folder / "large", large, times=range(60, 75), container_format="mpegts")
    made["large"] = (folder / "large").read_bytes()
    return made


def join(path, pieces, names):
    path.write_bytes(b"".join(pieces[name] for name in names))
    return path


def alone(tmp_path, pieces, name):
    path = tmp_path / f"{name}.ts"
    path.write_bytes(pieces[name])
    return read(path).frames


@pytest.mark.parametrize(
    "names",
    [*itertools.permutations(("h264", "hevc", "mpeg2"), 2), ("h264", "mpeg4", "hevc", "h264")],
)
def test_every_part_is_decoded_and_is_an_epoch(tmp_path, pieces, names):
    result = read(join(tmp_path / "joined.ts", pieces, names))
    assert result.error is None
    assert result.report.notes == []
    expected = [frame for name in names for frame in alone(tmp_path, pieces, name)]
    assert len(result.frames) == len(expected) == PIECE * len(names)
    for number, (frame, other) in enumerate(zip(result.frames, expected, strict=True)):
        assert (frame.index, frame.epoch) == (number, number // PIECE)
        assert frame.pts == pytest.approx(other.pts)
        assert np.array_equal(frame.image, other.image)


def test_a_part_of_another_size_comes_too(tmp_path, pieces):
    result = read(join(tmp_path / "joined.ts", pieces, ["hevc", "large"]))
    assert [frame.size for frame in result.frames] == [(48, 64)] * PIECE + [(96, 128)] * PIECE
    assert result.report.size == (96, 128)


def test_a_part_that_is_too_large_is_refused_there(tmp_path, pieces):
    result = read(join(tmp_path / "joined.ts", pieces, ["hevc", "large"]), max_pixels=5000)
    assert len(result.frames) == PIECE
    assert isinstance(result.error, TooLargeError)


def test_a_part_that_cannot_be_opened_makes_the_recording_incomplete(tmp_path, pieces):
    path = tmp_path / "joined.ts"
    path.write_bytes(pieces["h264"] + pieces["hevc"][: 188 * 3])
    result = read(path)
    assert len(result.frames) >= PIECE - 1
    assert isinstance(result.error, IncompleteError)
    assert "nothing that follows frame 15 could be decoded" in str(result.error)


def test_a_part_without_the_stream_that_is_asked_for_is_told(tmp_path, pieces):
    path = tmp_path / "joined.ts"
    path.write_bytes((MEDIA / "two_programs.ts").read_bytes() + pieces["hevc"])
    result = read(path, stream=1)
    assert len(result.frames) >= 49
    assert "goes on with what can't be decoded: has no video stream 1" in str(result.error)


def with_pid(data, old, new):
    """The transport stream with another PID for its video; tables keep their checksum's length."""
    packets = bytearray(data)
    for at in range(0, len(packets), 188):
        pid = (packets[at + 1] & 0x1F) << 8 | packets[at + 2]
        if pid == old:
            packets[at + 1] = packets[at + 1] & 0xE0 | new >> 8
            packets[at + 2] = new & 0xFF
        elif pid == 0x1000:
            begin = at + 5
            size = 3 + ((packets[begin + 1] & 0x0F) << 8 | packets[begin + 2])
            section = packets[begin : begin + size - 4]
            section[8:10] = (0xE000 | new).to_bytes(2, "big")
            section[13:15] = (0xE000 | new).to_bytes(2, "big")
            packets[begin : begin + size] = section + crc_mpeg(section)
    return bytes(packets)


def crc_mpeg(data):
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte << 24
        for _ in range(8):
            register = register << 1 ^ (0x04C11DB7 if register >> 31 else 0)
            register &= 0xFFFFFFFF
    return register.to_bytes(4, "big")


def test_a_stream_that_goes_on_under_another_pid_is_followed(tmp_path, pieces):
    path = tmp_path / "joined.ts"
    path.write_bytes(pieces["h264"] + with_pid(pieces["hevc"], 0x100, 0x321))
    result = read(path)
    assert result.error is None
    assert [frame.epoch for frame in result.frames] == [0] * PIECE + [1] * PIECE


def test_a_damaged_program_map_is_no_switch(tmp_path, pieces):
    path = tmp_path / "damaged.ts"
    tables = bytearray(pieces["hevc"][: 3 * 188])  # SDT, PAT, PMT
    path.write_bytes(pieces["h264"] + tables + pieces["h264"])
    assert cut_part(path, Part(), 0x100).following is not None
    tables[2 * 188 + 17] = 2  # another type of stream
    path.write_bytes(pieces["h264"] + tables + pieces["h264"])
    assert cut_part(path, Part(), 0x100) == Part()


@pytest.mark.parametrize("name", ["a.ts", "res_change.ts", "ts_loss5.ts", "two_programs.ts"])
def test_one_recording_has_one_part(name):
    assert cut_part(MEDIA / name, Part(), 0x100) == Part()


@pytest.mark.parametrize("size", [188, 192, 204])
@pytest.mark.parametrize("junk", [0, 1, 100, 5000])
def test_parts_are_found_in_every_layout_and_behind_junk(tmp_path, pieces, size, junk):
    def stored(data):
        front = (size == 192 and bytes(4)) or b""
        back = bytes(size - 188 - len(front))
        packets = [data[at : at + 188] for at in range(0, len(data), 188)]
        return b"".join(front + packet + back for packet in packets)

    first = stored(pieces["h264"])
    path = tmp_path / "joined.m2ts"
    path.write_bytes(first + bytes(junk) + stored(pieces["mpeg2"]))
    part = cut_part(path, Part(), 0x100).following
    assert part is not None
    assert len(first) < part.begin <= len(first) + junk + 3 * size
    assert len(part.association) == size
    assert len(read(path).frames) == 2 * PIECE


def test_a_start_and_an_end_count_through_the_parts(tmp_path, pieces):
    path = join(tmp_path / "joined.ts", pieces, ["h264", "hevc", "h264"])
    whole = read(path).frames
    assert len(whole) == 3 * PIECE
    cut = read(path, start=0.4, end=1.4).frames
    assert cut[0].index == 10
    assert cut[-1].index == pytest.approx(34, abs=3)  # times of the parts overlap by the B-frames
    assert all(same(a, b) for a, b in zip(cut, whole[10:], strict=False))


def test_a_part_of_a_file_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    expected = io.BytesIO(b"xyz" + bytes(range(10, 50)))
    with PartFile(path, Part(10, 50, b"xyz")) as part:
        for offset, whence, size in [(0, 0, 2), (0, 1, 5), (-4, 2, 9), (1, 0, 1), (5, 0, -1)]:
            assert part.seek(offset, whence) == expected.seek(offset, whence)
            assert part.read(size) == expected.read(size)
            assert part.tell() == expected.tell()


@pytest.mark.parametrize("ending", ["mp4", "mov", "flv"])
@pytest.mark.parametrize("codec", ["same", "other"])
def test_a_recording_behind_another_is_told(tmp_path, ending, codec):
    write_video(tmp_path / f"a.{ending}", moving_images(10))
    if codec == "other":
        other = "flv" if ending == "flv" else "mpeg4"
        write_video(tmp_path / f"b.{ending}", moving_images(10), codec=other, options={})
    else:
        write_video(tmp_path / f"b.{ending}", moving_images(10))
    first = (tmp_path / f"a.{ending}").read_bytes()
    path = tmp_path / f"joined.{ending}"
    path.write_bytes(first + (tmp_path / f"b.{ending}").read_bytes())
    result = read(path)
    assert len(result.frames) == 10
    assert isinstance(result.error, IncompleteError)
    assert f"another recording begins at byte {len(first)}" in str(result.error)


def test_flv_that_goes_on_in_another_codec_is_incomplete(tmp_path):
    write_video(tmp_path / "a.flv", moving_images(10))
    write_video(tmp_path / "b.flv", moving_images(10), codec="flv", options={})
    path = tmp_path / "joined.flv"
    path.write_bytes((tmp_path / "a.flv").read_bytes() + (tmp_path / "b.flv").read_bytes()[13:])
    result = read(path)
    assert len(result.frames) == 10
    assert "it goes on in another codec" in str(result.error)


@pytest.mark.parametrize(("ending", "codec"), [("mkv", "mpeg4"), ("avi", "mjpeg")])
def test_a_long_end_that_cannot_be_decoded_is_told(tmp_path, ending, codec):
    write_video(tmp_path / f"a.{ending}", moving_images(15))
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    images = moving_images(15)
    other = {"codec": codec, "options": {}, "pixel_format": pixel_format}
    write_video(tmp_path / f"b.{ending}", images, **other)
    path = tmp_path / f"joined.{ending}"
    path.write_bytes(
        (tmp_path / f"a.{ending}").read_bytes() + (tmp_path / f"b.{ending}").read_bytes()
    )
    result = read(path)
    assert len(result.frames) == 15
    assert "none of the last 15 packets could be decoded" in str(result.error)
