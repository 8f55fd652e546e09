"""Image files that Pillow can't write: TIFF pages with chosen tags, and HEIF items and grids."""

import io
import re
import struct
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
from PIL import Image


def smooth_image(height=96, width=128, seed=0):
    """Return a smooth random image without any symmetry, uint8 (H, W, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encode_image(pixels, name, **options):
    """Encode an image with Pillow in the format ``name``."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name, **options)
    return file.getvalue()


def exif_block(orientation, order="<", kind=3):
    """Return an EXIF block with an orientation and no other tags."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], orientation)
    return head + struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + value + bytes(4)


def build_tiff(pages, order="<", *, big=False):
    """Build a TIFF.

    Args:
        pages: pairs of tags {tag: (type, values)} and data blocks; the offsets and lengths of the
            blocks (tags 273 and 279, or 324 and 325) are added.
        order: byte order, "<" or ">".
        big: whether to build a BigTIFF.
    """
    offset = "Q" if big else "I"
    layout = {3: "H", 4: "I", 16: "Q"}
    magic = (43, 8, 0) if big else (42,)
    data = bytearray(
        (b"II" if order == "<" else b"MM") + struct.pack(f"{order}{len(magic)}H", *magic)
    )
    link = len(data)
    data += struct.pack(order + offset, 0)
    for page_tags, blocks in pages:
        offsets = []
        for block in blocks:
            offsets.append(len(data))
            data += block
        offsets_tag, lengths_tag = (324, 325) if 322 in page_tags else (273, 279)
        lengths = [len(block) for block in blocks]
        tags = {**page_tags, offsets_tag: (4, offsets), lengths_tag: (4, lengths)}
        entries = []
        for tag, (kind, values) in sorted(tags.items()):
            value = struct.pack(f"{order}{len(values)}{layout[kind]}", *values)
            if len(value) > struct.calcsize(offset):
                at = len(data)
                data += value
                value = struct.pack(order + offset, at)
            value = value.ljust(struct.calcsize(offset), b"\0")
            entries.append(struct.pack(f"{order}HH{offset}", tag, kind, len(values)) + value)
        data += bytes(len(data) % 2)
        struct.pack_into(order + offset, data, link, len(data))
        data += struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries)
        link = len(data)
        data += struct.pack(order + offset, 0)
    return bytes(data)


def tiled_page(pixels, side=64, encode=bytes, *, compression=1, photometric=2, **more_tags):
    """Return the page of a tiled TIFF, for ``build_tiff``; ``encode`` encodes a tile."""
    height, width = pixels.shape[:2]
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    padded = np.zeros(
        (-(-height // side) * side, -(-width // side) * side, *pixels.shape[2:]), np.uint8
    )
    padded[:height, :width] = pixels
    blocks = [
        encode(np.ascontiguousarray(padded[y : y + side, x : x + side]))
        for y in range(0, padded.shape[0], side)
        for x in range(0, padded.shape[1], side)
    ]
    tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8] * bands),
        259: (3, [compression]),
        262: (3, [photometric]),
        277: (3, [bands]),
        322: (4, [side]),
        323: (4, [side]),
    }
    return tags | {int(tag[1:]): value for tag, value in more_tags.items()}, blocks


def strip_page(pixels, photometric=2, *, bits=8, sample_format=1, planes=1, **more_tags):
    """Return the page of a TIFF with one uncompressed strip per plane, for ``build_tiff``."""
    height, width = pixels.shape[:2]
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    parts = [pixels[..., n] for n in range(bands)] if planes == 2 else [pixels]
    tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * bands),
        259: (3, [1]),
        262: (3, [photometric]),
        277: (3, [bands]),
        278: (4, [height]),
        284: (3, [planes]),
        339: (3, [sample_format] * bands),
    }
    blocks = [np.ascontiguousarray(part).tobytes() for part in parts]
    return tags | {int(tag[1:]): value for tag, value in more_tags.items()}, blocks


def build_box(kind, *bodies):
    body = b"".join(bodies)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def build_full_box(kind, *bodies, version=0, flags=0):
    return build_box(kind, struct.pack(">I", version << 24 | flags), *bodies)


@dataclass(frozen=True)
class Item:
    """Item of a HEIF file; references are pairs of their type and target item numbers."""

    number: int
    kind: bytes
    data: bytes
    properties: tuple[bytes, ...] = ()
    references: tuple[tuple[bytes, tuple[int, ...]], ...] = ()
    hidden: bool = False


def build_heif(items, primary, brand=b"avif"):
    """Build a HEIF file; properties are not shared between items."""
    infos = [
        build_full_box(
            b"infe", struct.pack(">HH4s", i.number, 0, i.kind), b"\0", version=2, flags=i.hidden
        )
        for i in items
    ]
    references = [
        build_box(kind, struct.pack(f">HH{len(to)}H", i.number, len(to), *to))
        for i in items
        for kind, to in i.references
    ]
    properties, associations, number = [], [], 0
    for i in items:
        numbers = range(number + 1, number + 1 + len(i.properties))
        number += len(i.properties)
        properties += i.properties
        essential = bytes(
            number | 0x80 * (body[4:8] in (b"irot", b"imir", b"clap", b"av1C", b"hvcC"))
            for number, body in zip(numbers, i.properties, strict=True)
        )
        associations.append(struct.pack(">HB", i.number, len(numbers)) + essential)
    property_box = build_box(
        b"iprp",
        build_box(b"ipco", *properties),
        build_full_box(b"ipma", struct.pack(">I", len(items)), *associations),
    )

    def meta(first):
        locations, at = [], first
        for i in items:
            locations.append(struct.pack(">HHHII", i.number, 0, 1, at, len(i.data)))
            at += len(i.data)
        return build_full_box(
            b"meta",
            build_full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
            build_full_box(b"pitm", struct.pack(">H", primary)),
            build_full_box(b"iloc", b"\x44\0", struct.pack(">H", len(items)), *locations),
            build_full_box(b"iinf", struct.pack(">H", len(infos)), *infos),
            *([build_full_box(b"iref", *references)] if references else []),
            property_box,
        )

    head = build_box(b"ftyp", brand, bytes(4), brand, b"mif1", b"miaf")
    first = len(head) + len(meta(0)) + 8
    return head + meta(first) + build_box(b"mdat", *(i.data for i in items))


def encode_av1_item(number, pixels, *properties, **more):
    """Encode an AV1 item with libavif, with the codec configuration of that file."""
    data = encode_image(pixels, "AVIF", quality=90, subsampling="4:4:4", speed=10)
    config, payload = _find_box(data, b"av1C"), data[data.index(b"mdat") + 4 :]
    properties = (config, size_property(pixels.shape), *properties)
    return Item(number, b"av01", payload, properties, **more)


def encode_hevc_item(number, pixels, *properties, **more):
    """Encode a lossless HEVC item."""
    encoder = av.CodecContext.create("libx265", "w")
    encoder.height, encoder.width = pixels.shape[:2]
    encoder.pix_fmt, encoder.time_base = "gbrp", Fraction(1, 25)
    encoder.options = {"x265-params": "lossless=1:log-level=none"}
    frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
    stream = b"".join(bytes(p) for p in (*encoder.encode(frame), *encoder.encode()))
    units = [unit for unit in re.split(rb"\x00*\x00\x00\x01", stream) if unit]
    headers = [unit for unit in units if unit[0] >> 1 in (32, 33, 34)]
    arrays = [struct.pack(">BHH", unit[0] >> 1, 1, len(unit)) + unit for unit in headers]
    config = build_box(b"hvcC", b"\1", bytes(20), bytes([0xFF, len(arrays)]), *arrays)
    data = b"".join(struct.pack(">I", len(unit)) + unit for unit in units if unit not in headers)
    return Item(number, b"hvc1", data, (config, size_property(pixels.shape), *properties), **more)


def size_property(shape):
    """Return the image spatial extents property of an image of ``shape``."""
    return build_full_box(b"ispe", struct.pack(">II", shape[1], shape[0]))


def build_grid_item(number, shape, rows, columns, tiles, *properties, **more):
    """Build a grid item from the item numbers of its tiles."""
    payload = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, shape[1], shape[0])
    references = ((b"dimg", tuple(tiles)), *more.pop("references", ()))
    return Item(number, b"grid", payload, (size_property(shape), *properties), references, **more)


def _find_box(data, kind):
    at = data.index(kind) - 4
    return data[at : at + int.from_bytes(data[at : at + 4], "big")]
