"""How long a file says that it is, to tell a recording that was cut off from a whole one.

Decoders go on silently where a file ends too early. The outermost boxes of the common containers
carry their sizes, so a file that is shorter than they say was cut off, whatever the decoder makes
of it. Layouts: ISO/IEC 14496-12, section 4.2 (boxes); RFC 8794, section 4 (EBML variable size
integers) and RFC 9559, section 8 (Matroska's top level); Microsoft's RIFF.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra sidx free skip wide meta uuid udta pnot prft emsg".split()
)
_MAX_BOXES = 1_000_000
_FLV = b"FLV"
_FLV_TAG_BYTES = 15  # with the size of the tag before
_FLV_VIDEO = 9
_FLV_TAGS = (8, _FLV_VIDEO, 18)
_FLV_COMMAND = 5
_ANOTHER_BEHIND = "another recording begins at byte {}, and isn't read: split the file there"


def missing_bytes(path: Path) -> int:
    """How many bytes the container says it has after the end of the file; 0 if it doesn't say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in _BOXES:
            end = _end_of_boxes(file, size)
        elif head[:4] == _EBML_HEADER:
            end = _end_of_segment(file, size)
        elif head[:4] == b"RIFF":
            end = _end_of_riff(head)
        else:
            end = 0
    return max(0, end - size)


def count_repeats(path: Path, stream: int) -> int:
    """Return how many frames of an AVI's stream are empty chunks: the frame before, again.

    Args:
        path: any recording; other containers have none.
        stream: the stream's number.
    """
    kinds = {b"%02d%s" % (stream, kind) for kind in (b"dc", b"db")}
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"AVI ":
            return 0
        return sum(kind in kinds and not size for kind, size in _avi_chunks(file))


def _avi_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the types and sizes of the chunks behind an AVI's head, within its lists as well."""
    while len(header := file.read(8)) == 8:
        kind, size = header[:4], int.from_bytes(header[4:], "little")
        if kind in (b"RIFF", b"LIST"):
            file.seek(4, 1)
        else:
            yield kind, size
            file.seek(size + size % 2, 1)


def unread_part(path: Path) -> str:
    """Return what a file holds that FFmpeg passes over without a word; empty if nothing.

    That is a second movie behind the first (ISO media and FLV), as from joining files byte by byte,
    and FLV that goes on in another codec.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in _BOXES:
            return _unread_movie(file, path.stat().st_size)
        return _unread_tags(file) if head[:3] == _FLV else ""


def _unread_movie(file: BinaryIO, size: int) -> str:
    boxes = list(_boxes(file, size))
    kinds = [box.kind for box in boxes]
    if kinds.count(b"moov") < 2 or b"moof" in kinds:  # fragments are read behind any movie box
        return ""
    first = kinds.index(b"moov")
    later = [box for box in boxes[first + 1 :] if box.kind in (b"ftyp", b"moov")]
    return _ANOTHER_BEHIND.format(later[0].begin)


def _unread_tags(file: BinaryIO) -> str:
    """Walk an FLV's tags: Adobe's Flash Video File Format Specification, annex E."""
    file.seek(5)
    at = int.from_bytes(file.read(4), "big")
    codec = b""
    while True:
        file.seek(at)
        tag = file.read(_FLV_TAG_BYTES + 5)
        if tag[4:7] == _FLV:
            return _ANOTHER_BEHIND.format(at + 4)
        if len(tag) < _FLV_TAG_BYTES or tag[4] not in _FLV_TAGS:
            return ""
        if tag[4] == _FLV_VIDEO and len(tag) > _FLV_TAG_BYTES:
            kind = _flv_codec(tag[_FLV_TAG_BYTES:])
            if codec and kind and kind != codec:
                return f"at byte {at} it goes on in another codec, and that isn't read"
            codec = codec or kind
        at += _FLV_TAG_BYTES + int.from_bytes(tag[5:8], "big")


def _flv_codec(body: bytes) -> bytes:
    """Return a video tag's codec, a number or four letters; empty if the tag holds no frame."""
    kind = body[0] >> 4 & 7
    if kind == _FLV_COMMAND:
        return b""
    return body[1:5] if body[0] & 0x80 else bytes([body[0] & 0x0F])


@dataclass(frozen=True, slots=True)
class _Box:
    """A top-level box of ISO media.

    Attributes:
        kind: its four letters.
        begin: position of its first byte.
        end: position behind its last byte, which the file may not have.
    """

    kind: bytes
    begin: int
    end: int


def _boxes(file: BinaryIO, size: int) -> Iterator[_Box]:
    """Yield the top-level boxes up to the first that isn't known, or is open-ended."""
    at = 0
    for _ in range(_MAX_BOXES):
        if at >= size:
            return
        file.seek(at)
        header = file.read(16)
        if len(header) < 8 or header[4:8] not in _BOXES:
            return
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:
            return
        yield _Box(header[4:8], at, at + length)
        at += length


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Where the last top-level box ends; 0 if one isn't a box that is known, or is open-ended."""
    end = 0
    for box in _boxes(file, size):
        end = box.end
    return end if end >= size else 0


def _end_of_segment(file: BinaryIO, size: int) -> int:
    """Where Matroska's one segment ends; 0 if it is open-ended, as in a live recording."""
    file.seek(4)
    header = _variable_size(file)
    if header is None or header > size:
        return 0
    file.seek(header, 1)
    if file.read(4) != _MATROSKA_SEGMENT:
        return 0
    length = _variable_size(file)
    return 0 if length is None else file.tell() + length


def _variable_size(file: BinaryIO) -> int | None:
    """EBML's variable size integer at the file's position; None if it says "unknown"."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(extra), "big") & ((1 << 7 * (extra + 1)) - 1)
    return None if value == (1 << 7 * (extra + 1)) - 1 else value


def _end_of_riff(head: bytes) -> int:
    """Where the first RIFF chunk ends; 0 if its writer never filled in the size."""
    length = int.from_bytes(head[4:8], "little")
    return 8 + length if 0 < length < 0x7FFF_FFFF else 0
