"""HTTP sources: deadlines over whole requests, redirections, and reasons in our own words."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support.cameras import HttpCamera, http_camera, jpeg, raw_camera
from support.live_sources import start_reader

from streamseg.errors import NoAnswerError, SourceError
from streamseg.sources.http import HttpClient
from streamseg.sources.live import CancelEvent

pytestmark = pytest.mark.timeout(60)

OK = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n"


def send_frames(connection: socket.socket) -> None:
    image = jpeg()
    connection.sendall(OK + b"\r\n")
    for _ in range(200):
        connection.sendall(b"--b\r\nContent-Length: %d\r\n\r\n" % len(image) + image + b"\r\n")
        time.sleep(0.05)


def drip(connection: socket.socket, head: bytes) -> None:
    """Send a byte at a time, so that no single read is ever late."""
    connection.sendall(head)
    while True:
        connection.sendall(b".")
        time.sleep(0.1)


STUCK = {
    "status": b"",
    "headers": OK + b"X-Wait: ",
    "before a redirection": b"HTTP/1.1 302 Found\r\nLocation: /",
    "continue": b"HTTP/1.1 100 Continue\r\nX-Wait: ",
    "length of a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5;",
    "part": OK + b"\r\n--b\r\nX-Wait: ",
    "image": OK + b"\r\n--b\r\n\r\n\xff\xd8\xff\xe0",
    "playlist": b"HTTP/1.1 200 OK\r\nContent-Type: audio/x-mpegurl\r\n\r\n#EXTM3U\n#",
}


@pytest.mark.parametrize("where", STUCK)
def test_a_mended_camera_is_used_at_once_wherever_the_old_connection_is_stuck(where) -> None:
    asked = []

    def answer(connection: socket.socket) -> None:
        asked.append(connection)
        if len(asked) <= 1:
            drip(connection, STUCK[where])
        send_frames(connection)

    with raw_camera(answer) as url:
        reader = start_reader(url, open_timeout=0.5, stall_after=0.5)
        try:
            assert reader.wait_until(lambda: reader.received) < 3
            assert not any(thread.is_alive() for thread in reader.source._blocked)
        finally:
            reader.close()
    assert "no frame within 0.5 s" in next(
        reason for _, state, reason in reader.state_changes if reason
    )


def test_a_tls_handshake_that_does_not_go_on_is_aborted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        cancel_event = CancelEvent()
        url = f"https://127.0.0.1:{server.getsockname()[1]}/"
        client = HttpClient(url, (), None, 30, cancel_event)
        cancel_event.on_set(client.abort)
        errors: list[Exception] = []

        def get() -> None:
            try:
                client.get(url)
            except SourceError as error:
                errors.append(error)

        thread = threading.Thread(target=get)
        thread.start()
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            cancel_event.set()
            thread.join(5)
        assert not thread.is_alive()
        assert len(errors) == 1


def test_what_is_requested_after_the_reader_is_given_up_is_not_requested() -> None:
    with raw_camera(send_frames) as url:
        cancel_event = CancelEvent()
        cancel_event.set()
        with pytest.raises(SourceError, match="given up"):
            HttpClient(url, (), None, 5, cancel_event).get(url)


@pytest.fixture
def page() -> Iterator[HttpCamera]:
    with http_camera() as made:
        yield made


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "reason"),
    [
        (b"/cam", "the server redirects more than 10 times"),
        (b"/\xe4 b\r\nX: y", "the server redirects more than 10 times"),
        (b"", "the server redirects without an address"),
        (b"http://[", "leads to an invalid address"),
        (b"http://127.0.0.2:9/", "leads to another host"),
        (b"http://a:s3cret@127.0.0.1/", "must not lead to an address with a user name"),
        (b"file:///etc/passwd", "not allowed in a stream over HTTP"),
        (b"data:,x", "not allowed in a stream over HTTP"),
    ],
)
def test_a_redirection_that_leads_nowhere_is_one_line_of_our_own(code, location, reason) -> None:
    def answer(connection: socket.socket) -> None:
        head = b"HTTP/1.1 %d the camera's own words\r\nLocation: " % code
        connection.sendall(head + location + b"\r\nContent-Length: 0\r\n\r\n")

    with raw_camera(answer) as url:
        client = HttpClient(url, (), None, 5, CancelEvent())
        with pytest.raises(SourceError) as caught:
            client.get(url)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "own words" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("answered", "reason"),
    [
        (b"HTTP/1.1 500 own\tw\xf6rds\r\n\r\n", "the server responded 500 Internal Server Error"),
        (b"HTTP/1.1 799 own words\r\n\r\n", "the server responded 799"),
        (b"HTTP/1.1 304 own words\r\n\r\n", "the server responded 304 Not Modified"),
        (b"ICY 200 own words\r\n\r\n", "the response isn't valid HTTP"),
        (b"own words", "the response isn't valid HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "or exceeds a limit"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "or exceeds a limit"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "a compressed response"),
        (b"", "closed the connection without a response"),
    ],
)
def test_an_answer_that_is_of_no_use_is_said_in_our_own_words(answered, reason) -> None:
    sends = lambda connection: connection.sendall(answered)  # noqa: E731
    with raw_camera(sends) as url, pytest.raises(SourceError) as caught:
        HttpClient(url, (), None, 5, CancelEvent()).get(url)
    assert reason in str(caught.value)
    assert "own" not in str(caught.value)


def test_an_answer_that_breaks_off_is_said_so() -> None:
    chunk = OK + b"Transfer-Encoding: chunked\r\n\r\n9999\r\nabc"
    with raw_camera(lambda connection: connection.sendall(chunk)) as url:
        body = HttpClient(url, (), None, 5, CancelEvent()).get(url)
        with (
            contextlib.closing(body),
            pytest.raises(SourceError, match="the response is incomplete"),
        ):
            body.read_all(100, "anything")


def test_silence_is_no_answer() -> None:
    with raw_camera(lambda connection: time.sleep(2)) as url, pytest.raises(NoAnswerError):
        HttpClient(url, (), None, 0.3, CancelEvent()).get(url)


def test_a_part_that_is_not_the_one_requested_is_refused(page) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 7-9/10\r\n\r\nabc")

    with raw_camera(answer) as url, pytest.raises(SourceError, match="another part"):
        HttpClient(url, (), None, 5, CancelEvent()).get(url, (5, 3))
    page.pages["/x"] = "text/plain", b"0123456789"
    for page.has_ranges in (True, False):
        body = HttpClient(page.root, (), None, 5, CancelEvent()).get(f"{page.root}/x", (5, 3))
        with contextlib.closing(body):
            assert body.preface() == b"567"
            assert body.read_all(3, "it") == b"567"


def test_addresses_with_what_http_can_t_have_are_quoted(page) -> None:
    page.pages["/k%C3%BCche%201?a=%C3%A4%20b"] = "text/plain", b"x"
    url = f"{page.root}/k\xfcche 1?a=\xe4 b#there"
    with contextlib.closing(HttpClient(page.root, (), None, 5, CancelEvent()).get(url)) as body:
        assert body.read_all(1, "it") == b"x"
