"""Live sources: reconnection, timeouts and authentication, with real RTSP and HTTP servers."""

from __future__ import annotations

import itertools
import re
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from support.cameras import (
    HttpCamera,
    RtspCamera,
    encode_transport_stream,
    http_camera,
    rtsp_camera,
)
from support.live_sources import SourceReader, start_reader

from streamseg.config import SourceConfig
from streamseg.errors import ConfigError, NoAnswerError, SourceError, StalledError
from streamseg.sources import LiveSource, connection, http, live, open_source
from streamseg.sources.base import SourceReport
from streamseg.sources.live import ConnectionStart
from streamseg.structures.results import Frame

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def camera() -> Iterator[RtspCamera]:
    with rtsp_camera() as camera:
        yield camera


@pytest.fixture
def server() -> Iterator[HttpCamera]:
    with http_camera() as server:
        yield server


def test_rtsp_source_reconnects_in_a_new_epoch(camera) -> None:
    reader = start_reader(camera.url)
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 5)
        camera.send_command("disconnect")
        assert reader.wait_until(lambda: reader.count_frames(1) >= 5) < 5
    finally:
        reader.close()
    indices = [frame.index for _, frame in reader.received]
    assert indices == sorted(set(indices)), "indices are unique across connections"
    assert "the stream ended" in next(
        reason for _, state, reason in reader.state_changes if state == "waiting"
    )
    assert reader.received[0][1].size == (240, 320)


@pytest.mark.slow
def test_source_reconnects_within_five_seconds_of_a_server_restart() -> None:
    with rtsp_camera() as first:
        reader = start_reader(first.url)
        try:
            reader.wait_until(lambda: reader.count_frames(0) >= 5)
            first.send_command("kill")
            reader.wait_until(lambda: reader.has_reason("refused"))
            time.sleep(1)
            with rtsp_camera(port=first.port):
                assert reader.wait_until(lambda: reader.count_frames(1) >= 1) < 5
        finally:
            reader.close()


@pytest.mark.slow
def test_stall_of_a_suspended_server_is_detected_although_its_socket_stays_open(camera) -> None:
    reader = start_reader(camera.url)
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 10)
        camera.freeze()
        reader.wait_until(lambda: "stalled" in reader.states())
        last_frame_at = reader.received[-1][0]
        stalled_at = next(at for at, state, _ in reader.state_changes if state == "stalled")
        assert 1.5 <= stalled_at - last_frame_at < 2.5
        camera.thaw()
        assert reader.wait_until(lambda: reader.count_frames(1) >= 5) < 5
    finally:
        camera.thaw()
        reader.close()


@pytest.mark.slow
def test_missing_stream_is_reported_and_reconnected(camera) -> None:
    reader = start_reader(camera.url)
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 5)
        camera.send_command("remove")
        reader.wait_until(lambda: reader.has_reason("404"))
        camera.send_command("restore")
        assert reader.wait_until(lambda: reader.count_frames(1) >= 5) < 5
    finally:
        reader.close()


@pytest.mark.parametrize("scheme_options", [(), ("--digest",)])
def test_refused_password_is_reported_without_the_password(
    monkeypatch, tmp_path, scheme_options
) -> None:
    with rtsp_camera("--password", "right", *scheme_options) as camera:
        reader = start_reader(camera.url.replace("//", "//user:wr0ng@"))
        try:
            reader.wait_until(lambda: reader.has_reason("401"))
            assert not reader.has_reason("wr0ng")
        finally:
            reader.close()
        monkeypatch.setenv("CAMERA_PASSWORD", "right")
        (tmp_path / "secret").write_text("right\n")
        options = {"password_env": "CAMERA_PASSWORD"}, {"password_file": str(tmp_path / "secret")}
        for password in options:
            reader = start_reader(camera.url, user="user", **password)
            try:
                reader.wait_until(lambda reader=reader: reader.count_frames(0) >= 3)
            finally:
                reader.close()


def test_changed_password_file_is_read_at_the_next_attempt(server, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("old")
    server.login = ("me", "new")
    reader = start_reader(f"{server.root}/cam", user="me", password_file=str(secret))
    try:
        reader.wait_until(lambda: reader.has_reason("401"))
        secret.unlink()
        reader.wait_until(lambda: reader.has_reason("can't be read"))
        secret.write_text("new")
        reader.wait_until(lambda: reader.count_frames(0) >= 3)
    finally:
        reader.close()


def test_proxy_environment_variables_are_ignored(server, monkeypatch) -> None:
    with http_camera() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.root)
        monkeypatch.setenv("no_proxy", "")
        reader = start_reader(f"{server.root}/cam")
        try:
            reader.wait_until(lambda: reader.count_frames(0) >= 3)
        finally:
            reader.close()
        assert proxy.requested_paths == []


