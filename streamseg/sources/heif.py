"""HEIF and AVIF stills: the primary image, whole where it is a grid of tiles, and upright.

Layouts: ISO/IEC 23008-12 (HEIF: items, derived images, transformative properties) and
ISO/IEC 14496-12, section 8.11 (meta box). FFmpeg demuxes and decodes the coded items, each of
which is a stream; which items make up the primary image is read here. EXIF's orientation does not
count: the format's own rotation and mirroring properties say the same.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import Final, cast

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from streamseg.sources.base import BadImageError, check_pixels, decoder_limit
from streamseg.sources.decoding import reason_of
from streamseg.sources.image_headers import ImageHeader
from streamseg.sources.isobmff import find_box, read_boxes
from streamseg.structures.results import Image, Size

_CODED: Final = frozenset((b"av01", b"hvc1", b"hev1", b"avc1", b"jpeg", b"j2k1"))
_GRID: Final = b"grid"
_SHOWN: Final = _CODED | {_GRID, b"iden", b"iovl"}
_HIDDEN_FLAG = 1
_MAX_ITEMS = 10_000


@dataclass(frozen=True, slots=True)
class _Primary:
    """The primary image of a HEIF file.

    Attributes:
        size: (height, width) before rotation.
        is_grid: whether it is made of tiles.
        parts: ids of the coded items: itself, or the tiles in reading order.
        transforms: cropping, rotation and mirroring properties in the order of their application.
        images: how many images the file holds, without thumbnails, tiles and alpha planes.
    """

    size: Size
    is_grid: bool
    parts: tuple[int, ...]
    transforms: tuple[tuple[bytes, bytes], ...]
    images: int


def parse_heif(data: bytes) -> ImageHeader:
    """Parse the boxes of a HEIF file; the size is that of the upright image."""
    primary = _read_primary(data)
    height, width = primary.size
    for kind, body in primary.transforms:
        if kind == b"clap":
            height, width = _clean_aperture(body, (height, width))[2:]
        elif kind == b"irot" and body[0] & 1:
            height, width = width, height
    return ImageHeader((height, width), images=primary.images)


def decode_heif(data: bytes, max_pixels: int) -> Image:
    """Decode the primary image: uint8 (H, W, 3) RGB, upright; alpha is dropped.

    Raises:
        BadImageError: it is damaged, or made in a way that isn't known.
        TooLargeError: a tile has more than ``max_pixels``.
    """
    primary = _read_primary(data)
    tiles = _decode_items(data, primary.parts, max_pixels)
    image = _join_tiles(tiles, primary.size) if primary.is_grid else tiles[0]
    if image.shape[:2] != primary.size:
        raise BadImageError("its size isn't the one that its header states")
    for kind, body in primary.transforms:
        image = _TRANSFORMS[kind](image, body)
    return np.ascontiguousarray(image)


def _read_primary(data: bytes) -> _Primary:
    meta = find_box(data, b"meta")
    if meta is None:
        raise BadImageError("there is no picture in it")
    boxes = dict(read_boxes(meta[4:]))
    try:
        kinds, hidden = _read_kinds(boxes[b"iinf"])
        references = _read_references(boxes.get(b"iref", bytes(4)))
        version, item = boxes[b"pitm"][0], boxes[b"pitm"][4:]
        primary = int(struct.unpack_from(">I" if version else ">H", item)[0])
        properties = _read_properties(boxes[b"iprp"], primary)
        (size,) = (
            struct.unpack_from(">II", body, 4) for kind, body in properties if kind == b"ispe"
        )
        kind = kinds[primary]
    except (KeyError, IndexError, ValueError, struct.error):
        raise BadImageError("its header is damaged") from None
    parts = references.get((b"dimg", primary), ()) if kind == _GRID else (primary,)
    if (
        not parts
        or kind not in _CODED | {_GRID}
        or any(kinds.get(part) not in _CODED for part in parts)
    ):
        name = kind.decode("latin-1")
        raise BadImageError(f"is made in a way that isn't known ({name}): convert it to PNG")
    transforms = tuple((kind, body) for kind, body in properties if kind in _TRANSFORMS)
    images = _count_images(kinds, hidden, references) + (find_box(data, b"moov") is not None)
    return _Primary((size[1], size[0]), kind == _GRID, parts, transforms, max(images, 1))


def _read_kinds(body: bytes) -> tuple[dict[int, bytes], set[int]]:
    """Return the type of each item, and the items that aren't shown."""
    kinds, hidden = dict[int, bytes](), set[int]()
    for kind, entry in read_boxes(body[6 if body[0] == 0 else 8 :]):
        if kind != b"infe" or entry[0] < 2:
            continue
        layout = ">H2x4s" if entry[0] == 2 else ">I2x4s"
        item, item_kind = struct.unpack_from(layout, entry, 4)
        kinds[item] = item_kind
        if entry[3] & _HIDDEN_FLAG:
            hidden.add(item)
        if len(kinds) > _MAX_ITEMS:
            raise BadImageError(f"has more than {_MAX_ITEMS} items")
    return kinds, hidden


def _read_references(body: bytes) -> dict[tuple[bytes, int], tuple[int, ...]]:
    """Return the items that each item refers to, by kind of reference and item."""
    references = {}
    width = "I" if body[0] else "H"
    for kind, entry in read_boxes(body[4:]):
        item, count = struct.unpack_from(f">{width}H", entry)
        targets = struct.unpack_from(f">{count}{width}", entry, struct.calcsize(f">{width}H"))
        references[kind, item] = targets
    return references


