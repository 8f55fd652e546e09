"""HLS over HTTP: recorded and live, as servers write it, and as nobody should."""

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
from support.live_sources import Watcher, resident, watching

from streamseg.errors import SourceError
from streamseg.sources import hls, hls_playlist

pytestmark = pytest.mark.timeout(60)

PLAYLIST = "application/vnd.apple.mpegurl"
HEAD = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n"
END = "#EXT-X-ENDLIST\n"
RATE = 50
"""Frames of a second; a segment has ten, a fifth of a second."""
OF_SEGMENT = 10


def encoded(
    container_format: str, frames: int, *, size=(160, 120), rate=RATE, gop=OF_SEGMENT, **options
) -> list[bytes]:
    """A square that moves, cut before each key frame."""
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
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = index
            if index % gop == 0:
                starts.append(file.tell())
            out.mux(stream.encode(picture))
    data = file.getvalue()
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


@functools.cache
def transport(segments: int = 24, **options) -> tuple[bytes, ...]:
    """Segments of one transport stream."""
    made = encoded("mpegts", segments * OF_SEGMENT, mpegts_flags="pat_pmt_at_frames", **options)
    return tuple(made)


@functools.cache
def fragmented(**options) -> tuple[bytes, ...]:
    """An initialization section, and three segments of fragmented MP4."""
    data = b"".join(
        encoded(
            "mp4", 3 * OF_SEGMENT, movflags="empty_moov+default_base_moof+frag_keyframe", **options
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


def listed(*lines: str, head: str = HEAD, end: str = END) -> str:
    """A playlist; each line that is no tag is a segment."""
    body = "".join(line + "\n" if line[0] == "#" else f"#EXTINF:0.2,\n{line}\n" for line in lines)
    return head + body + end


@pytest.fixture
def page() -> Iterator[HttpCamera]:
    with http_camera() as made:
        pages = made.pages
        for number, segment in enumerate(transport()):
            pages[f"/{number}.ts"] = "video/mp2t", segment
        for number, segment in enumerate(transport(2, size=(96, 64))):
            pages[f"/small{number}.ts"] = "video/mp2t", segment
        for number, segment in enumerate(fragmented()):
            pages[f"/{number}.m4s"] = "video/mp4", segment
        for number, segment in enumerate(fragmented(size=(96, 64))):
            pages[f"/small{number}.m4s"] = "video/mp4", segment
        pages["/whole.ts"] = "video/mp2t", b"".join(transport())
        pages["/whole.mp4"] = "video/mp4", b"".join(fragmented())
        yield made


def read(page: HttpCamera, text: str | bytes, kind: str = PLAYLIST, **options) -> Watcher:
    """What comes of a playlist until its end."""
    page.pages["/list.m3u8"] = kind, text.encode() if isinstance(text, str) else text
    seen = watching(f"{page.root}/list.m3u8", **{"max_attempts": 1, **options})
    try:
        seen.until(lambda: seen.error)
    finally:
        seen.close()
    return seen


def epochs(seen: Watcher) -> list[int]:
    """How many frames each epoch has; times never go back within one."""
    found: dict[int, list[float]] = {}
    for _, frame in seen.came:
        found.setdefault(frame.epoch, []).append(frame.pts)
    assert all(times == sorted(times) for times in found.values())
    assert list(found) == sorted(found)
    indices = [frame.index for _, frame in seen.came]
    assert indices == sorted(set(indices))
    return [len(times) for times in found.values()]


def ranges(segments: tuple[bytes, ...], first: int, name: str, *, with_offset: bool) -> list[str]:
    lines, offset = [], first
    for count, segment in enumerate(segments):
        where = f"@{offset}" if with_offset or not count else ""
        lines += [f"#EXT-X-BYTERANGE:{len(segment)}{where}", name]
        offset += len(segment)
    return lines


MAP = '#EXT-X-MAP:URI="0.m4s"'
CUT = "#EXT-X-DISCONTINUITY"
INIT = len(fragmented()[0])
GOOD: dict[str, tuple[str, list[int]]] = {
    "transport streams": (listed("0.ts", "1.ts", "2.ts"), [30]),
    "fragmented MP4": (listed(MAP, "1.m4s", "2.m4s", "3.m4s"), [30]),
    "line ends and a byte order mark": (
        "\ufeff" + listed("0.ts", "1.ts").replace("\n", "\r\n"),
        [20],
    ),
    "no durations": ("#EXTM3U\n0.ts\n1.ts\n" + END, [20]),
    "byte ranges": (listed(*ranges(transport()[:3], 0, "whole.ts", with_offset=True)), [30]),
    "ranges that follow": (
        listed(*ranges(transport()[:3], 0, "whole.ts", with_offset=False)),
        [30],
    ),
    "ranges of MP4": (
        listed(
            f'#EXT-X-MAP:URI="whole.mp4",BYTERANGE="{INIT}@0"',
            *ranges(fragmented()[1:], INIT, "whole.mp4", with_offset=True),
        ),
        [30],
    ),
    "times that begin again": (listed("3.ts", CUT, "0.ts", "1.ts"), [10, 20]),
    "another size": (listed("0.ts", CUT, "small0.ts", "small1.ts", CUT, "1.ts"), [10, 20, 10]),
    "another MP4": (
        listed(MAP, "1.m4s", CUT, '#EXT-X-MAP:URI="small0.m4s"', "small1.m4s"),
        [10, 10],
    ),
    "another container": (listed("0.ts", CUT, MAP, "1.m4s", "2.m4s"), [10, 20]),
    "segments that are lost": (
        listed("0.ts", "lost.ts", "2.ts", "#EXT-X-GAP", "gap.ts", "4.ts"),
        [30],
    ),
    "keys of no method": (listed("#EXT-X-KEY:METHOD=NONE", "0.ts"), [10]),
}


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("name", GOOD)
def test_all_frames_of_a_recorded_playlist_come(page, name, has_ranges) -> None:
    text, wanted = GOOD[name]
    page.has_ranges = has_ranges
    seen = read(page, text)
    assert "the stream ended" in str(seen.error)
    assert epochs(seen) == wanted
    assert seen.source.report.bad == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "audio/x-mpegurl"])
