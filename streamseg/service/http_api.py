"""Control: HTTP for operators and their tools: health, metrics, and changes to a running service.

``GET /healthz``, ``/readyz`` and ``/metrics`` are for machines; ``/v1/…`` is what ``streamseg ctl``
speaks, JSON both ways. It serves loopback unless told otherwise; beyond, all but the health checks
ask for a token. Requests are refused whose ``Host`` isn't one of its names, or that come from a
page of another site, so that no web page can reach it through its reader's browser.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from streamseg.config import Config, SourceConfig, Thresholds, read_secret
from streamseg.config.validation_errors import explain
from streamseg.errors import (
    BindError,
    ConfigError,
    NoSuchSourceError,
    StreamsegError,
    UsageError,
    redact,
    redact_address,
)
from streamseg.protocol.messages import Address
from streamseg.service.http_access import Names, hasty
from streamseg.service.service import Service
from streamseg.service.source_session import SourceSession
from streamseg.service.source_set import Reloaded
from streamseg.service.system_limits import FileReserve, ReservedListener

AFTER_MASKS = 3
"""How many ports after the masks' it is, unless the config says where."""
MAX_BODY_BYTES = 64 * 1024
MAX_CONNECTIONS = 64
ANSWER_WITHIN = 60.0
"""Seconds that a connection may last: one request, which may be to read the config again."""
CLOSE_WITHIN = 0.5
"""Time that clients get to finish their requests when the server stops, in seconds."""
STOP_WITHIN = 2.0
ONLY_IN_FILES = ("password_env", "password_file")

Reload = Callable[[], Reloaded]


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A source, as ``/v1/sources`` tells of it.

    Attributes:
        name: on the wire.
        url: without its secrets.
        live: whether it is a camera or a network stream.
        state: as in status messages.
        reason: why, in words.
        paused: whether an operator paused it.
        epoch: of its latest frame.
        decoded: frames that came out of the decoder.
        published: frames handed to the masks socket.
        dropped: frames dropped, by reason.
        failed: frames that couldn't be processed, by reason.
        in_flight: frames on their way.
        age_p99_ms: of the results of the last minute.
        thresholds: those that hold for it now.
    """

    name: str
    url: str
    live: bool
    state: str
    reason: str
    paused: bool
    epoch: int
    decoded: int
    published: int
    dropped: dict[str, int]
    failed: dict[str, int]
    in_flight: int
    age_p99_ms: float
    thresholds: Thresholds


class Control:
    """Serves from ``start`` to ``stop``, in a thread of its own.

    Args:
        service: is asked and told.
        config: of the service; says where, and with which token.
        reload: reads the config again; None where there is no file to read.

    Attributes:
        address: ``http://host:port``.

    Raises:
        ConfigError: beyond loopback without a token, or the token can't be had.
        BindError: the address can't be served on.
    """

    def __init__(self, service: Service, config: Config, reload: Reload | None) -> None:
        host, port = _where(config)
        settings = config.control
        token = read_secret(settings.token_env, settings.token_file, "control: token")
        if (settings.token_env or settings.token_file) and not token:
            raise ConfigError("control: the token is empty")
        if not token and not Address("tcp", host).is_loopback:
            raise ConfigError(
                f"control: {host} can be reached by other machines: name a token_file or token_env"
            )
        self._reserve = FileReserve()  # health must be answered when all descriptors are in use
        try:
            self._socket = ReservedListener(_bound(host, port), self._reserve)
        except BindError:
            self._reserve.close()
            raise
        port = self._socket.getsockname()[1]
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        try:
            names = Names.of(host, port, settings.hosts, "control.hosts")
        except UsageError as error:
            self._socket.close()
            self._reserve.close()
            raise ConfigError(str(error)) from None
        guarded = _Guard(Starlette(routes=_routes(service, reload)), names, token)
        self._server = _Server(
            uvicorn.Config(
                guarded,
                http=hasty(MAX_CONNECTIONS, ANSWER_WITHIN),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # what strangers send is no news
                access_log=False,
                server_header=False,
                headers=[("Connection", "close")],
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="control", daemon=True
        )

    def start(self) -> None:
        """Serve; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, and give the address back; may be called without ``start``."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(STOP_WITHIN)
        self._socket.close()
        if not self._thread.is_alive():
            self._reserve.close()


class _Server(uvicorn.Server):
    """uvicorn, which leaves no connection open when it ends."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load what the first request would load, while there are file descriptors for it."""
        await run_in_threadpool(int)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the requests under way; abort connections whose clients don't read or write on."""
        loop = asyncio.get_running_loop()
        for listener in sockets or ():
            loop.remove_reader(listener)
        for _ in range(2):  # asyncio never closes a connection that it has only accepted until then
            await asyncio.sleep(0)
        aborting = loop.call_later(CLOSE_WITHIN, self._abort_connections)
        await super().shutdown(sockets)
        aborting.cancel()
        self._abort_connections()
        await asyncio.sleep(0)  # the loop closes an aborted connection in its next iteration

    def _abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _routes(service: Service, reload: Reload | None) -> list[Route]:
    """What is asked for by which address."""
    api = _Api(service, reload)
    return [
        Route("/healthz", api.health),
        Route("/readyz", api.readiness),
        Route("/metrics", api.metrics),
        Route("/v1/sources", api.sources, methods=["GET"]),
        Route("/v1/sources", api.add, methods=["POST"]),
        Route("/v1/sources/{name}", api.source, methods=["GET"]),
        Route("/v1/sources/{name}", api.remove, methods=["DELETE"]),
        Route("/v1/sources/{name}/pause", api.pause, methods=["POST"]),
        Route("/v1/sources/{name}/resume", api.resume, methods=["POST"]),
        Route("/v1/sources/{name}/thresholds", api.source_thresholds, methods=["PUT"]),
        Route("/v1/thresholds", api.thresholds, methods=["GET"]),
        Route("/v1/thresholds", api.set_thresholds, methods=["PUT"]),
        Route("/v1/reload", api.reload, methods=["POST"]),
    ]


