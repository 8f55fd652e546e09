"""Live sources: real RTSP and HTTP servers, killed, frozen, moved away and brought back."""

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
from support.cameras import HttpCamera, RtspCamera, http_camera, recorded_ts, rtsp_camera
from support.live_sources import Watcher, watching

from streamseg.config import SourceConfig
from streamseg.errors import ConfigError, NoAnswerError, SourceError, StalledError
from streamseg.sources import LiveSource, connection, http, live, open_source
from streamseg.sources.base import SourceReport
from streamseg.sources.live import ConnectionStart
from streamseg.structures.results import Frame

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def camera() -> Iterator[RtspCamera]:
    with rtsp_camera() as made:
        yield made


@pytest.fixture
def page() -> Iterator[HttpCamera]:
    with http_camera() as made:
        yield made


def test_an_rtsp_camera_whose_connection_is_dropped_comes_back_in_the_next_epoch(camera) -> None:
    seen = watching(camera.url)
    try:
        seen.until(lambda: seen.frames_of(0) >= 5)
        camera.tell("drop")
        assert seen.until(lambda: seen.frames_of(1) >= 5) < 5
    finally:
        seen.close()
    indices = [frame.index for _, frame in seen.came]
    assert indices == sorted(set(indices)), "an index is given once, over all connections"
    assert "the stream ended" in next(why for _, state, why in seen.said if state == "waiting")
    assert seen.came[0][1].size == (240, 320)


@pytest.mark.slow
def test_a_killed_server_is_found_again_within_five_seconds_of_its_return() -> None:
    with rtsp_camera() as first:
        seen = watching(first.url)
        try:
            seen.until(lambda: seen.frames_of(0) >= 5)
            first.tell("kill")
            seen.until(lambda: any("refused" in why for _, _, why in seen.said))
            time.sleep(1)
            with rtsp_camera(port=first.port):
                assert seen.until(lambda: seen.frames_of(1) >= 1) < 5
        finally:
            seen.close()


@pytest.mark.slow
def test_a_frozen_server_is_noticed_in_time_although_its_socket_stays_open(camera) -> None:
    seen = watching(camera.url)
    try:
        seen.until(lambda: seen.frames_of(0) >= 10)
        camera.freeze()
        seen.until(lambda: "stalled" in seen.states())
        last = seen.came[-1][0]
        when = next(at for at, state, _ in seen.said if state == "stalled")
        assert 1.5 <= when - last < 2.5
        camera.thaw()
        assert seen.until(lambda: seen.frames_of(1) >= 5) < 5
    finally:
        camera.thaw()
        seen.close()


def test_a_stream_that_is_away_for_a_while_is_said_so_and_found_again(camera) -> None:
    seen = watching(camera.url)
    try:
        seen.until(lambda: seen.frames_of(0) >= 5)
        camera.tell("gone")
        seen.until(lambda: any("404" in why for _, _, why in seen.said))
        camera.tell("back")
        assert seen.until(lambda: seen.frames_of(1) >= 5) < 5
    finally:
        seen.close()


@pytest.mark.parametrize("asks", [(), ("--digest",)])
def test_a_refused_password_is_said_and_never_shown(monkeypatch, tmp_path, asks) -> None:
    with rtsp_camera("--password", "right", *asks) as camera:
        seen = watching(camera.url.replace("//", "//user:wr0ng@"))
        try:
            seen.until(lambda: any("401" in why for _, _, why in seen.said))
            assert not any("wr0ng" in why for _, _, why in seen.said)
        finally:
            seen.close()
        monkeypatch.setenv("CAMERA_PASSWORD", "right")
        (tmp_path / "secret").write_text("right\n")
        ways = {"password_env": "CAMERA_PASSWORD"}, {"password_file": str(tmp_path / "secret")}
        for way in ways:
            seen = watching(camera.url, user="user", **way)
            try:
                seen.until(lambda seen=seen: seen.frames_of(0) >= 3)
            finally:
                seen.close()


def test_a_password_that_is_changed_in_its_file_is_used_at_the_next_attempt(page, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("old")
    page.login = ("me", "new")
    seen = watching(f"{page.root}/cam", user="me", password_file=str(secret))
    try:
        seen.until(lambda: any("401" in why for _, _, why in seen.said))
        secret.unlink()
        seen.until(lambda: any("can't be read" in why for _, _, why in seen.said))
        secret.write_text("new")
        seen.until(lambda: seen.frames_of(0) >= 3)
    finally:
        seen.close()


def test_no_proxy_of_the_environment_is_told_of_a_camera(page, monkeypatch) -> None:
    with http_camera() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.root)
        monkeypatch.setenv("no_proxy", "")
        seen = watching(f"{page.root}/cam")
        try:
            seen.until(lambda: seen.frames_of(0) >= 3)
        finally:
            seen.close()
        assert proxy.asked == []