def test_a_playlist_of_any_type_is_read_in_the_variant_that_is_chosen(page, kind) -> None:
    page.pages["/big.m3u8"] = kind, listed("0.ts").encode()
    page.pages["/small.m3u8"] = kind, listed("small0.ts").encode()
    master = HEAD + (
        '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",URI="audio.m3u8"\n'
        '#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=9,URI="frames.m3u8"\n'
        '#EXT-X-STREAM-INF:BANDWIDTH=9,CODECS="mp4a.40.2"\naudio.m3u8\n'
        '#EXT-X-STREAM-INF:BANDWIDTH=9,CODECS="avc1.4d001f,mp4a.40.2",AUDIO="a"\nbig.m3u8\n'
        "#EXT-X-STREAM-INF:BANDWIDTH=9\nsmall.m3u8\n"
    )
    for stream, size in enumerate([(120, 160), (64, 96)]):
        page.asked.clear()
        seen = read(page, master, kind, stream=stream)
        assert {frame.size for _, frame in seen.came} == {size}
        assert len(page.asked) == 3, "nothing is requested that isn't read"
    assert "has no video stream 2: there are 2" in str(read(page, master, kind, stream=2).error)


def test_what_a_playlist_leads_to_is_relative_to_where_it_really_is(page) -> None:
    page.pages["/deep/er/real.m3u8"] = PLAYLIST, listed("../../0.ts?a=b c", "/1.ts").encode()
    page.pages["/0.ts?a=b%20c"] = page.pages["/0.ts"]
    page.leads_to = "/deep/er/real.m3u8"
    seen = watching(f"{page.root}/away/x", max_attempts=1)
    seen.until(lambda: seen.error)
    seen.close()
    assert epochs(seen) == [20]


def test_a_long_stream_of_fragments_is_read_by_one_demuxer_after_the_other(
    page, monkeypatch
) -> None:
    text = GOOD["fragmented MP4"][0]
    whole = read(page, text).came
    monkeypatch.setattr(hls, "MAX_FRAGMENTS", 1)
    pieces = read(page, text).came
    assert [(f.index, f.epoch, f.pts) for _, f in pieces] == [
        (f.index, f.epoch, f.pts) for _, f in whole
    ]
    assert all(
        np.array_equal(a.image, b.image) for (_, a), (_, b) in zip(pieces, whole, strict=True)
    )


@pytest.fixture
def elsewhere() -> Iterator[socket.socket]:
    """A server on another host, to which nobody must connect."""
    with socket.create_server(("127.0.0.2", 0)) as server:
        server.setblocking(False)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


