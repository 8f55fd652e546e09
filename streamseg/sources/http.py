"""HTTP for FFmpeg: what an address leads to, and no further than was allowed.

FFmpeg's own HTTP goes wherever a redirection or a playlist points, to other machines and, if it is
let, to files. Here every request of a source, whichever part of FFmpeg makes it, passes one place,
and goes to the source's own host or to one that its config names.
"""

from __future__ import annotations

import functools
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from typing import IO, Any
from urllib.parse import urlsplit

from streamseg.errors import NoAnswerError, SourceError, redact

MAX_PLAYLIST_BYTES = 4 * 1024 * 1024
_PLAYLISTS = ("mpegurl",)
_READ_AT_ONCE = 64 * 1024
_REFUSED = {
    401: "it refuses the user name or the password (401)",
    403: "it forbids this (403)",
    404: "there is nothing at this address (404)",
}


class Http:
    """Opens the addresses of one source.

    Args:
        url: the source's own; its host is allowed.
        hosts: others that are.
        login: user and password, or None.
        timeout: seconds without a byte after which a read fails.
        left: once set, reads fail.
    """

    def __init__(
        self,
        url: str,
        hosts: tuple[str, ...],
        login: tuple[str, str] | None,
        timeout: float,
        left: threading.Event,
    ) -> None:
        self._hosts = {host_of(url), *(host.lower() for host in hosts)}
        self._timeout = timeout
        self._left = left
        self._first: Body | None = None
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),  # the environment's would be given the password
            urllib.request.HTTPSHandler(context=_tls()),
            _Redirects(self._hosts),
        )
        if login is not None:
            passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
            passwords.add_password(None, _root_of(url), *login)
            self._opener.add_handler(_Digest(passwords))
            self._opener.add_handler(_Basic(passwords))

    def begin(self, url: str) -> str:
        """Ask for the source's own address, before FFmpeg does; the type of what comes.

        Raises:
            SourceError: as ``open``.
        """
        self._first = self._request(url)
        return self._first.content_type

    def open(self, url: str, _flags: int, _options: Mapping[str, str]) -> Body:
        """What PyAV's ``io_open`` is; the first call gets what ``begin`` has asked for.

        Raises:
            SourceError: the address isn't allowed, or what it leads to can't be had.
        """
        first, self._first = self._first, None
        return first or self._request(url)

    def close(self) -> None:
        """Let go of what FFmpeg hasn't taken."""
        if self._first is not None:
            self._first.close()

    def _request(self, url: str) -> Body:
        check_allowed(url, self._hosts)
        request = urllib.request.Request(url, headers={"User-Agent": "streamseg"})  # noqa: S310 - checked
        try:
            response = self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            error.close()
            why = _REFUSED.get(error.code, f"it answers {error.code} {error.reason}")
            raise SourceError(f"{redact(url)}: {why}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise NoAnswerError(f"{redact(url)}: no answer") from None
            raise SourceError(f"{redact(url)}: {_plain(error.reason)}") from None
        except TimeoutError:
            raise NoAnswerError(f"{redact(url)}: no answer") from None
        except (HTTPException, OSError, ValueError) as error:
            raise SourceError(f"{redact(url)}: {_plain(error)}") from None
        except LookupError:  # urllib, of a challenge that is none
            raise SourceError(f"{redact(url)}: how it asks for a password can't be read") from None
        return Body(redact(url), response, self._left)


class Body:
    """A response, as a file that FFmpeg reads."""

    def __init__(self, url: str, response: HTTPResponse, left: threading.Event) -> None:
        self.name = url
        self.content_type = response.headers.get_content_type()
        self._response = response
        self._left = left
        is_playlist = any(kind in self.content_type for kind in _PLAYLISTS)
        self._may_read = MAX_PLAYLIST_BYTES if is_playlist or ".m3u8" in url else None

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, as soon as there are any.

        Raises:
            SourceError: the connection broke, or a playlist doesn't end.
        """
        if self._left.is_set():
            raise SourceError(f"{self.name}: given up")
        try:
            data = self._response.read1(min(size, _READ_AT_ONCE))
        except TimeoutError:
            raise NoAnswerError(f"{self.name}: nothing more came") from None
        except (HTTPException, OSError) as error:
            raise SourceError(f"{self.name}: {_plain(error)}") from None
        if self._may_read is not None:
            self._may_read -= len(data)
            if self._may_read < 0:
                raise SourceError(f"{self.name}: a playlist over {MAX_PLAYLIST_BYTES} bytes")
        return data

    def close(self) -> None:
        """Let go of the connection."""
        self._response.close()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections that stay within the allowed hosts."""

    def __init__(self, hosts: set[str]) -> None:
        self._hosts = hosts

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            check_allowed(newurl, self._hosts)
        except SourceError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Basic(urllib.request.HTTPBasicAuthHandler):
    """Asks again with a password; urllib's own leaves the first answer open."""

    def http_error_401(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> Any:
        fp.close()
        return super().http_error_401(req, fp, code, msg, headers)


class _Digest(urllib.request.HTTPDigestAuthHandler):
    """As ``_Basic``."""

    def http_error_401(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> Any:
        fp.close()
        return super().http_error_401(req, fp, code, msg, headers)


def check_allowed(url: str, hosts: set[str]) -> None:
    """Refuse what isn't HTTP, or leads to a host that isn't allowed.

    Raises:
        SourceError: it does.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme not in ("http", "https"):
        if scheme.startswith("crypto"):
            raise SourceError(f"{redact(url)}: encrypted playlists can't be read")
        raise SourceError(f"{redact(url)}: a stream over HTTP may not lead to this")
    if host_of(url) not in hosts:
        raise SourceError(
            f"{redact(url)}: leads to another host: add it to the source's hosts if you trust it"
        )


def host_of(url: str) -> str:
    """The host in an address, in small letters.

    Raises:
        SourceError: there is none.
    """
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if not host:
        raise SourceError(f"{redact(url)}: has no host")
    return host


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all connections: it holds the system's certificates, some megabytes of them.

    urllib would read them at each attempt, and a camera may be away for days.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _root_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"


def _plain(error: object) -> str:
    """What the system says is wrong, without addresses that it may add."""
    if isinstance(error, InvalidURL):  # its text has the address in it
        return "it isn't an address that can be asked for"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
