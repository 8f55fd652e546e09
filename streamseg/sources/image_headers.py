"""What the header of an image file states: size, orientation and the number of images.

Only the headers that belong to the image are read, step by step: an EXIF block of a thumbnail, of
a comment or of a second image behind the first has no say in the orientation.

Layouts: JPEG, ITU-T T.81 annex B; CIPA DC-007 (MPF); PNG, W3C (third edition); BMP and OS/2
bitmaps; WebP, RFC 9649; JPEG 2000, ITU-T T.800; EXIF 2.32 (orientation, tag 0x0112).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from streamseg.sources.isobmff import find_box
from streamseg.sources.tiff import ORIENTATION, Tags, read_directories
from streamseg.structures.results import Size

_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_END, _SCAN, _APP1, _APP2 = 0xD9, 0xDA, 0xE1, 0xE2
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xDA)})
_MARKER: Final = re.compile(rb"\xff+[^\xff]", re.DOTALL)
_MARKER_AFTER_DATA: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_JPEG_START: Final = b"\xff\xd8\xff"
_PADDING: Final = re.compile(rb"\x00*(?=\xff\xd8\xff)")
_EXIF: Final = b"Exif\0\0"
_MPF: Final = b"MPF\0"
_MPF_IMAGES: Final = 0xB001
_OS2_HEADER: Final = 12
_MAX_BLOCKS = 100_000
"""Segments or chunks read in one file; more of them are a way to keep a reader busy."""
_MAX_IMAGES = 100
"""Images counted in one file; that there are more than one is all that matters."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Facts about an image file that hold before its pixels are decoded.

    Attributes:
        size: (height, width) as stored; None if the header is damaged.
        orientation: EXIF's, 1 to 8; 1 is upright.
        images: how many images the file holds, without thumbnails.
    """

    size: Size | None
    orientation: int = 1
    images: int = 1


def orientation_of(tags: Tags) -> int:
    """Return the orientation, 1 to 8; 1 where there is none or it is out of range."""
    orientation = tags.get(ORIENTATION, (1,))[0]
    return orientation if 1 <= orientation <= 8 else 1


def parse_jpeg(data: bytes) -> ImageHeader:
    """Parse the segments of a JPEG's first image."""
    size, orientation, listed, end = None, None, 1, 0
    for marker, body, end in _segments(data, 0):
        if marker in _JPEG_FRAMES and size is None:
            size = _unpack_size(">HH", body, 1, is_height_first=True)
        elif marker == _APP1 and body.startswith(_EXIF) and orientation is None:
            orientation = _exif_orientation(body)
        elif marker == _APP2 and body.startswith(_MPF):
            listed = _count_listed(body)
        elif marker == _SCAN and data.find(_JPEG_START, end) < 0:
            break  # no need to look for the image's end: no other one can follow
    return ImageHeader(size, orientation or 1, max(listed, 1 + _count_jpegs_behind(data, end)))


def parse_png(data: bytes) -> ImageHeader:
    """Parse the chunks of a PNG; of an animation, the default image counts once."""
    orientation, animated, has_default_in_animation, has_data = 1, 0, False, False
    for kind, body in _png_chunks(data):
        if kind == b"eXIf":
            orientation = _exif_orientation(body)
        elif kind == b"acTL" and len(body) >= 4:
            animated = int.from_bytes(body[:4], "big")
        elif kind == b"fcTL" and not has_data:
            has_default_in_animation = True
        has_data = has_data or kind == b"IDAT"
    images = animated + (not has_default_in_animation) if animated else 1
    return ImageHeader(_unpack_size(">II", data, 16), orientation, images)


def parse_bmp(data: bytes) -> ImageHeader:
    """Parse a BMP's header; that of OS/2 1.x has sizes of 16 bits."""
    if int.from_bytes(data[14:18], "little") == _OS2_HEADER:
        return ImageHeader(_unpack_size("<HH", data, 18))
    size = _unpack_size("<ii", data, 18)
    return ImageHeader((abs(size[0]), abs(size[1])) if size else None)


