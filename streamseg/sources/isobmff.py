"""Boxes of the ISO base media file format (MP4, HEIF, AVIF; also JPEG 2000).

Layout: ISO/IEC 14496-12, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LONG_HEADER_BYTES = 16
"""Size of a box header with a 64-bit box size, in bytes."""


@dataclass(frozen=True, slots=True)
class BoxHeader:
    """Header of an ISO base media box.

    Attributes:
        kind: box type, four letters.
        header_size: bytes of the header.
        size: bytes of the whole box as stated, possibly fewer than ``header_size`` in a damaged
            file; None if the box extends to the end of the file.
    """

    kind: bytes
    header_size: int
    size: int | None


def read_box_header(data: bytes | bytearray, at: int = 0) -> BoxHeader | None:
    """Return the box header at byte ``at``; None if ``data`` ends within it."""
    if len(data) < at + 8:
        return None
    kind, size = bytes(data[at + 4 : at + 8]), int.from_bytes(data[at : at + 4], "big")
    if size == 0:
        return BoxHeader(kind, 8, None)
    if size != 1:
        return BoxHeader(kind, 8, size)
    if len(data) < at + LONG_HEADER_BYTES:
        return None
    size = int.from_bytes(data[at + 8 : at + LONG_HEADER_BYTES], "big")
    return BoxHeader(kind, LONG_HEADER_BYTES, size)


def read_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the body of each box in ``data``, up to the first damaged one."""
    at = 0
    while (header := read_box_header(data, at)) is not None:
        size = len(data) - at if header.size is None else header.size
        if size < header.header_size or at + size > len(data):
            return
        yield header.kind, data[at + header.header_size : at + size]
        at += size


def find_box(data: bytes, *path: bytes) -> bytes | None:
    """Return the body of the first box at ``path``; None if there is none.

    Args:
        data: boxes, one after the other.
        path: the box type at each level of nesting; only the innermost box may be a full box
            (one whose body starts with version and flags).
    """
    for kind in path:
        body = next((body for name, body in read_boxes(data) if name == kind), None)
        if body is None:
            return None
        data = body
    return data