BAD = {
    "self": (HEAD + "#EXT-X-STREAM-INF:BANDWIDTH=1\nlist.m3u8\n", "variant is a master playlist"),
    "nested": (listed("0.ts", "list.m3u8"), "the segment is a playlist"),
    "ffconcat": (listed("concat.ts"), "ended before any video data"),
    "data": (listed("data:video/mp2t;base64,AAAA"), "not allowed in a stream over HTTP"),
    "file": (listed("file:///etc/passwd"), "not allowed in a stream over HTTP"),
    "path": (listed("concat:/etc/passwd"), "not allowed in a stream over HTTP"),
    "host": (listed("{elsewhere}/0.ts"), "leads to another host"),
    "host of a map": (listed('#EXT-X-MAP:URI="{elsewhere}/0"', "1.m4s"), "leads to another host"),
    "host of a variant": (
        HEAD + "#EXT-X-STREAM-INF:\n{elsewhere}/a.m3u8\n",
        "leads to another host",
    ),
    "user": (listed("http://me:s3cret@127.0.0.1/0.ts"), "to an address with a user name"),
    "brackets": (listed("http://[1:2/0.ts"), "invalid address|no host"),
    "key": (listed('#EXT-X-KEY:METHOD=AES-128,URI="{elsewhere}/k"', "0.ts"), "encrypted"),
    "long": (HEAD + "x" * (hls.MAX_PLAYLIST_BYTES + 1), f"over {hls.MAX_PLAYLIST_BYTES} bytes"),
    "many": (listed(*["0.ts"] * 2001), "over 2000 segments"),
    "variants": (HEAD + "#EXT-X-STREAM-INF:\na\n" * 1001, "over 1000 variants"),
    "number": (listed("#EXT-X-MEDIA-SEQUENCE:1e999", "0.ts"), "invalid number in the playlist"),
    "garbage": ("\0\1\2garbage", "doesn't begin with #EXTM3U"),
    "empty": ("", "doesn't begin with #EXTM3U"),
    "nothing": (listed(), "has no segments"),
    "lost": (listed(*(f"lost{number}.ts" for number in range(9))), r"lost3.ts: .*\(404\)"),
    "map": (listed("#EXT-X-MAP:URI=", "0.ts"), "EXT-X-MAP without an address"),
    "large map": (listed('#EXT-X-MAP:URI="large"', "0.ts"), "section over 1048576 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_playlist_that_can_t_be_read_is_refused_in_one_line(
    page, elsewhere, name, monkeypatch, capfd
) -> None:
    monkeypatch.setattr(hls_playlist, "MAX_SEGMENTS", 2000)
    text, why = BAD[name]
    page.pages["/concat.ts"] = "text/plain", b"ffconcat version 1.0\nfile /etc/passwd\n"
    page.pages["/large"] = "video/mp4", bytes(2**20 + 1)
    address = f"http://127.0.0.2:{elsewhere.getsockname()[1]}"
    seen = read(page, text.replace("{elsewhere}", address))
    assert seen.error is not None
    assert seen.error.args[0].count("\n") == 0
    assert "s3cret" not in str(seen.error)
    assert re.search(why, str(seen.error))
    assert capfd.readouterr().err == "", "PyAV prints what it can't raise"


@pytest.mark.parametrize(
    ("body", "why"),
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
def test_what_would_lead_elsewhere_is_refused_by_its_format(page, body, why) -> None:
    page.pages["/x"] = "application/octet-stream", body
    seen = watching(f"{page.root}/x", max_attempts=1)
    seen.until(lambda: seen.error)
    seen.close()
    assert re.search(why, str(seen.error))


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
def test_any_playlist_is_parsed_or_refused_in_one_line(lines) -> None:
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


class Live:
    """A live playlist of six segments that moves on by itself.

    Attributes:
        every: seconds for which a segment is the latest.
        text: what is served instead, None is the playlist.
    """

    def __init__(self, page: HttpCamera, segments: int = 24) -> None:
        self.page = page
        self.segments = segments
        self.every = OF_SEGMENT / RATE
        self.began = time.monotonic()
        self.text: str | None = None
        page.makes["/live.m3u8"] = self.make

    @property
    def first(self) -> int:
        return min(int((time.monotonic() - self.began) / self.every), self.segments - 6)

    def make(self) -> tuple[str, bytes]:
        first = self.first
        names = [f"{number}.ts" for number in range(first, first + 6)]
        text = listed(f"#EXT-X-MEDIA-SEQUENCE:{first}", *names, end="")
        return PLAYLIST, (text if self.text is None else self.text).encode()


def test_frames_of_a_live_playlist_come_at_their_pace_and_not_by_segments(page) -> None:
    Live(page)
    seen = watching(f"{page.root}/live.m3u8")
    try:
        seen.until(lambda: seen.frames_of(0) >= 80)
    finally:
        seen.close()
    arrivals = np.diff([at for at, _ in seen.came])
    assert np.percentile(arrivals, 90) < 2.5 / RATE
    assert np.percentile(arrivals, 10) > 0.3 / RATE
    times = [frame.pts for _, frame in seen.came]
    assert np.allclose(np.diff(times), 1 / RATE)


@pytest.mark.slow
def test_a_live_playlist_that_is_wrong_for_a_moment_costs_no_frame(page, monkeypatch) -> None:
    monkeypatch.setattr(hls, "MAX_RELOAD", 0.2)
    live = Live(page)
    seen = watching(f"{page.root}/live.m3u8")
    try:
        for text in ("", "garbage", HEAD, HEAD + "#EXT-X-STREAM-INF:\nx\n"):
            known = len(seen.came)
            seen.until(lambda known=known: len(seen.came) >= known + 20)
            live.text = text
            time.sleep(0.3)
            live.text = None
        seen.until(lambda: seen.frames_of(0) >= 120)
    finally:
        seen.close()
    assert np.allclose(np.diff([frame.pts for _, frame in seen.came][:120]), 1 / RATE)


@pytest.mark.slow
def test_live_playlist_that_restarts_or_disappears_begins_a_new_epoch(page, monkeypatch) -> None:
    monkeypatch.setattr(hls, "MAX_RELOAD", 0.2)
    monkeypatch.setattr(hls, "MIN_RELOAD", 0.1)
    live = Live(page)
    seen = watching(f"{page.root}/live.m3u8")
    try:
        seen.until(lambda: seen.frames_of(0) >= 35)
        live.began = time.monotonic()
        seen.until(lambda: seen.frames_of(1) >= 5)
        assert any("restarted" in why for _, _, why in seen.said)
        del page.makes["/live.m3u8"]
        seen.until(lambda: any("(404)" in why for _, _, why in seen.said))
        Live(page)
        seen.until(lambda: seen.frames_of(2) >= 5)
    finally:
        seen.close()
    epochs(seen)


@pytest.mark.slow
def test_an_hour_of_segments_grows_neither_memory_nor_open_files(page) -> None:
    """1800 segments, as an hour has of two seconds, of two frames each, as fast as they come."""
    count = 1800
    segments = encoded(
        "mpegts", 2 * count, size=(64, 48), rate=250, gop=2, mpegts_flags="pat_pmt_at_frames"
    )
    for number, segment in enumerate(segments):
        page.pages[f"/{number}.ts"] = "video/mp2t", segment
    page.makes["/live.m3u8"] = hour(page, count)
    seen = watching(f"{page.root}/live.m3u8")
    seen.came = newest = Newest()
    try:
        seen.until(lambda: newest.count >= count // 2, within=40)
        before = resident(), open_files()
        seen.until(lambda: newest.count >= 2 * count - 200, within=40)
        after = resident(), open_files()
    finally:
        seen.close()
    assert newest.epochs == {0}
    assert after[0] - before[0] < 8 * 2**20
    assert after[1] - before[1] < 8, "the server's own connections are among them"


class Newest(list):
    """A list that forgets all but how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.epochs: set[int] = set()

    def append(self, item) -> None:
        self.count += 1
        self.epochs.add(item[1].epoch)


def hour(page: HttpCamera, count: int) -> Callable[[], tuple[str, bytes]]:
    """A playlist that is always some segments ahead of what was asked for."""

    def make() -> tuple[str, bytes]:
        asked = [int(path[1:-3]) for path in page.asked if path.endswith(".ts")]
        page.asked.clear()
        make.latest = max([make.latest, *asked])
        names = [f"{n}.ts" for n in range(make.latest, min(make.latest + 60, count))]
        return PLAYLIST, listed(f"#EXT-X-MEDIA-SEQUENCE:{make.latest}", *names, end="").encode()

    make.latest = 0
    return make


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
