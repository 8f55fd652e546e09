"""Playlists and other files that refer to other files: these are never opened."""

import ctypes
import os
import socket
import struct
import sys
from contextlib import contextmanager

import av
import pytest
from support.media import MEDIA, moving_images, read_source, write_video

from streamseg.config import SourceConfig
from streamseg.errors import NoFramesError
from streamseg.sources import open_source

pytestmark = [
    pytest.mark.timeout(20),
    pytest.mark.skipif(sys.platform != "linux", reason="watches files with inotify"),
]
IN_OPEN = 0x20

PLAYLISTS = {
    "an ffconcat playlist": "ffconcat version 1.0\nfile 'canary.mp4'\nfile 'canary.mp4'\n",
    "an HLS playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ncanary.mp4\n",
    "an SDP description": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "a DASH manifest": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
    'type="static" mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="0" bandwidth="1"><BaseURL>canary.mp4</BaseURL><SegmentBase '
    'indexRange="0-9"/></Representation></AdaptationSet></Period></MPD>\n',
    "an IMF composition playlist": '<?xml version="1.0"?>\n<CompositionPlaylist '
    'xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>\n',
    "a VobSub index": "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n"
    "timestamp: 00:00:00:000, filepos: 000000000\n",
}


@contextmanager
def assert_not_opened(*paths):
    """Fail if one of the files is opened within the context."""
    libc = ctypes.CDLL(None)
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    try:
        for path in paths:
            assert libc.inotify_add_watch(watcher, os.fsencode(path), IN_OPEN) >= 0
        yield
        with pytest.raises(BlockingIOError):  # there is no event to read
            os.read(watcher, 4096)
    finally:
        os.close(watcher)


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("name", ["list.mp4", "list.ts", "list.txt", "list.m3u8", "list.idx"])
def test_playlist_is_refused_under_any_name(tmp_path, kind, name):
    canary, subtitles = tmp_path / "canary.mp4", tmp_path / "list.sub"
    canary.write_bytes((MEDIA / "one_frame.mp4").read_bytes())
    subtitles.write_bytes(b"")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as camera:
        camera.bind(("127.0.0.1", 0))  # opening the SDP's stream would bind the same port
        text = PLAYLISTS[kind].replace("{port}", str(camera.getsockname()[1]))
        (tmp_path / name).write_text(text)
        with assert_not_opened(canary, subtitles), pytest.raises(NoFramesError) as caught:
            open_source(SourceConfig(url=str(tmp_path / name)))
    assert str(caught.value) == (
        f"{tmp_path / name}: isn't a video but {kind}: process the recordings that it lists instead"
    )


def test_playlist_that_refers_to_itself_is_refused(tmp_path):
    path = tmp_path / "itself.mp4"
    path.write_text("ffconcat version 1.0\nfile 'itself.mp4'\n")
    with pytest.raises(NoFramesError, match="ffconcat"):
        open_source(SourceConfig(url=str(path)))


def test_recording_is_read_under_any_name(tmp_path):
    for name in ("x.m3u8", "x.ffconcat", "x.sdp", "x.mpd", "x%03d.mp4", "x"):
        (tmp_path / name).write_bytes((MEDIA / "one_frame.mp4").read_bytes())
        assert len(read_source(tmp_path / name).frames) == 1


def build_alias(path):
    """Return a QuickTime data reference to another file (alias record)."""
    name = path.encode()
    record = bytes(10) + bytes([4]) + b"disk".ljust(27, b"\0") + bytes(12)
    record += bytes([10]) + b"canary.mp4".ljust(63, b"\0") + bytes(16)
    record += struct.pack(">HH", 1, 1) + bytes(16)
    record += struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2)
    body = b"alis" + bytes(4) + record.ljust(160, b"\0")
    return struct.pack(">I", len(body) + 4) + body


def replace_data_reference(data, entry):
    """Return the movie with another data reference; the boxes around it are enlarged."""
    dref = data.index(b"dref") - 4
    start, enlarged = dref + 16, bytearray(data)
    delta = len(entry) - 12
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = data.index(kind) - 4
        struct.pack_into(">I", enlarged, at, struct.unpack_from(">I", data, at)[0] + delta)
    return bytes(enlarged[:start]) + entry + bytes(enlarged[start + 12 :])


def test_external_media_data_of_a_movie_is_not_opened(tmp_path):
    canary, path = tmp_path / "canary.mp4", tmp_path / "reference.mov"
    write_video(canary, moving_images(3))
    write_video(path, moving_images(3))
    path.write_bytes(replace_data_reference(path.read_bytes(), build_alias(str(canary))))
    options = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(path), options=options) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 3
    with assert_not_opened(canary):
        result = read_source(path)
    assert result.frames == []
    assert isinstance(result.error, NoFramesError)
