"""TIFF: its directories, the main image among several, and decoding.

Layouts: TIFF 6.0; TIFF Technical Note 1 (sub-images); BigTIFF as libtiff documents it. The same
directories hold EXIF's tags.

Pillow (libtiff) decodes: it knows tiles, JPEG and every other compression, where FFmpeg's decoder
gives wrong pixels without an error. A few layouts in strips are left to FFmpeg: Pillow cuts 16 bits
off to 8 where FFmpeg rounds, refuses floats, and misreads uncompressed planes of 16 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from streamseg.sources.base import BadImageError, decoder_limit
from streamseg.sources.pillow import decode_pillow, to_rgb
from streamseg.structures.results import Image

if TYPE_CHECKING:
    from streamseg.sources.pillow import PillowImage

Tags: TypeAlias = Mapping[int, tuple[int, ...]]
"""Whole-number tags of a directory, each with its first values."""

WIDTH: Final = 0x0100
HEIGHT: Final = 0x0101
ORIENTATION: Final = 0x0112
_SUBFILE_BITS: Final = 0x00FE
_OLD_SUBFILE: Final = 0x00FF
_BITS: Final = 0x0102
_COMPRESSION: Final = 0x0103
_PHOTOMETRIC: Final = 0x0106
_FILL_ORDER: Final = 0x010A
_SAMPLES: Final = 0x0115
_PLANAR: Final = 0x011C
_PREDICTOR: Final = 0x013D
_TILE_WIDTH: Final = 0x0142
_TILE_HEIGHT: Final = 0x0143
_SAMPLE_FORMAT: Final = 0x0153

_TYPES: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_MAX_VALUES = 8
_MAX_ENTRIES = 100_000
"""Entries read in all directories of a file; more of them are a way to keep a reader busy."""
_REDUCED_OR_MASK = 0b101
_OLD_REDUCED = 2
_WHITE_IS_ZERO = 0
_PLANES = 2
_UNCOMPRESSED = 1
_FLOAT_PREDICTOR = 3
_FFMPEG_SAMPLES = {
    (0, 1, 16, 1, 1),  # grey, white is zero
    (1, 1, 16, 1, 1),
    (1, 2, 16, 1, 1),  # grey and alpha
    (2, 3, 16, 1, 1),  # RGB
    (2, 3, 16, 1, 2),
    (2, 4, 16, 1, 1),
    (2, 4, 16, 1, 2),
    (2, 3, 32, 3, 1),  # RGB, floats from 0 to 1
    (2, 3, 32, 3, 2),
    (5, 4, 8, 1, 1),  # CMYK
}
"""Photometric interpretation, samples, bits, sample format and planar configuration."""
_FFMPEG_COMPRESSIONS = {1, 5, 8, 32773, 32946}


@dataclass(frozen=True, slots=True)
class _Layout:
    """Byte order and field widths of a TIFF: how its directories are unpacked."""

    order: str
    big: bool

    @property
    def link(self) -> int:
        """Where the offset of the first directory is, in bytes."""
        return 8 if self.big else 4

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def entry(self) -> str:
        return self.order + ("HHQ8s" if self.big else "HHI4s")


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory of a TIFF: where it is in the file, in bytes, and its tags."""

    offset: int
    tags: Tags

    @property
    def pixels(self) -> int:
        """Width times height; 0 if one of them is missing."""
        return self.tags.get(WIDTH, (0,))[0] * self.tags.get(HEIGHT, (0,))[0]


def main_directory(data: bytes) -> tuple[Directory, int]:
    """Return the directory of the main image, and how many images there are.

    The main image is the largest one, the first of equal ones: thumbnails are often not marked.
    Reduced copies and masks that are marked are no images of their own.

    Raises:
        BadImageError: there is no directory with a size.
    """
    directories = [each for each in read_directories(data) if each.pixels]
    full = [each for each in directories if not _is_reduced_or_mask(each.tags)]
    candidates = full or directories
    if not candidates:
        raise BadImageError("its header is damaged")
    return max(candidates, key=lambda each: each.pixels), len(candidates)


def read_directories(data: bytes, base: int = 0) -> Iterator[Directory]:
    """Yield the directories of the TIFF block at ``base``; they end where they are damaged."""
    layout = _layout(data, base)
    if layout is None:
        return
    left, seen = _MAX_ENTRIES, set[int]()
    try:
        at = base + int(struct.unpack_from(layout.offset, data, base + layout.link)[0])
        while at != base and at not in seen:
            seen.add(at)
            count = int(struct.unpack_from(layout.count, data, at)[0])
            left -= count + 1
            if left < 0:
                return
            first = at + struct.calcsize(layout.count)
            size = struct.calcsize(layout.entry)
            yield Directory(at, dict(_read_entries(data, base, first, count, layout)))
            at = base + int(struct.unpack_from(layout.offset, data, first + count * size)[0])
    except (struct.error, OverflowError):
        return


