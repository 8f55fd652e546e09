"""Access checks and limits of the HTTP servers: the HTTP API and the viewer.

A web page of another site can make a browser send requests to such a server: with a form or a
WebSocket (the browser sends the page's site as ``Origin``), or under a host name of the attacker
that resolves to this machine (the browser sends that name as ``Host``). Both headers are compared
with the server's own names.

uvicorn has no timeouts: a client may take forever to send a request or to read the response.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import uvicorn
from starlette.datastructures import Headers
from uvicorn.protocols.http.h11_impl import H11Protocol

from streamseg.errors import UsageError

CLOSE_WITHIN = 0.5
"""Time that clients get to finish their requests when a server stops, in seconds."""
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253})(:\d{1,5})?", re.ASCII)
"""``name``, ``name:port`` or ``[address]:port``, in lower case."""


@dataclass(frozen=True, slots=True)
class HostNames:
    """Host names of a server, as clients send them in ``Host``.

    Attributes:
        authorities: names with their ports, ``host:port``.
        option: option that adds names, for error messages.
    """

    authorities: frozenset[str]
    option: str

    @classmethod
    def of(cls, host: str, port: int, allowed: Iterable[str], option: str) -> HostNames:
        """Return the names of a server that is bound to ``host`` and ``port``.

        Args:
            host: name, or address without brackets.
            port: port that is bound.
            allowed: additional names; one without a port is valid with the bound port and with
                none.
            option: option that holds them.

        Raises:
            UsageError: one of ``allowed`` isn't a host name.
        """
        local = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()}
        authorities = {f"{name}:{port}" for name in local}
        if port == 80:
            authorities |= local
        for name in allowed:
            match = AUTHORITY.fullmatch(name.lower())
            if match is None:
                raise UsageError(f"{option} {name!r}: write NAME or NAME:PORT")
            authorities |= {match[0]} if match[2] else {match[0], f"{match[0]}:{port}"}
        return cls(frozenset(authorities), option)

    def refusal(self, headers: Headers, *, origin_needed: bool = False) -> str:
        """Return why a request must be refused, in one line; empty if it is allowed.

        Args:
            headers: headers of the request.
            origin_needed: whether ``Origin`` is required, as it is for a WebSocket, with which
                every browser sends it.
        """
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.authorities:
            requested = repr(hosts[0][:80]) if len(hosts) == 1 else f"{len(hosts)} names"
            return f"this server has no name {requested}: add the name with {self.option}"
        if not origins and not origin_needed:
            return ""
        scheme, _, authority = (origins[0] if len(origins) == 1 else "").lower().partition("://")
        if scheme not in ("http", "https") or authority != hosts[0].lower():
            return "pages of other sites may not send requests to this server"
        return ""


def limited_protocol(most: int, within: float) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with a limit of connections and of their duration.

    Args:
        most: maximum number of connections, WebSockets included; a further one is closed at once.
        within: seconds after which a connection that isn't a WebSocket is aborted.
    """

    class LimitedProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self._deadline = self.loop.call_later(within, self._abort)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline is not None:
                self._deadline.cancel()  # the timer would keep the connection in memory
            super().connection_lost(exc)

        def _abort(self) -> None:
            if self.transport.get_protocol() is self:  # a WebSocket has another protocol
                self.transport.abort()

    return LimitedProtocol


class ClosingServer(uvicorn.Server):
    """uvicorn's server, which closes every connection before its event loop ends.

    uvicorn leaves a connection open whose client doesn't read, and asyncio (Python 3.11) one that
    is accepted while a server closes.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the requests in progress, and abort the connections of the others."""
        loop = asyncio.get_running_loop()
        for listener in sockets or ():
            loop.remove_reader(listener)
        for _ in range(2):  # iterations until an accepted connection is a connection of the server
            await asyncio.sleep(0)
        aborting = loop.call_later(CLOSE_WITHIN, self._abort_connections)
        await super().shutdown(sockets)
        aborting.cancel()
        self._abort_connections()
        await asyncio.sleep(0)  # the loop closes an aborted connection in its next iteration

    def _abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
