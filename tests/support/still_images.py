"""Image files that no library at hand writes: tiled TIFFs, HEIF grids, old bitmaps."""

import io
import re
import struct
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
from PIL import Image


def scene(height=96, width=128, seed=0):
    """uint8 (H, W, 3): smooth, and without any symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(pixels, name, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name, **options)
    return file.getvalue()


def exif(orientation, order="<", kind=3):
    """An EXIF block with an orientation and nothing else."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], orientation)
    return head + struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + value + bytes(4)


def tiff(pages, order="<", *, big=False):
    """A TIFF of pages, each a pair of tags {tag: (type, values)} and blocks of data.

    Tags 273 and 279, or 324 and 325, are filled in: where the blocks are, and their lengths.
    """
    offset = "Q" if big else "I"
    layout = {3: "H", 4: "I", 16: "Q"}
    magic = (43, 8, 0) if big else (42,)
    data = bytearray(
        (b"II" if order == "<" else b"MM") + struct.pack(f"{order}{len(magic)}H", *magic)
    )
    link = len(data)
    data += struct.pack(order + offset, 0)
    for given, blocks in pages:
        where = []
        for block in blocks:
            where.append(len(data))
            data += block
        first = 324 if 322 in given else 273
        tags = {
            **given,
            first: (4, where),
            first + 1 + 5 * (first == 273): (4, [len(b) for b in blocks]),
        }
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


def tiles(pixels, side=64, pack=bytes, *, compression=1, photometric=2, **more):
    """The page of a tiled TIFF; ``pack`` makes bytes of a tile."""
    height, width = pixels.shape[:2]
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    padded = np.zeros(
        (-(-height // side) * side, -(-width // side) * side, *pixels.shape[2:]), np.uint8
    )
    padded[:height, :width] = pixels
    blocks = [
        pack(np.ascontiguousarray(padded[y : y + side, x : x + side]))
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
    return tags | {int(tag[1:]): value for tag, value in more.items()}, blocks


def strips(pixels, photometric=2, *, bits=8, sample_format=1, planes=1, data=None, **more):
    """The page of a TIFF in one uncompressed strip for each plane, from little-endian samples."""
    height, width = pixels.shape[:2]
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    split = [pixels[..., n] for n in range(bands)] if planes == 2 else [pixels]
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
    blocks = [np.ascontiguousarray(each).tobytes() for each in split]
    return tags | {int(tag[1:]): value for tag, value in more.items()}, blocks


def box(kind, *bodies):
    body = b"".join(bodies)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind, *bodies, version=0, flags=0):
    return box(kind, struct.pack(">I", version << 24 | flags), *bodies)


@dataclass(frozen=True)
class Item:
    """An item of a HEIF file: its type, data, properties, and references {kind: targets}."""

    number: int
    kind: bytes
    data: bytes
    properties: tuple[bytes, ...] = ()
    references: tuple[tuple[bytes, tuple[int, ...]], ...] = ()
    hidden: bool = False


def heif(items, primary, brand=b"avif"):
    """A HEIF file of items; every property is stored once for each item."""
    infos = [
        full_box(
            b"infe", struct.pack(">HH4s", i.number, 0, i.kind), b"\0", version=2, flags=i.hidden
        )
        for i in items
    ]
    references = [
        box(kind, struct.pack(f">HH{len(to)}H", i.number, len(to), *to))
        for i in items
        for kind, to in i.references
    ]
    known, associations, number = [], [], 0
    for i in items:
        numbers = range(number + 1, number + 1 + len(i.properties))
        number += len(i.properties)
        known += i.properties
        essential = bytes(
            number | 0x80 * (body[4:8] in (b"irot", b"imir", b"clap", b"av1C", b"hvcC"))
            for number, body in zip(numbers, i.properties, strict=True)
        )
        associations.append(struct.pack(">HB", i.number, len(numbers)) + essential)
    properties = box(
        b"iprp",
        box(b"ipco", *known),
        full_box(b"ipma", struct.pack(">I", len(items)), *associations),
    )

    def meta(first):
        places, at = [], first
        for i in items:
            places.append(struct.pack(">HHHII", i.number, 0, 1, at, len(i.data)))
            at += len(i.data)
        return full_box(
            b"meta",
            full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", struct.pack(">H", primary)),
            full_box(b"iloc", b"\x44\0", struct.pack(">H", len(items)), *places),
            full_box(b"iinf", struct.pack(">H", len(infos)), *infos),
            *([full_box(b"iref", *references)] if references else []),
            properties,
        )

    head = box(b"ftyp", brand, bytes(4), brand, b"mif1", b"miaf")
    first = len(head) + len(meta(0)) + 8
    return head + meta(first) + box(b"mdat", *(i.data for i in items))


def av1_item(number, pixels, *properties, **more):
    """An item of AV1, as libavif codes it, with the properties that its own file has."""
    data = encoded(pixels, "AVIF", quality=90, subsampling="4:4:4", speed=10)
    config, payload = _inner(data, b"av1C"), data[data.index(b"mdat") + 4 :]
    return Item(number, b"av01", payload, (config, extent(pixels.shape), *properties), **more)


def hevc_item(number, pixels, *properties, **more):
    """An item of HEVC, coded without loss."""
    encoder = av.CodecContext.create("libx265", "w")
    encoder.height, encoder.width = pixels.shape[:2]
    encoder.pix_fmt, encoder.time_base = "gbrp", Fraction(1, 25)
    encoder.options = {"x265-params": "lossless=1:log-level=none"}
    frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
    stream = b"".join(bytes(p) for p in (*encoder.encode(frame), *encoder.encode()))
    units = [unit for unit in re.split(rb"\x00*\x00\x00\x01", stream) if unit]
    headers = [unit for unit in units if unit[0] >> 1 in (32, 33, 34)]
    arrays = [struct.pack(">BHH", unit[0] >> 1, 1, len(unit)) + unit for unit in headers]
    config = box(b"hvcC", b"\1", bytes(20), bytes([0xFF, len(arrays)]), *arrays)
    data = b"".join(struct.pack(">I", len(unit)) + unit for unit in units if unit not in headers)
    return Item(number, b"hvc1", data, (config, extent(pixels.shape), *properties), **more)


def extent(shape):
    return full_box(b"ispe", struct.pack(">II", shape[1], shape[0]))


def grid_item(number, shape, rows, columns, tiles, *properties, **more):
    payload = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, shape[1], shape[0])
    references = ((b"dimg", tuple(tiles)), *more.pop("references", ()))
    return Item(number, b"grid", payload, (extent(shape), *properties), references, **more)


def _inner(data, kind):
    at = data.index(kind) - 4
    return data[at : at + int.from_bytes(data[at : at + 4], "big")]