def begin_with(data: bytes, directory: Directory) -> bytes:
    """Return the file with a directory as its first: the one that decoders read."""
    layout = _layout(data, 0)
    if layout is None:
        raise BadImageError("its header is damaged")
    link = struct.pack(layout.offset, directory.offset)
    head, rest = data[: layout.link], data[layout.link + len(link) :]
    return data if data[layout.link :].startswith(link) else head + link + rest


def decode_tiff(data: bytes, tags: Tags, max_pixels: int) -> Image:
    """Decode the image of the first directory, whose tags are given.

    Returns:
        uint8 (H, W, 3) RGB, upright.

    Raises:
        BadImageError: it is damaged, or its samples have no defined brightness in 8 bits.
    """
    layout = _layout(data, 0)
    if layout is not None and layout.big and layout.order == ">":
        raise BadImageError("Pillow misreads BigTIFFs that are big-endian: convert the file")
    tile = tags.get(_TILE_WIDTH, (0,))[0] * tags.get(_TILE_HEIGHT, (0,))[0]
    if tile > decoder_limit(max_pixels):
        raise BadImageError(f"its tiles have {tile} pixels")
    photometric, samples, depth, _format, planar = _read_samples(tags)
    has_planes = samples > 1 and planar == _PLANES
    if has_planes and depth == 16 and tags.get(_COMPRESSION) == (_UNCOMPRESSED,):
        raise BadImageError("Pillow misreads uncompressed planes of 16 bits: compress the file")

    def convert(image: PillowImage) -> Image:
        if not image.mode.startswith("I;16"):
            return to_rgb(image)
        return _grey_to_rgb(np.asarray(image), depth, inverted=photometric == _WHITE_IS_ZERO)

    return decode_pillow("TIFF", data, convert)


def is_for_ffmpeg(data: bytes, tags: Tags) -> bool:
    """Return whether FFmpeg decodes the image of the first directory better than Pillow."""
    layout = _layout(data, 0)
    return (
        layout is not None
        and not layout.big
        and _read_samples(tags) in _FFMPEG_SAMPLES
        and tags.get(_COMPRESSION, (1,))[0] in _FFMPEG_COMPRESSIONS
        and tags.get(_FILL_ORDER, (1,)) == (1,)
        and (tags.get(_PLANAR, (1,)) == (1,) or tags.get(_PREDICTOR, (1,)) != (_FLOAT_PREDICTOR,))
        and not {_TILE_WIDTH, _TILE_HEIGHT} & tags.keys()
    )


def _read_samples(tags: Tags) -> tuple[int, int, int, int, int]:
    """Return photometric interpretation, number of samples, their bits, format and planes.

    Raises:
        BadImageError: the samples differ in bits or format.
    """
    bits, formats = set(tags.get(_BITS, (1,))), set(tags.get(_SAMPLE_FORMAT, (1,)))
    if len(bits) != 1 or len(formats) != 1:
        raise BadImageError("its samples differ from each other")
    photometric, samples = tags.get(_PHOTOMETRIC, (-1,))[0], tags.get(_SAMPLES, (1,))[0]
    planar = tags.get(_PLANAR, (1,))[0]
    return photometric, samples, bits.pop(), formats.pop(), planar


def _layout(data: bytes, base: int) -> _Layout | None:
    magic = data[base : base + 4]
    orders = {b"II": "<", b"MM": ">"}
    if magic in (b"II*\0", b"MM\0*"):
        return _Layout(orders[magic[:2]], big=False)
    if magic in (b"II+\0", b"MM\0+"):
        return _Layout(orders[magic[:2]], big=True)
    return None


def _read_entries(
    data: bytes, base: int, first: int, count: int, layout: _Layout
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the whole-number tags among ``count`` entries, with up to ``_MAX_VALUES`` values."""
    size = struct.calcsize(layout.entry)
    for at in range(first, first + count * size, size):
        tag, kind, length, inline = struct.unpack_from(layout.entry, data, at)
        if kind not in _TYPES or not length:
            continue
        values = f"{layout.order}{min(length, _MAX_VALUES)}{_TYPES[kind]}"
        is_inline = length * struct.calcsize(layout.order + _TYPES[kind]) <= len(inline)
        place = 0 if is_inline else base + int(struct.unpack(layout.offset, inline)[0])
        source = inline if is_inline else data
        if place + struct.calcsize(values) <= len(source):
            yield tag, struct.unpack_from(values, source, place)


def _is_reduced_or_mask(tags: Tags) -> bool:
    bits = tags.get(_SUBFILE_BITS, (0,))[0]
    return bool(bits & _REDUCED_OR_MASK) or tags.get(_OLD_SUBFILE) == (_OLD_REDUCED,)


def _grey_to_rgb(grey: npt.NDArray[np.uint16], depth: int, *, inverted: bool) -> Image:
    """Round ``depth`` bits to 8."""
    shift = depth - 8
    rounded = (grey.astype(np.uint32) + (1 << shift >> 1)) >> shift
    levels = np.minimum(rounded, 255).astype(np.uint8)
    return cast(Image, np.repeat((255 - levels if inverted else levels)[..., None], 3, axis=2))
