"""UDP sources: late, interrupted and competing senders, and streams joined within a GOP."""

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
from support.live_sources import start_reader

from streamseg.config import SourceConfig
from streamseg.errors import ConfigError, SourceError
from streamseg.sources import connection, open_source, udp
from streamseg.sources.base import SourceReport
from streamseg.sources.udp import UdpAddress, UdpReceiver

pytestmark = pytest.mark.timeout(60)
FPS = 20
PAYLOAD = 1316
"""Bytes per datagram: seven packets of a transport stream, as most senders use."""


@functools.cache
def encode_recording(codec: str = "libx264", gop: int = 10, level: int = 200) -> tuple[bytes, ...]:
    """Encode four seconds of a gray image with a red corner; return one piece per frame."""
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
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            before = file.tell()
            container.mux(stream.encode(frame))
            pieces.append(file.getvalue()[before:])
    return tuple(pieces)


def is_complete(image: np.ndarray) -> bool:
    """Return whether a frame has its red corner, which FFmpeg cannot conceal."""
    corner = image[10:50, 10:70].mean((0, 1))
    return bool(np.abs(corner - (220, 30, 30)).max() < 40)


class Sender:
    """Sends a recording repeatedly, at its frame rate, from a port of its own."""

    def __init__(self, port: int, pieces: tuple[bytes, ...], host: str, first: int) -> None:
        self._target = host, port
        self._pieces = pieces
        self._first = first
        self._stopped = threading.Event()
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
                    self._socket.sendto(piece[at : at + PAYLOAD], self._target)
            if self._stopped.wait(1 / FPS):
                return

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._socket.close()


@contextlib.contextmanager
def run_sender(
    port: int,
    pieces: tuple[bytes, ...] | None = None,
    *,
    host: str = "127.0.0.1",
    first: int = 0,
) -> Iterator[Sender]:
    sender = Sender(port, pieces or encode_recording(), host, first)
    try:
        yield sender
    finally:
        sender.close()


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.slow
def test_late_and_interrupted_sender_is_received(port) -> None:
    with socket.create_server(("127.0.0.1", port)) as tcp_server:
        tcp_server.settimeout(0)
        reader = start_reader(f"udp://127.0.0.1:{port}", open_timeout=1, stall_after=0.5)
        try:
            reader.wait_until(lambda: reader.states().count("waiting") == 1)
            with run_sender(port):
                reader.wait_until(lambda: len(reader.received) >= 10)
            reader.wait_until(lambda: "stalled" in reader.states())
            reader.wait_until(lambda: reader.states().count("waiting") == 2)
            count = len(reader.received)
            with run_sender(port):
                assert reader.wait_until(lambda: len(reader.received) >= count + 10) < 5
        finally:
            reader.close()
        with pytest.raises(BlockingIOError):
            tcp_server.accept()  # UDP hosts are not probed by TCP
    reasons = [
        reason.partition(";")[0]
        for _, state, reason in reader.state_changes
        if state != "connecting"
    ]
    assert reasons == ["no frame within 1 s", "no frame for 0.5 s", "no frame within 1 s"]
    assert all(is_complete(frame.image) for _, frame in reader.received)


def test_second_sender_is_ignored_and_logged_once(port, caplog) -> None:
    reader = start_reader(f"udp://127.0.0.1:{port}")
    try:
        with run_sender(port):
            reader.wait_until(lambda: len(reader.received) >= 5)
            with (
                run_sender(port, encode_recording(level=90)),
                run_sender(port, encode_recording(level=90), first=7),
            ):
                count = len(reader.received)
                reader.wait_until(lambda: len(reader.received) >= count + 30)
    finally:
        reader.close()
    assert all(int(frame.image[65:75].mean()) > 180 for _, frame in reader.received)
    assert reader.source.report.damaged == reader.source.report.bad == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"cam: udp port {port}: 127.0.0.1 is another sender and is ignored"