def test_invalid_authentication_challenge_is_reported_and_retried(server) -> None:
    server.login, server.scheme = ("me", "secret"), "Digest realm=,"
    reader = start_reader(server.root.replace("//", "//me:secret@") + "/cam")
    try:
        reader.wait_until(lambda: reader.states().count("waiting") >= 2)
        assert "the server's authentication challenge is invalid" in reader.state_changes[1][2]
    finally:
        reader.close()


@pytest.mark.parametrize("scheme", ["Basic", "Digest"])
def test_password_is_sent_to_its_own_server_only(server, scheme, tmp_path) -> None:
    (tmp_path / "secret").write_text("p@ss:word")
    login = {"user": "me", "password_file": str(tmp_path / "secret")}
    server.login, server.scheme = ("me", "p@ss:word"), scheme
    reader = start_reader(f"{server.root}/cam", **login)
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 3)
    finally:
        reader.close()
    server.login = ("me", "another")
    reader = start_reader(f"{server.root}/cam", max_attempts=1, **login)
    reader.wait_until(lambda: reader.error is not None)
    reader.close()
    assert "401" in str(reader.error)
    assert "p@ss" not in str(reader.error)
    with http_camera() as elsewhere:
        server.login, server.redirect_target = None, f"{elsewhere.root}/cam"
        elsewhere.login = ("me", "unknown")
        reader = start_reader(f"{server.root}/away/x", max_attempts=1, **login)
        reader.wait_until(lambda: reader.error is not None)
        reader.close()
        assert set(elsewhere.credentials) <= {""}, "another port is another server"


def test_mjpeg_over_rtsp_is_read() -> None:
    with rtsp_camera("--codec", "mjpeg") as camera:
        reader = start_reader(camera.url)
        try:
            reader.wait_until(lambda: reader.count_frames(0) >= 5)
        finally:
            reader.close()
    assert reader.received[0][1].size == (240, 320)


def test_resolution_over_the_limit_is_reported_and_retried(camera) -> None:
    reader = start_reader(camera.url, max_pixels=100_000)
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 5)
        camera.send_command("resize 480x360")
        reader.wait_until(lambda: reader.has_reason("480 x 360 is over the limit"))
        camera.send_command("resize 320x240")
        assert reader.wait_until(lambda: reader.count_frames(1) >= 5) < 5
    finally:
        reader.close()
    assert {frame.size for _, frame in reader.received} == {(240, 320)}


def test_paused_source_disconnects_and_resumes_in_a_new_epoch(camera) -> None:
    reader = start_reader(camera.url)
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 3)
        reader.source.control.pause()
        reader.wait_until(
            lambda: ("waiting", "paused") in [(s, reason) for _, s, reason in reader.state_changes]
        )
        count = len(reader.received)
        time.sleep(1)
        assert len(reader.received) == count
        reader.source.control.resume()
        reader.wait_until(lambda: reader.count_frames(1) >= 3)
    finally:
        reader.close()


def test_stop_interrupts_a_source_that_waits_for_its_server(camera) -> None:
    camera.freeze()
    try:
        reader = start_reader(camera.url, open_timeout=30, stall_after=30)
        time.sleep(0.5)
        stopped_at = time.monotonic()
        reader.close()
        assert time.monotonic() - stopped_at < 8
    finally:
        camera.thaw()


def test_mjpeg_timestamps_are_arrival_times(server) -> None:
    server.fps = 10
    reader = start_reader(f"{server.root}/cam")
    try:
        reader.wait_until(lambda: len(reader.received) >= 21)
    finally:
        reader.close()
    times = [frame.pts for _, frame in reader.received][:21]
    assert times == sorted(times)
    interval = np.median(np.diff(server.send_times[:21]))
    assert np.median(np.diff(times)) == pytest.approx(interval, rel=0.3)
    assert server.requested_paths == ["/cam"], "one request: some cameras allow only one connection"


def test_mjpeg_without_new_frames_is_stalled(server) -> None:
    server.fps = 0.1  # one frame every ten seconds
    reader = start_reader(f"{server.root}/cam", open_timeout=1)
    try:
        reader.wait_until(lambda: len(reader.state_changes) >= 2)
        assert reader.state_changes[1][1] == "stalled"
        assert "no frame for 1.5 s" in reader.state_changes[1][2]
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.2:9/x", "another host"),
        ("file:///etc/passwd", "not allowed in a stream over HTTP"),
        ("ftp://127.0.0.1/x", "not allowed in a stream over HTTP"),
    ],
)
def test_redirection_to_another_host_or_scheme_is_refused(server, location, reason) -> None:
    server.redirect_target = location
    reader = start_reader(f"{server.root}/away/x", max_attempts=1)
    reader.wait_until(lambda: reader.error is not None)
    assert reason in str(reader.error)
    reader.close()


