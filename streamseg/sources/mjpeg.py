"""Motion JPEG over HTTP: extraction of JPEG images, however a camera separates them.

Cameras differ in everything around an image: types, lengths, boundaries, line ends, multipart or
not. So images are found by their own structure (ITU T.81, annex B); the data between them only mark
the start of a part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from streamseg.errors import SourceError
from streamseg.sources.bytestream import MAX_FRAME_BYTES

FORMAT = "mpjpeg"
"""FFmpeg's name of the format that ``multipart`` writes."""
_START = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Marker in entropy-coded data, where FF 00 is a byte FF, and FF D0 to FF D7 are restarts."""
_ANY_BOUNDARY = rb"(?:\A|\n)--[^\s-]"
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN, _FILL = 0xD8, 0xD9, 0xDA, 0xFF
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))
_LONGEST_BOUNDARY = 80
"""Maximum length of a boundary with line ends: at most 70 characters (RFC 2046, 5.1.1)."""
_MAX_EXTRA_IMAGES = 2
"""Images after the first one of a part, such as a preview or a second view. If there are more, the
stream is treated as images without parts."""


def multipart(images: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a multipart stream in the form that FFmpeg expects, with one part per image.

    FFmpeg's multipart demuxer returns an image as soon as it is complete; the one for concatenated
    images would wait for the next one.
    """
    for image in images:
        yield b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(image)
        yield image
        yield b"\r\n"


def split_jpegs(pieces: Iterator[bytes], boundary: str = "") -> Iterator[bytes]:
    """Yield each JPEG image as soon as it is complete.

    In a multipart stream, only the first image of each part.

    Args:
        pieces: data in pieces of any size.
        boundary: boundary in the HTTP header; empty if missing.

    Raises:
        SourceError: an image, or the data before it, exceeds ``MAX_FRAME_BYTES``; or the stream
            ends within an image.
    """
    splitter = _Splitter(boundary)
    for piece in pieces:
        yield from splitter.feed(piece)
    if splitter.is_within_image:
        raise SourceError("the stream ended in the middle of an image")


class _Splitter:
    """Incremental search for JPEG images.

    ``_data[:_position]`` was searched. Within an image, ``_data`` starts at its first byte;
    outside, after the last image or discarded data.
    """

    def __init__(self, boundary: str) -> None:
        token = re.escape(boundary.strip('" ').lstrip("-").encode("latin-1", "replace"))
        self._boundary = re.compile(b"--" + token if token else _ANY_BOUNDARY)
        self._boundary_line = re.compile(rb"\r?\n--+" + token + rb"[ \t-]*\r?\n") if token else None
        self._tail = max(_LONGEST_BOUNDARY, 2 * len(token))
        self._data = bytearray()
        self._position = 0
        self._find = self._find_start
        self._bytes_since_image = 0
        self._has_parts = False
        self._is_first_of_part = False
        self._extra_images = 0

    @property
    def is_within_image(self) -> bool:
        """Whether an image has started but not ended."""
        return self._find != self._find_start

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the images that end in a piece."""
        self._bytes_since_image += len(piece)
        self._data += piece
        while True:
            before = self._find, self._position
            image = self._find()
            if image is not None:
                self._bytes_since_image = len(self._data)
                if self._accept_image():
                    yield image
            elif (self._find, self._position) == before:
                break
        if self._bytes_since_image > MAX_FRAME_BYTES:
            self._data.clear()  # tracebacks keep this object alive for a while
            raise SourceError(f"no complete image in {MAX_FRAME_BYTES} bytes")

    def _find_start(self) -> bytes | None:
        """Find the first byte of an image, and a boundary before it."""
        start = self._data.find(_START)
        between = self._data if start < 0 else self._data[:start]
        if self._boundary.search(between):
            self._has_parts = self._is_first_of_part = True
        if start >= 0:
            del self._data[:start]
            self._position = len(_START) - 1
            self._find = self._find_scan_data
        else:
            del self._data[: -self._tail]
        return None

    def _find_scan_data(self) -> bytes | None:
        """Skip the segments of an image up to its entropy-coded data."""
        data = self._data
        while self._position + 4 <= len(data):
            marker = data[self._position + 1]
            length = int.from_bytes(data[self._position + 2 : self._position + 4], "big")
            if data[self._position] != _FILL or marker == _START_OF_IMAGE:
                self._find = self._find_end  # damaged, but its end can still be found
                return None
            if marker == _END_OF_IMAGE:
                break
            if marker == _FILL:
                self._position += 1
            elif marker in _WITHOUT_LENGTH:
                self._position += 2
            else:
                self._position += 2 + length
                if marker == _START_OF_SCAN:
                    self._find = self._find_end
                    return None
        if data[self._position : self._position + 2] == b"\xff\xd9":
            return self._pop_image(self._position + 2)
        return None

    def _find_end(self) -> bytes | None:
        """Find the end of an image or its next segments."""
        marker = _MARKER.search(self._data, self._position)
        known = marker.start() if marker else len(self._data)
        if self._boundary_line is not None:
            since = max(2, self._position - self._tail)
            line = self._boundary_line.search(self._data, since, known)
            if line:
                return self._pop_image(line.start())
        if marker is None:
            self._position = max(self._position, known - self._data.endswith(b"\xff"))
            return None
        code = self._data[marker.end() - 1]
        if code == _END_OF_IMAGE:
            return self._pop_image(marker.end())
        if code == _START_OF_IMAGE:  # start of the next one: the end marker is missing
            return self._pop_image(marker.end() - 2)
        self._position = marker.end() - 2
        self._find = self._find_scan_data
        return None

    def _pop_image(self, end: int) -> bytes:
        """Remove and return the image, and search for the next one."""
        image = bytes(self._data[:end])
        del self._data[:end]
        self._position = 0
        self._find = self._find_start
        return image

    def _accept_image(self) -> bool:
        """Return whether the image is the first of its part, or there are no parts."""
        if self._is_first_of_part or not self._has_parts:
            self._is_first_of_part = False
            self._extra_images = 0
            return True
        self._extra_images += 1
        if self._extra_images > _MAX_EXTRA_IMAGES:
            self._has_parts = False
        return False
