"""Image file reading: format detection, header, and decoding to upright pixels.

The size is read from the header before decoding, so that nothing is allocated for an image that is
too large. Decoding is strict: a truncated image is refused, not filled with gray. FFmpeg decodes
the formats that it decodes correctly, Pillow the others: TIFF, animated WebP, icons.
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
from streamseg.sources.heif import decode_heif, parse_heif
from streamseg.sources.image_headers import (
    ImageHeader,
    parse_bmp,
    parse_ico,
    parse_jpeg,
    parse_jpeg2000,
    parse_png,
    parse_webp,
    read_orientation_tag,
)
from streamseg.sources.pillow import decode_with_pillow
from streamseg.sources.tiff import (
    HEIGHT,
    WIDTH,
    decode_tiff,
    find_main_directory,
    needs_ffmpeg,
    set_first_directory,
)
from streamseg.sources.video_streams import ffmpeg_error_message, frame_to_rgb
from streamseg.structures.results import Image, Size

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jpe", ".jfif", ".mpo", ".apng"),
    *(".dib", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx"),
)
"""File name extensions of images in folders; the decoder is chosen by a file's content."""

TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

_MAX_BYTES_PER_PIXEL = 16
_MAX_HEADER_BYTES = 2**24
_SIGNATURE_BYTES = 64
_WEBP_ANIMATION_FLAG = 2
_STRICT_OPTIONS = {
    "mjpeg": {"err_detect": "explode"},
    "png": {"err_detect": "crccheck+explode"},
}
_Pixels: TypeAlias = npt.NDArray[Any]
_Decode: TypeAlias = Callable[[bytes, ImageHeader, int], _Pixels]
"""Function from a file's content, its header and the pixel limit to upright pixels."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Main image of an image file.

    Attributes:
        pixels: uint8 (H, W, 3) RGB, upright.
        header: header of the file.
    """

    pixels: Image
    header: ImageHeader


@dataclass(frozen=True, slots=True)
class _Format:
    """Image file format.

    Attributes:
        signature: pattern of the first bytes.
        name: name of the format.
        parse: function that parses the header.
        decode: function that decodes the main image.
    """

    signature: re.Pattern[bytes]
    name: str
    parse: Callable[[bytes], ImageHeader]
    decode: _Decode


def is_image(path: Path) -> bool:
    """Return whether a file's content is an image in a format that ``read_image`` supports.

    Concatenated JPEGs are a video: motion JPEG without a container.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        data = file.read(_SIGNATURE_BYTES)
        format_ = next((each for each in _FORMATS if each.signature.match(data)), None)
        if format_ is None or format_.name != "JPEG":
            return format_ is not None
        return parse_jpeg(data + file.read(_MAX_HEADER_BYTES)).images == 1


def is_heif(path: Path) -> bool:
    """Return whether a file's first bytes are those of a HEIF or AVIF image.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        return bool(_HEIF.match(file.read(_SIGNATURE_BYTES)))


def read_image(path: Path, max_pixels: int) -> Image:
    """Read the main image of a file: uint8 (H, W, 3) RGB, upright; alpha is dropped.

    Raises:
        BadImageError: the file can't be read or decoded.
        TooLargeError: the image has more than ``max_pixels``.
    """
    return read_image_file(path, max_pixels).pixels


def read_image_file(path: Path, max_pixels: int) -> DecodedImage:
    """Read the main image of a file, as ``read_image`` does, and the file's header.

    Raises:
        BadImageError: the file can't be read or decoded.
        TooLargeError: the image has more than ``max_pixels``.
    """
    data = _read_file(path, max_pixels)
    format_ = _detect_format(data)
    header = _parse_header(path, format_, data, max_pixels)
    pixels = cast(Image, format_.decode(data, header, max_pixels))
    check_pixels(str(path), pixels.shape[1], pixels.shape[0], max_pixels)  # headers can be wrong
    return DecodedImage(pixels, header)


