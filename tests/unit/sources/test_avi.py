"""AVI, which stores an order of packets and no times; and frames that are meant to be repeated."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.media import MEDIA, moving_images, read, same, write_video

from streamseg.errors import IncompleteError
from streamseg.sources.container_checks import count_repeats
from streamseg.sources.timeline import DisplayOrder

pytestmark = pytest.mark.timeout(60)

KEPT = [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 16, 17, 19, 20, 21, 22, 24]
"""Times of the frames, of 25: the others are empty chunks."""
FAST = {"preset": "ultrafast"}
CODECS = {
    "h264": ("libx264", FAST | {"bf": "0"}),
    "h264_low_delay": ("libx264", FAST | {"tune": "zerolatency"}),
    "mpeg4": ("mpeg4", {}),
    "msmpeg4": ("msmpeg4", {}),
    "mjpeg": ("mjpeg", {}),
    "ffv1": ("ffv1", {}),
}
CONSTANT = {"preset": "veryfast", "qp": "20"}
"""Options with which x264's pixels do not depend on the time base of the container."""
WITH_B_FRAMES = {
    "h264": ("libx264", CONSTANT | {"bf": "2", "x264-params": "b-adapt=0:scenecut=0"}),
    "h264_pyramid": ("libx264", CONSTANT | {"bf": "4", "x264-params": "b-adapt=0"}),
    "h264_open": ("libx264", CONSTANT | {"bf": "2", "x264-params": "open-gop=1"}),
    "mpeg4": ("mpeg4", {"bf": "2"}),
    "mpeg2": ("mpeg2video", {"bf": "1"}),
}


def write_avi(path, codec, options, times):
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    images = moving_images(len(times))
    how = {"codec": codec, "options": options, "pixel_format": pixel_format, "gop": 5}
    write_video(path, images, times=times, **how)


def count_ticks(frames):
    return [round(frame.pts * 25, 3) for frame in frames]


@pytest.mark.parametrize("name", WITH_B_FRAMES)
def test_frames_that_are_reordered_are_shown_at_regular_times(tmp_path, name):
    path, like = tmp_path / "b.avi", tmp_path / "b.mkv"
    write_avi(path, *WITH_B_FRAMES[name], range(30))
    write_avi(like, *WITH_B_FRAMES[name], range(30))
    result = read(path)
    assert result.error is None
    assert result.report.notes == []
    assert count_ticks(result.frames) == list(range(30))
    assert len(read(path, max_fps=25).frames) == 30
    for frame, other in zip(result.frames, read(like).frames, strict=True):
        assert np.array_equal(frame.image, other.image)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("times", [KEPT, [0, 4, 5, 6, 12, 13, 20, 24]])
def test_empty_chunks_repeat_a_frame_and_are_no_loss(tmp_path, name, times):
    path = tmp_path / "empty.avi"
    write_avi(path, *CODECS[name], times)
    result = read(path)
    assert result.error is None
    assert result.report.notes == []
    assert result.report.expected == 25
    assert count_ticks(result.frames) == times
    assert [frame.index for frame in result.frames] == list(range(len(times)))
    for start in (0.2, 0.5, 0.8):
        part = read(path, start=start).frames
        expected = [frame for frame in result.frames if frame.pts >= start]
        assert all(same(a, b) for a, b in zip(part, expected, strict=True))


def test_b_frames_and_empty_chunks_go_together(tmp_path):
    path = tmp_path / "both.avi"
    for name in ("h264", "mpeg4"):
        write_avi(path, *WITH_B_FRAMES[name], KEPT)
        result = read(path)
        assert result.error is None
        times = count_ticks(result.frames)
        assert len(times) == len(KEPT) == len(set(times))
        assert times == sorted(times)


def test_a_recording_with_empty_chunks_that_was_cut_off_is_incomplete(tmp_path):
    path = tmp_path / "cut.avi"
    write_avi(path, "mjpeg", {}, KEPT)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    result = read(path)
    assert len(result.frames) > 5
    assert isinstance(result.error, IncompleteError)


def chunks_of(data):
    at, end = data.index(b"movi") + 4, data.index(b"idx1")
    while at + 8 <= end:
        size = struct.unpack_from("<I", data, at + 4)[0]
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def with_chunks(data, chunks):
    """The AVI with other chunks, without an index."""
    body = b"movi" + b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
        for kind, content in chunks
    )
    result = bytearray(data[: data.index(b"movi") - 8])
    result += b"LIST" + struct.pack("<I", len(body)) + body
    struct.pack_into("<I", result, 4, len(result) - 8)
    return bytes(result)


