"""Container structure checks: truncated files, repeated frames and content that FFmpeg skips.

FFmpeg reports no error at the end of a truncated file. The top-level elements of common containers
state their sizes, so a file that is shorter than they state is truncated. Layouts: ISO/IEC
14496-12, section 4.2 (boxes); RFC 8794, section 4 (EBML variable size integers); RFC 9559, section
8 (Matroska top-level elements); Microsoft RIFF; Adobe Flash Video File Format, annex E (FLV tags).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from streamseg.sources.isobmff import LONG_HEADER_BYTES, read_box_header

_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra sidx free skip wide meta uuid udta pnot prft emsg".split()
)
_MAX_BOXES = 1_000_000
_FLV = b"FLV"
_FLV_TAG_BYTES = 15
"""Size of an FLV tag header and of the size field in front of it, in bytes."""
_FLV_VIDEO = 9
_FLV_TAGS = (8, _FLV_VIDEO, 18)
_FLV_COMMAND = 5
_SECOND_RECORDING = "a second recording starts at byte {} and is not read: split the file there"


def count_missing_bytes(path: Path) -> int:
    """Return by how many bytes a file is shorter than its container states.

    0 if the file is complete, or the container states no size.
    """
    file_size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in _BOXES:
            end = _find_boxes_end(file, file_size)
        elif head[:4] == _EBML_HEADER:
            end = _find_segment_end(file, file_size)
        elif head[:4] == b"RIFF":
            size = int.from_bytes(head[4:8], "little")
            # Writers that never fill in the size leave 0 or a value beyond the format's limit.
            end = 8 + size if 0 < size < 0x7FFF_FFFF else 0
        else:
            end = 0
    return max(0, end - file_size)


def count_repeated_frames(path: Path, stream: int) -> int:
    """Return the number of empty chunks of an AVI stream: each repeats the frame before it.

    Args:
        path: a recording; 0 is returned for containers other than AVI.
        stream: index of the stream.
    """
    video_chunks = {b"%02d%s" % (stream, kind) for kind in (b"dc", b"db")}
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"AVI ":
            return 0
        return sum(kind in video_chunks and not size for kind, size in _avi_chunks(file))


def describe_unread_part(path: Path) -> str:
    """Return a description of video in the file that FFmpeg skips without an error; "" if none.

    Found are a second movie after the first (ISO media and FLV), as from concatenating files, and
    a change of codec within FLV.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in _BOXES:
            return _find_second_movie(file, path.stat().st_size)
        return _find_flv_change(file) if head[:3] == _FLV else ""


def _avi_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the type and size of each chunk from the file position on, also within lists."""
    while len(header := file.read(8)) == 8:
        kind, size = header[:4], int.from_bytes(header[4:], "little")
        if kind in (b"RIFF", b"LIST"):
            file.seek(4, 1)
        else:
            yield kind, size
            file.seek(size + size % 2, 1)


def _find_second_movie(file: BinaryIO, file_size: int) -> str:
    boxes = list(_top_level_boxes(file, file_size))
    kinds = [box.kind for box in boxes]
    if kinds.count(b"moov") < 2 or b"moof" in kinds:  # FFmpeg reads all fragments
        return ""
    first = kinds.index(b"moov")
    later = [box for box in boxes[first + 1 :] if box.kind in (b"ftyp", b"moov")]
    return _SECOND_RECORDING.format(later[0].start)


def _find_flv_change(file: BinaryIO) -> str:
    """Describe the first FLV header or change of the video codec among the tags; "" if none."""
    file.seek(5)
    at = int.from_bytes(file.read(4), "big")
    codec = b""
    while True:
        file.seek(at)
        tag = file.read(_FLV_TAG_BYTES + 5)
        if tag[4:7] == _FLV:
            return _SECOND_RECORDING.format(at + 4)
        if len(tag) < _FLV_TAG_BYTES or tag[4] not in _FLV_TAGS:
            return ""
        if tag[4] == _FLV_VIDEO and len(tag) > _FLV_TAG_BYTES:
            tag_codec = _read_flv_codec(tag[_FLV_TAG_BYTES:])
            if codec and tag_codec and tag_codec != codec:
                return f"the video codec changes at byte {at}, and the rest is not read"
            codec = codec or tag_codec
        at += _FLV_TAG_BYTES + int.from_bytes(tag[5:8], "big")


def _read_flv_codec(body: bytes) -> bytes:
    """Return the codec of a video tag, a number or four letters; b"" if it holds no frame."""
    frame_type = body[0] >> 4 & 7
    if frame_type == _FLV_COMMAND:
        return b""
    return body[1:5] if body[0] & 0x80 else bytes([body[0] & 0x0F])


@dataclass(frozen=True, slots=True)
class _TopLevelBox:
    """Top-level box of an ISO media file.

    Attributes:
        kind: box type, four letters.
        start: position of its first byte.
        end: position after its last byte, which may lie beyond the end of the file.
    """

    kind: bytes
    start: int
    end: int


def _top_level_boxes(file: BinaryIO, file_size: int) -> Iterator[_TopLevelBox]:
    """Yield the top-level boxes up to the first one that is unknown, damaged or open-ended."""
    at = 0
    for _ in range(_MAX_BOXES):
        if at >= file_size:
            return
        file.seek(at)
        header = read_box_header(file.read(LONG_HEADER_BYTES))
        if header is None or header.kind not in _BOXES or header.size is None or header.size < 8:
            return
        yield _TopLevelBox(header.kind, at, at + header.size)
        at += header.size


def _find_boxes_end(file: BinaryIO, file_size: int) -> int:
    """Return the end of the last top-level box; 0 if the boxes end before the file does."""
    end = 0
    for box in _top_level_boxes(file, file_size):
        end = box.end
    return end if end >= file_size else 0


def _find_segment_end(file: BinaryIO, file_size: int) -> int:
    """Return the end of the Matroska segment; 0 if it states no size, as in a live recording."""
    file.seek(4)
    header_size = _read_variable_size(file)
    if header_size is None or header_size > file_size:
        return 0
    file.seek(header_size, 1)
    if file.read(4) != _MATROSKA_SEGMENT:
        return 0
    size = _read_variable_size(file)
    return 0 if size is None else file.tell() + size


def _read_variable_size(file: BinaryIO) -> int | None:
    """Read an EBML variable size integer; None if it is damaged or has the value "unknown"."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra_bytes = 8 - first[0].bit_length()
    unknown = (1 << 7 * (extra_bytes + 1)) - 1
    value = int.from_bytes(first + file.read(extra_bytes), "big") & unknown
    return None if value == unknown else value
