"""The viewer's server: a page, its scripts and one WebSocket a browser; nothing else.

It binds loopback unless told otherwise and asks nobody for a password: who reaches it, sees.
Everything is bounded: connections, browsers, the time a request may take, and what a browser says.
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
from streamseg.viewer.browsers import MAX_SAID, Browser
from streamseg.viewer.guard import Guard
from streamseg.viewer.relay import Relay
from streamseg.viewer.tasks import first_of

MAX_BROWSERS = 32
MAX_CONNECTIONS = MAX_BROWSERS + 64
"""Sockets open at once, with those that only fetch the page."""
FETCH_WITHIN = 30.0
"""Seconds that a connection may last that isn't a browser's WebSocket."""
STOP_WITHIN = 2
"""Seconds that browsers get to leave."""
STATIC = Path(__file__).parent / "static"

TOO_MANY, NOT_ALLOWED = 1013, 1008
"""Why a WebSocket is closed (RFC 6455 and its registry)."""


class Viewer:
    """Binds at once, serves while somebody runs ``run``.

    Args:
        address: of the service's masks, ``tcp://host:port`` or ``ipc://path``.
        host: a name or an address to bind.
        port: 0 is any free one.
        sources: names; None is all there are.
        allow_hosts: more names that browsers may know this server by, ``name`` or ``name:port``.
        frames_address: of the service's pictures; None asks the service.
        server_key: the service's public key, or the file it is in, where it has one.
        key_file: the file of the viewer's own secret, which goes with it.
        insecure: needed beyond loopback, because nobody is asked for a password.

    Attributes:
        url: of the page.

    Raises:
        UsageError: an address, a name or a source that can't be, or ``insecure`` wasn't said.
        KeyFileError: the keys can't be used.
        BindError: the port is taken or can't be bound.
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
                f"{host}: whoever reaches it sees the pictures, no password asked: say --insecure,"
                " or stay on loopback behind a proxy that asks for one"
            )
        if not 0 <= port <= 65535:
            raise UsageError(f"--port {port}: ports go up to 65535, and 0 is any free one")
        self._address = address
        self._frames_address = frames_address
        self._server_key, self._key_file = server_key, key_file
        self._connect(sources, "plain").close()  # what is wrong is said before anything starts
        self._listener = _bind(host, port)
        bound = self._listener.getsockname()[1]
        try:
            names = HostNames.of(host, bound, allow_hosts, "--allow-host")
        except UsageError:
            self._listener.close()
            raise
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound}/"
        self._relay = Relay(address, sources, self._connect)
        self._server = _Server(_uvicorn_config(self._app(names)))

    def run(self) -> None:
        """Serve until ``stop`` is called."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """End soon: browsers are told, and come back when a viewer is there again."""
        self._server.should_exit = True

    def abort(self) -> None:
        """End now."""
        self._server.should_exit = self._server.force_exit = True

    async def _run(self) -> None:
        try:
            await first_of(self._server.serve([self._listener]), self._relay.run())
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
            replay=False,  # the page shows what is now
            frames_address=self._frames_address,
            server_key=self._server_key,
            key_file=self._key_file,
        )

    def _app(self, names: HostNames) -> Starlette:
        return Starlette(
            routes=[
                WebSocketRoute("/live", self._live),
                Mount("/", StaticFiles(directory=STATIC, html=True)),
            ],
            middleware=[Middleware(Guard, names=names)],
        )

    async def _live(self, browser_socket: WebSocket) -> None:
        """One browser, for as long as it looks."""
        await browser_socket.accept()
        if self._relay.looking >= MAX_BROWSERS:
            await browser_socket.close(TOO_MANY, f"{MAX_BROWSERS} browsers are looking already")
            return
        with self._relay.joined() as browser, contextlib.suppress(WebSocketDisconnect):
            await first_of(_listen(browser_socket, browser), _send(browser_socket, browser))


async def _listen(browser_socket: WebSocket, browser: Browser) -> None:
    """Until it leaves, or says what isn't allowed."""
    while True:
        message = await browser_socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        try:
            browser.hear(message.get("text") or "")
        except msgspec.DecodeError as error:
            await browser_socket.close(NOT_ALLOWED, str(error)[:100])
            return


async def _send(browser_socket: WebSocket, browser: Browser) -> None:
    while True:
        message = await browser.next()
        if isinstance(message, str):
            await browser_socket.send_text(message)
        else:
            await browser_socket.send_bytes(message)


class _Server(ClosingServer):
    """Signals are the command line's; here they would only be taken from it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited_protocol(MAX_CONNECTIONS, FETCH_WITHIN),
        ws=WebSocketsSansIOProtocol,
        ws_max_size=MAX_SAID,
        ws_per_message_deflate=False,  # JPEGs don't shrink
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="error",  # what strangers send is no news
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_WITHIN,
    )


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        return socket.create_server(where[:2], family=family)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise BindError(
            f"{host}:{port} can't be served on: {said}; choose another --port"
        ) from None