def _read_properties(body: bytes, item: int) -> list[tuple[bytes, bytes]]:
    """Return the properties of an item, type and body, in the order of their application."""
    known = list(read_boxes(find_box(body, b"ipco") or b""))
    indices: list[int] = []
    for kind, table in read_boxes(body):
        if kind == b"ipma":
            indices += _read_associations(table).get(item, [])
    return [known[index - 1] for index in indices if index]


def _read_associations(table: bytes) -> dict[int, list[int]]:
    """Return the numbers of the properties of each item, from 1."""
    header = ">IB" if table[0] else ">HB"
    layout, mask = (">H", 0x7FFF) if table[3] & 1 else (">B", 0x7F)
    (count,), at = struct.unpack_from(">I", table, 4), 8
    found = {}
    for _ in range(count):
        item, length = struct.unpack_from(header, table, at)
        at += struct.calcsize(header)
        size = struct.calcsize(layout)
        numbers = [struct.unpack_from(layout, table, at + size * n)[0] for n in range(length)]
        found[item] = [number & mask for number in numbers]
        at += size * length
    return found


def _count_images(
    kinds: Mapping[int, bytes],
    hidden: set[int],
    references: Mapping[tuple[bytes, int], Sequence[int]],
) -> int:
    """Count the items that are images of their own."""
    helpers = {item for kind, item in references if kind in (b"thmb", b"auxl")}
    parts = {part for (kind, _), of in references.items() if kind == b"dimg" for part in of}
    shown = {item for item, kind in kinds.items() if kind in _SHOWN}
    return len(shown - hidden - helpers - parts)


def _decode_items(data: bytes, items: Sequence[int], max_pixels: int) -> list[Image]:
    """Decode coded items, each a stream whose id is the item's."""
    limit = {"max_pixels": str(decoder_limit(max_pixels))}
    images = dict[int, Image]()
    try:
        with av.open(BytesIO(data), "r", format="mov", options=limit) as container:
            streams = [_stream_of(container.streams.video, item) for item in items]
            for stream in streams:
                context = stream.codec_context
                check_pixels("a tile", context.width, context.height, max_pixels)
                stream.thread_type, context.thread_count, context.options = "NONE", 1, limit
            for packet in container.demux(streams):
                stream = cast(VideoStream, packet.stream)
                for frame in stream.codec_context.decode(packet):
                    images.setdefault(stream.id, _to_rgb(frame))
    except (av.error.FFmpegError, ValueError) as error:
        raise BadImageError(f"can't be decoded: {reason_of(error)}") from None
    if not images.keys() >= set(items):
        raise BadImageError("can't be decoded: a part of it is missing")
    return [images[item] for item in items]


def _stream_of(streams: Sequence[VideoStream], item: int) -> VideoStream:
    found = [stream for stream in streams if stream.id == item]
    if len(found) != 1 or found[0].codec_context is None:
        raise BadImageError(f"item {item} of it can't be decoded")
    return found[0]


def _to_rgb(frame: VideoFrame) -> Image:
    return cast(Image, VideoReformatter().reformat(frame, format="rgb24").to_ndarray())


def _join_tiles(tiles: Sequence[Image], size: Size) -> Image:
    """Put tiles of one size in reading order; those at the right and the bottom may stick out."""
    height, width = size
    tile_height, tile_width = tiles[0].shape[:2]
    columns, rows = -(-width // tile_width), -(-height // tile_height)
    if columns * rows != len(tiles) or any(tile.shape != tiles[0].shape for tile in tiles):
        raise BadImageError("its tiles don't make up the size that its header states")
    image = np.empty((height, width, 3), np.uint8)
    for number, tile in enumerate(tiles):
        y, x = number // columns * tile_height, number % columns * tile_width
        image[y : y + tile_height, x : x + tile_width] = tile[: height - y, : width - x]
    return image


def _clean_aperture(body: bytes, size: Size) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the part of an image that is to be shown."""
    try:
        numbers = struct.unpack_from(">IIIIiIiI", body)
        width, height, right, down = (
            Fraction(numbers[n], numbers[n + 1]) for n in range(0, len(numbers), 2)
        )
    except (struct.error, ZeroDivisionError):
        raise BadImageError("its header is damaged") from None
    top = math.floor(down + (size[0] - height) / 2)
    left = math.floor(right + (size[1] - width) / 2)
    if not (0 <= top < top + height <= size[0] and 0 <= left < left + width <= size[1]):
        raise BadImageError("its clean aperture lies outside of it")
    return top, left, math.floor(height), math.floor(width)


def _crop(image: Image, body: bytes) -> Image:
    top, left, height, width = _clean_aperture(body, (image.shape[0], image.shape[1]))
    return image[top : top + height, left : left + width]


def _rotate(image: Image, body: bytes) -> Image:
    return np.rot90(image, body[0] & 3)


def _mirror(image: Image, body: bytes) -> Image:
    return image[:, ::-1] if body[0] & 1 else image[::-1]


_TRANSFORMS: Final[Mapping[bytes, Callable[[Image, bytes], Image]]] = {
    b"clap": _crop,
    b"irot": _rotate,
    b"imir": _mirror,
}
