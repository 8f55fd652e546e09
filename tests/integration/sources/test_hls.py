"""HLS over HTTP: recorded and live playlists, valid and invalid ones."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cameras import HttpCamera, http_camera
from support.live_sources import SourceReader, start_reader
from support.processes import read_resident_memory

from streamseg.errors import SourceError
from streamseg.sources import hls, hls_playlist

pytestmark = pytest.mark.timeout(60)

PLAYLIST = "application/vnd.apple.mpegurl"
HEAD = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n"
END = "#EXT-X-ENDLIST\n"
RATE = 50
"""Frames per second."""
FRAMES_PER_SEGMENT = 10


def encode_segments(
    container_format: str,
    frames: int,
    *,
    size=(160, 120),
    rate=RATE,
    gop=FRAMES_PER_SEGMENT,
    **options,
) -> list[bytes]:
    """Encode a moving square; return one piece per GOP."""
    file = io.BytesIO()
    starts: list[int] = []
    with av.open(
        file, "w", format=container_format, options={"flush_packets": "1", **options}
    ) as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "scenecut=0"}
        stream.codec_context.gop_size = gop
        for index in range(frames):
            image = np.full((size[1], size[0], 3), 60, np.uint8)
            image[40:60, index % 100 : index % 100 + 20] = 200
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index
            if index % gop == 0:
                starts.append(file.tell())
            out.mux(stream.encode(frame))
    data = file.getvalue()
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


@functools.cache
def encode_transport_segments(segments: int = 24, **options) -> tuple[bytes, ...]:
    """Return the segments of one transport stream."""
    data = encode_segments(
        "mpegts", segments * FRAMES_PER_SEGMENT, mpegts_flags="pat_pmt_at_frames", **options
    )
    return tuple(data)


@functools.cache
def encode_mp4_segments(**options) -> tuple[bytes, ...]:
    """Return the initialization section and three segments of a fragmented MP4."""
    data = b"".join(
        encode_segments(
            "mp4",
            3 * FRAMES_PER_SEGMENT,
            movflags="empty_moov+default_base_moof+frag_keyframe",
            **options,
        )
    )
    boxes: list[tuple[bytes, bytes]] = []
    while data:
        size = int.from_bytes(data[:4], "big")
        boxes.append((data[4:8], data[:size]))
        data = data[size:]
    init = b"".join(box for kind, box in boxes if kind in (b"ftyp", b"moov"))
    moofs = [box for kind, box in boxes if kind == b"moof"]
    mdats = [box for kind, box in boxes if kind == b"mdat"]
    return init, *(a + b for a, b in zip(moofs, mdats, strict=True))


def make_playlist(*lines: str, head: str = HEAD, end: str = END) -> str:
    """Return a playlist; each line that is not a tag is a segment."""
    body = "".join(line + "\n" if line[0] == "#" else f"#EXTINF:0.2,\n{line}\n" for line in lines)
    return head + body + end


@pytest.fixture
def server() -> Iterator[HttpCamera]:
    with http_camera() as server:
        responses = server.responses
        for number, segment in enumerate(encode_transport_segments()):
            responses[f"/{number}.ts"] = "video/mp2t", segment
        for number, segment in enumerate(encode_transport_segments(2, size=(96, 64))):
            responses[f"/small{number}.ts"] = "video/mp2t", segment
        for number, segment in enumerate(encode_mp4_segments()):
            responses[f"/{number}.m4s"] = "video/mp4", segment
        for number, segment in enumerate(encode_mp4_segments(size=(96, 64))):
            responses[f"/small{number}.m4s"] = "video/mp4", segment
        responses["/whole.ts"] = "video/mp2t", b"".join(encode_transport_segments())
        responses["/whole.mp4"] = "video/mp4", b"".join(encode_mp4_segments())
        yield server


def read_playlist(
    server: HttpCamera, text: str | bytes, kind: str = PLAYLIST, **options
) -> SourceReader:
    """Read a playlist to its end."""
    server.responses["/list.m3u8"] = kind, text.encode() if isinstance(text, str) else text
    reader = start_reader(f"{server.root}/list.m3u8", **{"max_attempts": 1, **options})
    try:
        reader.wait_until(lambda: reader.error)
    finally:
        reader.close()
    return reader


def count_frames_per_epoch(reader: SourceReader) -> list[int]:
    """Return the number of frames of each epoch; check that times never decrease within one."""
    times_of: dict[int, list[float]] = {}
    for _, frame in reader.received:
        times_of.setdefault(frame.epoch, []).append(frame.pts)
    assert all(times == sorted(times) for times in times_of.values())
    assert list(times_of) == sorted(times_of)
    indices = [frame.index for _, frame in reader.received]
    assert indices == sorted(set(indices))
    return [len(times) for times in times_of.values()]


def make_byte_ranges(
    segments: tuple[bytes, ...], first: int, name: str, *, with_offset: bool
) -> list[str]:
    lines, offset = [], first
    for count, segment in enumerate(segments):
        where = f"@{offset}" if with_offset or not count else ""
        lines += [f"#EXT-X-BYTERANGE:{len(segment)}{where}", name]
        offset += len(segment)
    return lines


MAP = '#EXT-X-MAP:URI="0.m4s"'
CUT = "#EXT-X-DISCONTINUITY"
INIT = len(encode_mp4_segments()[0])
VALID_PLAYLISTS: dict[str, tuple[str, list[int]]] = {
    "transport streams": (make_playlist("0.ts", "1.ts", "2.ts"), [30]),
    "fragmented MP4": (make_playlist(MAP, "1.m4s", "2.m4s", "3.m4s"), [30]),
    "line ends and a byte order mark": (
        "\ufeff" + make_playlist("0.ts", "1.ts").replace("\n", "\r\n"),
        [20],
    ),
    "no durations": ("#EXTM3U\n0.ts\n1.ts\n" + END, [20]),
    "byte ranges": (
        make_playlist(
            *make_byte_ranges(encode_transport_segments()[:3], 0, "whole.ts", with_offset=True)
        ),
        [30],
    ),
    "ranges that follow": (
        make_playlist(
            *make_byte_ranges(encode_transport_segments()[:3], 0, "whole.ts", with_offset=False)
        ),
        [30],
    ),
    "ranges of MP4": (
        make_playlist(
            f'#EXT-X-MAP:URI="whole.mp4",BYTERANGE="{INIT}@0"',
            *make_byte_ranges(encode_mp4_segments()[1:], INIT, "whole.mp4", with_offset=True),
        ),
        [30],
    ),
    "times that begin again": (make_playlist("3.ts", CUT, "0.ts", "1.ts"), [10, 20]),
    "another size": (
        make_playlist("0.ts", CUT, "small0.ts", "small1.ts", CUT, "1.ts"),
        [10, 20, 10],
    ),
    "another MP4": (
        make_playlist(MAP, "1.m4s", CUT, '#EXT-X-MAP:URI="small0.m4s"', "small1.m4s"),
        [10, 10],
    ),
    "another container": (make_playlist("0.ts", CUT, MAP, "1.m4s", "2.m4s"), [10, 20]),
    "segments that are lost": (
        make_playlist("0.ts", "lost.ts", "2.ts", "#EXT-X-GAP", "gap.ts", "4.ts"),
        [30],
    ),
    "keys of no method": (make_playlist("#EXT-X-KEY:METHOD=NONE", "0.ts"), [10]),
}


@pytest.mark.parametrize("supports_ranges", [True, False])
@pytest.mark.parametrize("name", VALID_PLAYLISTS)
def test_all_frames_of_a_recorded_playlist_are_read(server, name, supports_ranges) -> None:
    text, frame_counts = VALID_PLAYLISTS[name]
    server.supports_ranges = supports_ranges
    reader = read_playlist(server, text)
    assert "the stream ended" in str(reader.error)
    assert count_frames_per_epoch(reader) == frame_counts
    assert reader.source.report.bad == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "audio/x-mpegurl"])
def test_selected_variant_is_read_for_any_content_type(server, kind) -> None:
    server.responses["/big.m3u8"] = kind, make_playlist("0.ts").encode()
    server.responses["/small.m3u8"] = kind, make_playlist("small0.ts").encode()
    master = HEAD + (
        '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",URI="audio.m3u8"\n'
        '#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=9,URI="frames.m3u8"\n'
        '#EXT-X-STREAM-INF:BANDWIDTH=9,CODECS="mp4a.40.2"\naudio.m3u8\n'
        '#EXT-X-STREAM-INF:BANDWIDTH=9,CODECS="avc1.4d001f,mp4a.40.2",AUDIO="a"\nbig.m3u8\n'
        "#EXT-X-STREAM-INF:BANDWIDTH=9\nsmall.m3u8\n"
    )
    for stream, size in enumerate([(120, 160), (64, 96)]):
        server.requested_paths.clear()
        reader = read_playlist(server, master, kind, stream=stream)
        assert {frame.size for _, frame in reader.received} == {size}
        assert len(server.requested_paths) == 3, "only the selected variant is requested"
    assert "has no video stream 2: there are 2" in str(
        read_playlist(server, master, kind, stream=2).error
    )


def test_segment_addresses_are_relative_to_the_redirected_playlist(server) -> None:
    server.responses["/deep/er/real.m3u8"] = (
        PLAYLIST,
        make_playlist("../../0.ts?a=b c", "/1.ts").encode(),
    )
    server.responses["/0.ts?a=b%20c"] = server.responses["/0.ts"]
    server.redirect_target = "/deep/er/real.m3u8"
    reader = start_reader(f"{server.root}/away/x", max_attempts=1)
    reader.wait_until(lambda: reader.error)
    reader.close()
    assert count_frames_per_epoch(reader) == [20]


def test_frames_do_not_depend_on_the_number_of_fragments_per_demuxer(server, monkeypatch) -> None:
    text = VALID_PLAYLISTS["fragmented MP4"][0]
    whole = read_playlist(server, text).received
    monkeypatch.setattr(hls, "MAX_FRAGMENTS", 1)
    pieces = read_playlist(server, text).received
    assert [(f.index, f.epoch, f.pts) for _, f in pieces] == [
        (f.index, f.epoch, f.pts) for _, f in whole
    ]
    assert all(
        np.array_equal(a.image, b.image) for (_, a), (_, b) in zip(pieces, whole, strict=True)
    )


@pytest.fixture
def other_server() -> Iterator[socket.socket]:
    """Run a server on another host; fail if a client connects to it."""
    with socket.create_server(("127.0.0.2", 0)) as server:
        server.setblocking(False)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


INVALID_PLAYLISTS = {
    "self": (HEAD + "#EXT-X-STREAM-INF:BANDWIDTH=1\nlist.m3u8\n", "variant is a master playlist"),
    "nested": (make_playlist("0.ts", "list.m3u8"), "the segment is a playlist"),
    "ffconcat": (make_playlist("concat.ts"), "ended before any video data"),
    "data": (make_playlist("data:video/mp2t;base64,AAAA"), "not allowed in a stream over HTTP"),
    "file": (make_playlist("file:///etc/passwd"), "not allowed in a stream over HTTP"),
    "path": (make_playlist("concat:/etc/passwd"), "not allowed in a stream over HTTP"),
    "host": (make_playlist("{other_server}/0.ts"), "leads to another host"),
    "host of a map": (
        make_playlist('#EXT-X-MAP:URI="{other_server}/0"', "1.m4s"),
        "leads to another host",
    ),
    "host of a variant": (
        HEAD + "#EXT-X-STREAM-INF:\n{other_server}/a.m3u8\n",
        "leads to another host",
    ),
    "user": (make_playlist("http://me:s3cret@127.0.0.1/0.ts"), "to an address with a user name"),
    "brackets": (make_playlist("http://[1:2/0.ts"), "invalid address|no host"),
    "key": (make_playlist('#EXT-X-KEY:METHOD=AES-128,URI="{other_server}/k"', "0.ts"), "encrypted"),
    "long": (HEAD + "x" * (hls.MAX_PLAYLIST_BYTES + 1), f"over {hls.MAX_PLAYLIST_BYTES} bytes"),
    "many": (make_playlist(*["0.ts"] * 2001), "over 2000 segments"),
    "variants": (HEAD + "#EXT-X-STREAM-INF:\na\n" * 1001, "over 1000 variants"),
    "number": (
        make_playlist("#EXT-X-MEDIA-SEQUENCE:1e999", "0.ts"),
        "invalid number in the playlist",
    ),
    "garbage": ("\0\1\2garbage", "doesn't begin with #EXTM3U"),
    "empty": ("", "doesn't begin with #EXTM3U"),
    "nothing": (make_playlist(), "has no segments"),
    "lost": (make_playlist(*(f"lost{number}.ts" for number in range(9))), r"lost3.ts: .*\(404\)"),
    "map": (make_playlist("#EXT-X-MAP:URI=", "0.ts"), "EXT-X-MAP without an address"),
    "large map": (make_playlist('#EXT-X-MAP:URI="large"', "0.ts"), "section over 1048576 bytes"),
}


@pytest.mark.parametrize("name", INVALID_PLAYLISTS)
def test_invalid_playlist_is_refused_in_one_line(
    server, other_server, name, monkeypatch, capfd
) -> None:
    monkeypatch.setattr(hls_playlist, "MAX_SEGMENTS", 2000)
    text, reason = INVALID_PLAYLISTS[name]
    server.responses["/concat.ts"] = "text/plain", b"ffconcat version 1.0\nfile /etc/passwd\n"
    server.responses["/large"] = "video/mp4", bytes(2**20 + 1)
    address = f"http://127.0.0.2:{other_server.getsockname()[1]}"
    reader = read_playlist(server, text.replace("{other_server}", address))
    assert reader.error is not None
    assert reader.error.args[0].count("\n") == 0
    assert "s3cret" not in str(reader.error)
    assert re.search(reason, str(reader.error))
    assert capfd.readouterr().err == "", "PyAV prints exceptions that it cannot raise"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>', "a DASH manifest"),
        (b"\n<!DOCTYPE html><html>log in first</html>", "a web page"),
        (b"ffconcat version 1.0\nfile http://127.0.0.2:9/x\n", "format isn't supported over HTTP"),
        (
            b"v=0\r\no=- 0 0 IN IP4 127.0.0.2\r\ns=x\r\nt=0 0\r\nm=video 9 RTP/AVP 96\r\n",
            "not a video|format isn't supported",
        ),
    ],
)
def test_formats_that_refer_to_other_files_are_refused(server, body, reason) -> None:
    server.responses["/x"] = "application/octet-stream", body
    reader = start_reader(f"{server.root}/x", max_attempts=1)
    reader.wait_until(lambda: reader.error)
    reader.close()
    assert re.search(reason, str(reader.error))


@given(
    lines=st.lists(
        st.one_of(
            st.text(max_size=30),
            st.sampled_from(
                [
                    "#EXT-X-ENDLIST",
                    "#EXT-X-BYTERANGE:5@",
                    "#EXT-X-BYTERANGE:@",
                    "#EXT-X-KEY:",
                    "a.ts",
                    "#EXT-X-STREAM-INF:",
                    "#EXT-X-TARGETDURATION:",
                    "#EXT-X-TARGETDURATION:1.5",
                    CUT,
                    MAP,
                    "#EXT-X-MAP:BYTERANGE=1@2,URI=x",
                    "#EXT-X-MEDIA-SEQUENCE:-1",
                    "http://[",
                    "//",
                    "?",
                ]
            ),
        )
    )
)
def test_arbitrary_playlist_is_parsed_or_refused_in_one_line(lines) -> None:
    data = ("#EXTM3U\n" + "\n".join(lines)).encode("utf-8", "surrogatepass")
    try:
        playlist = hls_playlist.parse_playlist("http://h/a.m3u8", data)
    except SourceError as error:
        line = str(error)
        assert "\n" not in line
        return
    for segment in playlist.segments:
        with contextlib.suppress(SourceError):
            assert segment.media.url


class LivePlaylist:
    """Live playlist of six segments that advances with the clock.

    Attributes:
        segment_duration: seconds after which the playlist advances by a segment.
        started_at: time of the first segment, in monotonic seconds.
        text: text that replaces the playlist, or None.
    """

    def __init__(self, server: HttpCamera, segments: int = 24) -> None:
        self.server = server
        self.segments = segments
        self.segment_duration = FRAMES_PER_SEGMENT / RATE
        self.started_at = time.monotonic()
        self.text: str | None = None
        server.response_factories["/live.m3u8"] = self.make_response

    @property
    def first_segment(self) -> int:
        return min(
            int((time.monotonic() - self.started_at) / self.segment_duration), self.segments - 6
        )

    def make_response(self) -> tuple[str, bytes]:
        first = self.first_segment
        names = [f"{number}.ts" for number in range(first, first + 6)]
        text = make_playlist(f"#EXT-X-MEDIA-SEQUENCE:{first}", *names, end="")
        return PLAYLIST, (text if self.text is None else self.text).encode()


def test_live_frames_are_read_at_the_frame_rate_and_not_in_bursts(server) -> None:
    LivePlaylist(server)
    reader = start_reader(f"{server.root}/live.m3u8")
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 80)
    finally:
        reader.close()
    arrivals = np.diff([at for at, _ in reader.received])
    assert np.percentile(arrivals, 90) < 2.5 / RATE
    assert np.percentile(arrivals, 10) > 0.3 / RATE
    times = [frame.pts for _, frame in reader.received]
    assert np.allclose(np.diff(times), 1 / RATE)


@pytest.mark.slow
def test_temporarily_invalid_live_playlist_loses_no_frame(server, monkeypatch) -> None:
    monkeypatch.setattr(hls, "MAX_RELOAD", 0.2)
    live = LivePlaylist(server)
    reader = start_reader(f"{server.root}/live.m3u8")
    try:
        for text in ("", "garbage", HEAD, HEAD + "#EXT-X-STREAM-INF:\nx\n"):
            count = len(reader.received)
            reader.wait_until(lambda count=count: len(reader.received) >= count + 20)
            live.text = text
            time.sleep(0.3)
            live.text = None
        reader.wait_until(lambda: reader.count_frames(0) >= 120)
    finally:
        reader.close()
    assert np.allclose(np.diff([frame.pts for _, frame in reader.received][:120]), 1 / RATE)


@pytest.mark.slow
def test_live_playlist_that_restarts_or_disappears_begins_a_new_epoch(server, monkeypatch) -> None:
    monkeypatch.setattr(hls, "MAX_RELOAD", 0.2)
    monkeypatch.setattr(hls, "MIN_RELOAD", 0.1)
    live = LivePlaylist(server)
    reader = start_reader(f"{server.root}/live.m3u8")
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 35)
        live.started_at = time.monotonic()
        reader.wait_until(lambda: reader.count_frames(1) >= 5)
        assert reader.has_reason("restarted")
        del server.response_factories["/live.m3u8"]
        reader.wait_until(lambda: reader.has_reason("(404)"))
        LivePlaylist(server)
        reader.wait_until(lambda: reader.count_frames(2) >= 5)
    finally:
        reader.close()
    count_frames_per_epoch(reader)


@pytest.mark.slow
def test_memory_and_open_files_are_constant_over_many_segments(server) -> None:
    """Read 1800 segments of two frames: as many as an hour of segments of two seconds."""
    count = 1800
    segments = encode_segments(
        "mpegts", 2 * count, size=(64, 48), rate=250, gop=2, mpegts_flags="pat_pmt_at_frames"
    )
    for number, segment in enumerate(segments):
        server.responses[f"/{number}.ts"] = "video/mp2t", segment
    server.response_factories["/live.m3u8"] = make_growing_playlist(server, count)
    reader = start_reader(f"{server.root}/live.m3u8")
    reader.received = counter = FrameCounter()
    try:
        reader.wait_until(lambda: counter.count >= count // 2, within=40)
        before = read_resident_memory(), count_open_files()
        reader.wait_until(lambda: counter.count >= 2 * count - 200, within=40)
        after = read_resident_memory(), count_open_files()
    finally:
        reader.close()
    assert counter.epochs == {0}
    assert after[0] - before[0] < 8 * 2**20
    assert after[1] - before[1] < 8, "includes the connections of the server"


class FrameCounter(list):
    """List that counts appended frames and does not keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.epochs: set[int] = set()

    def append(self, item) -> None:
        self.count += 1
        self.epochs.add(item[1].epoch)


def make_growing_playlist(server: HttpCamera, count: int) -> Callable[[], tuple[str, bytes]]:
    """Return a response factory of a playlist that is ahead of the requested segments."""

    def make_response() -> tuple[str, bytes]:
        requested = [int(path[1:-3]) for path in server.requested_paths if path.endswith(".ts")]
        server.requested_paths.clear()
        make_response.latest = max([make_response.latest, *requested])
        names = [
            f"{n}.ts" for n in range(make_response.latest, min(make_response.latest + 60, count))
        ]
        return PLAYLIST, make_playlist(
            f"#EXT-X-MEDIA-SEQUENCE:{make_response.latest}", *names, end=""
        ).encode()

    make_response.latest = 0
    return make_response


def count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
