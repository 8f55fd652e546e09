"""MP4 over HTTP and in files: sample tables are checked before FFmpeg allocates memory."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable, Iterator

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cameras import raw_camera
from support.live_sources import start_reader
from support.processes import read_resident_memory

from streamseg.config import SourceConfig
from streamseg.errors import NoFramesError, SourceError
from streamseg.sources import mp4, open_source
from streamseg.sources.mp4 import check_tables, is_mp4

pytestmark = pytest.mark.timeout(60)

CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
MILLIONS = 80_000_000


@functools.cache
def encode_mp4(movflags: str = "", audio_codec: str = "") -> bytes:
    """Encode one second of video at ten frames per second, with audio if a codec is given."""
    file = io.BytesIO()
    options = {"movflags": movflags} if movflags else {}
    with av.open(file, "w", format="mov", options=options) as out:
        video = out.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = out.add_stream(audio_codec, rate=48000) if audio_codec else None
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * index, np.uint8), "rgb24")
            frame.pts = index
            out.mux(video.encode(frame))
            if audio is not None:
                samples = np.zeros((1, 9600), np.int16)
                audio_frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
                audio_frame.sample_rate, audio_frame.pts = 48000, 4800 * index
                out.mux(audio.encode(audio_frame))
        for stream in filter(None, (video, audio)):
            out.mux(stream.encode(None))
    return file.getvalue()


FRAGMENTED = "empty_moov+default_base_moof+frag_keyframe"
VALID = [
    encode_mp4(),
    encode_mp4(FRAGMENTED),
    encode_mp4(audio_codec="pcm_s16le"),
    encode_mp4(FRAGMENTED, "pcm_s16le"),
]


def edit_boxes(data: bytes, edit: Callable[[bytes, bytes], bytes]) -> bytes:
    """Replace the content of each box by ``edit(type, content)``."""
    result = b""
    while data:
        size, kind = struct.unpack_from(">I4s", data)
        content = data[8:size]
        content = edit_boxes(content, edit) if kind in CONTAINERS else edit(kind, content)
        result += struct.pack(">I4s", len(content) + 8, kind) + content
        data = data[size:]
    return result


def replace_table(kind: bytes, *values: int) -> Callable[[bytes, bytes], bytes]:
    def edit(box_type: bytes, content: bytes) -> bytes:
        return struct.pack(f">{len(values)}I", *values) if box_type == kind else content

    return edit


BOMBS = {
    "samples of one size": edit_boxes(encode_mp4(), replace_table(b"stsz", 0, 1, MILLIONS)),
    "runs without fields": edit_boxes(
        encode_mp4(FRAGMENTED), replace_table(b"trun", 1, MILLIONS, 0)
    ),
    "runs without their fields": edit_boxes(
        encode_mp4(FRAGMENTED), replace_table(b"trun", 0x301, MILLIONS, 0)
    ),
    "many runs": encode_mp4(FRAGMENTED)
    + edit_boxes(encode_mp4(FRAGMENTED), replace_table(b"trun", 1, 300_000, 0)) * 10,
}


def split(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    offset, turn = 0, 0
    while offset < len(data):
        yield data[offset : offset + sizes[turn % len(sizes)]]
        offset += sizes[turn % len(sizes)]
        turn += 1


@given(data=st.sampled_from(VALID), sizes=st.lists(st.integers(100, 9000), min_size=1))
def test_valid_stream_is_unchanged_for_any_chunk_sizes(data, sizes) -> None:
    assert is_mp4(data)
    assert b"".join(check_tables(split(data, sizes))) == data


@pytest.mark.parametrize("name", BOMBS)
def test_tables_that_declare_too_many_samples_are_refused(name) -> None:
    with pytest.raises(SourceError, match="claims over 2000000 samples"):
        list(check_tables(iter([BOMBS[name]])))


@pytest.mark.parametrize("name", sorted(BOMBS.keys() - {"many runs"}))
def test_stream_that_declares_millions_of_samples_takes_no_memory(name) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n\r\n"
    before = peak = read_resident_memory()
    with raw_camera(lambda connection: connection.sendall(head + BOMBS[name])) as url:
        reader = start_reader(url, max_attempts=1)
        while reader.error is None:
            peak = max(peak, read_resident_memory())
        reader.close()
    assert "claims over 2000000 samples" in str(reader.error)
    assert peak - before < 200 * 2**20


@pytest.mark.parametrize("name", BOMBS)
def test_file_that_declares_millions_of_samples_takes_no_memory(tmp_path, name) -> None:
    path = tmp_path / "bomb.mp4"
    path.write_bytes(BOMBS[name])
    before = read_resident_memory()
    with pytest.raises(NoFramesError, match=r"bomb\.mp4: an MP4 that claims over 2000000 samples"):
        open_source(SourceConfig(url=str(path)))
    assert read_resident_memory() - before < 50 * 2**20


@pytest.mark.parametrize("data", VALID)
@pytest.mark.parametrize("tail", [b"", b"\0\0\0\x04junk", bytes(7), bytes(40)])
def test_valid_file_is_read_with_any_bytes_after_its_boxes(tmp_path, data, tail) -> None:
    path = tmp_path / "valid.mp4"
    path.write_bytes(data + tail)
    mp4.check_file(path)
    assert open_source(SourceConfig(url=str(path))).report.size == (48, 64)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x08ftyp\0\0\0\x04moov", "damaged"),
        (b"\0\0\0\x01moov\0\0\0\0\0\0\0\x08", "damaged"),
        (b"\0\0\0\0moov" + bytes(100), f"box of over {mp4.MAX_BOX_BYTES} bytes"),
        (b"\x7f\0\0\0moov" + bytes(100), f"box of over {mp4.MAX_BOX_BYTES} bytes"),
        (b"\0\0\0\x14moov\0\0\0\x0ccmov\0\0\0\0", "compressed"),
    ],
)
def test_unsupported_boxes_are_refused(data, reason) -> None:
    with pytest.raises(SourceError, match=reason):
        list(check_tables(iter([data])))


def test_media_box_without_a_size_is_passed_on() -> None:
    pieces = iter([encode_mp4(FRAGMENTED), b"\0\0\0\0mdat", *[bytes(1000)] * 5])
    assert b"".join(check_tables(pieces)) == encode_mp4(FRAGMENTED) + b"\0\0\0\0mdat" + bytes(5000)


@given(
    pieces=st.lists(st.one_of(st.binary(max_size=100), st.sampled_from([*VALID, *BOMBS.values()])))
)
def test_arbitrary_bytes_are_passed_on_in_order_or_refused(pieces) -> None:
    passed = bytearray()
    try:
        for piece in check_tables(iter(pieces)):
            passed += piece
    except SourceError as error:
        assert "\n" not in str(error)  # noqa: PT017 - some are passed on
    assert b"".join(pieces).startswith(bytes(passed))