def test_who_asks_for_a_password_in_a_way_that_is_none_is_tried_again(page) -> None:
    page.login, page.scheme = ("me", "secret"), "Digest realm=,"
    seen = watching(page.root.replace("//", "//me:secret@") + "/cam")
    try:
        seen.until(lambda: seen.states().count("waiting") >= 2)
        assert "the server's authentication challenge is invalid" in seen.said[1][2]
    finally:
        seen.close()


@pytest.mark.parametrize("scheme", ["Basic", "Digest"])
def test_a_page_that_asks_for_a_password_gets_it_and_others_do_not(page, scheme, tmp_path) -> None:
    (tmp_path / "secret").write_text("p@ss:word")
    login = {"user": "me", "password_file": str(tmp_path / "secret")}
    page.login, page.scheme = ("me", "p@ss:word"), scheme
    seen = watching(f"{page.root}/cam", **login)
    try:
        seen.until(lambda: seen.frames_of(0) >= 3)
    finally:
        seen.close()
    page.login = ("me", "another")
    seen = watching(f"{page.root}/cam", max_attempts=1, **login)
    seen.until(lambda: seen.error is not None)
    seen.close()
    assert "401" in str(seen.error)
    assert "p@ss" not in str(seen.error)
    with http_camera() as elsewhere:
        page.login, page.leads_to = None, f"{elsewhere.root}/cam"
        elsewhere.login = ("me", "never to be known")
        seen = watching(f"{page.root}/away/x", max_attempts=1, **login)
        seen.until(lambda: seen.error is not None)
        seen.close()
        assert set(elsewhere.credentials) <= {""}, "another port is another server"


def test_rtsp_cameras_that_send_jpegs_are_read() -> None:
    with rtsp_camera("--codec", "mjpeg") as camera:
        seen = watching(camera.url)
        try:
            seen.until(lambda: seen.frames_of(0) >= 5)
        finally:
            seen.close()
    assert seen.came[0][1].size == (240, 320)


def test_a_camera_whose_pictures_grow_over_the_limit_is_said_so_and_tried_again(camera) -> None:
    seen = watching(camera.url, max_pixels=100_000)
    try:
        seen.until(lambda: seen.frames_of(0) >= 5)
        camera.tell("size 480x360")
        seen.until(lambda: any("480 x 360 is over the limit" in why for _, _, why in seen.said))
        camera.tell("size 320x240")
        assert seen.until(lambda: seen.frames_of(1) >= 5) < 5
    finally:
        seen.close()
    assert {frame.size for _, frame in seen.came} == {(240, 320)}


def test_a_paused_camera_is_let_go_of_and_resumed_in_the_next_epoch(camera) -> None:
    seen = watching(camera.url)
    try:
        seen.until(lambda: seen.frames_of(0) >= 3)
        seen.source.control.pause()
        seen.until(lambda: ("waiting", "paused") in [(s, why) for _, s, why in seen.said])
        known = len(seen.came)
        time.sleep(1)
        assert len(seen.came) == known
        seen.source.control.resume()
        seen.until(lambda: seen.frames_of(1) >= 3)
    finally:
        seen.close()


def test_stopping_ends_a_source_at_once_whatever_it_waits_for(camera) -> None:
    camera.freeze()
    try:
        seen = watching(camera.url, open_timeout=30, stall_after=30)
        time.sleep(0.5)
        began = time.monotonic()
        seen.close()
        assert time.monotonic() - began < 8
    finally:
        camera.thaw()


def test_mjpeg_over_http_has_the_times_at_which_its_pictures_came(page) -> None:
    page.fps = 10
    seen = watching(f"{page.root}/cam")
    try:
        seen.until(lambda: len(seen.came) >= 21)
    finally:
        seen.close()
    times = [frame.pts for _, frame in seen.came][:21]
    assert times == sorted(times)
    sent = np.median(np.diff(page.sent[:21]))
    assert np.median(np.diff(times)) == pytest.approx(sent, rel=0.3)
    assert page.asked == ["/cam"], "asked for once: some cameras have one connection to give"


def test_mjpeg_that_falls_silent_is_stalled(page) -> None:
    page.fps = 0.1  # one picture, and then nothing for long
    seen = watching(f"{page.root}/cam", open_timeout=1)
    try:
        seen.until(lambda: len(seen.said) >= 2)
        assert seen.said[1][1] == "stalled"
        assert "no frame for 1.5 s" in seen.said[1][2]
    finally:
        seen.close()