def read_label_map(path: Path, max_pixels: int) -> npt.NDArray[np.int32]:
    """Read a PNG label map: int32 (H, W), upright.

    A label is the palette index, the gray value (8 or 16 bits; fewer bits are stretched to 8), or
    R + 256 G + 65536 B; alpha is dropped.

    Raises:
        BadImageError: the file can't be read or decoded, isn't a PNG, or has pixels of another
            format.
        TooLargeError: the image has more than ``max_pixels``.
    """
    data = _read_file(path, max_pixels)
    format_ = _detect_format(data)
    if format_.name != "PNG":  # lossy formats change labels at the borders between them
        raise BadImageError("isn't a PNG")
    header = _parse_header(path, format_, data, max_pixels)
    labels = _decode_with_ffmpeg(data, header, max_pixels, codec="png", convert=_to_labels)
    check_pixels(str(path), labels.shape[1], labels.shape[0], max_pixels)
    return cast(npt.NDArray[np.int32], labels)


def read_exif_orientation(path: Path, max_pixels: int) -> int:
    """Return the EXIF orientation of an image file, 1 to 8; ``read_image`` applies it.

    Raises:
        BadImageError: the file can't be read, or isn't an image.
    """
    data = _read_file(path, max_pixels)
    return _detect_format(data).parse(data).orientation


def read_image_size(path: Path, max_pixels: int) -> Size:
    """Return the (height, width) of the upright image from the file's header, without decoding.

    Raises:
        BadImageError: the file can't be read, isn't an image, or its header is damaged.
        TooLargeError: the image has more than ``max_pixels``.
    """
    data = _read_file(path, max_pixels)
    header = _parse_header(path, _detect_format(data), data, max_pixels)
    assert header.size is not None
    return header.size[::-1] if header.orientation in TRANSPOSING_ORIENTATIONS else header.size


def _detect_format(data: bytes) -> _Format:
    for format_ in _FORMATS:
        if format_.signature.match(data):
            return format_
    raise BadImageError("isn't an image in a supported format")


def _parse_header(path: Path, format_: _Format, data: bytes, max_pixels: int) -> ImageHeader:
    """Parse the header and check the size that it states."""
    header = format_.parse(data)
    if header.size is None:
        raise BadImageError("its header is damaged")
    height, width = header.size
    check_pixels(str(path), width, height, max_pixels)
    return header


