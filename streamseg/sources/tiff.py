"""TIFF: parsing of directories, choice of the main image, and decoding.

Layouts: TIFF 6.0; TIFF Technical Note 1 (sub-images); BigTIFF as documented by libtiff. EXIF blocks
use the same directories.

Pillow (libtiff) decodes most files: it supports tiles and all compressions, for which FFmpeg's
decoder returns wrong pixels without an error. A few strip layouts are left to FFmpeg: Pillow
truncates 16 bits to 8 instead of rounding, refuses floating-point samples, and misreads
uncompressed 16-bit planes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from streamseg.sources.base import BadImageError, decoder_limit
from streamseg.sources.pillow import decode_with_pillow, to_rgb
from streamseg.structures.results import Image

if TYPE_CHECKING:
    from streamseg.sources.pillow import PillowImage

Tags: TypeAlias = Mapping[int, tuple[int, ...]]
"""Tags of a directory with integer values: the first values of each."""

WIDTH: Final = 0x0100
HEIGHT: Final = 0x0101
ORIENTATION: Final = 0x0112
_SUBFILE_TYPE: Final = 0x00FE
_OLD_SUBFILE_TYPE: Final = 0x00FF
_BITS_PER_SAMPLE: Final = 0x0102
_COMPRESSION: Final = 0x0103
_PHOTOMETRIC: Final = 0x0106
_FILL_ORDER: Final = 0x010A
_SAMPLES_PER_PIXEL: Final = 0x0115
_PLANAR_CONFIGURATION: Final = 0x011C
_PREDICTOR: Final = 0x013D
_TILE_WIDTH: Final = 0x0142
_TILE_HEIGHT: Final = 0x0143
_SAMPLE_FORMAT: Final = 0x0153

_INTEGER_TYPES: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_MAX_VALUES = 8
_MAX_ENTRIES = 100_000
"""Maximum number of directory entries read per file, against files made to waste time."""
_REDUCED_OR_MASK_BITS = 0b101
_OLD_REDUCED_IMAGE = 2
_WHITE_IS_ZERO = 0
_SEPARATE_PLANES = 2
_UNCOMPRESSED = 1
_FLOAT_PREDICTOR = 3
_FFMPEG_SAMPLES = {
    (0, 1, 16, 1, 1),  # gray, white is zero
    (1, 1, 16, 1, 1),
    (1, 2, 16, 1, 1),  # gray and alpha
    (2, 3, 16, 1, 1),  # RGB
    (2, 3, 16, 1, 2),
    (2, 4, 16, 1, 1),
    (2, 4, 16, 1, 2),
    (2, 3, 32, 3, 1),  # RGB, floating-point 0..1
    (2, 3, 32, 3, 2),
    (5, 4, 8, 1, 1),  # CMYK
}
"""Photometric interpretation, samples per pixel, bits per sample, sample format and planar
configuration of the files that FFmpeg decodes better than Pillow."""
_FFMPEG_COMPRESSIONS = {1, 5, 8, 32773, 32946}


@dataclass(frozen=True, slots=True)
class _Layout:
    """Byte order and field widths of a TIFF, as ``struct`` formats.

    Attributes:
        order: byte order, "<" or ">".
        is_big: whether the file is a BigTIFF.
    """

    order: str
    is_big: bool

    @property
    def first_offset_at(self) -> int:
        """Position of the first directory's offset, in bytes."""
        return 8 if self.is_big else 4

    @property
    def offset(self) -> str:
        """Format of an offset."""
        return self.order + ("Q" if self.is_big else "I")

    @property
    def count(self) -> str:
        """Format of the number of entries in front of a directory."""
        return self.order + ("Q" if self.is_big else "H")

    @property
    def entry(self) -> str:
        """Format of a directory entry: tag, type, number of values, and value or offset."""
        return self.order + ("HHQ8s" if self.is_big else "HHI4s")


