"""HTTP Live Streaming (RFC 8216): reads the segments of a playlist as byte streams for FFmpeg.

FFmpeg's HLS demuxer is not used: it aborts the process if the connections are not those of its own
HTTP client, downloads all variants at once, and allocates memory for everything in a playlist.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from streamseg.errors import SourceError, redact
from streamseg.sources import mp4
from streamseg.sources.bytestream import ByteStream
from streamseg.sources.hls_playlist import (
    Playlist,
    Resource,
    Segment,
    has_playlist_header,
    parse_playlist,
)
from streamseg.sources.http import HttpClient, ResponseBody, StatusError

FORMATS = ("mpegts",)
"""FFmpeg's names of segment formats other than fragmented MP4."""
MAX_PLAYLIST_BYTES = 4 * 2**20
MAX_INIT_BYTES = 2**20
"""Maximum size of an initialization section (EXT-X-MAP), in bytes."""
MAX_FRAGMENTS = 500
"""Maximum number of fragmented MP4 segments per demuxer, which indexes all their frames."""
MAX_FAILURES = 3
"""Maximum number of consecutive failures of segments or playlist reloads."""
LIVE_DELAY = 3
"""Segments before the end of a live playlist at which reading starts (RFC 8216, 6.3.3)."""
MIN_RELOAD, MAX_RELOAD = 0.25, 2.0
"""Minimum and maximum seconds between two requests for a live playlist."""
_FORBIDDEN_STATUS = (401, 403)
_MAX_PACE = 4.0
"""Seconds by which a frame may be ahead of the clock; if more, a segment was lost and the clock is
reset. Less than the default ``stall_after`` of a source."""


