"""Playlists of HTTP Live Streaming (RFC 8216): data types and parser."""

from __future__ import annotations

import re
from dataclasses import dataclass

from streamseg.errors import SourceError, redact
from streamseg.sources.http import join_url

TYPES = ("mpegurl",)
MAX_SEGMENTS = 100_000
"""Maximum number of segments of a playlist: more than two days of two seconds each."""
MAX_VARIANTS = 1000
"""Maximum number of variants of a master playlist."""
_ATTRIBUTE = re.compile(r'([A-Z0-9-]+)=("[^"]*"|[^,]*)')
_VIDEO_CODECS = re.compile(r"avc|hvc|hev|vvc|vvi|av01|vp0?[89]|mp4v|dvh|dva|mjp", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource named in a playlist.

    Attributes:
        base: URL of the playlist.
        uri: URI in the playlist.
        byte_range: offset and length, or None for the whole resource.
    """

    base: str
    uri: str
    byte_range: tuple[int, int] | None = None

    @property
    def url(self) -> str:
        """The absolute URL; computed on demand, because most segments are never read."""
        return join_url(self.base, self.uri)

    def is_same(self, other: Resource | None) -> bool:
        """Return whether both are equal, except for the query, which may contain a new token."""
        return (
            other is not None
            and self.byte_range == other.byte_range
            and self.uri.partition("?")[0] == other.uri.partition("?")[0]
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """Media segment.

    Attributes:
        media: resource with the media data.
        init: initialization section of its container, or None.
        discontinuity: whether times or format don't continue those of the previous segment.
        is_gap: whether the server has no media for it.
        is_encrypted: whether the media data are encrypted.
    """

    media: Resource
    init: Resource | None = None
    discontinuity: bool = False
    is_gap: bool = False
    is_encrypted: bool = False

    def follows(self, earlier: Segment) -> bool:
        """Return whether this segment belongs to the same container as an earlier one."""
        has_same_init = (
            self.init is earlier.init if self.init is None else self.init.is_same(earlier.init)
        )
        return has_same_init and not self.discontinuity


@dataclass(frozen=True, slots=True)
class Playlist:
    """Media or master playlist.

    Attributes:
        url: URL that it was read from.
        segments: segments of a media playlist, in order.
        first: media sequence number of the first segment.
        target_duration: maximum duration of a segment, in seconds.
        is_complete: whether no more segments will be added.
        variants: URLs of the variants with video of a master playlist, in order.
        is_master: whether this is a master playlist.
    """

    url: str
    segments: tuple[Segment, ...]
    first: int
    target_duration: float
    is_complete: bool
    variants: tuple[str, ...]
    is_master: bool

    @property
    def end(self) -> int:
        """Media sequence number after the last segment."""
        return self.first + len(self.segments)


def is_playlist(content_type: str, preface: bytes) -> bool:
    """Return whether a body is a playlist, by its content type or first bytes."""
    return any(kind in content_type for kind in TYPES) or has_playlist_header(preface)


def has_playlist_header(data: bytes) -> bool:
    """Return whether data starts with ``#EXTM3U``; a byte order mark and spaces may precede it."""
    return data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"#EXTM3U")


def parse_playlist(url: str, data: bytes) -> Playlist:
    """Parse a playlist.

    Raises:
        SourceError: it is invalid, or exceeds a limit.
    """
    if not has_playlist_header(data):
        raise SourceError(f"{redact(url)}: isn't a playlist: it doesn't begin with #EXTM3U")
    return _Parser(url).parse(data.decode("utf-8-sig", "replace"))


class _Parser:
    """State of the parser while it reads the lines of a playlist."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._segments: list[Segment] = []
        self._variants: list[str] = []
        self._first = 0
        self._target = 0.0
        self._is_complete = self._is_master = False
        self._init: Resource | None = None
        self._is_encrypted = self._is_gap = self._discontinuity = False
        self._range_end: dict[str, int] = {}
        self._variant: dict[str, str] | None = None
        self._length: tuple[int, int | None] | None = None

    def parse(self, text: str) -> Playlist:
        for line in map(str.strip, text.splitlines()):
            if line.startswith("#"):
                self._read_tag(*line.partition(":")[::2])
            elif line:
                self._read_uri(line)
        return Playlist(
            url=self._url,
            segments=tuple(self._segments),
            first=self._first,
            target_duration=self._target,
            is_complete=self._is_complete,
            variants=tuple(self._variants),
            is_master=self._is_master,
        )

    def _read_tag(self, tag: str, value: str) -> None:
        if tag == "#EXT-X-STREAM-INF":
            self._is_master = True
            self._variant = _attributes(value)
        elif tag == "#EXT-X-MEDIA-SEQUENCE":
            self._first = self._integer(value)
        elif tag == "#EXT-X-TARGETDURATION":
            self._target = float(self._integer(value.partition(".")[0]))
        elif tag == "#EXT-X-ENDLIST":
            self._is_complete = True
        elif tag == "#EXT-X-DISCONTINUITY":
            self._discontinuity = True
        elif tag == "#EXT-X-GAP":
            self._is_gap = True
        elif tag == "#EXT-X-KEY":
            self._is_encrypted = _attributes(value).get("METHOD") != "NONE"
        elif tag == "#EXT-X-BYTERANGE":
            self._length = self._byte_range(value)
        elif tag == "#EXT-X-MAP":
            self._read_map(_attributes(value))

    def _read_map(self, attributes: dict[str, str]) -> None:
        if not attributes.get("URI"):
            raise SourceError(
                f"{redact(self._url)}: the playlist has an EXT-X-MAP without an address"
            )
        byte_range = None
        if "BYTERANGE" in attributes:
            length, offset = self._byte_range(attributes["BYTERANGE"])
            byte_range = offset or 0, length
        self._init = Resource(self._url, attributes["URI"], byte_range)

    def _read_uri(self, line: str) -> None:
        if self._variant is not None:
            codecs = self._variant.get("CODECS", "")
            if not codecs or _VIDEO_CODECS.search(codecs) or "RESOLUTION" in self._variant:
                self._variants.append(join_url(self._url, line))
            self._variant = None
            self._check_count(len(self._variants), MAX_VARIANTS, "variants")
            return
        media = Resource(self._url, line, self._next_range(line))
        self._segments.append(
            Segment(media, self._init, self._discontinuity, self._is_gap, self._is_encrypted)
        )
        self._discontinuity = self._is_gap = False
        self._check_count(len(self._segments), MAX_SEGMENTS, "segments")

    def _next_range(self, uri: str) -> tuple[int, int] | None:
        """Return the byte range of the next segment; without an offset it follows the last one."""
        if self._length is None:
            return None
        length, offset = self._length
        self._length = None
        if offset is None:
            offset = self._range_end.get(uri, 0)
        self._range_end = {uri: offset + length}
        return offset, length

    def _byte_range(self, value: str) -> tuple[int, int | None]:
        length, _, offset = value.strip('" ').partition("@")
        return self._integer(length), self._integer(offset) if offset else None

    def _integer(self, value: str) -> int:
        if not re.fullmatch(r"\d{1,18}", value.strip()):
            raise SourceError(f"{redact(self._url)}: invalid number in the playlist")
        return int(value)

    def _check_count(self, count: int, limit: int, what: str) -> None:
        if count > limit:
            raise SourceError(f"{redact(self._url)}: a playlist of over {limit} {what}")


def _attributes(value: str) -> dict[str, str]:
    """Return the attributes of a tag, without quotes."""
    return {name: text.strip('"') for name, text in _ATTRIBUTE.findall(value)}