@dataclass(frozen=True, slots=True)
class Directory:
    """Directory of a TIFF, which describes one image.

    Attributes:
        offset: position in the file, in bytes.
        tags: its integer tags.
    """

    offset: int
    tags: Tags

    @property
    def pixels(self) -> int:
        """Number of pixels; 0 if width or height is missing."""
        return self.tags.get(WIDTH, (0,))[0] * self.tags.get(HEIGHT, (0,))[0]


def find_main_directory(data: bytes) -> tuple[Directory, int]:
    """Return the directory of the main image, and the number of images.

    The main image is the largest one, because thumbnails are often not marked as such; the first
    if several are equally large. Marked thumbnails and masks don't count as images.

    Raises:
        BadImageError: no directory states a size.
    """
    directories = [each for each in read_directories(data) if each.pixels]
    full = [each for each in directories if not _is_reduced_or_mask(each.tags)]
    candidates = full or directories
    if not candidates:
        raise BadImageError("its header is damaged")
    return max(candidates, key=lambda each: each.pixels), len(candidates)


def read_directories(data: bytes, base: int = 0) -> Iterator[Directory]:
    """Yield the directories of the TIFF block at byte ``base``, up to the first damaged one."""
    layout = _read_layout(data, base)
    if layout is None:
        return
    entries_left, seen = _MAX_ENTRIES, set[int]()
    try:
        at = base + int(struct.unpack_from(layout.offset, data, base + layout.first_offset_at)[0])
        while at != base and at not in seen:
            seen.add(at)
            count = int(struct.unpack_from(layout.count, data, at)[0])
            entries_left -= count + 1
            if entries_left < 0:
                return
            first = at + struct.calcsize(layout.count)
            size = struct.calcsize(layout.entry)
            yield Directory(at, dict(_read_entries(data, base, first, count, layout)))
            at = base + int(struct.unpack_from(layout.offset, data, first + count * size)[0])
    except (struct.error, OverflowError):
        return


def set_first_directory(data: bytes, directory: Directory) -> bytes:
    """Return the file with ``directory`` as its first one, which decoders read."""
    layout = _read_layout(data, 0)
    if layout is None:
        raise BadImageError("its header is damaged")
    at, offset = layout.first_offset_at, struct.pack(layout.offset, directory.offset)
    if data[at:].startswith(offset):
        return data
    return data[:at] + offset + data[at + len(offset) :]


def decode_tiff(data: bytes, tags: Tags, max_pixels: int) -> Image:
    """Decode the image of the first directory.

    Args:
        data: content of the file.
        tags: tags of the first directory.
        max_pixels: pixel limit of a tile.

    Returns:
        uint8 (H, W, 3) RGB, upright.

    Raises:
        BadImageError: the file is damaged, or its samples have no defined conversion to 8 bits.
    """
    layout = _read_layout(data, 0)
    if layout is not None and layout.is_big and layout.order == ">":
        raise BadImageError("big-endian BigTIFF is not supported: convert the file")
    tile_pixels = tags.get(_TILE_WIDTH, (0,))[0] * tags.get(_TILE_HEIGHT, (0,))[0]
    if tile_pixels > decoder_limit(max_pixels):
        raise BadImageError(f"its tiles have {tile_pixels} pixels")
    photometric, samples, depth, _format, planar = _read_samples(tags)
    has_planes = samples > 1 and planar == _SEPARATE_PLANES
    if has_planes and depth == 16 and tags.get(_COMPRESSION) == (_UNCOMPRESSED,):
        raise BadImageError("uncompressed 16-bit planes are not supported: compress the file")

    def convert(image: PillowImage) -> Image:
        if not image.mode.startswith("I;16"):
            return to_rgb(image)
        return _gray_to_rgb(np.asarray(image), depth, inverted=photometric == _WHITE_IS_ZERO)

    return decode_with_pillow("TIFF", data, convert)