@pytest.mark.parametrize(
    "segment", ["file:///etc/hostname", "http://127.0.0.2:9/a.ts", "crypto+http://127.0.0.1/a.ts"]
)
def test_playlist_with_files_or_other_hosts_is_refused(server, segment) -> None:
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{segment}\n#EXT-X-ENDLIST\n"
    server.responses["/list.m3u8"] = ("application/vnd.apple.mpegurl", playlist.encode())
    reader = start_reader(f"{server.root}/list.m3u8", max_attempts=1)
    reader.wait_until(lambda: reader.error is not None)
    assert not reader.received
    reader.close()


class _RedirectingHandler(socketserver.StreamRequestHandler):
    """Redirect RTSP clients to ``server.redirect_target``."""

    def handle(self) -> None:
        while lines := list(iter(lambda: self.rfile.readline().strip(), b"")):
            self.server.requests.append(lines)
            number = next(line for line in lines if line.lower().startswith(b"cseq"))
            answer = b"RTSP/1.0 302 Moved\r\nLocation: " + self.server.redirect_target
            if lines[0].startswith(b"OPTIONS"):
                answer = b"RTSP/1.0 200 OK"
            self.wfile.write(answer + b"\r\n" + number + b"\r\n\r\n")


@pytest.fixture
def redirecting_servers() -> Iterator[list[socketserver.ThreadingTCPServer]]:
    """Run servers on two hosts that redirect to the second one."""
    socketserver.ThreadingTCPServer.daemon_threads = True
    servers = [
        socketserver.ThreadingTCPServer((h, 0), _RedirectingHandler)
        for h in ("127.0.0.1", "127.0.0.2")
    ]
    for server in servers:
        server.requests = []
        server.redirect_target = b"rtsp://127.0.0.2:%d/cam" % servers[1].server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def test_rtsp_redirection_is_not_followed(redirecting_servers) -> None:
    first, second = redirecting_servers
    url = f"rtsp://user:s3cret@127.0.0.1:{first.server_address[1]}/cam"
    reader = start_reader(url, max_attempts=1)
    reader.wait_until(lambda: reader.error is not None)
    reader.close()
    assert "another address, which isn't followed" in str(reader.error)
    assert first.requests
    assert second.requests == []


def test_transport_stream_with_a_low_frame_rate_is_opened_quickly(server) -> None:
    encode_transport_stream()  # cached, so that encoding is not measured
    server.fps = 5
    reader = start_reader(f"{server.root}/ts")
    try:
        assert reader.wait_until(lambda: reader.count_frames(0) >= 1) < 3
    finally:
        reader.close()


def test_system_certificates_are_loaded_once(monkeypatch) -> None:
    contexts: list[ssl.SSLContext] = []
    create_default_context = ssl.create_default_context

    def record_context(*args, **kwargs):
        contexts.append(create_default_context(*args, **kwargs))
        return contexts[-1]

    for name in ("create_default_context", "_create_default_https_context"):
        monkeypatch.setattr(ssl, name, record_context)
    http._tls_context.cache_clear()
    for scheme in ("http", "https", "https"):
        url = f"{scheme}://127.0.0.1:9/"
        with pytest.raises(SourceError, match="refused"):
            http.HttpClient(url, (), None, 1.0, threading.Event()).get(url)
    assert len(contexts) == 1


@pytest.mark.slow
def test_reconnection_within_a_gop_continues_at_the_next_keyframe(server) -> None:
    reader = start_reader(f"{server.root}/ts")
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 5)
        server.first_frame = 7
        server.generation += 1
        assert reader.wait_until(lambda: reader.count_frames(1) >= 5) < 5
    finally:
        reader.close()
    first = next(frame for _, frame in reader.received if frame.epoch == 1)
    assert first.pts == pytest.approx(2.0), "the keyframe after the half GOP"
    assert reader.source.report.damaged == 0


def test_hls_playlist_is_read(server) -> None:
    from support.paths import MEDIA

    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n"
    server.responses["/list.m3u8"] = ("application/vnd.apple.mpegurl", playlist.encode())
    server.responses["/a.ts"] = ("video/mp2t", (MEDIA / "a.ts").read_bytes())
    reader = start_reader(f"{server.root}/list.m3u8")
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 50)
    finally:
        reader.close()
    assert {"/list.m3u8", "/a.ts"} <= set(server.requested_paths)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("rtsp://127.0.0.1:9/x", "refused"),
        ("http://127.0.0.1:9/x", "refused"),
        ("rtmp://127.0.0.1:9/x", "refused|i/o error|input/output"),
        ("/dev/video99", "/dev/video99: no such camera"),
        ("/dev/null", "inappropriate ioctl"),
    ],
)
def test_unavailable_source_fails_after_max_attempts(url, reason) -> None:
    reader = start_reader(url, max_attempts=2)
    reader.wait_until(lambda: reader.error is not None)
    reader.close()
    assert "given up after 2 attempts" in str(reader.error)
    assert re.search(reason, str(reader.error).lower())
    assert reader.states().count("connecting") == 2


