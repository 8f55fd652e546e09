"""HEIF and AVIF images: the primary image, assembled from its tiles and made upright.

Layouts: ISO/IEC 23008-12 (HEIF: items, derived images, transformative properties) and
ISO/IEC 14496-12, section 8.11 (meta box). FFmpeg demuxes and decodes the coded items, each as a
stream; this module reads which items make up the primary image. The EXIF orientation is ignored,
because the format's own rotation and mirroring properties repeat it.
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
from av.video.stream import VideoStream

from streamseg.sources.base import BadImageError, check_pixels, decoder_limit
from streamseg.sources.image_headers import ImageHeader
from streamseg.sources.isobmff import find_box, read_boxes
from streamseg.sources.video_streams import ffmpeg_error_message, frame_to_rgb
from streamseg.structures.results import Image, Size

_CODED_TYPES: Final = frozenset((b"av01", b"hvc1", b"hev1", b"avc1", b"jpeg", b"j2k1"))
_GRID: Final = b"grid"
_IMAGE_TYPES: Final = _CODED_TYPES | {_GRID, b"iden", b"iovl"}
_HIDDEN_FLAG = 1
_MAX_ITEMS = 10_000


@dataclass(frozen=True, slots=True)
class _PrimaryImage:
    """Primary image of a HEIF file.

    Attributes:
        size: (height, width) before rotation.
        is_grid: whether it is composed of tiles.
        coded_items: ids of the coded items: the image itself, or its tiles in row-major order.
        transforms: types and bodies of the cropping, rotation and mirroring properties, in order.
        images: number of images in the file, without thumbnails, tiles and alpha planes.
    """

    size: Size
    is_grid: bool
    coded_items: tuple[int, ...]
    transforms: tuple[tuple[bytes, bytes], ...]
    images: int


def parse_heif(data: bytes) -> ImageHeader:
    """Parse the boxes of a HEIF file; the size in the header is that of the upright image."""
    primary = _read_primary_image(data)
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
        BadImageError: the file is damaged, or its primary image is of an unsupported type.
        TooLargeError: a tile has more than ``max_pixels``.
    """
    primary = _read_primary_image(data)
    tiles = _decode_items(data, primary.coded_items, max_pixels)
    image = _join_tiles(tiles, primary.size) if primary.is_grid else tiles[0]
    if image.shape[:2] != primary.size:
        raise BadImageError("its size differs from the one in its header")
    for kind, body in primary.transforms:
        image = _TRANSFORMS[kind](image, body)
    return np.ascontiguousarray(image)


def _read_primary_image(data: bytes) -> _PrimaryImage:
    meta = find_box(data, b"meta")
    if meta is None:
        raise BadImageError("there is no image in it")
    boxes = dict(read_boxes(meta[4:]))
    try:
        types, hidden = _read_item_types(boxes[b"iinf"])
        references = _read_references(boxes.get(b"iref", bytes(4)))
        id_layout = ">I" if boxes[b"pitm"][0] else ">H"
        primary = int(struct.unpack_from(id_layout, boxes[b"pitm"], 4)[0])
        properties = _read_properties(boxes[b"iprp"], primary)
        (size,) = (
            struct.unpack_from(">II", body, 4) for kind, body in properties if kind == b"ispe"
        )
        item_type = types[primary]
    except (KeyError, IndexError, ValueError, struct.error):
        raise BadImageError("its header is damaged") from None
    is_grid = item_type == _GRID
    coded_items = references.get((b"dimg", primary), ()) if is_grid else (primary,)
    if (
        not coded_items
        or item_type not in _CODED_TYPES | {_GRID}
        or any(types.get(item) not in _CODED_TYPES for item in coded_items)
    ):
        name = item_type.decode("latin-1")
        raise BadImageError(f"its image type ({name}) is not supported: convert it to PNG")
    transforms = tuple((kind, body) for kind, body in properties if kind in _TRANSFORMS)
    images = _count_images(types, hidden, references) + (find_box(data, b"moov") is not None)
    return _PrimaryImage((size[1], size[0]), is_grid, coded_items, transforms, max(images, 1))


def _read_item_types(body: bytes) -> tuple[dict[int, bytes], set[int]]:
    """Return the type of each item, and the ids of hidden items."""
    types, hidden = dict[int, bytes](), set[int]()
    for kind, entry in read_boxes(body[6 if body[0] == 0 else 8 :]):
        if kind != b"infe" or entry[0] < 2:
            continue
        layout = ">H2x4s" if entry[0] == 2 else ">I2x4s"
        item, item_type = struct.unpack_from(layout, entry, 4)
        types[item] = item_type
        if entry[3] & _HIDDEN_FLAG:
            hidden.add(item)
        if len(types) > _MAX_ITEMS:
            raise BadImageError(f"has more than {_MAX_ITEMS} items")
    return types, hidden


