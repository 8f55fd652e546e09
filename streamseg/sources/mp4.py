"""MP4 byte streams (ISO/IEC 14496-12): tables that claim more samples than a stream can hold.

FFmpeg takes some 40 bytes of memory for each sample that a table claims, and a table of 20 bytes
can claim millions that share one size. So boxes with tables are checked before FFmpeg reads them.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from streamseg.errors import SourceError

FORMATS = ("mov",)
"""FFmpeg's names of the format."""
MAX_SAMPLES = 2_000_000
"""Samples of a stream without bytes of their own in a table: 11 hours of 50 frames a second."""
MAX_BOX_BYTES = 32 * 2**20
"""Bytes of a box that may hold tables."""
_MAX_READ = 512 * 2**20
"""Bytes of one box of a file that are checked: the index of weeks."""
_LONG_HEADER = 16
"""Bytes of a box's header with a size of 64 bits."""
_WITH_TABLES = (b"moov", b"moof")
_BYTES_PER_SAMPLE = 8
"""Bytes of a stream for each more such sample."""
_FIRST_BOXES = frozenset(
    (b"ftyp", b"styp", b"moov", b"moof", b"sidx", b"mdat", b"free", b"skip", b"wide", b"uuid")
)
_TRACK = re.compile(rb"trak")
_FIXED_SIZES = re.compile(rb"stsz....(....)(....)", re.DOTALL)
_RUN = re.compile(rb"(....)trun.(...)(....)", re.DOTALL)
_RUN_BYTES = 16
"""Bytes of a track run before its optional fields."""
_HANDLER = re.compile(rb"hdlr.{8}(....)", re.DOTALL)
_TIMES = re.compile(rb"stts.{4}(.{12})", re.DOTALL)
_ONE_BY_ONE = re.compile(rb"\x00{3}\x01.{4}\x00{3}\x01", re.DOTALL)
_RUN_HEADER_FIELDS = 0x000005
_RUN_SAMPLE_FIELDS = 0x000F00


def is_mp4(preface: bytes) -> bool:
    """Whether a stream begins with a box of MP4."""
    return preface[4:8] in _FIRST_BOXES


def check_tables(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a stream as it is, each box with tables after it was checked.

    Args:
        pieces: a stream that ``is_mp4``, cut anywhere.

    Raises:
        SourceError: its boxes are damaged, or claim too much.
    """
    data = bytearray()
    passed = claimed = 0
    media = 0
    for piece in pieces:
        data += piece
        while data:
            if media:  # what is left of a box of media
                count = min(media, len(data))
                media -= count
            else:
                box = _box_at_start(data)
                if box is None:
                    break
                kind, size = box
                if kind == b"mdat":
                    media = size
                    continue
                if size > MAX_BOX_BYTES:
                    raise SourceError(f"an MP4 box of over {MAX_BOX_BYTES} bytes")
                if len(data) < size:
                    break
                count = size
                if b"cmov" in data[:size]:
                    raise SourceError("an MP4 whose header is compressed, which can't be read")
                claimed += _claimed_samples(bytes(data[:size]))
                if claimed > MAX_SAMPLES + passed // _BYTES_PER_SAMPLE:
                    raise SourceError(f"an MP4 that claims over {MAX_SAMPLES} samples")
            passed += count
            yield bytes(data[:count])
            del data[:count]


def check_file(path: Path) -> None:
    """Check the tables of a file, if it is MP4; a damaged one is left to FFmpeg.

    Raises:
        SourceError: its tables claim too much.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        length = path.stat().st_size
        start = claimed = 0
        while start < length:
            file.seek(start)
            head = file.read(_LONG_HEADER)
            try:
                box = _box_at_start(bytearray(head)) if start or is_mp4(head) else None
            except SourceError:
                break
            if box is None:
                break
            kind, size = box
            if kind in _WITH_TABLES:
                file.seek(start)
                claimed += _claimed_samples(file.read(min(size, _MAX_READ)))
            start += size
    if claimed > MAX_SAMPLES + length // _BYTES_PER_SAMPLE:
        raise SourceError(f"an MP4 that claims over {MAX_SAMPLES} samples")


def _box_at_start(data: bytearray) -> tuple[bytes, int] | None:
    """Return type and size of a box, None while its header isn't there."""
    if len(data) < 8:
        return None
    size, kind = struct.unpack_from(">I4s", data)
    header = 8
    if size == 1:
        if len(data) < 16:
            return None
        (size,) = struct.unpack_from(">Q", data, 8)
        header = 16
    elif size == 0:  # up to the end of the stream
        size = 2**63
    if size < header:
        raise SourceError("an MP4 whose boxes are damaged")
    return kind, size


def _claimed_samples(box: bytes) -> int:
    """Return how many samples a box claims without giving each bytes of its own in a table."""
    starts = [0, *(match.start() for match in _TRACK.finditer(box)), len(box)]
    tracks = (box[a:b] for a, b in itertools.pairwise(starts))
    return sum(map(_fixed_size_samples, tracks)) + sum(map(_run_samples, _RUN.finditer(box)))


def _fixed_size_samples(track: bytes) -> int:
    """Return the samples of one size; sound of one sample a tick costs FFmpeg nothing for each."""
    handlers, times = _HANDLER.findall(track), _TIMES.findall(track)
    if handlers == [b"soun"] and len(times) == 1 and _ONE_BY_ONE.fullmatch(times[0]):
        return 0
    found = ((_integer(size), _integer(count)) for size, count in _FIXED_SIZES.findall(track))
    return sum(count for size, count in found if size)


def _run_samples(run: re.Match[bytes]) -> int:
    """Return the samples of a track run for which its table has no bytes."""
    box, flags, count = (_integer(field) for field in run.groups())
    header = _RUN_BYTES + 4 * (flags & _RUN_HEADER_FIELDS).bit_count()
    size = 4 * (flags & _RUN_SAMPLE_FIELDS).bit_count()
    table = min(box, len(run.string) - run.start()) - header
    return max(0, count - max(0, table) // size) if size else count


def _integer(field: bytes) -> int:
    return int.from_bytes(field, "big")
