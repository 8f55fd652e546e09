"""One image file: what its first bytes say of it (format, size, orientation), and its pixels.

The size is read before the decoder is asked, so that nothing is allocated for an image that is too
large. Decoding is strict: a picture that is cut off is refused, not filled up with grey.

Layouts: PNG, W3C (IHDR, eXIf); JPEG, ITU T.81 annex B; BMP; WebP, RFC 9649; TIFF 6.0; EXIF 2.32
(orientation, tag 0x0112).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import av.error
import numpy as np
import numpy.typing as npt
from av.codec import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from streamseg.sources.base import BadPictureError, check_pixels, decoder_limit
from streamseg.sources.decoding import reason_of
from streamseg.types import Image, Size

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Of the files that are taken for images; what is inside decides how they are decoded."""

TURNED = (5, 6, 7, 8)
"""The EXIF orientations with which width and height change places."""

_BYTES_PER_PIXEL = 16
_HEADER_BYTES = 2**24
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112
_EXIF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF.{4})(?=II\*\0|MM\0\*)", re.DOTALL)
# Not for TIFF, where FFmpeg takes a tag that it doesn't know for an error, too.
_STRICT = {"mjpeg": {"err_detect": "explode"}, "png": {"err_detect": "crccheck+explode"}}
_Pixels: TypeAlias = npt.NDArray[Any]
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_image(path: Path, max_pixels: int) -> Image:
    """The pixels of an image file, uint8 (H, W, 3) RGB, upright; alpha is dropped.

    Raises:
        BadPictureError: it can't be read or decoded.
        TooLargeError: it has more than ``max_pixels``.
    """
    return cast(Image, _read_upright(path, max_pixels, _to_rgb))


def read_labels(path: Path, max_pixels: int) -> npt.NDArray[np.int32]:
    """What each pixel of a PNG of labels says, int32 (H, W), upright.

    That is the palette's index, the grey value (of 8 or 16 bits; fewer bits are stretched to 8),
    or R + 256 G + 65536 B; alpha is dropped.

    Raises:
        BadPictureError: it can't be read or decoded, isn't a PNG, or has pixels of another kind.
        TooLargeError: it has more than ``max_pixels``.
    """
    # Nothing else will do: where pixels are stored with loss, labels grow rims of other labels.
    return cast(npt.NDArray[np.int32], _read_upright(path, max_pixels, _to_labels, "png"))


def read_orientation(path: Path, max_pixels: int) -> int:
    """EXIF's orientation of an image file, 1 to 8: what ``read_image`` undoes; 1 is upright.

    Raises:
        BadPictureError: it can't be read.
    """
    return _orientation(_read(path, max_pixels))


def read_size(path: Path, max_pixels: int) -> Size:
    """The (height, width) of an image file as its header says, upright; nothing is decoded.

    Raises:
        BadPictureError: it can't be read, or its header is damaged.
        TooLargeError: it has more than ``max_pixels``.
    """
    data = _read(path, max_pixels)
    size = _format(data)[1](data)
    if size is None:
        raise BadPictureError("its header is damaged")
    check_pixels(str(path), size[1], size[0], max_pixels)
    return size[::-1] if _orientation(data) in TURNED else size


def _read_upright(
    path: Path, max_pixels: int, convert: Callable[[VideoFrame], _Pixels], only: str | None = None
) -> _Pixels:
    data = _read(path, max_pixels)
    codec, size_of = _format(data)
    if only and codec != only:
        raise BadPictureError(f"isn't a {only.upper()}")
    size = size_of(data)
    if size is None:
        raise BadPictureError("its header is damaged")
    height, width = size
    check_pixels(str(path), width, height, max_pixels)
    pixels = _decode(data, codec, max_pixels, convert)
    check_pixels(str(path), pixels.shape[1], pixels.shape[0], max_pixels)  # headers can lie
    return _upright(pixels, _orientation(data))


def _read(path: Path, max_pixels: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, _BYTES_PER_PIXEL * max_pixels + _HEADER_BYTES))
    except OSError as error:
        raise BadPictureError(f"can't be read: {error.strerror}") from None
    if not data:
        raise BadPictureError("the file is empty")
    return data