def _read_references(body: bytes) -> dict[tuple[bytes, int], tuple[int, ...]]:
    """Return the ids that each item refers to, by type of reference and item id."""
    references = {}
    width = "I" if body[0] else "H"
    for kind, entry in read_boxes(body[4:]):
        item, count = struct.unpack_from(f">{width}H", entry)
        targets = struct.unpack_from(f">{count}{width}", entry, struct.calcsize(f">{width}H"))
        references[kind, item] = targets
    return references


def _read_properties(body: bytes, item: int) -> list[tuple[bytes, bytes]]:
    """Return the type and body of each property of an item, in the order of application."""
    properties = list(read_boxes(find_box(body, b"ipco") or b""))
    indices: list[int] = []
    for kind, table in read_boxes(body):
        if kind == b"ipma":
            indices += _read_associations(table).get(item, [])
    return [properties[index - 1] for index in indices if index]


def _read_associations(table: bytes) -> dict[int, list[int]]:
    """Return the property indices, counted from 1, of each item."""
    header = ">IB" if table[0] else ">HB"
    layout, mask = (">H", 0x7FFF) if table[3] & 1 else (">B", 0x7F)
    (count,), at = struct.unpack_from(">I", table, 4), 8
    associations = {}
    for _ in range(count):
        item, length = struct.unpack_from(header, table, at)
        at += struct.calcsize(header)
        size = struct.calcsize(layout)
        numbers = [struct.unpack_from(layout, table, at + size * n)[0] for n in range(length)]
        associations[item] = [number & mask for number in numbers]
        at += size * length
    return associations


def _count_images(
    types: Mapping[int, bytes],
    hidden: set[int],
    references: Mapping[tuple[bytes, int], Sequence[int]],
) -> int:
    """Count the items that are images of their own, not tiles, thumbnails or alpha planes."""
    auxiliary = {item for kind, item in references if kind in (b"thmb", b"auxl")}
    tiles = {tile for (kind, _), ids in references.items() if kind == b"dimg" for tile in ids}
    images = {item for item, item_type in types.items() if item_type in _IMAGE_TYPES}
    return len(images - hidden - auxiliary - tiles)


def _decode_items(data: bytes, items: Sequence[int], max_pixels: int) -> list[Image]:
    """Decode coded items; FFmpeg gives each a stream with the item's id."""
    limit = {"max_pixels": str(decoder_limit(max_pixels))}
    images = dict[int, Image]()
    try:
        with av.open(BytesIO(data), "r", format="mov", options=limit) as container:
            streams = [_find_item_stream(container.streams.video, item) for item in items]
            for stream in streams:
                context = stream.codec_context
                check_pixels("a tile", context.width, context.height, max_pixels)
                stream.thread_type, context.thread_count, context.options = "NONE", 1, limit
            for packet in container.demux(streams):
                stream = cast(VideoStream, packet.stream)
                for frame in stream.codec_context.decode(packet):
                    images.setdefault(stream.id, frame_to_rgb(frame))
    except (av.error.FFmpegError, ValueError) as error:
        raise BadImageError(f"can't be decoded: {ffmpeg_error_message(error)}") from None
    if not images.keys() >= set(items):
        raise BadImageError("can't be decoded: an item is missing")
    return [images[item] for item in items]


def _find_item_stream(streams: Sequence[VideoStream], item: int) -> VideoStream:
    matches = [stream for stream in streams if stream.id == item]
    if len(matches) != 1 or matches[0].codec_context is None:
        raise BadImageError(f"its item {item} can't be decoded")
    return matches[0]


def _join_tiles(tiles: Sequence[Image], size: Size) -> Image:
    """Join tiles of equal size in row-major order; those at the right and bottom are cropped."""
    height, width = size
    tile_height, tile_width = tiles[0].shape[:2]
    columns, rows = -(-width // tile_width), -(-height // tile_height)
    if columns * rows != len(tiles) or any(tile.shape != tiles[0].shape for tile in tiles):
        raise BadImageError("its tiles don't add up to the size in its header")
    image = np.empty((height, width, 3), np.uint8)
    for number, tile in enumerate(tiles):
        y, x = number // columns * tile_height, number % columns * tile_width
        image[y : y + tile_height, x : x + tile_width] = tile[: height - y, : width - x]
    return image


def _clean_aperture(body: bytes, size: Size) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the clean aperture, the region to display."""
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
        raise BadImageError("its clean aperture lies outside the image")
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
