"""Who may ask, and what browsers are told to refuse: Host, Origin and the headers of each answer.

A page of another site can make a browser ask this server: by a form or a WebSocket (the browser
says where the page came from: ``Origin``), or under a name of the attacker's that has been made to
lead here (the browser says which name it asked for: ``Host``). Both are compared with the names
that this server goes by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamseg.errors import UsageError

AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253})(:\d{1,5})?", re.ASCII)
"""``name``, ``name:port`` or ``[address]:port``, in small letters."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; worker-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Names:
    """The names that the server goes by, as they stand in ``Host``.

    Args:
        authorities: ``host:port``.
    """

    authorities: frozenset[str]

    @classmethod
    def of(cls, host: str, port: int, allowed: Iterable[str]) -> Names:
        """Of a server bound to ``host`` and ``port``.

        Args:
            host: a name or an address without brackets.
            port: the one that is bound.
            allowed: more names; without a port, they are taken with any the bound one or none.

        Raises:
            UsageError: one of ``allowed`` isn't a name.
        """
        own = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()}
        known = {f"{name}:{port}" for name in own}
        if port == 80:
            known |= own
        for name in allowed:
            known |= _allowed(name.lower(), port)
        return cls(frozenset(known))

    def refusal(self, headers: Headers, *, origin_needed: bool) -> str:
        """Why a request can't be answered, in one line; empty if it can.

        Args:
            headers: of the request.
            origin_needed: whether it must say where it comes from, as every browser does when it
                opens a WebSocket.
        """
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.authorities:
            asked = hosts[0][:80] if len(hosts) == 1 else f"{len(hosts)} names"
            return f"this viewer doesn't go by {asked!r}: start it with --allow-host NAME"
        if not origins and not origin_needed:
            return ""
        scheme, _, authority = (origins[0] if len(origins) == 1 else "").lower().partition("://")
        if scheme not in ("http", "https") or authority != hosts[0].lower():
            return "pages of other sites may not ask this viewer"
        return ""


class Guard:
    """ASGI middleware: answers only who asks by a known name, and adds the headers."""

    def __init__(self, app: ASGIApp, names: Names) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, or refuse it."""

        async def send_guarded(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        is_socket = scope["type"] == "websocket"
        why = self._names.refusal(Headers(scope=scope), origin_needed=is_socket)
        if not why:
            await self._app(scope, receive, send_guarded)
        else:
            await PlainTextResponse(f"{why}\n", 403)(scope, receive, send_guarded)


def _allowed(name: str, port: int) -> set[str]:
    match = AUTHORITY.fullmatch(name)
    if match is None:
        raise UsageError(f"--allow-host {name!r}: write NAME or NAME:PORT")
    return {name} if match[2] else {name, f"{name}:{port}"}