def _read_file(path: Path, max_pixels: int) -> bytes:
    """Read a file, up to a size that an image of ``max_pixels`` can have at most."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, _MAX_BYTES_PER_PIXEL * max_pixels + _MAX_HEADER_BYTES))
    except OSError as error:
        raise BadImageError(f"can't be read: {error.strerror}") from None
    if not data:
        raise BadImageError("the file is empty")
    return data


def _decode_with_ffmpeg(
    data: bytes,
    header: ImageHeader,
    max_pixels: int,
    *,
    codec: str,
    convert: Callable[[VideoFrame], _Pixels] | None = None,
) -> _Pixels:
    """Decode an image with FFmpeg and make it upright.

    Args:
        data: content of the file.
        header: its header.
        max_pixels: pixel limit of the decoder.
        codec: FFmpeg's name of the decoder.
        convert: conversion of the decoded frame to pixels; None for RGB.
    """
    decoder = cast(VideoCodecContext, CodecContext.create(codec, "r"))
    decoder.thread_count = 1
    limit = {"max_pixels": str(decoder_limit(max_pixels))}
    decoder.options = limit | _STRICT_OPTIONS.get(codec, {})
    try:
        frames = decoder.decode(Packet(data)) or decoder.decode(None)
        if not frames:
            raise BadImageError("there is no image in it")
        return _apply_orientation((convert or frame_to_rgb)(frames[0]), header.orientation)
    except (av.error.FFmpegError, ValueError) as error:
        raise BadImageError(f"can't be decoded: {ffmpeg_error_message(error)}") from None


def _decode_webp(data: bytes, header: ImageHeader, max_pixels: int) -> _Pixels:
    if data[12:16] == b"VP8X" and data[20] & _WEBP_ANIMATION_FLAG:  # FFmpeg decodes no animation
        return _apply_orientation(decode_with_pillow("WEBP", data), header.orientation)
    return _decode_with_ffmpeg(data, header, max_pixels, codec="webp")


def _decode_ico(data: bytes, _header: ImageHeader, _max_pixels: int) -> _Pixels:
    return decode_with_pillow("ICO", data)


def _decode_heif(data: bytes, _header: ImageHeader, max_pixels: int) -> _Pixels:
    return decode_heif(data, max_pixels)


def _parse_tiff(data: bytes) -> ImageHeader:
    directory, images = find_main_directory(data)
    tags = directory.tags
    return ImageHeader((tags[HEIGHT][0], tags[WIDTH][0]), read_orientation_tag(tags), images)


def _decode_tiff(data: bytes, header: ImageHeader, max_pixels: int) -> _Pixels:
    directory, _images = find_main_directory(data)
    data = set_first_directory(data, directory)
    if needs_ffmpeg(data, directory.tags):
        return _decode_with_ffmpeg(data, header, max_pixels, codec="tiff", convert=_to_rgb_in_range)
    return decode_tiff(data, directory.tags, max_pixels)  # Pillow applies the orientation


def _to_rgb_in_range(frame: VideoFrame) -> _Pixels:
    """Convert to RGB; floating-point samples have no defined range and must lie in 0..1."""
    if "f32" in frame.format.name:
        floats = frame.to_ndarray()
        if not (floats.min() >= 0 and floats.max() <= 1):
            raise BadImageError("its floating-point samples don't lie between 0 and 1")
    return frame_to_rgb(frame)


def _to_labels(frame: VideoFrame) -> _Pixels:
    """Convert to labels, int32 (H, W); see ``read_label_map``."""
    pixel_format = frame.format.name
    if pixel_format == "pal8":
        indices, _ = frame.to_ndarray()
        return cast(_Pixels, indices.astype(np.int32))
    if pixel_format == "gray16be":
        return frame.to_ndarray().astype(np.int32)
    if pixel_format in ("gray", "monob", "ya8"):
        return VideoReformatter().reformat(frame, format="gray").to_ndarray().astype(np.int32)
    if pixel_format in ("rgb24", "rgba"):
        rgb = frame_to_rgb(frame).astype(np.int32)
        return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    raise BadImageError(f"isn't a PNG of labels: its pixels are {pixel_format}")


def _apply_orientation(image: _Pixels, orientation: int) -> _Pixels:
    """Make an image with an EXIF orientation of 1 to 8 upright."""
    is_mirrored = orientation in (2, 4, 5, 7)
    quarter_turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    rotated = np.rot90(image[:, ::-1] if is_mirrored else image, quarter_turns)
    return np.ascontiguousarray(rotated)


def _ffmpeg_format(
    signature: bytes, name: str, parse: Callable[[bytes], ImageHeader], codec: str
) -> _Format:
    decode = partial(_decode_with_ffmpeg, codec=codec)
    return _Format(re.compile(signature, re.DOTALL), name, parse, decode)


_HEIF = re.compile(
    rb"....ftyp(?:mif1|mif2|msf1|miaf|avif|avis|heic|heix|heim|heis|hevc|hevx)", re.DOTALL
)

_FORMATS = (
    _ffmpeg_format(rb"\xff\xd8\xff", "JPEG", parse_jpeg, "mjpeg"),
    _ffmpeg_format(rb"\x89PNG\r\n\x1a\n", "PNG", parse_png, "png"),
    _ffmpeg_format(rb"BM", "BMP", parse_bmp, "bmp"),
    _Format(re.compile(rb"RIFF....WEBP", re.DOTALL), "WebP", parse_webp, _decode_webp),
    _Format(re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF", _parse_tiff, _decode_tiff),
    _Format(_HEIF, "HEIF", parse_heif, _decode_heif),
    _ffmpeg_format(
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000", parse_jpeg2000, "jpeg2000"
    ),
    _Format(re.compile(rb"\x00\x00\x01\x00[^\x00]\x00"), "ICO", parse_ico, _decode_ico),
)