def needs_ffmpeg(data: bytes, tags: Tags) -> bool:
    """Return whether FFmpeg, and not Pillow, must decode the image of the first directory."""
    layout = _read_layout(data, 0)
    is_interleaved = tags.get(_PLANAR_CONFIGURATION, (1,)) == (1,)
    has_float_predictor = tags.get(_PREDICTOR, (1,)) == (_FLOAT_PREDICTOR,)
    return (
        layout is not None
        and not layout.is_big
        and _read_samples(tags) in _FFMPEG_SAMPLES
        and tags.get(_COMPRESSION, (1,))[0] in _FFMPEG_COMPRESSIONS
        and tags.get(_FILL_ORDER, (1,)) == (1,)
        and (is_interleaved or not has_float_predictor)
        and not {_TILE_WIDTH, _TILE_HEIGHT} & tags.keys()
    )


def _read_samples(tags: Tags) -> tuple[int, int, int, int, int]:
    """Return the tags that describe the samples, in the order of ``_FFMPEG_SAMPLES``.

    Raises:
        BadImageError: the samples of a pixel differ in bits or format.
    """
    bits, formats = set(tags.get(_BITS_PER_SAMPLE, (1,))), set(tags.get(_SAMPLE_FORMAT, (1,)))
    if len(bits) != 1 or len(formats) != 1:
        raise BadImageError("its samples differ in bits or format")
    photometric, samples = tags.get(_PHOTOMETRIC, (-1,))[0], tags.get(_SAMPLES_PER_PIXEL, (1,))[0]
    planar = tags.get(_PLANAR_CONFIGURATION, (1,))[0]
    return photometric, samples, bits.pop(), formats.pop(), planar


def _read_layout(data: bytes, base: int) -> _Layout | None:
    """Return the layout of the TIFF block at ``base``; None if there is none."""
    signature = data[base : base + 4]
    orders = {b"II": "<", b"MM": ">"}
    if signature in (b"II*\0", b"MM\0*"):
        return _Layout(orders[signature[:2]], is_big=False)
    if signature in (b"II+\0", b"MM\0+"):
        return _Layout(orders[signature[:2]], is_big=True)
    return None


def _read_entries(
    data: bytes, base: int, first: int, count: int, layout: _Layout
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the integer tags among ``count`` entries, with up to ``_MAX_VALUES`` values each."""
    size = struct.calcsize(layout.entry)
    for at in range(first, first + count * size, size):
        tag, type_, length, inline = struct.unpack_from(layout.entry, data, at)
        if type_ not in _INTEGER_TYPES or not length:
            continue
        values = f"{layout.order}{min(length, _MAX_VALUES)}{_INTEGER_TYPES[type_]}"
        is_inline = length * struct.calcsize(layout.order + _INTEGER_TYPES[type_]) <= len(inline)
        values_at = 0 if is_inline else base + int(struct.unpack(layout.offset, inline)[0])
        block = inline if is_inline else data
        if values_at + struct.calcsize(values) <= len(block):
            yield tag, struct.unpack_from(values, block, values_at)


def _is_reduced_or_mask(tags: Tags) -> bool:
    is_marked = bool(tags.get(_SUBFILE_TYPE, (0,))[0] & _REDUCED_OR_MASK_BITS)
    return is_marked or tags.get(_OLD_SUBFILE_TYPE) == (_OLD_REDUCED_IMAGE,)


def _gray_to_rgb(gray: npt.NDArray[np.uint16], depth: int, *, inverted: bool) -> Image:
    """Round gray values (H, W) of ``depth`` bits to uint8 (H, W, 3)."""
    shift = depth - 8
    rounded = (gray.astype(np.uint32) + (1 << shift >> 1)) >> shift
    levels = np.minimum(rounded, 255).astype(np.uint8)
    return cast(Image, np.repeat((255 - levels if inverted else levels)[..., None], 3, axis=2))
