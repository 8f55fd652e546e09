"""Frame times in AVI, which stores packets without times, and repeated frames."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.media import frames_equal, moving_images, read_source, write_video

from streamseg.errors import IncompleteError
from streamseg.sources.timeline import DisplayOrder

pytestmark = pytest.mark.timeout(60)

CODED_TIMES = [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 16, 17, 19, 20, 21, 22, 24]
"""Times of the coded frames among 25; the other chunks are empty."""
FAST_H264 = {"preset": "ultrafast"}
CODECS = {
    "h264": ("libx264", FAST_H264 | {"bf": "0"}),
    "h264_low_delay": ("libx264", FAST_H264 | {"tune": "zerolatency"}),
    "mpeg4": ("mpeg4", {}),
    "msmpeg4": ("msmpeg4", {}),
    "mjpeg": ("mjpeg", {}),
    "ffv1": ("ffv1", {}),
}
FIXED_QUALITY = {"preset": "veryfast", "qp": "20"}
"""Options with which x264's output doesn't depend on the container's time base."""
WITH_B_FRAMES = {
    "h264": ("libx264", FIXED_QUALITY | {"bf": "2", "x264-params": "b-adapt=0:scenecut=0"}),
    "h264_pyramid": ("libx264", FIXED_QUALITY | {"bf": "4", "x264-params": "b-adapt=0"}),
    "h264_open": ("libx264", FIXED_QUALITY | {"bf": "2", "x264-params": "open-gop=1"}),
    "mpeg4": ("mpeg4", {"bf": "2"}),
    "mpeg2": ("mpeg2video", {"bf": "1"}),
}


def write_avi(path, codec, options, times):
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    write_video(
        path,
        moving_images(len(times)),
        times=times,
        codec=codec,
        options=options,
        pixel_format=pixel_format,
        gop=5,
    )


def frame_numbers(frames):
    """Return the times of frames in units of 1 / 25 s."""
    return [round(frame.pts * 25, 3) for frame in frames]


@pytest.mark.parametrize("name", WITH_B_FRAMES)
def test_reordered_frames_have_regular_times(tmp_path, name):
    path, reference = tmp_path / "b.avi", tmp_path / "b.mkv"
    write_avi(path, *WITH_B_FRAMES[name], range(30))
    write_avi(reference, *WITH_B_FRAMES[name], range(30))
    result = read_source(path)
    assert result.error is None
    assert result.report.notes == []
    assert frame_numbers(result.frames) == list(range(30))
    assert len(read_source(path, max_fps=25).frames) == 30
    for frame, other in zip(result.frames, read_source(reference).frames, strict=True):
        assert np.array_equal(frame.image, other.image)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("times", [CODED_TIMES, [0, 4, 5, 6, 12, 13, 20, 24]])
def test_empty_chunks_repeat_frames_and_are_not_counted_as_lost(tmp_path, name, times):
    path = tmp_path / "empty.avi"
    write_avi(path, *CODECS[name], times)
    result = read_source(path)
    assert result.error is None
    assert result.report.notes == []
    assert result.report.expected == 25
    assert frame_numbers(result.frames) == times
    assert [frame.index for frame in result.frames] == list(range(len(times)))
    for start in (0.2, 0.5, 0.8):
        part = read_source(path, start=start).frames
        expected = [frame for frame in result.frames if frame.pts >= start]
        assert all(frames_equal(a, b) for a, b in zip(part, expected, strict=True))


def test_b_frames_with_empty_chunks_have_increasing_times(tmp_path):
    path = tmp_path / "both.avi"
    for name in ("h264", "mpeg4"):
        write_avi(path, *WITH_B_FRAMES[name], CODED_TIMES)
        result = read_source(path)
        assert result.error is None
        times = frame_numbers(result.frames)
        assert len(times) == len(CODED_TIMES) == len(set(times))
        assert times == sorted(times)


def test_truncated_recording_with_empty_chunks_is_incomplete(tmp_path):
    path = tmp_path / "truncated.avi"
    write_avi(path, "mjpeg", {}, CODED_TIMES)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    result = read_source(path)
    assert len(result.frames) > 5
    assert isinstance(result.error, IncompleteError)


