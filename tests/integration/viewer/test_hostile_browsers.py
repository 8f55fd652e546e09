"""Hostile clients of the viewer: invalid messages, floods, and too many or idle connections."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import httpx
import pytest
from support.publishers import result, service, wait_until
from support.viewers import open_client, port_of, source_view, viewer
from websockets.exceptions import ConnectionClosed

from streamseg.viewer import server
from streamseg.viewer.browser_session import MAX_MESSAGE_BYTES
from streamseg.viewer.server import MAX_BROWSERS

NO_SERVICE = "tcp://127.0.0.1:9"


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        "null",
        '{"kind": "shout"}',
        '{"kind": "look"}',
        '{"kind": "look", "sources": "gate"}',
        '{"kind": "look", "sources": [1]}',
        '{"kind": "look", "sources": ["' + "a" * 65 + '"]}',
        json.dumps({"kind": "look", "sources": ["a"] * 65}),
        '{"kind": "seen"}',
        '{"kind": "ping", "at": "now"}',
        '{"kind": "ping", "at": 1, "more": 1}',
        "[" * 5000,
        b"\x00\xff",
    ],
)
def test_invalid_message_closes_only_its_own_connection(idle_viewer, message) -> None:
    with open_client(idle_viewer) as valid:
        with open_client(idle_viewer) as invalid:
            invalid.wait_for_dashboard()
            invalid.socket.send(message)
            assert invalid.wait_closed().code == 1008
        valid.send("ping", at=1)
        wait_until(lambda: valid.receive()["kind"] == "pong")


def test_message_above_the_size_limit_is_refused(idle_viewer) -> None:
    with open_client(idle_viewer) as client:
        client.socket.send(" " * (MAX_MESSAGE_BYTES + 1))
        assert client.wait_closed().code == 1009


def test_flood_of_messages_delays_no_other_browser() -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with open_client(shown, visible_sources=("gate",)) as valid, open_client(shown) as flooding:
            valid.wait_for_dashboard(source_view)
            stopped = threading.Event()

            def flood() -> None:
                while not stopped.is_set():
                    flooding.acknowledge("gate")

            thread = threading.Thread(target=flood)
            thread.start()
            try:
                for index in range(20):
                    started_at = time.monotonic()
                    running.put_and_wait(result(index))
                    assert valid.frame(within=20)[0]["frame"] == index
                    assert time.monotonic() - started_at < 10
            finally:
                stopped.set()
                thread.join()


def test_browser_above_the_limit_is_refused_until_another_disconnects(idle_viewer) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_client(idle_viewer)) for _ in range(MAX_BROWSERS)]
        clients[-1].wait_for_dashboard()
        with open_client(idle_viewer) as refused:
            close = refused.wait_closed()
        assert close.code == 1013
        assert "browsers are looking already" in close.reason
        assert httpx.get(idle_viewer.url).status_code == 200
        clients[0].socket.close()

        def is_accepted() -> bool:
            with open_client(idle_viewer) as client, contextlib.suppress(ConnectionClosed):
                return bool(client.receive())
            return False

        wait_until(is_accepted)


def test_connection_without_a_request_is_closed(monkeypatch) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT", 1)
    with (
        viewer(NO_SERVICE) as shown,
        open_client(shown) as older_websocket,
        socket.create_connection(("127.0.0.1", port_of(shown)), timeout=20) as idle,
    ):
        idle.sendall(b"GET / HTTP/1.1\r\nHost: ")
        with contextlib.suppress(ConnectionResetError):
            assert idle.recv(1000) == b""
        older_websocket.send("ping", at=1)
        wait_until(lambda: older_websocket.receive()["kind"] == "pong")


def test_connections_are_limited() -> None:
    with viewer(NO_SERVICE) as shown, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", port_of(shown))
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=5))
            for _ in range(server.MAX_CONNECTIONS)
        ]
        with contextlib.suppress(ConnectionResetError):
            refused = stack.enter_context(socket.create_connection(address, timeout=5))
            assert refused.recv(10) == b""
        for client in clients:
            client.close()

        def is_serving() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(shown.url).status_code == 200
            return False

        wait_until(is_serving)


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"\x00" * 1000, b"A" * 100_000, b"\r\n\r\n"])
def test_viewer_serves_after_invalid_bytes(idle_viewer, data) -> None:
    with (
        socket.create_connection(("127.0.0.1", port_of(idle_viewer)), timeout=5) as client,
        contextlib.suppress(ConnectionError),
    ):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        client.recv(1000)
    assert httpx.get(idle_viewer.url).status_code == 200
