"""Boxes of ISO base media files (ISO/IEC 14496-12, section 4.2), as in HEIF, AVIF and JPEG 2000."""

from __future__ import annotations

from collections.abc import Iterator


def read_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the body of each box in ``data``; they end where one is damaged."""
    at = 0
    while at + 8 <= len(data):
        length, header = int.from_bytes(data[at : at + 4], "big"), 8
        if length == 1:
            length, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif length == 0:
            length = len(data) - at
        if length < header or at + length > len(data):
            return
        yield data[at + 4 : at + 8], data[at + header : at + length]
        at += length


def find_box(data: bytes, *path: bytes) -> bytes | None:
    """Return the body of the first box at ``path``, a type for each level; None if there is none.

    Between levels there must be no version and flags (as a full box has).
    """
    for kind in path:
        found = next((body for name, body in read_boxes(data) if name == kind), None)
        if found is None:
            return None
        data = found
    return data
