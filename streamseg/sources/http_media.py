"""Media over HTTP: detects the format served at a URL and returns byte streams for FFmpeg.

The format is detected by the first bytes and the content type. FFmpeg may only use the formats
listed here, none of which opens other files or URLs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from streamseg.errors import SourceError, redact
from streamseg.sources import hls, hls_playlist, mjpeg, mp4
from streamseg.sources.bytestream import ByteStream
from streamseg.sources.http import HttpClient, ResponseBody

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
    http: HttpClient,
    url: str,
    stream: int,
    cancel_event: threading.Event,
    add_note: Callable[[str], None],
) -> Iterator[ByteStream]:
    """Yield the containers served at a URL, to be read one after the other.

    Args:
        http: client for all requests.
        url: URL of the source, without user name and password.
        stream: index of the video stream to read.
        cancel_event: set when the reader is abandoned.
        add_note: called with a remark about omitted content.

    Raises:
        SourceError: the format is not supported.
    """
    body = http.get(url)
    preface = body.preface()
    if hls_playlist.is_playlist(body.content_type, preface):
        yield from hls.HlsReader(http, stream, cancel_event, add_note).streams(body)
    elif _is_motion_jpeg(body, preface):
        images = mjpeg.split_jpegs(body.pieces(), body.boundary)
        yield ByteStream(redact(url), mjpeg.multipart(images), (mjpeg.FORMAT,), stream)
    elif mp4.is_mp4(preface):
        yield ByteStream(redact(url), mp4.check_tables(body.pieces()), mp4.FORMATS, stream)
    else:
        _check_format(body, preface)
        yield ByteStream(redact(url), body.pieces(), _FORMATS, stream)


def _is_motion_jpeg(body: ResponseBody, preface: bytes) -> bool:
    """Return whether the body consists of JPEGs, in multipart or concatenated form."""
    is_multipart = body.content_type.startswith("multipart/") or preface.lstrip().startswith(b"--")
    return is_multipart or body.content_type == "image/jpeg" or preface.startswith(_JPEG)


def _check_format(body: ResponseBody, preface: bytes) -> None:
    """Refuse web pages and DASH manifests with a specific message.

    Raises:
        SourceError: the body is one of these.
    """
    text = preface.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, what in _REFUSED.items():
        if text.startswith(start.lower()) or (start == b"<MPD" and _is_dash(body, text)):
            raise SourceError(f"{redact(body.url)}: {what}")


def _is_dash(body: ResponseBody, text: bytes) -> bool:
    return _DASH in body.content_type or (text.startswith(b"<?xml") and b"<mpd" in text)