def parse_webp(data: bytes) -> ImageHeader:
    """Parse the chunks of a WebP."""
    orientation, images = 1, 0
    for kind, body in _riff_chunks(data, 12):
        if kind == b"EXIF":
            orientation = _exif_orientation(body)
        images += kind == b"ANMF"
    return ImageHeader(_webp_size(data), orientation, max(images, 1))


def parse_jpeg2000(data: bytes) -> ImageHeader:
    """Parse the image header box of a JP2 file, or the size segment of a bare codestream."""
    if data[:4] == b"\xff\x4f\xff\x51":
        numbers = struct.unpack_from(">4I", data, 8) if len(data) >= 24 else (0, 0, 0, 0)
        width, height = numbers[0] - numbers[2], numbers[1] - numbers[3]
        return ImageHeader((height, width) if height > 0 and width > 0 else None)
    header = find_box(data, b"jp2h", b"ihdr") or b""
    return ImageHeader(_unpack_size(">II", header, 0, is_height_first=True))


def parse_ico(data: bytes) -> ImageHeader:
    """Parse the directory of an icon or cursor: Windows shows its largest image."""
    count = int.from_bytes(data[4:6], "little")
    entries = [data[6 + 16 * number :][:2] for number in range(count)]
    sizes = [((entry[1] or 256), (entry[0] or 256)) for entry in entries if len(entry) == 2]
    largest = max(sizes, key=lambda size: size[0] * size[1], default=None)
    return ImageHeader(largest, images=max(1, len(sizes)))


def _segments(data: bytes, at: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield marker, body and end of each segment of the JPEG at ``at``, its end marker last."""
    found = _MARKER.match(data, at)
    for _ in range(_MAX_BLOCKS):
        if not found:
            return
        marker, at = data[found.end() - 1], found.end()
        if marker in _STANDALONE:
            yield marker, b"", at
        else:
            length = int.from_bytes(data[at : at + 2], "big")
            if length < 2:
                return
            yield marker, data[at + 2 : at + length], at + length
            at += length
        if marker == _END:
            return
        # Entropy-coded data follows a scan's header and nothing else: any other gap is damage.
        found = _MARKER_AFTER_DATA.search(data, at) if marker == _SCAN else _MARKER.match(data, at)


def _count_jpegs_behind(data: bytes, end: int) -> int:
    """Count the JPEGs that follow the first one at once, with nothing but padding between."""
    count = 0
    while end and count < _MAX_IMAGES and (padding := _PADDING.match(data, end)):
        count += 1
        ends = [at for _, _, at in _segments(data, padding.end())]
        end = ends[-1] if ends else 0
    return count


def _exif_orientation(body: bytes) -> int:
    return orientation_of(_first_tags(body.removeprefix(_EXIF)))


def _first_tags(block: bytes) -> Tags:
    first = next(read_directories(block), None)
    return {} if first is None else first.tags


def _count_listed(body: bytes) -> int:
    """Count the images in the index of CIPA's multi-picture format."""
    return _first_tags(body.removeprefix(_MPF)).get(_MPF_IMAGES, (1,))[0]


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    for _ in range(_MAX_BLOCKS):
        if at + 12 > len(data):
            return
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        yield kind, data[at + 8 : at + 8 + length]
        if kind == b"IEND":
            return
        at += 12 + length


def _riff_chunks(data: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : min(at + 8 + length, end)]
        at += 8 + length + length % 2


def _webp_size(data: bytes) -> Size | None:
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack_from("<HH", body, 6)
    return (height & 0x3FFF, width & 0x3FFF) if kind == b"VP8 " else None


def _unpack_size(
    layout: str, data: bytes, at: int, *, is_height_first: bool = False
) -> Size | None:
    if len(data) < at + struct.calcsize(layout):
        return None
    first, second = struct.unpack_from(layout, data, at)
    size = (first, second) if is_height_first else (second, first)
    return size if all(size) else None