def _decode(
    data: bytes, codec: str, max_pixels: int, convert: Callable[[VideoFrame], _Pixels]
) -> _Pixels:
    decoder = cast(VideoCodecContext, CodecContext.create(codec, "r"))
    decoder.thread_count = 1
    limit = {"max_pixels": str(decoder_limit(max_pixels))}
    decoder.options = limit | _STRICT.get(codec, {})
    try:
        frames = decoder.decode(Packet(data)) or decoder.decode(None)
        if not frames:
            raise BadPictureError("there is no picture in it")
        return convert(frames[0])
    except (av.error.FFmpegError, ValueError) as error:
        raise BadPictureError(f"can't be decoded: {reason_of(error)}") from None


def _to_rgb(frame: VideoFrame) -> _Pixels:
    return cast(_Pixels, VideoReformatter().reformat(frame, format="rgb24").to_ndarray())


def _to_labels(frame: VideoFrame) -> _Pixels:
    kind = frame.format.name
    if kind == "pal8":
        indices, _ = frame.to_ndarray()
        return cast(_Pixels, indices.astype(np.int32))
    if kind == "gray16be":
        return frame.to_ndarray().astype(np.int32)
    if kind in ("gray", "monob", "ya8"):
        return VideoReformatter().reformat(frame, format="gray").to_ndarray().astype(np.int32)
    if kind in ("rgb24", "rgba"):
        rgb = _to_rgb(frame).astype(np.int32)
        return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    raise BadPictureError(f"isn't a PNG of labels: its pixels are {kind}")


def _upright(image: _Pixels, orientation: int) -> _Pixels:
    """Undo what EXIF's orientation 1 to 8 says the camera did."""
    mirrored = orientation in (2, 4, 5, 7)
    turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    turned = np.rot90(image[:, ::-1] if mirrored else image, turns)
    return np.ascontiguousarray(turned)


def _format(data: bytes) -> tuple[str, Callable[[bytes], Size | None]]:
    """FFmpeg's name of the codec, and what finds the size."""
    for magic, codec, size_of in _FORMATS:
        if magic.match(data):
            return codec, size_of
    raise BadPictureError("isn't an image of a known format")


def _png_size(data: bytes) -> Size | None:
    return _unpack_size(">II", data, 16)


def _bmp_size(data: bytes) -> Size | None:
    size = _unpack_size("<ii", data, 18)
    return size and (abs(size[0]), abs(size[1]))


def _jpeg_size(data: bytes) -> Size | None:
    """From the first frame header; segments before it are stepped over."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return (height, width) if height and width else None
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these have no length
            at += 2
        else:
            at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None


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


def _tiff_size(data: bytes) -> Size | None:
    tags = _tags(data, 0)
    return (tags[_HEIGHT], tags[_WIDTH]) if {_WIDTH, _HEIGHT} <= tags.keys() else None


def _unpack_size(layout: str, data: bytes, at: int) -> Size | None:
    """(height, width) from a header that has the width first."""
    if len(data) < at + 8:
        return None
    width, height = struct.unpack_from(layout, data, at)
    return (height, width) if height and width else None


def _orientation(data: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1, upright, where there is none."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tags(data, 0).get(_ORIENTATION, 1)
    exif = _EXIF.search(data)
    return _tags(data, exif.end()).get(_ORIENTATION, 1) if exif else 1


def _tags(data: bytes, base: int) -> dict[int, int]:
    """The whole-number tags of the first directory of a TIFF block that begins at ``base``."""
    order = "<" if data[base : base + 2] == b"II" else ">"
    try:
        at = base + int(struct.unpack_from(order + "I", data, base + 4)[0])
        count = int(struct.unpack_from(order + "H", data, at)[0])
        entries = [struct.unpack_from(order + "HHI4s", data, at + 2 + 12 * i) for i in range(count)]
    except struct.error:
        return {}
    layouts = {3: order + "H", 4: order + "I"}
    return {
        tag: int(struct.unpack_from(layouts[kind], value)[0])
        for tag, kind, length, value in entries
        if kind in layouts and length == 1
    }


_FORMATS = (
    (re.compile(rb"\xff\xd8\xff"), "mjpeg", _jpeg_size),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png", _png_size),
    (re.compile(rb"BM"), "bmp", _bmp_size),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp", _webp_size),
    (re.compile(rb"II\*\0|MM\0\*"), "tiff", _tiff_size),
)
