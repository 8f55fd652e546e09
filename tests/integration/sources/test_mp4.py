"""MP4 over HTTP and in files: read as it is, unless its tables claim what it can't hold."""

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
def made(movflags: str = "", sound: str = "") -> bytes:
    """Ten frames, with a tenth of a second of sound for each if a codec for it is given."""
    file = io.BytesIO()
    options = {"movflags": movflags} if movflags else {}
    with av.open(file, "w", format="mov", options=options) as out:
        video = out.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = out.add_stream(sound, rate=48000) if sound else None
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * index, np.uint8), "rgb24")
            frame.pts = index
            out.mux(video.encode(frame))
            if audio is not None:
                samples = np.zeros((1, 9600), np.int16)
                heard = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
                heard.sample_rate, heard.pts = 48000, 4800 * index
                out.mux(audio.encode(heard))
        for stream in filter(None, (video, audio)):
            out.mux(stream.encode(None))
    return file.getvalue()


FRAGMENTED = "empty_moov+default_base_moof+frag_keyframe"
WHOLE = [made(), made(FRAGMENTED), made(sound="pcm_s16le"), made(FRAGMENTED, "pcm_s16le")]


def edited(data: bytes, edit: Callable[[bytes, bytes], bytes]) -> bytes:
    """An MP4 whose boxes have another content: what ``edit`` makes of their type and content."""
    result = b""
    while data:
        size, kind = struct.unpack_from(">I4s", data)
        content = data[8:size]
        content = edited(content, edit) if kind in CONTAINERS else edit(kind, content)
        result += struct.pack(">I4s", len(content) + 8, kind) + content
        data = data[size:]
    return result


def with_table(kind: bytes, *values: int) -> Callable[[bytes, bytes], bytes]:
    def edit(found: bytes, content: bytes) -> bytes:
        return struct.pack(f">{len(values)}I", *values) if found == kind else content

    return edit


BOMBS = {
    "samples of one size": edited(made(), with_table(b"stsz", 0, 1, MILLIONS)),
    "runs without fields": edited(made(FRAGMENTED), with_table(b"trun", 1, MILLIONS, 0)),
    "runs without what they have": edited(
        made(FRAGMENTED), with_table(b"trun", 0x301, MILLIONS, 0)
    ),
    "many runs": made(FRAGMENTED)
    + edited(made(FRAGMENTED), with_table(b"trun", 1, 300_000, 0)) * 10,
}


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at, turn = 0, 0
    while at < len(data):
        yield data[at : at + sizes[turn % len(sizes)]]
        at += sizes[turn % len(sizes)]
        turn += 1


@given(data=st.sampled_from(WHOLE), sizes=st.lists(st.integers(100, 9000), min_size=1))
def test_a_stream_goes_through_as_it_is_wherever_it_is_cut(data, sizes) -> None:
    assert is_mp4(data)
    assert b"".join(check_tables(cut(data, sizes))) == data


@pytest.mark.parametrize("name", BOMBS)
def test_tables_that_claim_more_than_a_stream_holds_are_refused(name) -> None:
    with pytest.raises(SourceError, match="claims over 2000000 samples"):
        list(check_tables(iter([BOMBS[name]])))


@pytest.mark.parametrize("name", sorted(BOMBS.keys() - {"many runs"}))
def test_a_few_bytes_that_claim_millions_of_samples_take_no_memory(name) -> None:
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
def test_a_file_that_claims_millions_of_samples_takes_no_memory(tmp_path, name) -> None:
    path = tmp_path / "bomb.mp4"
    path.write_bytes(BOMBS[name])
    before = read_resident_memory()
    with pytest.raises(NoFramesError, match=r"bomb\.mp4: an MP4 that claims over 2000000 samples"):
        open_source(SourceConfig(url=str(path)))
    assert read_resident_memory() - before < 50 * 2**20


@pytest.mark.parametrize("data", WHOLE)
@pytest.mark.parametrize("tail", [b"", b"\0\0\0\x04junk", bytes(7), bytes(40)])
def test_a_sound_file_is_read_whatever_follows_its_boxes(tmp_path, data, tail) -> None:
    path = tmp_path / "sound.mp4"
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
def test_boxes_that_can_t_be_checked_are_refused(data, reason) -> None:
    with pytest.raises(SourceError, match=reason):
        list(check_tables(iter([data])))


def test_media_up_to_the_end_are_not_held() -> None:
    pieces = iter([made(FRAGMENTED), b"\0\0\0\0mdat", *[bytes(1000)] * 5])
    assert b"".join(check_tables(pieces)) == made(FRAGMENTED) + b"\0\0\0\0mdat" + bytes(5000)


@given(
    pieces=st.lists(st.one_of(st.binary(max_size=100), st.sampled_from([*WHOLE, *BOMBS.values()])))
)
def test_any_bytes_are_passed_on_in_order_or_refused(pieces) -> None:
    passed = bytearray()
    try:
        for piece in check_tables(iter(pieces)):
            passed += piece
    except SourceError as error:
        assert "\n" not in str(error)  # noqa: PT017 - some are passed on
    assert b"".join(pieces).startswith(bytes(passed))
