"""MP4 sample table checks: refuses tables that claim more samples than a stream can hold.

FFmpeg allocates about 40 bytes for each sample that a table claims, and a 20-byte table can claim
millions of samples that share one size. So boxes with tables are checked before FFmpeg reads them.
Layout: ISO/IEC 14496-12.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from streamseg.errors import SourceError
from streamseg.sources.isobmff import LONG_HEADER_BYTES, read_box_header

FORMATS = ("mov",)
"""FFmpeg's names for the format."""
MAX_SAMPLES = 2_000_000
"""Maximum number of samples that tables claim but don't list one by one: 11 hours at 50 fps."""
MAX_BOX_BYTES = 32 * 2**20
"""Maximum size of a box in a stream, other than media data, in bytes."""
_MAX_READ_BYTES = 512 * 2**20
"""Maximum number of bytes checked per box of a file; enough for an index of several weeks."""
_BOXES_WITH_TABLES = (b"moov", b"moof")
_BYTES_PER_SAMPLE = 8
"""Number of stream bytes that allow one more sample over ``MAX_SAMPLES``."""
_OPEN_ENDED = 2**63
"""Size used for a box that extends to the end of the stream, in bytes."""
_FIRST_BOXES = frozenset(
    (b"ftyp", b"styp", b"moov", b"moof", b"sidx", b"mdat", b"free", b"skip", b"wide", b"uuid")
)
_TRACK = re.compile(rb"trak")
_SAMPLE_SIZES = re.compile(rb"stsz....(....)(....)", re.DOTALL)
_TRACK_RUN = re.compile(rb"(....)trun.(...)(....)", re.DOTALL)
_RUN_BYTES = 16
"""Size of a track run before its optional fields, in bytes."""
_HANDLER = re.compile(rb"hdlr.{8}(....)", re.DOTALL)
_SAMPLE_TIMES = re.compile(rb"stts.{4}(.{12})", re.DOTALL)
_ONE_TICK_PER_SAMPLE = re.compile(rb"\x00{3}\x01.{4}\x00{3}\x01", re.DOTALL)
_RUN_HEADER_FIELDS = 0x000005
_RUN_SAMPLE_FIELDS = 0x000F00


def is_mp4(preface: bytes) -> bool:
    """Return whether a stream is MP4.

    Args:
        preface: its first bytes.
    """
    return preface[4:8] in _FIRST_BOXES


def check_tables(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a stream unchanged, each box with tables after it was checked.

    Args:
        pieces: an MP4 stream (see ``is_mp4``) in pieces of any size.

    Raises:
        SourceError: the boxes are damaged, too large, compressed, or claim too many samples.
    """
    data = bytearray()
    passed_bytes = samples = 0
    media_bytes = 0  # of a media data box, not passed on yet
    for piece in pieces:
        data += piece
        while data:
            if media_bytes:
                count = min(media_bytes, len(data))
                media_bytes -= count
            else:
                box = _read_box_size(data)
                if box is None:
                    break
                kind, size = box
                if kind == b"mdat":
                    media_bytes = size
                    continue
                if size > MAX_BOX_BYTES:
                    raise SourceError(f"an MP4 box of over {MAX_BOX_BYTES} bytes")
                if len(data) < size:
                    break
                count = size
                if b"cmov" in data[:size]:
                    raise SourceError("an MP4 with a compressed header, which is not supported")
                samples += _count_unlisted_samples(bytes(data[:size]))
                if samples > MAX_SAMPLES + passed_bytes // _BYTES_PER_SAMPLE:
                    raise SourceError(f"an MP4 that claims over {MAX_SAMPLES} samples")
            passed_bytes += count
            yield bytes(data[:count])
            del data[:count]


def check_file(path: Path) -> None:
    """Check the sample tables of a file if it is MP4; damaged boxes are left to FFmpeg.

    Raises:
        SourceError: the tables claim too many samples.
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        file_size = path.stat().st_size
        at = samples = 0
        while at < file_size:
            file.seek(at)
            head = file.read(LONG_HEADER_BYTES)
            try:
                box = _read_box_size(head) if at or is_mp4(head) else None
            except SourceError:
                break
            if box is None:
                break
            kind, size = box
            if kind in _BOXES_WITH_TABLES:
                file.seek(at)
                samples += _count_unlisted_samples(file.read(min(size, _MAX_READ_BYTES)))
            at += size
    if samples > MAX_SAMPLES + file_size // _BYTES_PER_SAMPLE:
        raise SourceError(f"an MP4 that claims over {MAX_SAMPLES} samples")


def _read_box_size(data: bytes | bytearray) -> tuple[bytes, int] | None:
    """Return type and size of the first box; None while its header is incomplete.

    Raises:
        SourceError: the stated size is smaller than the header.
    """
    header = read_box_header(data)
    if header is None:
        return None
    size = _OPEN_ENDED if header.size is None else header.size
    if size < header.header_size:
        raise SourceError("an MP4 whose boxes are damaged")
    return header.kind, size


def _count_unlisted_samples(box: bytes) -> int:
    """Return the number of samples that a box claims but doesn't list one by one."""
    track_starts = [0, *(match.start() for match in _TRACK.finditer(box)), len(box)]
    tracks = (box[a:b] for a, b in itertools.pairwise(track_starts))
    runs = _TRACK_RUN.finditer(box)
    return sum(map(_count_fixed_size_samples, tracks)) + sum(map(_count_run_samples, runs))


def _count_fixed_size_samples(track: bytes) -> int:
    """Return the number of samples of one common size in a track.

    Audio with one tick per sample (PCM) counts as 0: FFmpeg allocates nothing for its samples.
    """
    handlers, times = _HANDLER.findall(track), _SAMPLE_TIMES.findall(track)
    if handlers == [b"soun"] and len(times) == 1 and _ONE_TICK_PER_SAMPLE.fullmatch(times[0]):
        return 0
    tables = ((_to_int(size), _to_int(count)) for size, count in _SAMPLE_SIZES.findall(track))
    return sum(count for size, count in tables if size)


def _count_run_samples(run: re.Match[bytes]) -> int:
    """Return the number of samples that a track run claims but doesn't list in its table."""
    box_size, flags, count = (_to_int(field) for field in run.groups())
    header_size = _RUN_BYTES + 4 * (flags & _RUN_HEADER_FIELDS).bit_count()
    entry_size = 4 * (flags & _RUN_SAMPLE_FIELDS).bit_count()
    table_size = min(box_size, len(run.string) - run.start()) - header_size
    return max(0, count - max(0, table_size) // entry_size) if entry_size else count


def _to_int(field: bytes) -> int:
    return int.from_bytes(field, "big")