VOP = b"\0\0\1\xb6"
NOT_CODED = VOP + int("0101001011001111", 2).to_bytes(2, "big")  # a VOP without a picture


def is_b_vop(content):
    return content[content.index(VOP) + 4] >> 6 == 2


def test_a_packed_bitstream_gives_all_its_frames_at_regular_times(tmp_path):
    """DivX puts a B-frame into the chunk of the frame before, and an empty one in its place."""
    path = tmp_path / "packed.avi"
    write_video(path, moving_images(24), codec="mpeg4", options={"bf": "1"}, tag="XVID")
    plain = read(path).frames
    chunks, packed = list(chunks_of(path.read_bytes())), []
    for kind, content in chunks:
        if is_b_vop(content):
            packed[-1] = kind, packed[-1][1] + content
            packed.append((kind, NOT_CODED))
        else:
            packed.append((kind, content))
    first = packed[0][1]
    at = first.index(VOP)
    packed[0] = packed[0][0], first[:at] + b"\0\0\1\xb2DivX503b1393p" + first[at:]
    path.write_bytes(with_chunks(path.read_bytes(), packed))
    result = read(path)
    assert result.error is None
    assert count_ticks(result.frames) == list(range(24))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(plain, result.frames, strict=True))


def test_vops_that_are_not_coded_leave_the_other_frames_at_their_times(tmp_path):
    path = tmp_path / "nvop.avi"
    write_video(path, moving_images(24), codec="mpeg4", options={}, tag="XVID")
    chunks = list(chunks_of(path.read_bytes()))
    chunks[5] = chunks[6] = chunks[5][0], NOT_CODED
    path.write_bytes(with_chunks(path.read_bytes(), chunks))
    result = read(path)
    assert result.error is None
    assert result.report.bad == 0
    assert count_ticks(result.frames) == [n for n in range(24) if n not in (5, 6)]
    assert result.report.notes == ["2 packet(s) gave no frame"]


@pytest.mark.parametrize("which", [[4], [7], [3, 4, 7]])
def test_samples_without_a_byte_repeat_a_frame(tmp_path, which):
    """MP4: the samples are made part of the one before, or are cut off the end of the last."""
    path = tmp_path / "empty.mov"
    write_video(path, moving_images(8), codec="mjpeg", options={}, pixel_format="yuvj420p")
    data = bytearray(path.read_bytes())
    at = data.index(b"stsz") + 16
    sizes = list(struct.unpack_from(">8I", data, at))
    for number in which:
        previous = max(n for n in range(number) if n not in which)
        sizes[previous] += sizes[number]
        sizes[number] = 0
    struct.pack_into(">8I", data, at, *sizes)
    path.write_bytes(data)
    result = read(path)
    assert result.error is None
    assert count_ticks(result.frames) == [n for n in range(8) if n not in which]
    assert result.report.notes == []


def test_repeats_are_counted_in_lists_and_for_the_stream_alone(tmp_path):
    def chunk(kind, size, content=b""):
        return kind + struct.pack("<I", size) + content + bytes(size % 2)

    records = chunk(b"LIST", 28) + b"rec " + chunk(b"00dc", 0) + chunk(b"01wb", 3, b"abc")
    body = chunk(b"LIST", 100) + b"movi" + records + chunk(b"01dc", 0) + chunk(b"00db", 0)
    path = tmp_path / "lists.avi"
    path.write_bytes(chunk(b"RIFF", 4 + len(body)) + b"AVI " + body)
    assert count_repeats(path, 0) == 2
    assert count_repeats(path, 1) == 1
    assert count_repeats(MEDIA / "ok.mp4", 0) == 0
    assert count_repeats(MEDIA / "webcam422.avi", 0) == 0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_times_go_up_and_each_is_that_of_a_packet(depths, data):
    """A decoder holds up to three frames; some packets can't be decoded, some give nothing."""
    order, held, taken, number = DisplayOrder(16), 0, [], 0
    for depth in depths:
        number += data.draw(st.integers(1, 5))
        order.add(number, number)
        if data.draw(st.booleans()):
            order.drop_last()
            continue
        held += 1
        while held > depth:
            taken.append(order.take(number, is_key=False))
            held -= 1
    taken += [order.take(None, is_key=False) for _ in range(held)]
    assert all(a < b for a, b in pairwise(taken))
    assert set(taken) <= set(range(number + 1))
