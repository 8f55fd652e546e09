"""One image file: its header, and its pixels, upright.

The size is read before the decoder is asked, so that nothing is allocated for an image that is too
large. Decoding is strict: a picture that is cut off is refused, not filled up with grey. FFmpeg
decodes what it decodes correctly, Pillow the rest: TIFF, animated WebP, icons.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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

from streamseg.sources.base import BadImageError, check_pixels, decoder_limit
from streamseg.sources.decoding import reason_of
from streamseg.sources.heif import decode_heif, parse_heif
from streamseg.sources.image_headers import (
    ImageHeader,
    orientation_of,
    parse_bmp,
    parse_ico,
    parse_jpeg,
    parse_jpeg2000,
    parse_png,
    parse_webp,
)
from streamseg.sources.pillow import decode_pillow
from streamseg.sources.tiff import (
    HEIGHT,
    WIDTH,
    begin_with,
    decode_tiff,
    is_for_ffmpeg,
    main_directory,
)
from streamseg.structures.results import Image, Size

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jpe", ".jfif", ".mpo", ".apng"),
    *(".dib", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx"),
)
"""Of the files that are taken for images; what is inside decides how they are decoded."""

TURNED = (5, 6, 7, 8)
"""The EXIF orientations with which width and height change places."""

_BYTES_PER_PIXEL = 16
_HEADER_BYTES = 2**24
_SNIFFED_BYTES = 64
_WEBP_ANIMATION = 2
_STRICT = {
    "mjpeg": {"err_detect": "explode"},
    "png": {"err_detect": "crccheck+explode"},
}
_Pixels: TypeAlias = npt.NDArray[Any]
_Decode: TypeAlias = Callable[[bytes, ImageHeader, int], _Pixels]
"""Makes upright pixels of a file's bytes, its header and the limit of pixels."""


@dataclass(frozen=True, slots=True)
class Still:
    """A decoded image file: its pixels, uint8 (H, W, 3) RGB, upright, and its header."""

    pixels: Image
    header: ImageHeader


@dataclass(frozen=True, slots=True)
class _Format:
    """An image format: the first bytes of its files, its name, and how they are read."""

    magic: re.Pattern[bytes]
    name: str
    parse: Callable[[bytes], ImageHeader]
    decode: _Decode


def is_image(path: Path) -> bool:
    """Return whether a file is by its content an image that ``read_image`` knows.

    Several JPEGs, one behind the other, are a video: motion JPEG without a container.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        data = file.read(_SNIFFED_BYTES)
        known = next((each for each in _FORMATS if each.magic.match(data)), None)
        if known is None or known.name != "JPEG":
            return known is not None
        return parse_jpeg(data + file.read(_HEADER_BYTES)).images == 1


def is_heif(path: Path) -> bool:
    """Return whether a file is by its first bytes a HEIF or AVIF image.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return bool(_HEIF.match(file.read(_SNIFFED_BYTES)))


def read_image(path: Path, max_pixels: int) -> Image:
    """The pixels of an image file, uint8 (H, W, 3) RGB, upright; alpha is dropped.

    Raises:
        BadImageError: it can't be read or decoded.
        TooLargeError: it has more than ``max_pixels``.
    """
    return read_still(path, max_pixels).pixels


def read_still(path: Path, max_pixels: int) -> Still:
    """Read an image file: the main image of several, as ``read_image`` gives it, and the header.

    Raises:
        BadImageError: it can't be read or decoded.
        TooLargeError: it has more than ``max_pixels``.
    """
    data = _read(path, max_pixels)
    known = _format_of(data)
    header = _checked_header(path, known, data, max_pixels)
    pixels = cast(Image, known.decode(data, header, max_pixels))
    check_pixels(str(path), pixels.shape[1], pixels.shape[0], max_pixels)  # headers can lie
    return Still(pixels, header)


def read_labels(path: Path, max_pixels: int) -> npt.NDArray[np.int32]:
    """What each pixel of a PNG of labels says, int32 (H, W), upright.

    That is the palette's index, the grey value (of 8 or 16 bits; fewer bits are stretched to 8),
    or R + 256 G + 65536 B; alpha is dropped.

    Raises:
        BadImageError: it can't be read or decoded, isn't a PNG, or has pixels of another kind.
        TooLargeError: it has more than ``max_pixels``.
    """
    data = _read(path, max_pixels)
    known = _format_of(data)
    # Nothing else will do: where pixels are stored with loss, labels grow rims of other labels.
    if known.name != "PNG":
        raise BadImageError("isn't a PNG")
    header = _checked_header(path, known, data, max_pixels)
    labels = _decode_ffmpeg(data, header, max_pixels, codec="png", convert=_to_labels)
    check_pixels(str(path), labels.shape[1], labels.shape[0], max_pixels)
    return cast(npt.NDArray[np.int32], labels)


def read_orientation(path: Path, max_pixels: int) -> int:
    """EXIF's orientation of an image file, 1 to 8: what ``read_image`` undoes; 1 is upright.

    Raises:
        BadImageError: it can't be read, or isn't an image.
    """
    data = _read(path, max_pixels)
    return _format_of(data).parse(data).orientation


def read_size(path: Path, max_pixels: int) -> Size:
    """Return the (height, width) of an image file as its header says, upright.

    Nothing is decoded.

    Raises:
        BadImageError: it can't be read, isn't an image, or its header is damaged.
        TooLargeError: it has more than ``max_pixels``.
    """
    data = _read(path, max_pixels)
    header = _checked_header(path, _format_of(data), data, max_pixels)
    assert header.size is not None
    return header.size[::-1] if header.orientation in TURNED else header.size