def read_chunks(data):
    """Yield type and content of the chunks in an AVI's movie list."""
    at, end = data.index(b"movi") + 4, data.index(b"idx1")
    while at + 8 <= end:
        size = struct.unpack_from("<I", data, at + 4)[0]
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def replace_chunks(data, chunks):
    """Return the AVI with other chunks and without an index."""
    body = b"movi" + b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
        for kind, content in chunks
    )
    result = bytearray(data[: data.index(b"movi") - 8])
    result += b"LIST" + struct.pack("<I", len(body)) + body
    struct.pack_into("<I", result, 4, len(result) - 8)
    return bytes(result)


VOP = b"\0\0\1\xb6"
NOT_CODED = VOP + int("0101001011001111", 2).to_bytes(2, "big")  # a VOP without image data


def is_b_vop(content):
    return content[content.index(VOP) + 4] >> 6 == 2


def test_packed_bitstream_gives_all_frames_at_regular_times(tmp_path):
    """DivX puts a B-frame into the chunk of the frame before it, and an empty VOP in its place."""
    path = tmp_path / "packed.avi"
    write_video(path, moving_images(24), codec="mpeg4", options={"bf": "1"}, tag="XVID")
    plain = read_source(path).frames
    chunks, packed = list(read_chunks(path.read_bytes())), []
    for kind, content in chunks:
        if is_b_vop(content):
            packed[-1] = kind, packed[-1][1] + content
            packed.append((kind, NOT_CODED))
        else:
            packed.append((kind, content))
    first = packed[0][1]
    at = first.index(VOP)
    packed[0] = packed[0][0], first[:at] + b"\0\0\1\xb2DivX503b1393p" + first[at:]
    path.write_bytes(replace_chunks(path.read_bytes(), packed))
    result = read_source(path)
    assert result.error is None
    assert frame_numbers(result.frames) == list(range(24))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(plain, result.frames, strict=True))


def test_vops_that_are_not_coded_leave_other_times_unchanged(tmp_path):
    path = tmp_path / "nvop.avi"
    write_video(path, moving_images(24), codec="mpeg4", options={}, tag="XVID")
    chunks = list(read_chunks(path.read_bytes()))
    chunks[5] = chunks[6] = chunks[5][0], NOT_CODED
    path.write_bytes(replace_chunks(path.read_bytes(), chunks))
    result = read_source(path)
    assert result.error is None
    assert result.report.bad == 0
    assert frame_numbers(result.frames) == [n for n in range(24) if n not in (5, 6)]
    assert result.report.notes == ["2 packet(s) without a frame"]


@pytest.mark.parametrize("empty", [[4], [7], [3, 4, 7]])
def test_empty_mp4_samples_repeat_a_frame(tmp_path, empty):
    """The bytes of the emptied samples become part of the sample before."""
    path = tmp_path / "empty.mov"
    write_video(path, moving_images(8), codec="mjpeg", options={}, pixel_format="yuvj420p")
    data = bytearray(path.read_bytes())
    at = data.index(b"stsz") + 16
    sizes = list(struct.unpack_from(">8I", data, at))
    for number in empty:
        previous = max(n for n in range(number) if n not in empty)
        sizes[previous] += sizes[number]
        sizes[number] = 0
    struct.pack_into(">8I", data, at, *sizes)
    path.write_bytes(data)
    result = read_source(path)
    assert result.error is None
    assert frame_numbers(result.frames) == [n for n in range(8) if n not in empty]
    assert result.report.notes == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_times_increase_and_are_those_of_packets(depths, data):
    """The decoder holds up to three frames, and some packets can't be decoded."""
    order, held, times, number = DisplayOrder(16), 0, [], 0
    for depth in depths:
        number += data.draw(st.integers(1, 5))
        order.add_packet(number, number)
        if data.draw(st.booleans()):
            order.drop_failed_packet()
            continue
        held += 1
        while held > depth:
            times.append(order.next_time(number, is_key=False))
            held -= 1
    times += [order.next_time(None, is_key=False) for _ in range(held)]
    assert all(a < b for a, b in pairwise(times))
    assert set(times) <= set(range(number + 1))