@pytest.mark.parametrize(
    ("leads_to", "why"),
    [
        ("http://127.0.0.2:9/x", "another host"),
        ("file:///etc/passwd", "not allowed in a stream over HTTP"),
        ("ftp://127.0.0.1/x", "not allowed in a stream over HTTP"),
    ],
)
def test_a_redirection_may_not_leave_the_source_s_host(page, leads_to, why) -> None:
    page.leads_to = leads_to
    seen = watching(f"{page.root}/away/x", max_attempts=1)
    seen.until(lambda: seen.error is not None)
    assert why in str(seen.error)
    seen.close()


@pytest.mark.parametrize(
    "leads_to", ["file:///etc/hostname", "http://127.0.0.2:9/a.ts", "crypto+http://127.0.0.1/a.ts"]
)
def test_a_playlist_can_t_read_files_or_reach_other_hosts(page, leads_to) -> None:
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{leads_to}\n#EXT-X-ENDLIST\n"
    page.pages["/list.m3u8"] = ("application/vnd.apple.mpegurl", playlist.encode())
    seen = watching(f"{page.root}/list.m3u8", max_attempts=1)
    seen.until(lambda: seen.error is not None)
    assert not seen.came
    seen.close()


class _Moved(socketserver.StreamRequestHandler):
    """An RTSP server that sends whoever asks to the address of ``server.leads_to``."""

    def handle(self) -> None:
        while lines := list(iter(lambda: self.rfile.readline().strip(), b"")):
            self.server.asked.append(lines)
            number = next(line for line in lines if line.lower().startswith(b"cseq"))
            answer = b"RTSP/1.0 302 Moved\r\nLocation: " + self.server.leads_to
            if lines[0].startswith(b"OPTIONS"):
                answer = b"RTSP/1.0 200 OK"
            self.wfile.write(answer + b"\r\n" + number + b"\r\n\r\n")


@pytest.fixture
def moved() -> Iterator[list[socketserver.ThreadingTCPServer]]:
    """Two servers on two hosts; the first leads to the second."""
    socketserver.ThreadingTCPServer.daemon_threads = True
    servers = [socketserver.ThreadingTCPServer((h, 0), _Moved) for h in ("127.0.0.1", "127.0.0.2")]
    for server in servers:
        server.asked = []
        server.leads_to = b"rtsp://127.0.0.2:%d/cam" % servers[1].server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_rtsp_redirection_is_not_followed_and_takes_no_password_elsewhere(moved) -> None:
    first, second = moved
    url = f"rtsp://user:s3cret@127.0.0.1:{first.server_address[1]}/cam"
    seen = watching(url, max_attempts=1)
    seen.until(lambda: seen.error is not None)
    seen.close()
    assert "another address, which isn't followed" in str(seen.error)
    assert first.asked
    assert second.asked == []


def test_a_transport_stream_of_few_frames_a_second_is_opened_at_once(page) -> None:
    recorded_ts()  # takes a moment, once
    page.fps = 5
    seen = watching(f"{page.root}/ts")
    try:
        assert seen.until(lambda: seen.frames_of(0) >= 1) < 3
    finally:
        seen.close()


def test_the_system_s_certificates_are_read_once_whatever_is_connected_to(monkeypatch) -> None:
    read: list[ssl.SSLContext] = []
    original = ssl.create_default_context

    def reads(*args, **kwargs):
        read.append(original(*args, **kwargs))
        return read[-1]

    for name in ("create_default_context", "_create_default_https_context"):
        monkeypatch.setattr(ssl, name, reads)
    http._tls_context.cache_clear()
    for scheme in ("http", "https", "https"):
        url = f"{scheme}://127.0.0.1:9/"
        with pytest.raises(SourceError, match="refused"):
            http.HttpClient(url, (), None, 1.0, threading.Event()).get(url)
    assert len(read) == 1


def test_a_stream_that_is_cut_in_the_middle_of_a_gop_goes_on_at_the_next_keyframe(page) -> None:
    seen = watching(f"{page.root}/ts")
    try:
        seen.until(lambda: seen.frames_of(0) >= 5)
        page.begins_at = 7
        page.cuts += 1
        assert seen.until(lambda: seen.frames_of(1) >= 5) < 5
    finally:
        seen.close()
    first = next(frame for _, frame in seen.came if frame.epoch == 1)
    assert first.pts == pytest.approx(2.0), "the keyframe after the half GOP"
    assert seen.source.report.damaged == 0


