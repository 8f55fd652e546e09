"""Cameras that send by UDP: late, silent for a while, two at a time, from the middle of a GOP."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest
from support.live_sources import watching

from streamseg.config import SourceConfig
from streamseg.errors import ConfigError, SourceError
from streamseg.sources import connection, open_source, udp
from streamseg.sources.base import SourceReport
from streamseg.sources.udp import UdpAddress, UdpReceiver

pytestmark = pytest.mark.timeout(60)
FPS = 20
PAYLOAD = 1316
"""Seven packets of a transport stream, as most senders have it."""


@functools.cache
def recording(codec: str = "libx264", gop: int = 10, level: int = 200) -> tuple[bytes, ...]:
    """Four seconds of a red corner on grey, cut into what belongs to each frame."""
    file, pieces = io.BytesIO(), []
    with av.open(file, "w", format="mpegts", options={"flush_packets": "1"}) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency"} if "264" in codec else {}
        stream.codec_context.gop_size = gop
        for index in range(4 * FPS):
            image = np.full((120, 160, 3), level, np.uint8)
            image[:60, :80] = (220, 30, 30)
            image[80:100, index : index + 20] = 10
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, FPS)
            before = file.tell()
            container.mux(stream.encode(picture))
            pieces.append(file.getvalue()[before:])
    return tuple(pieces)


def is_whole(image: np.ndarray) -> bool:
    """Whether a frame has its corner, which no made-up reference has."""
    corner = image[10:50, 10:70].mean((0, 1))
    return bool(np.abs(corner - (220, 30, 30)).max() < 40)


class Sender:
    """Sends a recording again and again, at its pace, from a port of its own."""

    def __init__(self, port: int, pieces: tuple[bytes, ...], host: str, first: int) -> None:
        self._to = host, port
        self._pieces = pieces
        self._first = first
        self._over = threading.Event()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        if host.startswith("239."):
            loopback = socket.inet_aton("127.0.0.1")
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        for piece in itertools.islice(itertools.cycle(self._pieces), self._first, None):
            for at in range(0, len(piece), PAYLOAD):
                with contextlib.suppress(ConnectionRefusedError):
                    self._socket.sendto(piece[at : at + PAYLOAD], self._to)
            if self._over.wait(1 / FPS):
                return

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()


@contextlib.contextmanager
def sending(
    port: int,
    pieces: tuple[bytes, ...] | None = None,
    *,
    host: str = "127.0.0.1",
    first: int = 0,
) -> Iterator[Sender]:
    sender = Sender(port, pieces or recording(), host, first)
    try:
        yield sender
    finally:
        sender.close()


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_a_camera_that_begins_late_and_falls_silent_is_seen_each_time_it_sends(port) -> None:
    with socket.create_server(("127.0.0.1", port)) as nobody:
        nobody.settimeout(0)
        seen = watching(f"udp://127.0.0.1:{port}", open_timeout=1, stall_after=0.5)
        try:
            seen.until(lambda: seen.states().count("waiting") == 1)
            with sending(port):
                seen.until(lambda: len(seen.came) >= 10)
            seen.until(lambda: "stalled" in seen.states())
            seen.until(lambda: seen.states().count("waiting") == 2)
            known = len(seen.came)
            with sending(port):
                assert seen.until(lambda: len(seen.came) >= known + 10) < 5
        finally:
            seen.close()
        with pytest.raises(BlockingIOError):
            nobody.accept()  # UDP has no connection that could be tried first
    reasons = [why.partition(";")[0] for _, state, why in seen.said if state != "connecting"]
    assert reasons == ["no frame within 1 s", "no frame for 0.5 s", "no frame within 1 s"]
    assert all(is_whole(frame.image) for _, frame in seen.came)


def test_a_second_sender_is_left_out_and_logged_once(port, caplog) -> None:
    seen = watching(f"udp://127.0.0.1:{port}")
    try:
        with sending(port):
            seen.until(lambda: len(seen.came) >= 5)
            with sending(port, recording(level=90)), sending(port, recording(level=90), first=7):
                known = len(seen.came)
                seen.until(lambda: len(seen.came) >= known + 30)
    finally:
        seen.close()
    assert all(int(frame.image[65:75].mean()) > 180 for _, frame in seen.came)
    assert seen.source.report.damaged == seen.source.report.bad == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"cam: udp port {port}: 127.0.0.1 is another sender and is ignored"


@pytest.mark.slow
def test_a_sender_that_comes_back_from_another_port_begins_an_epoch(port) -> None:
    seen = watching(f"udp://127.0.0.1:{port}", stall_after=5)
    try:
        with sending(port):
            seen.until(lambda: len(seen.came) >= 5)
        with sending(port, recording(level=90)):
            seen.until(lambda: seen.frames_of(1) >= 5)
    finally:
        seen.close()
    assert any("another sender took over: 127.0.0.1 port" in why for _, _, why in seen.said)
    for _, frame in seen.came:
        level = int(frame.image[65:75].mean())
        assert level > 180 if frame.epoch == 0 else level < 120


@pytest.mark.parametrize("codec", [pytest.param("libx264", marks=pytest.mark.slow), "mpeg4"])
def test_a_stream_that_is_joined_between_key_frames_gives_whole_frames_only(port, codec) -> None:
    pieces = recording(codec, gop=40)
    seen = watching(f"udp://127.0.0.1:{port}")
    try:
        with sending(port, pieces, first=15):
            seen.until(lambda: len(seen.came) >= 30)
    finally:
        seen.close()
    assert all(is_whole(frame.image) for _, frame in seen.came)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("udp://:{}", "127.0.0.1"),
        ("udp://@:{}?fifo_size=1000&overrun_nonfatal=1", "127.0.0.1"),
        ("udp://localhost:{}", "127.0.0.1"),
        ("udp://0.0.0.0:{}?sources=127.0.0.1", "127.0.0.1"),
        ("udp://[::1]:{}?buffer_size=100000", "::1"),
        ("udp://239.255.3.4:{}?localaddr=127.0.0.1", "239.255.3.4"),
        ("udp://@239.255.3.4:{}?localaddr=127.0.0.1", "239.255.3.4"),
    ],
)
def test_every_spelling_of_an_address_is_listened_on(port, url, host) -> None:
    address = UdpAddress.parse(url.format(port))
    receiver = UdpReceiver("cam", address, SourceReport(), threading.Event())
    with contextlib.closing(receiver), sending(port, host=host):
        assert receiver.read(50) == recording()[0][:50]
        assert receiver.read(50) == recording()[0][50:100]


@pytest.mark.parametrize("url", ["udp://192.0.2.7:{}", "udp://:{}?sources=192.0.2.7,192.0.2.8"])
def test_of_an_address_elsewhere_only_its_host_is_received(port, url) -> None:
    report = SourceReport()
    left = threading.Event()
    receiver = UdpReceiver("cam", UdpAddress.parse(url.format(port)), report, left)
    with contextlib.closing(receiver), sending(port):
        while not report.notes:
            time.sleep(0.01)
        left.set()
        with pytest.raises(SourceError, match="given up"):
            receiver.read(100)
        assert receiver.read(100) == b"", "FFmpeg may ask once more, and is told once"


def test_a_port_that_somebody_has_is_said_and_is_free_again_after_a_connection(port) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        seen = watching(f"udp://127.0.0.1:{port}", max_attempts=1)
        seen.until(lambda: seen.error is not None)
        seen.close()
    assert f"can't listen on udp port {port}: address already in use" in str(seen.error)
    for _ in range(3):
        address = UdpAddress.parse(f"udp://127.0.0.1:{port}")
        UdpReceiver("cam", address, SourceReport(), threading.Event()).close()


def test_what_waits_for_a_slow_decoder_is_bounded(port, monkeypatch) -> None:
    monkeypatch.setattr(udp, "QUEUE_BYTES", 5000)
    report = SourceReport()
    address = UdpAddress.parse(f"udp://127.0.0.1:{port}")
    receiver = UdpReceiver("cam", address, report, threading.Event())
    with contextlib.closing(receiver), sending(port):
        while not report.notes:
            time.sleep(0.01)
        assert len(receiver.read(100_000)) <= 5000 + PAYLOAD
    assert report.notes == [f"udp port {port}: datagrams were dropped: decoding is too slow"]


def test_a_playlist_by_udp_opens_no_file(tmp_path) -> None:
    (tmp_path / "a.ts").write_bytes(b"".join(recording()))
    playlist = f"ffconcat version 1.0\nfile '{tmp_path}/a.ts'\n".encode()
    with av.open(io.BytesIO(playlist), options={"safe": "0"}) as opened:
        assert opened.streams.video, "it is one that FFmpeg follows"
    options = {**connection._UDP_OPTIONS, "safe": "0"}
    with pytest.raises(SourceError):
        connection._open_container(SourceConfig(url="udp://:5000"), io.BytesIO(playlist), options)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("udp://127.0.0.1", "has no port: write udp://HOST:PORT"),
        ("udp://h:0", "the port must be a number"),
        ("udp://h:5000?multicast=1", "an unknown option; known options are localaddr"),
        ("udp://h:5000?buffer_size=many", "buffer_size must be a number"),
    ],
)
def test_addresses_that_can_t_be_are_refused(url, why) -> None:
    with pytest.raises(ConfigError, match=why):
        open_source(SourceConfig(url=url))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("silence", [2, 10])
def test_a_silence_of_any_length_is_one_epoch(port, silence) -> None:
    seen = watching(f"udp://127.0.0.1:{port}")
    try:
        with sending(port):
            seen.until(lambda: len(seen.came) >= 10)
        time.sleep(silence)
        known = len(seen.came)
        with sending(port):
            assert seen.until(lambda: len(seen.came) >= known + 10) < 6
    finally:
        seen.close()
    assert seen.said[1][1] == "stalled"
