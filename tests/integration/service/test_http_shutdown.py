"""Shutdown of the HTTP servers: every connection is closed, even if its client does not read."""

import asyncio
import gc
import socket
import threading
import warnings

import uvicorn

from streamseg.service.http_access import ClosingServer


async def endless_response(_scope, _receive, send) -> None:
    """ASGI application whose response never ends."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        await asyncio.sleep(0)


def test_a_client_that_does_not_read_is_disconnected():
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        endless_response, lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = ClosingServer(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1) == b"H"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            server.should_exit = True
            thread.join(10)
            gc.collect()
    assert not thread.is_alive()
    assert [str(warning.message) for warning in caught if "unclosed" in str(warning.message)] == []
