"""HTTP API of a service: health, metrics, and changes to its sources.

``GET /healthz``, ``/readyz`` and ``/metrics`` are for monitoring; ``/v1/…`` takes and returns JSON,
and is what ``streamseg ctl`` uses. It binds loopback by default; beyond loopback, everything but
the health checks requires a token. Requests with an unknown ``Host``, or from a page of another
site, are refused, so that no web page can reach the API through a browser on this machine.
"""

from __future__ import annotations

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
from streamseg.config.validation_errors import describe_validation_error
from streamseg.errors import (
    BindError,
    ConfigError,
    NoSuchSourceError,
    StreamsegError,
    UsageError,
    redact,
    redact_address,
)
from streamseg.protocol.address import Address
from streamseg.service.http_access import ClosingServer, HostNames, limited_protocol
from streamseg.service.service import Service
from streamseg.service.source_session import SourceSession
from streamseg.service.source_set import Reloaded
from streamseg.service.system_limits import FileReserve, ReservedListener

PORT_OFFSET = 3
"""Default port: that of the masks plus this."""
MAX_BODY_BYTES = 64 * 1024
MAX_CONNECTIONS = 64
CONNECTION_TIMEOUT = 60.0
"""Time after which a connection is closed, in seconds: one request, which may be a reload."""
STOP_WITHIN = 2.0
"""Time that the server's thread gets to end, in seconds."""
FILE_ONLY_OPTIONS = ("password_env", "password_file")
"""Options of a source that only a config file may set: they read secrets of the service."""

Reload = Callable[[], Reloaded]


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Source in the responses of ``/v1/sources``.

    Attributes:
        name: name of the source.
        url: its URL, without secrets.
        live: whether it is a camera or a network stream.
        state: state, as in status messages.
        reason: reason for the state, in words.
        paused: whether it is paused.
        epoch: epoch of its latest frame.
        decoded: frames that were decoded.
        published: frames whose masks were published.
        dropped: frames dropped, by reason.
        failed: frames that couldn't be processed, by reason.
        in_flight: frames in flight.
        age_p99_ms: 99th percentile of the ages of the last minute's results.
        thresholds: thresholds in effect.
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