def test_hls_is_read_through_its_playlist(page) -> None:
    from support.paths import MEDIA

    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n"
    page.pages["/list.m3u8"] = ("application/vnd.apple.mpegurl", playlist.encode())
    page.pages["/a.ts"] = ("video/mp2t", (MEDIA / "a.ts").read_bytes())
    seen = watching(f"{page.root}/list.m3u8")
    try:
        seen.until(lambda: seen.frames_of(0) >= 50)
    finally:
        seen.close()
    assert {"/list.m3u8", "/a.ts"} <= set(page.asked)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("rtsp://127.0.0.1:9/x", "refused"),
        ("http://127.0.0.1:9/x", "refused"),
        ("rtmp://127.0.0.1:9/x", "refused|i/o error|input/output"),
        ("/dev/video99", "/dev/video99: no such camera"),
        ("/dev/null", "inappropriate ioctl"),
    ],
)
def test_a_source_that_isn_t_there_is_given_up_after_max_attempts(url, why) -> None:
    seen = watching(url, max_attempts=2)
    seen.until(lambda: seen.error is not None)
    seen.close()
    assert "given up after 2 attempts" in str(seen.error)
    assert re.search(why, str(seen.error).lower())
    assert seen.states().count("connecting") == 2


def test_a_camera_that_is_unplugged_is_looked_for_again_and_again() -> None:
    seen = watching("/dev/video99")
    try:
        seen.until(lambda: seen.states().count("connecting") >= 3)
    finally:
        seen.close()
    assert set(seen.states()) == {"connecting", "waiting"}
    waited = [why for _, state, why in seen.said if state == "waiting"]
    assert all(why.startswith("/dev/video99: no such camera; next") for why in waited)


def test_a_camera_is_opened_as_the_device_that_it_is(monkeypatch) -> None:
    """There is none here: what opens it gets FFmpeg's own test device, by the same way."""
    monkeypatch.setattr(connection, "DEVICE_FORMAT", "lavfi")
    made = SourceConfig(url="testsrc2=size=320x240:rate=25", input={"framerate": "25"})
    seen = Watcher(LiveSource("cam", made, partial(connection._read_device, "cam", made)))
    try:
        seen.until(lambda: seen.frames_of(0) >= 10)
    finally:
        seen.close()
    assert seen.came[0][1].size == (240, 320)


@pytest.mark.parametrize(
    ("options", "why"),
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
def test_options_that_can_t_hold_are_refused(options, why) -> None:
    with pytest.raises((ConfigError, SourceError), match=why):
        open_source(SourceConfig(**options))


def frame(index: int, epoch: int) -> Frame:
    now = time.time(), time.monotonic()
    return Frame("cam", index, epoch, index / 25, *now, np.zeros((4, 4, 3), np.uint8))


def test_readers_that_block_for_ever_are_left_alone_and_not_added_to_without_end(
    monkeypatch,
) -> None:
    monkeypatch.setattr(live, "FIRST_DELAY", 0.1)
    monkeypatch.setattr(live, "MAX_DELAY", 0.2)
    release = threading.Event()
    begun = itertools.count()

    def blocked(start: ConnectionStart, report: SourceReport, cancel: object, should_probe: object):
        next(begun)
        release.wait()
        yield frame(start.index, start.epoch)

    made = SourceConfig(url="rtsp://h/x", open_timeout=0.2, stall_after=0.2)
    seen = Watcher(LiveSource("cam", made, blocked))
    try:
        seen.until(lambda: any("blocked" in why for _, _, why in seen.said))
        time.sleep(0.6)
        assert next(begun) == 3
        assert "stalled" not in seen.states(), "no connection is given up meanwhile"
    finally:
        release.set()
        seen.close()


def test_a_mistake_in_the_program_is_logged_once_and_loses_no_camera(monkeypatch, caplog) -> None:
    monkeypatch.setattr(live, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(live, "MAX_DELAY", 0.02)
    begun = itertools.count()

    def broken(start: ConnectionStart, report: SourceReport, cancel: object, should_probe: object):
        if next(begun) < 4:
            raise IndexError("what nobody thought of")
        yield frame(start.index, start.epoch)

    seen = Watcher(LiveSource("cam", SourceConfig(url="rtsp://h/x"), broken))
    try:
        seen.until(lambda: seen.came)
    finally:
        seen.close()
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.exc_info is not None
    assert any("what nobody thought of" in why for _, _, why in seen.said)


@pytest.mark.parametrize("silence", [NoAnswerError, StalledError])
def test_after_silence_a_host_is_probed_first(silence) -> None:
    asked: list[object] = []

    def silent(start: ConnectionStart, report: SourceReport, cancel: object, should_probe: object):
        asked.append(should_probe)
        if len(asked) < 3:
            raise silence("nothing came")
        yield frame(start.index, start.epoch)

    seen = Watcher(LiveSource("cam", SourceConfig(url="rtsp://h/x"), silent))
    try:
        seen.until(lambda: len(asked) >= 4)
    finally:
        seen.close()
    assert asked[:4] == [False, True, True, False]
