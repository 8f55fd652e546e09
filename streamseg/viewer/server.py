"""Web server of the viewer: a static page, its scripts and one WebSocket per browser.

By default it binds loopback, because no password is required. Connections, browsers, the duration
of requests and the size of messages are limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from streamseg.client import Subscriber, connect
from streamseg.errors import BindError, UsageError
from streamseg.protocol.address import Address
from streamseg.service.http_access import ClosingServer, HostNames, limited_protocol
from streamseg.viewer.access_middleware import AccessMiddleware
from streamseg.viewer.browser_session import MAX_MESSAGE_BYTES, BrowserSession
from streamseg.viewer.relay import Relay
from streamseg.viewer.tasks import run_until_first_ends

MAX_BROWSERS = 32
"""Maximum number of browsers with an open WebSocket."""
MAX_CONNECTIONS = MAX_BROWSERS + 64
"""Maximum number of connections, including those that only fetch the page."""
REQUEST_TIMEOUT = 30.0
"""Maximum duration of a connection that is not a WebSocket, in seconds."""
SHUTDOWN_TIMEOUT = 2
"""Time for browsers to disconnect at shutdown, in seconds."""
STATIC_FOLDER = Path(__file__).parent / "static"

CLOSE_POLICY_VIOLATION, CLOSE_TRY_AGAIN_LATER = 1008, 1013
"""WebSocket close codes (RFC 6455, section 7.4, and its IANA registry)."""


class Viewer:
    """Web viewer of one service; the constructor binds the port, ``run`` serves.

    Args:
        address: address of the masks of the service, ``tcp://host:port`` or ``ipc://path``.
        host: host name or address to bind.
        port: port to bind; 0 chooses a free one.
        sources: source names; None for all.
        allow_hosts: additional host names of this server, ``name`` or ``name:port``.
        frames_address: address of the images of the service; None requests it from the service.
        server_key: public key of the service or its file; None if the service has no keys.
        key_file: file of the secret key of the viewer; required with ``server_key``.
        insecure: whether to allow other addresses than loopback, although no password is required.

    Attributes:
        url: URL of the page.

    Raises:
        UsageError: an address or a name is invalid, or the host is not loopback and ``insecure``
            is not set.
        KeyFileError: a key can't be used.
        BindError: the port can't be bound.
    """

    def __init__(
        self,
        address: str,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        sources: Sequence[str] | None = None,
        allow_hosts: Sequence[str] = (),
        frames_address: str | None = None,
        server_key: str | Path | None = None,
        key_file: str | Path | None = None,
        insecure: bool = False,
    ) -> None:
        if not insecure and not Address("tcp", host).is_loopback:
            raise UsageError(
                f"{host} isn't loopback, and anyone who can connect to it sees the images without "
                "a password: add --insecure, or bind loopback behind a proxy with a password"
            )
        if not 0 <= port <= 65535:
            raise UsageError(f"--port {port}: must be from 0 to 65535; 0 chooses a free port")
        self._address = address
        self._frames_address = frames_address
        self._server_key, self._key_file = server_key, key_file
        self._connect(sources, "plain").close()  # raises errors of the arguments before binding
        self._listener = _bind(host, port)
        bound_port = self._listener.getsockname()[1]
        try:
            names = HostNames.of(host, bound_port, allow_hosts, "--allow-host")
        except UsageError:
            self._listener.close()
            raise
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound_port}/"
        self._relay = Relay(address, sources, self._connect)
        app = Starlette(
            routes=[
                WebSocketRoute("/live", self._serve_browser),
                Mount("/", StaticFiles(directory=STATIC_FOLDER, html=True)),
            ],
            middleware=[Middleware(AccessMiddleware, names=names)],
        )
        self._server = _Server(_uvicorn_config(app))

    def run(self) -> None:
        """Serve until ``stop`` or ``abort`` is called."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """Close all WebSockets and stop; browsers reconnect when a viewer is available again."""
        self._server.should_exit = True

    def abort(self) -> None:
        """Stop without closing the WebSockets."""
        self._server.should_exit = self._server.force_exit = True

    async def _run(self) -> None:
        try:
            await run_until_first_ends(self._server.serve([self._listener]), self._relay.run())
        finally:
            self._listener.close()

    def _connect(
        self, sources: Sequence[str] | None, frames: Literal[False, "plain"]
    ) -> Subscriber:
        return connect(
            self._address,
            sources,
            frames=frames,
            newest=frames == "plain",
            replay=False,
            frames_address=self._frames_address,
            server_key=self._server_key,
            key_file=self._key_file,
        )

    async def _serve_browser(self, websocket: WebSocket) -> None:
        await websocket.accept()
        if self._relay.session_count >= MAX_BROWSERS:
            reason = f"{MAX_BROWSERS} browsers are looking already"
            await websocket.close(CLOSE_TRY_AGAIN_LATER, reason)
            return
        with self._relay.session() as session, contextlib.suppress(WebSocketDisconnect):
            await run_until_first_ends(
                _receive_messages(websocket, session), _send_messages(websocket, session)
            )


async def _receive_messages(websocket: WebSocket, session: BrowserSession) -> None:
    """Process messages until the browser disconnects or sends an invalid one."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        try:
            session.process_message(message.get("text") or "")
        except msgspec.DecodeError as error:
            await websocket.close(CLOSE_POLICY_VIOLATION, str(error)[:100])
            return


async def _send_messages(websocket: WebSocket, session: BrowserSession) -> None:
    while True:
        message = await session.next_message()
        if isinstance(message, str):
            await websocket.send_text(message)
        else:
            await websocket.send_bytes(message)


class _Server(ClosingServer):
    """uvicorn server without signal handlers: the command line handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited_protocol(MAX_CONNECTIONS, REQUEST_TIMEOUT),
        ws=WebSocketsSansIOProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # JPEG is compressed already
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="error",  # invalid requests of clients are not logged
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
    )


def _bind(host: str, port: int) -> socket.socket:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = addresses[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BindError(f"{host}:{port} can't be bound: {reason}; choose another --port") from None
