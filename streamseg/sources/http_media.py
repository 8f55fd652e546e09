"""Media over HTTP: the byte streams behind an address, whatever it serves.

What it serves is recognised by its first bytes and by its type. Each container that FFmpeg then
reads may only have one of the formats named here: none of them opens other files or addresses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from streamseg.errors import SourceError, redact
from streamseg.sources import hls, mjpeg, mp4
from streamseg.sources.bytestream import ByteStream
from streamseg.sources.http import Body, Http

_FORMATS = (
    *("mpegts", "matroska", "flv", "live_flv", "mpeg", "avi", "asf", "ogg", "nut", "mxf"),
    *("h264", "hevc", "vvc", "obu", "av1", "ivf", "m4v", "mpegvideo", "h263", "vc1", "dhav"),
    *("gif", "png_pipe", "bmp_pipe", "webp_pipe", "tiff_pipe"),
)
_JPEG = b"\xff\xd8\xff"
_DASH = "dash+xml"
_REFUSED = {
    b"<MPD": "a DASH manifest, which can't be read: use the camera's address for HLS",
    b"<html": "a web page and no video: use the address of the stream itself",
    b"<!doctype html": "a web page and no video: use the address of the stream itself",
}


def open_streams(
    http: Http, url: str, stream: int, left: threading.Event, note: Callable[[str], None]
) -> Iterator[ByteStream]:
    """Yield what an address serves, as containers to be read one after the other.

    Args:
        http: client for all requests.
        url: address of the source, without user and password.
        stream: index of the video stream to read.
        left: set when the source is not read any longer.
        note: called with a remark on what is left out.

    Raises:
        SourceError: there is nothing that can be read.
    """
    body = http.get(url)
    preface = body.preface()
    if hls.is_playlist(body.content_type, preface):
        yield from hls.HlsReader(http, stream, left, note).streams(body)
    elif _is_motion_jpeg(body, preface):
        images = mjpeg.split_jpegs(body.pieces(), body.boundary)
        yield ByteStream(redact(url), mjpeg.multipart(images), (mjpeg.FORMAT,), stream)
    elif mp4.is_mp4(preface):
        yield ByteStream(redact(url), mp4.check_tables(body.pieces()), mp4.FORMATS, stream)
    else:
        _check_format(body, preface)
        yield ByteStream(redact(url), body.pieces(), _FORMATS, stream)


def _is_motion_jpeg(body: Body, preface: bytes) -> bool:
    """Whether images come, one or many: in parts, or one behind the other."""
    is_multipart = body.content_type.startswith("multipart/") or preface.lstrip().startswith(b"--")
    return is_multipart or body.content_type == "image/jpeg" or preface.startswith(_JPEG)


def _check_format(body: Body, preface: bytes) -> None:
    """Refuse by name what is no video, but looks like the address of one.

    Raises:
        SourceError: it is refused.
    """
    text = preface.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, what in _REFUSED.items():
        if text.startswith(start.lower()) or (start == b"<MPD" and _is_dash(body, text)):
            raise SourceError(f"{redact(body.url)}: {what}")


def _is_dash(body: Body, text: bytes) -> bool:
    return _DASH in body.content_type or (text.startswith(b"<?xml") and b"<mpd" in text)
