"""Who may ask this project's HTTP servers, control's and the viewer's, and for how long.

A page of another site can make a browser ask such a server: by a form or a WebSocket (the browser
says where the page came from: ``Origin``), or under a name of the attacker's that has been made to
lead here (the browser says which name it asked for: ``Host``). Both are compared with the names
that the server goes by.

uvicorn itself waits for ever: for a request, for the rest of one and for its body.
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

AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253})(:\d{1,5})?", re.ASCII)
"""``name``, ``name:port`` or ``[address]:port``, in small letters."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names that a server goes by, as they stand in ``Host``.

    Attributes:
        authorities: ``host:port``.
        option: where more can be named.
    """

    authorities: frozenset[str]
    option: str

    @classmethod
    def of(cls, host: str, port: int, allowed: Iterable[str], option: str) -> Names:
        """Of a server bound to ``host`` and ``port``.

        Args:
            host: a name or an address without brackets.
            port: the one that is bound.
            allowed: more names; without a port, they are taken with the bound one and with none.
            option: where those were named.

        Raises:
            UsageError: one of ``allowed`` isn't a name.
        """
        own = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()}
        known = {f"{name}:{port}" for name in own}
        if port == 80:
            known |= own
        for name in allowed:
            match = AUTHORITY.fullmatch(name.lower())
            if match is None:
                raise UsageError(f"{option} {name!r}: write NAME or NAME:PORT")
            known |= {match[0]} if match[2] else {match[0], f"{match[0]}:{port}"}
        return cls(frozenset(known), option)

    def refusal(self, headers: Headers, *, origin_needed: bool = False) -> str:
        """Why a request can't be answered, in one line; empty if it can.

        Args:
            headers: of the request.
            origin_needed: whether it must say where it comes from, as every browser does when it
                opens a WebSocket.
        """
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.authorities:
            asked = repr(hosts[0][:80]) if len(hosts) == 1 else f"{len(hosts)} names"
            return f"this server doesn't go by {asked}: add the name with {self.option}"
        if not origins and not origin_needed:
            return ""
        scheme, _, authority = (origins[0] if len(origins) == 1 else "").lower().partition("://")
        if scheme not in ("http", "https") or authority != hosts[0].lower():
            return "pages of other sites may not ask this server"
        return ""


def hasty(most: int, within: float) -> type[H11Protocol]:
    """HTTP as uvicorn has it, which ends connections that are too many or take too long.

    Args:
        most: connections at once, WebSockets among them; one more is closed at once.
        within: seconds that a connection may last that doesn't become a WebSocket.
    """

    class Hasty(H11Protocol):
        _due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self._due = self.loop.call_later(within, self._end)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._due is not None:
                self._due.cancel()  # it would keep what was said until then
            super().connection_lost(exc)

        def _end(self) -> None:
            if self.transport.get_protocol() is self:  # otherwise it has become a WebSocket
                self.transport.abort()

    return Hasty


class Server(uvicorn.Server):
    """HTTP server whose shutdown closes every connection.

    uvicorn leaves a connection open whose client does not read the rest of a response: the event
    loop ends with the transport and its socket unclosed.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as uvicorn does, then abort the connections that are left."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)  # an aborted transport closes its socket in the next iteration