@pytest.mark.slow
def test_sender_with_a_new_port_starts_a_new_epoch(port) -> None:
    reader = start_reader(f"udp://127.0.0.1:{port}", stall_after=5)
    try:
        with run_sender(port):
            reader.wait_until(lambda: len(reader.received) >= 5)
        with run_sender(port, encode_recording(level=90)):
            reader.wait_until(lambda: reader.count_frames(1) >= 5)
    finally:
        reader.close()
    assert reader.has_reason("another sender took over: 127.0.0.1 port")
    for _, frame in reader.received:
        level = int(frame.image[65:75].mean())
        assert level > 180 if frame.epoch == 0 else level < 120


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_stream_joined_within_a_gop_gives_complete_frames_only(port, codec) -> None:
    pieces = encode_recording(codec, gop=40)
    reader = start_reader(f"udp://127.0.0.1:{port}")
    try:
        with run_sender(port, pieces, first=15):
            reader.wait_until(lambda: len(reader.received) >= 30)
    finally:
        reader.close()
    assert all(is_complete(frame.image) for _, frame in reader.received)


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
def test_supported_addresses_receive_datagrams(port, url, host) -> None:
    address = UdpAddress.parse(url.format(port))
    receiver = UdpReceiver("cam", address, SourceReport(), threading.Event())
    with contextlib.closing(receiver), run_sender(port, host=host):
        assert receiver.read(50) == encode_recording()[0][:50]
        assert receiver.read(50) == encode_recording()[0][50:100]


@pytest.mark.parametrize("url", ["udp://192.0.2.7:{}", "udp://:{}?sources=192.0.2.7,192.0.2.8"])
def test_datagrams_of_other_hosts_are_ignored(port, url) -> None:
    report = SourceReport()
    cancelled = threading.Event()
    receiver = UdpReceiver("cam", UdpAddress.parse(url.format(port)), report, cancelled)
    with contextlib.closing(receiver), run_sender(port):
        while not report.notes:
            time.sleep(0.01)
        cancelled.set()
        with pytest.raises(SourceError, match="given up"):
            receiver.read(100)
        assert receiver.read(100) == b"", "FFmpeg may read once more after the error"


def test_port_in_use_is_reported_and_a_closed_receiver_releases_its_port(port) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        reader = start_reader(f"udp://127.0.0.1:{port}", max_attempts=1)
        reader.wait_until(lambda: reader.error is not None)
        reader.close()
    assert f"can't listen on udp port {port}: address already in use" in str(reader.error)
    for _ in range(3):
        address = UdpAddress.parse(f"udp://127.0.0.1:{port}")
        UdpReceiver("cam", address, SourceReport(), threading.Event()).close()


def test_queue_of_a_slow_decoder_is_limited(port, monkeypatch) -> None:
    monkeypatch.setattr(udp, "QUEUE_BYTES", 5000)
    report = SourceReport()
    address = UdpAddress.parse(f"udp://127.0.0.1:{port}")
    receiver = UdpReceiver("cam", address, report, threading.Event())
    with contextlib.closing(receiver), run_sender(port):
        while not report.notes:
            time.sleep(0.01)
        assert len(receiver.read(100_000)) <= 5000 + PAYLOAD
    assert report.notes == [f"udp port {port}: datagrams were dropped: decoding is too slow"]


def test_playlist_over_udp_opens_no_file(tmp_path) -> None:
    (tmp_path / "a.ts").write_bytes(b"".join(encode_recording()))
    playlist = f"ffconcat version 1.0\nfile '{tmp_path}/a.ts'\n".encode()
    with av.open(io.BytesIO(playlist), options={"safe": "0"}) as opened:
        assert opened.streams.video, "FFmpeg opens the listed file without the options"
    options = {**connection._UDP_OPTIONS, "safe": "0"}
    with pytest.raises(SourceError):
        connection._open_container(SourceConfig(url="udp://:5000"), io.BytesIO(playlist), options)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("udp://127.0.0.1", "has no port: write udp://HOST:PORT"),
        ("udp://h:0", "the port must be a number"),
        ("udp://h:5000?multicast=1", "an unknown option; known options are localaddr"),
        ("udp://h:5000?buffer_size=many", "buffer_size must be a number"),
    ],
)
def test_invalid_address_is_refused(url, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_source(SourceConfig(url=url))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seconds", [2, 10])
def test_epoch_continues_after_an_interruption(port, seconds) -> None:
    reader = start_reader(f"udp://127.0.0.1:{port}")
    try:
        with run_sender(port):
            reader.wait_until(lambda: len(reader.received) >= 10)
        time.sleep(seconds)
        count = len(reader.received)
        with run_sender(port):
            assert reader.wait_until(lambda: len(reader.received) >= count + 10) < 6
    finally:
        reader.close()
    assert reader.state_changes[1][1] == "stalled"
