"""HTTP client of sources: deadlines, redirections, ranges and error messages."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support.cameras import HttpCamera, encode_gray_jpeg, http_camera, raw_camera
from support.live_sources import start_reader

from streamseg.errors import NoAnswerError, SourceError
from streamseg.sources.http import HttpClient
from streamseg.sources.live import CancelEvent

pytestmark = pytest.mark.timeout(60)

OK = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n"


def send_frames(connection: socket.socket) -> None:
    image = encode_gray_jpeg()
    connection.sendall(OK + b"\r\n")
    for _ in range(200):
        connection.sendall(b"--b\r\nContent-Length: %d\r\n\r\n" % len(image) + image + b"\r\n")
        time.sleep(0.05)


def send_slowly(connection: socket.socket, head: bytes) -> None:
    """Send single bytes without end, so that no single read times out."""
    connection.sendall(head)
    while True:
        connection.sendall(b".")
        time.sleep(0.1)


INCOMPLETE_RESPONSES = {
    "status": b"",
    "headers": OK + b"X-Wait: ",
    "before a redirection": b"HTTP/1.1 302 Found\r\nLocation: /",
    "continue": b"HTTP/1.1 100 Continue\r\nX-Wait: ",
    "length of a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5;",
    "part": OK + b"\r\n--b\r\nX-Wait: ",
    "image": OK + b"\r\n--b\r\n\r\n\xff\xd8\xff\xe0",
    "playlist": b"HTTP/1.1 200 OK\r\nContent-Type: audio/x-mpegurl\r\n\r\n#EXTM3U\n#",
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in {"status", "part"} else pytest.param(name, marks=pytest.mark.slow)
        for name in INCOMPLETE_RESPONSES
    ],
)
def test_source_reconnects_after_a_response_that_does_not_end(name) -> None:
    connections = []

    def answer(connection: socket.socket) -> None:
        connections.append(connection)
        if len(connections) <= 1:
            send_slowly(connection, INCOMPLETE_RESPONSES[name])
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


def test_incomplete_tls_handshake_is_aborted() -> None:
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


def test_cancelled_client_sends_no_request() -> None:
    with raw_camera(send_frames) as url:
        cancel_event = CancelEvent()
        cancel_event.set()
        with pytest.raises(SourceError, match="given up"):
            HttpClient(url, (), None, 5, cancel_event).get(url)


@pytest.fixture
def server() -> Iterator[HttpCamera]:
    with http_camera() as server:
        yield server


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
def test_invalid_redirection_is_refused_in_one_line_without_server_text(
    code, location, reason
) -> None:
    def answer(connection: socket.socket) -> None:
        head = b"HTTP/1.1 %d leaked text\r\nLocation: " % code
        connection.sendall(head + location + b"\r\nContent-Length: 0\r\n\r\n")

    with raw_camera(answer) as url:
        client = HttpClient(url, (), None, 5, CancelEvent())
        with pytest.raises(SourceError) as caught:
            client.get(url)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "leaked text" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"HTTP/1.1 500 leaked\tt\xe4xt\r\n\r\n", "the server responded 500 Internal Server Error"),
        (b"HTTP/1.1 799 leaked text\r\n\r\n", "the server responded 799"),
        (b"HTTP/1.1 304 leaked text\r\n\r\n", "the server responded 304 Not Modified"),
        (b"ICY 200 leaked text\r\n\r\n", "the response isn't valid HTTP"),
        (b"leaked text", "the response isn't valid HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "or exceeds a limit"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "or exceeds a limit"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "a compressed response"),
        (b"", "closed the connection without a response"),
    ],
)
def test_invalid_response_is_reported_without_server_text(response, reason) -> None:
    send = lambda connection: connection.sendall(response)  # noqa: E731
    with raw_camera(send) as url, pytest.raises(SourceError) as caught:
        HttpClient(url, (), None, 5, CancelEvent()).get(url)
    assert reason in str(caught.value)
    assert "leaked" not in str(caught.value)


def test_incomplete_response_is_reported() -> None:
    chunk = OK + b"Transfer-Encoding: chunked\r\n\r\n9999\r\nabc"
    with raw_camera(lambda connection: connection.sendall(chunk)) as url:
        body = HttpClient(url, (), None, 5, CancelEvent()).get(url)
        with (
            contextlib.closing(body),
            pytest.raises(SourceError, match="the response is incomplete"),
        ):
            body.read_all(100, "anything")


def test_missing_response_raises_no_answer_error() -> None:
    with raw_camera(lambda connection: time.sleep(2)) as url, pytest.raises(NoAnswerError):
        HttpClient(url, (), None, 0.3, CancelEvent()).get(url)


def test_byte_range_is_read_and_another_range_refused(server) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 7-9/10\r\n\r\nabc")

    with raw_camera(answer) as url, pytest.raises(SourceError, match="another part"):
        HttpClient(url, (), None, 5, CancelEvent()).get(url, (5, 3))
    server.responses["/x"] = "text/plain", b"0123456789"
    for server.supports_ranges in (True, False):
        body = HttpClient(server.root, (), None, 5, CancelEvent()).get(f"{server.root}/x", (5, 3))
        with contextlib.closing(body):
            assert body.preface() == b"567"
            assert body.read_all(3, "it") == b"567"


def test_invalid_characters_of_an_address_are_quoted(server) -> None:
    server.responses["/k%C3%BCche%201?a=%C3%A4%20b"] = "text/plain", b"x"
    url = f"{server.root}/k\xfcche 1?a=\xe4 b#there"
    with contextlib.closing(HttpClient(server.root, (), None, 5, CancelEvent()).get(url)) as body:
        assert body.read_all(1, "it") == b"x"