class HlsReader:
    """Reader of one HLS presentation.

    Args:
        http: client for all requests.
        stream: index of the variant in a master playlist, otherwise of the video stream in the
            segments.
        cancel_event: set when the reader is abandoned.
        add_note: called with a remark about omitted segments.
    """

    def __init__(
        self,
        http: HttpClient,
        stream: int,
        cancel_event: threading.Event,
        add_note: Callable[[str], None],
    ) -> None:
        self._http = http
        self._stream = stream
        self._cancel_event = cancel_event
        self._add_note = add_note
        self._lost_segments = self._failed_reloads = 0
        self._loaded_at = 0.0
        self._init: tuple[Resource, bytes] | None = None
        self._upcoming: Segment | None = None
        self._is_continuation = False

    def streams(self, body: ResponseBody) -> Iterator[ByteStream]:
        """Yield the containers; each discontinuity starts a new one.

        Args:
            body: body at the URL of the source.

        Raises:
            SourceError: reading failed.
        """
        playlist = self._open(body)
        segments = self._segments(playlist)
        pace = None if playlist.is_complete else _Pace(self._cancel_event).wait
        self._upcoming = next(segments, None)
        if self._upcoming is None:
            raise SourceError(f"{redact(playlist.url)}: the playlist has no segments")
        while self._upcoming is not None:
            segment = self._upcoming
            init = b"" if segment.init is None else self._read_init(segment.init)
            pieces, formats = self._container(segment, init, segments), FORMATS
            if mp4.is_mp4(init):
                pieces, formats = mp4.check_tables(pieces), mp4.FORMATS
            name, is_continuation = redact(segment.media.url), self._is_continuation
            yield ByteStream(
                name, pieces, formats, self._stream, pace, is_continuation=is_continuation
            )

    def _open(self, body: ResponseBody) -> Playlist:
        """Return the media playlist of the selected variant."""
        playlist = self._read(body)
        if not playlist.is_master:
            return playlist
        if self._stream >= len(playlist.variants):
            raise SourceError(
                f"{redact(playlist.url)}: has no video stream {self._stream}: "
                f"there are {len(playlist.variants)}, counted from 0"
            )
        chosen = self._read(self._http.get(playlist.variants[self._stream]))
        self._stream = 0
        if chosen.is_master:
            raise SourceError(f"{redact(chosen.url)}: the variant is a master playlist")
        return chosen

    def _read(self, body: ResponseBody) -> Playlist:
        text = body.read_all(MAX_PLAYLIST_BYTES, "a playlist")
        self._loaded_at = time.monotonic()
        return parse_playlist(body.url, text)

    def _segments(self, playlist: Playlist) -> Iterator[Segment]:
        """Yield the segments as they are added to the playlist."""
        url, number = playlist.url, playlist.first
        if not playlist.is_complete:
            number = max(number, playlist.end - LIVE_DELAY)
        while True:
            if playlist.end < number:
                raise SourceError(f"{redact(url)}: the playlist was restarted")
            if number < playlist.first:  # too slow: the next segment isn't listed any more
                number = max(playlist.first, playlist.end - LIVE_DELAY)
            if number < playlist.end:
                yield playlist.segments[number - playlist.first]
                number += 1
            elif playlist.is_complete:
                return
            is_exhausted = number >= playlist.end
            if not playlist.is_complete and self._is_reload_due(playlist, wait=is_exhausted):
                playlist = self._reload(playlist)

    def _is_reload_due(self, playlist: Playlist, *, wait: bool) -> bool:
        """Return whether to reload a live playlist; with ``wait``, wait until then."""
        interval = playlist.target_duration / 2 if wait else playlist.target_duration
        due = self._loaded_at + min(max(interval, MIN_RELOAD), MAX_RELOAD)
        if wait and self._cancel_event.wait(due - time.monotonic()):
            raise SourceError(f"{redact(playlist.url)}: given up")
        return time.monotonic() >= due

    def _reload(self, playlist: Playlist) -> Playlist:
        """Reload the playlist; a single failure returns the previous one."""
        try:
            latest = self._latest(playlist.url)
        except SourceError:
            self._loaded_at = time.monotonic()
            self._failed_reloads += 1
            if self._failed_reloads > MAX_FAILURES or self._cancel_event.is_set():
                raise
            return playlist
        self._failed_reloads = 0
        # Not the URL after redirections, which may contain a one-time token.
        return replace(latest, url=playlist.url)

    def _latest(self, url: str) -> Playlist:
        playlist = self._read(self._http.get(url))
        if playlist.is_master:
            raise SourceError(f"{redact(url)}: has become a master playlist")
        if not playlist.segments and not playlist.is_complete:
            raise SourceError(f"{redact(url)}: the playlist has no segments any more")
        return playlist

    def _container(
        self, segment: Segment, init: bytes, segments: Iterator[Segment]
    ) -> Iterator[bytes]:
        """Yield the bytes of the segments up to the next discontinuity."""
        if init:
            yield init
        yield from self._media(segment)
        for count, following in enumerate(segments, 1):
            self._is_continuation = following.follows(segment)
            is_full = segment.init is not None and count >= MAX_FRAGMENTS
            if is_full or not self._is_continuation:
                self._upcoming = following
                return
            yield from self._media(following)
        self._upcoming = None

    def _media(self, segment: Segment) -> Iterator[bytes]:
        """Yield the bytes of a segment; nothing if the server doesn't have it."""
        url = redact(segment.media.url)
        if segment.is_encrypted:
            raise SourceError(f"{url}: encrypted playlists can't be read")
        if segment.is_gap:
            self._add_note("the playlist has gaps")
            return
        try:
            body = self._http.get(segment.media.url, segment.media.byte_range)
        except StatusError as error:
            self._lost_segments += 1
            if error.status in _FORBIDDEN_STATUS or self._lost_segments > MAX_FAILURES:
                raise
            self._add_note(f"segment skipped: {error}")
            return
        self._lost_segments = 0
        if has_playlist_header(body.preface()):
            raise SourceError(f"{url}: the segment is a playlist")
        yield from body.pieces()

    def _read_init(self, init: Resource) -> bytes:
        if self._init is None or not init.is_same(self._init[0]):
            body = self._http.get(init.url, init.byte_range)
            self._init = init, body.read_all(MAX_INIT_BYTES, "an initialization section")
        return self._init[1]


class _Pace:
    """Clock that delays the frames of a segment to their times in the stream."""

    def __init__(self, cancel_event: threading.Event) -> None:
        self._cancel_event = cancel_event
        self._epoch = -1
        self._offset = 0.0

    def wait(self, epoch: int, pts: float) -> None:
        """Wait until a frame is due; a late one resets the clock."""
        ahead = pts + self._offset - time.monotonic()
        if epoch != self._epoch or not 0 <= ahead <= _MAX_PACE:
            self._epoch, self._offset = epoch, time.monotonic() - pts
        else:
            self._cancel_event.wait(ahead)