class _Api:
    """The answers.

    What may take long, or wait for a lock, is done in threads, of which there are only so many;
    whether the service is well is said in the event loop, however busy those are.
    """

    def __init__(self, service: Service, reload: Reload | None) -> None:
        self._service = service
        self._reload = reload

    async def health(self, _: Request) -> Response:
        health_problem = self._service.health_problem
        return PlainTextResponse(health_problem or "ok", 503 if health_problem else 200)

    async def readiness(self, _: Request) -> Response:
        ready = self._service.ready
        return PlainTextResponse("ready" if ready else "not ready", 200 if ready else 503)

    def metrics(self, _: Request) -> Response:
        text = generate_latest(self._service.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def sources(self, _: Request) -> Response:
        return _json([self._status(session) for session in self._service.sources])

    def source(self, request: Request) -> Response:
        name = request.path_params["name"]
        found = [self._status(session) for session in self._service.sources if session.name == name]
        return _json(found[0]) if found else _error(404, f"there is no source called {name!r}")

    async def add(self, request: Request) -> Response:
        def add(source: SourceConfig) -> Response:
            named = [option for option in ONLY_IN_FILES if getattr(source, option)]
            if named:
                raise ConfigError(f"{named[0]} can only be named in the config file")
            return _json({"name": self._service.sources.add(source)}, 201)

        return await _answer(request, SourceConfig, add)

    def remove(self, request: Request) -> Response:
        return _done(lambda: self._service.sources.remove(request.path_params["name"]))

    def pause(self, request: Request) -> Response:
        return _done(lambda: self._service.sources.pause(request.path_params["name"]))

    def resume(self, request: Request) -> Response:
        return _done(lambda: self._service.sources.resume(request.path_params["name"]))

    def thresholds(self, _: Request) -> Response:
        return _json(self._service.sources.thresholds.default)

    async def set_thresholds(self, request: Request) -> Response:
        def change(thresholds: Thresholds) -> Response:
            self._service.sources.set_thresholds(thresholds)
            return _json(self._service.sources.thresholds.default)

        return await _answer(request, Thresholds, change)

    async def source_thresholds(self, request: Request) -> Response:
        name = request.path_params["name"]

        def change(thresholds: Thresholds | None) -> Response:
            self._service.sources.set_thresholds(thresholds, name)
            return _json(self._service.sources.thresholds[name])

        return await _answer(request, Thresholds | None, change)

    def reload(self, _: Request) -> Response:
        if self._reload is None:
            return _error(409, "the service wasn't started with a config file")
        try:
            return _json(self._reload())
        except StreamsegError as error:
            return _refusal(error)

    def _status(self, feed: SourceSession) -> SourceStatus:
        metrics = self._service.metrics
        account = metrics.account(feed.name).snapshot()
        return SourceStatus(
            name=feed.name,
            url=redact_address(feed.config.url),
            live=feed.source.live,
            state=feed.condition.state,
            reason=feed.condition.reason,
            paused=feed.paused,
            epoch=feed.condition.epoch,
            decoded=account.decoded,
            published=account.published,
            dropped=dict(account.dropped),
            failed=dict(account.failed),
            in_flight=account.in_flight,
            age_p99_ms=1000 * metrics.age_p99_of(feed.name),
            thresholds=self._service.sources.thresholds[feed.name],
        )


class _Guard:
    """Lets only those requests through that may ask."""

    def __init__(self, app: ASGIApp, names: Names, token: str) -> None:
        self._app = app
        self._names = names
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        refusal = self._refusal(request)
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        why = self._names.refusal(request.headers)
        if why:
            return _error(403, why)
        if request.url.path in ("/healthz", "/readyz") or not self._token:
            return None
        said = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(said, b"Bearer " + self._token):
            return _error(401, "the token is missing, or another one")
        return None


async def _answer(request: Request, kind: Any, act: Callable[[Any], Response]) -> Response:
    """What ``act`` answers to the request's JSON, a ``kind``."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return _error(415, "send application/json")
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return _error(413, f"send at most {MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        return _error(400, "the rest of it didn't come")
    try:
        wanted = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _error(400, explain(str(error), kind))
    try:
        return await run_in_threadpool(act, wanted)
    except StreamsegError as error:
        return _refusal(error)


def _done(act: Callable[[], None]) -> Response:
    try:
        act()
    except StreamsegError as error:
        return _refusal(error)
    return Response(status_code=204)


def _refusal(error: StreamsegError) -> Response:
    return _error(404 if isinstance(error, NoSuchSourceError) else 400, str(error))


def _error(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": redact(reason)}, status)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _where(config: Config) -> tuple[str, int]:
    """Host and port to serve on; port 0 is any free one."""
    if config.control.bind is not None:
        host, _, port = config.control.bind.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)
    masks = Address.parse(config.publish.bind)
    return "127.0.0.1", masks.port + AFTER_MASKS if masks.port else 0


def _bound(host: str, port: int) -> socket.socket:
    if port > 65535:
        raise BindError(f"control: {host}:{port}: ports go up to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise BindError(
            f"control: can't serve on {host}:{port}: {error.strerror}; choose with --control"
        ) from None
