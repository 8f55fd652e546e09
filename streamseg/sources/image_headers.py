"""Image file headers: size, orientation and number of images.

Only the headers that belong to the image are parsed: an EXIF block in a thumbnail, in a comment or
in a second image after the first doesn't affect the orientation.

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
_MARKERS_WITHOUT_BODY: Final = frozenset({0x01, *range(0xD0, 0xDA)})
_MARKER: Final = re.compile(rb"\xff+[^\xff]", re.DOTALL)
_MARKER_AFTER_DATA: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_JPEG_START: Final = b"\xff\xd8\xff"
_PADDING: Final = re.compile(rb"\x00*(?=\xff\xd8\xff)")
_EXIF: Final = b"Exif\0\0"
_MPF: Final = b"MPF\0"
_MPF_IMAGE_COUNT: Final = 0xB001
_OS2_HEADER_BYTES: Final = 12
_MAX_BLOCKS = 100_000
"""Maximum number of segments or chunks read per file, against files made to waste time."""
_MAX_IMAGES = 100
"""Number of images after which counting stops; it only matters whether there are several."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Header of an image file.

    Attributes:
        size: (height, width) as stored; None if the header is damaged.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        images: number of images in the file, without thumbnails.
    """

    size: Size | None
    orientation: int = 1
    images: int = 1


def read_orientation_tag(tags: Tags) -> int:
    """Return the EXIF orientation among a directory's tags, 1 to 8; 1 if missing or invalid."""
    orientation = tags.get(ORIENTATION, (1,))[0]
    return orientation if 1 <= orientation <= 8 else 1


def parse_jpeg(data: bytes) -> ImageHeader:
    """Parse the segments of a JPEG; size and orientation are those of the first image."""
    size, orientation, indexed_images, end = None, None, 1, 0
    for marker, body, end in _jpeg_segments(data, 0):
        if marker in _JPEG_FRAMES and size is None:
            size = _read_size(">HH", body, 1, is_height_first=True)
        elif marker == _APP1 and body.startswith(_EXIF) and orientation is None:
            orientation = _read_exif_orientation(body)
        elif marker == _APP2 and body.startswith(_MPF):
            tags = _read_first_directory(body.removeprefix(_MPF))
            indexed_images = tags.get(_MPF_IMAGE_COUNT, (1,))[0]
        elif marker == _SCAN and data.find(_JPEG_START, end) < 0:
            break  # no other image can follow, so the end of this one isn't needed
    images = max(indexed_images, 1 + _count_jpegs_after(data, end))
    return ImageHeader(size, orientation or 1, images)


def parse_png(data: bytes) -> ImageHeader:
    """Parse the chunks of a PNG; the default image of an animation counts once."""
    orientation, animation_frames, is_default_animated, has_data = 1, 0, False, False
    for kind, body in _png_chunks(data):
        if kind == b"eXIf":
            orientation = _read_exif_orientation(body)
        elif kind == b"acTL" and len(body) >= 4:
            animation_frames = int.from_bytes(body[:4], "big")
        elif kind == b"fcTL" and not has_data:
            is_default_animated = True
        has_data = has_data or kind == b"IDAT"
    images = animation_frames + (not is_default_animated) if animation_frames else 1
    return ImageHeader(_read_size(">II", data, 16), orientation, images)


def parse_bmp(data: bytes) -> ImageHeader:
    """Parse a BMP's header; that of OS/2 1.x has 16-bit sizes."""
    if int.from_bytes(data[14:18], "little") == _OS2_HEADER_BYTES:
        return ImageHeader(_read_size("<HH", data, 18))
    size = _read_size("<ii", data, 18)
    return ImageHeader((abs(size[0]), abs(size[1])) if size else None)


def parse_webp(data: bytes) -> ImageHeader:
    """Parse the chunks of a WebP."""
    orientation, images = 1, 0
    for kind, body in _riff_chunks(data, 12):
        if kind == b"EXIF":
            orientation = _read_exif_orientation(body)
        images += kind == b"ANMF"
    return ImageHeader(_read_webp_size(data), orientation, max(images, 1))


def parse_jpeg2000(data: bytes) -> ImageHeader:
    """Parse the image header box of a JP2 file, or the size segment of a bare codestream."""
    if data[:4] == b"\xff\x4f\xff\x51":
        numbers = struct.unpack_from(">4I", data, 8) if len(data) >= 24 else (0, 0, 0, 0)
        width, height = numbers[0] - numbers[2], numbers[1] - numbers[3]
        return ImageHeader((height, width) if height > 0 and width > 0 else None)
    header = find_box(data, b"jp2h", b"ihdr") or b""
    return ImageHeader(_read_size(">II", header, 0, is_height_first=True))


def parse_ico(data: bytes) -> ImageHeader:
    """Parse the directory of an icon or cursor; its main image is the largest one."""
    count = int.from_bytes(data[4:6], "little")
    entries = [data[6 + 16 * number :][:2] for number in range(count)]
    sizes = [((entry[1] or 256), (entry[0] or 256)) for entry in entries if len(entry) == 2]
    largest = max(sizes, key=lambda size: size[0] * size[1], default=None)
    return ImageHeader(largest, images=max(1, len(sizes)))


def _jpeg_segments(data: bytes, at: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield marker, body and end position of each segment of the JPEG at ``at``."""
    match = _MARKER.match(data, at)
    for _ in range(_MAX_BLOCKS):
        if not match:
            return
        marker, at = data[match.end() - 1], match.end()
        if marker in _MARKERS_WITHOUT_BODY:
            yield marker, b"", at
        else:
            length = int.from_bytes(data[at : at + 2], "big")
            if length < 2:
                return
            yield marker, data[at + 2 : at + length], at + length
            at += length
        if marker == _END:
            return
        # Entropy-coded data follows only a scan header; any other gap is damage.
        match = _MARKER_AFTER_DATA.search(data, at) if marker == _SCAN else _MARKER.match(data, at)


def _count_jpegs_after(data: bytes, end: int) -> int:
    """Count the JPEGs that start at ``end``, one after the other, with at most padding between."""
    count = 0
    while end and count < _MAX_IMAGES and (padding := _PADDING.match(data, end)):
        count += 1
        ends = [at for _, _, at in _jpeg_segments(data, padding.end())]
        end = ends[-1] if ends else 0
    return count


def _read_exif_orientation(body: bytes) -> int:
    """Return the orientation in an EXIF block, 1 to 8, with or without EXIF's own prefix."""
    return read_orientation_tag(_read_first_directory(body.removeprefix(_EXIF)))


def _read_first_directory(block: bytes) -> Tags:
    """Return the tags of a TIFF block's first directory; none if it is damaged."""
    first = next(read_directories(block), None)
    return {} if first is None else first.tags


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the body of each chunk of a PNG."""
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
    """Yield the type and the body of each chunk of a RIFF file from ``at`` on."""
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : min(at + 8 + length, end)]
        at += 8 + length + length % 2


def _read_webp_size(data: bytes) -> Size | None:
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


def _read_size(layout: str, data: bytes, at: int, *, is_height_first: bool = False) -> Size | None:
    """Return the (height, width) at ``at``; None if it is missing or one of them is 0."""
    if len(data) < at + struct.calcsize(layout):
        return None
    first, second = struct.unpack_from(layout, data, at)
    size = (first, second) if is_height_first else (second, first)
    return size if all(size) else None