def test_unplugged_camera_is_retried() -> None:
    reader = start_reader("/dev/video99")
    try:
        reader.wait_until(lambda: reader.states().count("connecting") >= 3)
    finally:
        reader.close()
    assert set(reader.states()) == {"connecting", "waiting"}
    reasons = [reason for _, state, reason in reader.state_changes if state == "waiting"]
    assert all(reason.startswith("/dev/video99: no such camera; next") for reason in reasons)


def test_local_camera_is_opened_with_the_device_format(monkeypatch) -> None:
    """FFmpeg's virtual test device takes the place of a camera."""
    monkeypatch.setattr(connection, "DEVICE_FORMAT", "lavfi")
    config = SourceConfig(url="testsrc2=size=320x240:rate=25", input={"framerate": "25"})
    reader = SourceReader(
        LiveSource("cam", config, partial(connection._read_device, "cam", config))
    )
    try:
        reader.wait_until(lambda: reader.count_frames(0) >= 10)
    finally:
        reader.close()
    assert reader.received[0][1].size == (240, 320)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"url": "rtsp://h/x", "start": 3.0}, "for recordings"),
        ({"url": "rtsp://h/x", "user": "a", "password_env": "NOT_SET_ANYWHERE"}, "isn't set"),
        ({"url": "rtsp://h/x", "user": "a", "password_file": "/nowhere/at/all"}, "can't be read"),
        ({"url": "rtsp://b:c@h/x", "user": "a"}, "both the url and user contain a user name"),
        ({"url": "rtsp://h/x", "input": {"framerate": "5"}}, "for local cameras"),
        ({"url": "test:", "stall_after": 1.0}, "live sources only"),
        ({"url": "srt://h/x"}, "can't be opened"),
        ({"url": "rtsp://h:99999/x"}, "from 1 to 65535"),
        ({"url": "http://h:abc/x"}, "from 1 to 65535"),
    ],
)
def test_invalid_options_are_refused(options, reason) -> None:
    with pytest.raises((ConfigError, SourceError), match=reason):
        open_source(SourceConfig(**options))


def make_frame(index: int, epoch: int) -> Frame:
    now = time.time(), time.monotonic()
    return Frame("cam", index, epoch, index / 25, *now, np.zeros((4, 4, 3), np.uint8))


def test_number_of_blocked_readers_is_limited(monkeypatch) -> None:
    monkeypatch.setattr(live, "FIRST_DELAY", 0.1)
    monkeypatch.setattr(live, "MAX_DELAY", 0.2)
    release = threading.Event()
    attempts = itertools.count()

    def block(start: ConnectionStart, report: SourceReport, cancel: object, should_probe: object):
        next(attempts)
        release.wait()
        yield make_frame(start.index, start.epoch)

    config = SourceConfig(url="rtsp://h/x", open_timeout=0.2, stall_after=0.2)
    reader = SourceReader(LiveSource("cam", config, block))
    try:
        reader.wait_until(lambda: reader.has_reason("blocked"))
        time.sleep(0.6)
        assert next(attempts) == 3
        assert "stalled" not in reader.states(), "no further connection is abandoned"
    finally:
        release.set()
        reader.close()


def test_unexpected_exception_is_logged_once_and_the_source_is_retried(monkeypatch, caplog) -> None:
    monkeypatch.setattr(live, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(live, "MAX_DELAY", 0.02)
    attempts = itertools.count()

    def fail(start: ConnectionStart, report: SourceReport, cancel: object, should_probe: object):
        if next(attempts) < 4:
            raise IndexError("unexpected")
        yield make_frame(start.index, start.epoch)

    reader = SourceReader(LiveSource("cam", SourceConfig(url="rtsp://h/x"), fail))
    try:
        reader.wait_until(lambda: reader.received)
    finally:
        reader.close()
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.exc_info is not None
    assert reader.has_reason("unexpected")


@pytest.mark.parametrize(
    "error", [NoAnswerError, pytest.param(StalledError, marks=pytest.mark.slow)]
)
def test_host_is_probed_after_a_timeout(error) -> None:
    probes: list[object] = []

    def time_out(
        start: ConnectionStart, report: SourceReport, cancel: object, should_probe: object
    ):
        probes.append(should_probe)
        if len(probes) < 3:
            raise error("no data")
        yield make_frame(start.index, start.epoch)

    reader = SourceReader(LiveSource("cam", SourceConfig(url="rtsp://h/x"), time_out))
    try:
        reader.wait_until(lambda: len(probes) >= 4)
    finally:
        reader.close()
    assert probes[:4] == [False, True, True, False]