def _format_of(data: bytes) -> _Format:
    for known in _FORMATS:
        if known.magic.match(data):
            return known
    raise BadImageError("isn't an image of a known format")


def _checked_header(path: Path, known: _Format, data: bytes, max_pixels: int) -> ImageHeader:
    header = known.parse(data)
    if header.size is None:
        raise BadImageError("its header is damaged")
    height, width = header.size
    check_pixels(str(path), width, height, max_pixels)
    return header


def _read(path: Path, max_pixels: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, _BYTES_PER_PIXEL * max_pixels + _HEADER_BYTES))
    except OSError as error:
        raise BadImageError(f"can't be read: {error.strerror}") from None
    if not data:
        raise BadImageError("the file is empty")
    return data


def _decode_ffmpeg(
    data: bytes,
    header: ImageHeader,
    max_pixels: int,
    *,
    codec: str,
    convert: Callable[[VideoFrame], _Pixels] | None = None,
) -> _Pixels:
    """Decode with FFmpeg's ``codec``; ``convert`` makes pixels of its frame, RGB if None."""
    decoder = cast(VideoCodecContext, CodecContext.create(codec, "r"))
    decoder.thread_count = 1
    limit = {"max_pixels": str(decoder_limit(max_pixels))}
    decoder.options = limit | _STRICT.get(codec, {})
    try:
        frames = decoder.decode(Packet(data)) or decoder.decode(None)
        if not frames:
            raise BadImageError("there is no picture in it")
        return _upright((convert or _to_rgb)(frames[0]), header.orientation)
    except (av.error.FFmpegError, ValueError) as error:
        raise BadImageError(f"can't be decoded: {reason_of(error)}") from None


def _decode_webp(data: bytes, header: ImageHeader, max_pixels: int) -> _Pixels:
    if data[12:16] == b"VP8X" and data[20] & _WEBP_ANIMATION:  # FFmpeg decodes stills only
        return _upright(decode_pillow("WEBP", data), header.orientation)
    return _decode_ffmpeg(data, header, max_pixels, codec="webp")


def _decode_ico(data: bytes, _header: ImageHeader, _max_pixels: int) -> _Pixels:
    return decode_pillow("ICO", data)


def _decode_heif(data: bytes, _header: ImageHeader, max_pixels: int) -> _Pixels:
    return decode_heif(data, max_pixels)


def _parse_tiff(data: bytes) -> ImageHeader:
    directory, images = main_directory(data)
    tags = directory.tags
    return ImageHeader((tags[HEIGHT][0], tags[WIDTH][0]), orientation_of(tags), images)


def _decode_tiff(data: bytes, header: ImageHeader, max_pixels: int) -> _Pixels:
    directory, _images = main_directory(data)
    data = begin_with(data, directory)
    if is_for_ffmpeg(data, directory.tags):
        return _decode_ffmpeg(data, header, max_pixels, codec="tiff", convert=_to_rgb_in_range)
    return decode_tiff(data, directory.tags, max_pixels)  # Pillow makes a TIFF upright


def _to_rgb(frame: VideoFrame) -> _Pixels:
    return cast(_Pixels, VideoReformatter().reformat(frame, format="rgb24").to_ndarray())


def _to_rgb_in_range(frame: VideoFrame) -> _Pixels:
    """Convert to RGB; floats, which have no defined range, must go from 0 to 1."""
    if "f32" in frame.format.name:
        floats = frame.to_ndarray()
        if not (floats.min() >= 0 and floats.max() <= 1):
            raise BadImageError("its samples are floats that don't lie between 0 and 1")
    return _to_rgb(frame)


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
    raise BadImageError(f"isn't a PNG of labels: its pixels are {kind}")


def _upright(image: _Pixels, orientation: int) -> _Pixels:
    """Undo what EXIF's orientation 1 to 8 says the camera did."""
    mirrored = orientation in (2, 4, 5, 7)
    turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    turned = np.rot90(image[:, ::-1] if mirrored else image, turns)
    return np.ascontiguousarray(turned)


def _ffmpeg(magic: bytes, name: str, parse: Callable[[bytes], ImageHeader], codec: str) -> _Format:
    decode = partial(_decode_ffmpeg, codec=codec)
    return _Format(re.compile(magic, re.DOTALL), name, parse, decode)


_HEIF = re.compile(
    rb"....ftyp(?:mif1|mif2|msf1|miaf|avif|avis|heic|heix|heim|heis|hevc|hevx)", re.DOTALL
)

_FORMATS = (
    _ffmpeg(rb"\xff\xd8\xff", "JPEG", parse_jpeg, "mjpeg"),
    _ffmpeg(rb"\x89PNG\r\n\x1a\n", "PNG", parse_png, "png"),
    _ffmpeg(rb"BM", "BMP", parse_bmp, "bmp"),
    _Format(re.compile(rb"RIFF....WEBP", re.DOTALL), "WebP", parse_webp, _decode_webp),
    _Format(re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF", _parse_tiff, _decode_tiff),
    _Format(_HEIF, "HEIF", parse_heif, _decode_heif),
    _ffmpeg(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000", parse_jpeg2000, "jpeg2000"),
    _Format(re.compile(rb"\x00\x00\x01\x00[^\x00]\x00"), "ICO", parse_ico, _decode_ico),
)