class HttpApi:
    """HTTP server in a thread of its own; binds at once, serves from ``start`` to ``stop``.

    Args:
        service: service that it controls.
        config: config of the service, with the address and the token.
        reload: function that reloads the config file; None if there is no file.

    Attributes:
        address: ``http://host:port``.

    Raises:
        ConfigError: the address is not loopback and there is no token, or the token can't be read.
        BindError: the address can't be bound.
    """

    def __init__(self, service: Service, config: Config, reload: Reload | None) -> None:
        host, port = _bind_address(config)
        settings = config.control
        token = read_secret(settings.token_env, settings.token_file, "control: token")
        if (settings.token_env or settings.token_file) and not token:
            raise ConfigError("control: the token is empty")
        if not token and not Address("tcp", host).is_loopback:
            raise ConfigError(
                f"control: {host} can be reached by other machines: name a token_file or token_env"
            )
        self._reserve = FileReserve()  # health checks must work without any free file descriptor
        try:
            self._socket = ReservedListener(_bind(host, port), self._reserve)
        except BindError:
            self._reserve.close()
            raise
        port = self._socket.getsockname()[1]
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        try:
            names = HostNames.of(host, port, settings.hosts, "control.hosts")
        except UsageError as error:
            self._socket.close()
            self._reserve.close()
            raise ConfigError(str(error)) from None
        app = Starlette(routes=_routes(service, reload))
        self._server = _Server(
            uvicorn.Config(
                _AccessCheck(app, names, token),
                http=limited_protocol(MAX_CONNECTIONS, CONNECTION_TIMEOUT),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # malformed requests of unknown clients are no errors
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
        """Start the server; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the server and release its address; may be called without ``start``."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(STOP_WITHIN)
        self._socket.close()
        if not self._thread.is_alive():
            self._reserve.close()


class _Server(ClosingServer):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load what the first request would load, while there are file descriptors for it."""
        await run_in_threadpool(int)
        await super().startup(sockets)


def _routes(service: Service, reload: Reload | None) -> list[Route]:
    endpoints = _Endpoints(service, reload)
    return [
        Route("/healthz", endpoints.health),
        Route("/readyz", endpoints.readiness),
        Route("/metrics", endpoints.metrics),
        Route("/v1/sources", endpoints.list_sources, methods=["GET"]),
        Route("/v1/sources", endpoints.add_source, methods=["POST"]),
        Route("/v1/sources/{name}", endpoints.get_source, methods=["GET"]),
        Route("/v1/sources/{name}", endpoints.remove_source, methods=["DELETE"]),
        Route("/v1/sources/{name}/pause", endpoints.pause_source, methods=["POST"]),
        Route("/v1/sources/{name}/resume", endpoints.resume_source, methods=["POST"]),
        Route("/v1/sources/{name}/thresholds", endpoints.set_source_thresholds, methods=["PUT"]),
        Route("/v1/thresholds", endpoints.get_thresholds, methods=["GET"]),
        Route("/v1/thresholds", endpoints.set_thresholds, methods=["PUT"]),
        Route("/v1/reload", endpoints.reload, methods=["POST"]),
    ]


class _Endpoints:
    """Request handlers.

    Handlers that may take long or wait for a lock run in a pool of threads. The health checks run
    in the event loop, so that they are answered while that pool is busy.
    """

    def __init__(self, service: Service, reload: Reload | None) -> None:
        self._service = service
        self._reload = reload

    async def health(self, _: Request) -> Response:
        problem = self._service.health_problem
        return PlainTextResponse(problem or "ok", 503 if problem else 200)

    async def readiness(self, _: Request) -> Response:
        ready = self._service.ready
        return PlainTextResponse("ready" if ready else "not ready", 200 if ready else 503)

    def metrics(self, _: Request) -> Response:
        text = generate_latest(self._service.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def list_sources(self, _: Request) -> Response:
        return _json_response([self._status(session) for session in self._service.sources])

    def get_source(self, request: Request) -> Response:
        name = request.path_params["name"]
        for session in self._service.sources:
            if session.name == name:
                return _json_response(self._status(session))
        return _error_response(404, f"there is no source called {name!r}")

    async def add_source(self, request: Request) -> Response:
        def add(source: SourceConfig) -> Response:
            for option in FILE_ONLY_OPTIONS:
                if getattr(source, option):
                    raise ConfigError(f"{option} can only be named in the config file")
            return _json_response({"name": self._service.sources.add(source)}, 201)

        return await _handle_json(request, SourceConfig, add)

    def remove_source(self, request: Request) -> Response:
        return _handle_action(lambda: self._service.sources.remove(request.path_params["name"]))

    def pause_source(self, request: Request) -> Response:
        return _handle_action(lambda: self._service.sources.pause(request.path_params["name"]))

    def resume_source(self, request: Request) -> Response:
        return _handle_action(lambda: self._service.sources.resume(request.path_params["name"]))

    def get_thresholds(self, _: Request) -> Response:
        return _json_response(self._service.sources.thresholds.default)

    async def set_thresholds(self, request: Request) -> Response:
        def replace(thresholds: Thresholds) -> Response:
            self._service.sources.set_thresholds(thresholds)
            return _json_response(self._service.sources.thresholds.default)

        return await _handle_json(request, Thresholds, replace)

    async def set_source_thresholds(self, request: Request) -> Response:
        name = request.path_params["name"]

        def replace(thresholds: Thresholds | None) -> Response:
            self._service.sources.set_thresholds(thresholds, name)
            return _json_response(self._service.sources.thresholds[name])

        return await _handle_json(request, Thresholds | None, replace)

    def reload(self, _: Request) -> Response:
        if self._reload is None:
            return _error_response(409, "the service wasn't started with a config file")
        try:
            return _json_response(self._reload())
        except StreamsegError as error:
            return _refusal_response(error)

    def _status(self, session: SourceSession) -> SourceStatus:
        metrics = self._service.metrics
        account = metrics.account(session.name).snapshot()
        return SourceStatus(
            name=session.name,
            url=redact_address(session.config.url),
            live=session.source.live,
            state=session.condition.state,
            reason=session.condition.reason,
            paused=session.paused,
            epoch=session.condition.epoch,
            decoded=account.decoded,
            published=account.published,
            dropped=dict(account.dropped),
            failed=dict(account.failed),
            in_flight=account.in_flight,
            age_p99_ms=1000 * metrics.age_p99_of(session.name),
            thresholds=self._service.sources.thresholds[session.name],
        )


class _AccessCheck:
    """ASGI middleware that checks ``Host``, ``Origin`` and the token."""

    def __init__(self, app: ASGIApp, names: HostNames, token: str) -> None:
        self._app = app
        self._names = names
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._refuse(Request(scope)) or self._app)(scope, receive, send)

    def _refuse(self, request: Request) -> Response | None:
        """Return the response to a request that is refused, None for one that is allowed."""
        reason = self._names.refusal(request.headers)
        if reason:
            return _error_response(403, reason)
        if request.url.path in ("/healthz", "/readyz") or not self._token:
            return None
        authorization = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(authorization, b"Bearer " + self._token):
            return _error_response(401, "the token is missing or wrong")
        return None


async def _handle_json(
    request: Request, schema: Any, action: Callable[[Any], Response]
) -> Response:
    """Decode the request's JSON as a ``schema``, and return what ``action`` responds to it."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return _error_response(415, "send application/json")
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return _error_response(413, f"send at most {MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        return _error_response(400, "the body is incomplete")
    try:
        decoded = msgspec.json.decode(body, type=schema)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _error_response(400, describe_validation_error(str(error), schema))
    try:
        return await run_in_threadpool(action, decoded)
    except StreamsegError as error:
        return _refusal_response(error)


def _handle_action(action: Callable[[], None]) -> Response:
    try:
        action()
    except StreamsegError as error:
        return _refusal_response(error)
    return Response(status_code=204)


def _refusal_response(error: StreamsegError) -> Response:
    return _error_response(404 if isinstance(error, NoSuchSourceError) else 400, str(error))


def _error_response(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": redact(reason)}, status)


def _json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _bind_address(config: Config) -> tuple[str, int]:
    """Return the host and port to bind; port 0 is any free one."""
    if config.control.bind is not None:
        host, _, port = config.control.bind.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)
    masks = Address.parse(config.publish.bind)
    return "127.0.0.1", masks.port + PORT_OFFSET if masks.port else 0


def _bind(host: str, port: int) -> socket.socket:
    if port > 65535:
        raise BindError(f"control: {host}:{port}: ports go up to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise BindError(
            f"control: can't serve on {host}:{port}: {error.strerror}; choose with --control"
        ) from None
