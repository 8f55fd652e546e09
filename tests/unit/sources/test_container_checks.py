"""Container checks: missing bytes of truncated files, and repeated frames in AVI."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.media import MEDIA

from streamseg.sources.container_checks import count_missing_bytes, count_repeated_frames


def build_box(kind, body=b"", size=None):
    return (8 + len(body) if size is None else size).to_bytes(4, "big") + kind + body


LONG_BOX_HEADER = (1).to_bytes(4, "big") + b"mdat" + (66).to_bytes(8, "big")


def build_segment(length, body=b""):
    ebml = b"\x1a\x45\xdf\xa3\x84" + b"\x42\x86\x81\x01"
    return ebml + b"\x18\x53\x80\x67" + length + body


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (build_box(b"ftyp", b"isom") + build_box(b"mdat", bytes(100)), 0),
        (build_box(b"ftyp", b"isom") + build_box(b"mdat", bytes(100))[:-30], 30),
        (build_box(b"ftyp", b"isom") + build_box(b"mdat", bytes(100), size=0), 0),
        (
            build_box(b"ftyp")
            + (1).to_bytes(4, "big")
            + b"mdat"
            + (66).to_bytes(8, "big")
            + bytes(40),
            10,
        ),
        (build_box(b"ftyp") + build_box(b"mdat", bytes(9)) + b"trailing junk in the file", 0),
        (build_box(b"ftyp") + b"\0\0", 0),
        (build_box(b"ftyp") + build_box(b"mdat", size=3), 0),
        (build_segment(b"\x84", bytes(4)), 0),
        (build_segment(b"\x84", bytes(1)), 3),
        (build_segment(b"\xff", bytes(1)), 0),
        (build_segment(b"\x01\xff\xff\xff\xff\xff\xff\xff", bytes(1)), 0),
        (build_segment(b"\x01\0\0\0\0\0\0\x0a", bytes(3)), 7),
        (b"\x1a\x45\xdf\xa3", 0),
        (b"\x1a\x45\xdf\xa3\0\0\0", 0),
        (b"RIFF" + (20).to_bytes(4, "little") + bytes(20), 0),
        (b"RIFF" + (20).to_bytes(4, "little") + bytes(15), 5),
        (b"RIFF" + bytes(4) + bytes(15), 0),
        (b"RIFF\xff\xff\xff\xff" + bytes(15), 0),
        (b"RI", 0),
        (b"", 0),
        (b"\x47" * 500, 0),
    ],
)
def test_missing_bytes_are_counted_from_the_stated_sizes(tmp_path, data, missing):
    path = tmp_path / "file"
    path.write_bytes(data)
    assert count_missing_bytes(path) == missing


@given(st.binary(max_size=200), st.sampled_from([b"\0\0\0\x08ftyp", b"\x1a\x45\xdf\xa3", b"RIFF"]))
@example(b"\x01" + bytes(6), b"\x1a\x45\xdf\xa3")
def test_any_bytes_after_a_signature_are_accepted(tmp_path_factory, rest, signature):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(signature + rest)
    assert count_missing_bytes(path) >= 0


def test_repeated_frames_are_counted_per_stream_and_within_lists(tmp_path):
    def chunk(kind, size, content=b""):
        return kind + struct.pack("<I", size) + content + bytes(size % 2)

    records = chunk(b"LIST", 28) + b"rec " + chunk(b"00dc", 0) + chunk(b"01wb", 3, b"abc")
    body = chunk(b"LIST", 100) + b"movi" + records + chunk(b"01dc", 0) + chunk(b"00db", 0)
    path = tmp_path / "lists.avi"
    path.write_bytes(chunk(b"RIFF", 4 + len(body)) + b"AVI " + body)
    assert count_repeated_frames(path, 0) == 2
    assert count_repeated_frames(path, 1) == 1
    assert count_repeated_frames(MEDIA / "ok.mp4", 0) == 0
    assert count_repeated_frames(MEDIA / "webcam422.avi", 0) == 0
