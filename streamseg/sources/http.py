"""HTTP client of a source: allowed hosts only, one connection at a time, abortable reads.

FFmpeg makes no HTTP requests: its client would follow redirections and playlists to any host and,
if allowed, to files. All requests of a source are made here, to its own host or to hosts named in
its config.
"""

from __future__ import annotations

import functools
import http.client
import re
import socket
import ssl
import string
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from streamseg.errors import NoAnswerError, SourceError, redact

MAX_REDIRECTS = 10
"""Maximum number of redirections of a request."""
_READ_BYTES = 64 * 1024
"""Maximum number of bytes read at once."""
_PREFACE_BYTES = 16
"""Number of bytes after leading white space that suffice to detect the format of a body."""
_REASONS = {
    401: "the server rejects the user name or the password (401)",
    403: "the server denies access (403)",
    404: "the address was not found (404)",
}
_REDIRECTIONS = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-")


class StatusError(SourceError):
    """The server answered a request with an error status.

    Attributes:
        status: HTTP status code.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class HttpClient:
    """HTTP client of one source, with at most one connection open.

    Args:
        url: URL of the source; its host is allowed.
        hosts: other allowed hosts.
        login: user name and password, or None.
        timeout: seconds without data after which a read fails.
        cancel_event: set when the reader is abandoned; requests fail from then on.
    """

    def __init__(
        self,
        url: str,
        hosts: tuple[str, ...],
        login: tuple[str, str] | None,
        timeout: float,
        cancel_event: threading.Event,
    ) -> None:
        self._hosts = {parse_host(url), *(host.lower() for host in hosts)}
        self._timeout = timeout
        self._cancel_event = cancel_event
        self._socket: socket.socket | None = None
        self._body: ResponseBody | None = None
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),  # a proxy from the environment would get the password
            _HttpHandler(self._watch),
            _HttpsHandler(self._watch),
            _ErrorProcessor(),
        )
        if login is not None:
            passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
            passwords.add_password(None, _get_root_url(url), *login)
            self._opener.add_handler(_Digest(passwords))
            self._opener.add_handler(_Basic(passwords))

    def get(self, url: str, byte_range: tuple[int, int] | None = None) -> ResponseBody:
        """Request a URL and follow redirections; the previous body is closed.

        Args:
            url: absolute URL.
            byte_range: offset and number of the bytes to request, or None for all.

        Raises:
            StatusError: the server answers with an error.
            NoAnswerError: the server doesn't answer.
            SourceError: the URL isn't allowed, or can't be reached.
        """
        self.close()
        url = join_url(url, "")
        for _ in range(MAX_REDIRECTS + 1):
            response = self._request(url, byte_range)
            if response.status not in _REDIRECTIONS:
                self._body = ResponseBody(url, response, self._cancel_event, byte_range)
                return self._body
            target = response.headers.get("Location")
            response.close()
            if not target:
                raise SourceError(f"{redact(url)}: the server redirects without an address")
            url = join_url(url, target)
        raise SourceError(f"{redact(url)}: the server redirects more than {MAX_REDIRECTS} times")

    def abort(self) -> None:
        """Shut the connection down, from any thread: a blocked read or handshake fails at once."""
        if self._socket is not None:
            _shut_down(self._socket)

    def close(self) -> None:
        """Close the current body."""
        if self._body is not None:
            self._body.close()
            self._body = None

    def _watch(self, sock: socket.socket) -> None:
        """Record a new connection as the one to abort."""
        self._socket = sock
        if self._cancel_event.is_set():
            _shut_down(sock)

    def _request(self, url: str, byte_range: tuple[int, int] | None) -> http.client.HTTPResponse:
        """Send one request; returns a response with status 200, 206 or a redirection."""
        check_allowed(url, self._hosts)
        if self._cancel_event.is_set():
            raise SourceError(f"{redact(url)}: given up")
        request = urllib.request.Request(url, headers={"User-Agent": "streamseg"})  # noqa: S310 - checked
        if byte_range is not None:
            offset, length = byte_range
            request.add_header("Range", f"bytes={offset}-{offset + length - 1}")
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            error.close()
            reason = _describe_status(error.code)
            raise StatusError(f"{redact(url)}: {reason}", error.code) from None
        except urllib.error.URLError as error:
            cause = error.reason if isinstance(error.reason, Exception) else error
            raise _create_error(url, cause) from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise _create_error(url, error) from None
        except LookupError:  # raised by urllib for an invalid challenge
            raise SourceError(
                f"{redact(url)}: the server's authentication challenge is invalid"
            ) from None
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            raise SourceError(
                f"{redact(url)}: the server sent a compressed response that was not requested"
            )
        return response


class ResponseBody:
    """Body of an HTTP response.

    Attributes:
        url: URL after redirections.
        content_type: media type without parameters, in lower case.
        boundary: boundary of a multipart body; empty if missing.
    """

    def __init__(
        self,
        url: str,
        response: http.client.HTTPResponse,
        cancel_event: threading.Event,
        byte_range: tuple[int, int] | None = None,
    ) -> None:
        self.url = url
        self.content_type = response.headers.get_content_type()
        self.boundary = _read_boundary(response.headers)
        self._response = response
        self._cancel_event = cancel_event
        self._preface = b""
        self._remaining = None if byte_range is None else byte_range[1]
        self._skip = 0 if byte_range is None else self._count_bytes_before(byte_range[0])

    def preface(self) -> bytes:
        """Return the first bytes without consuming them.

        Raises:
            SourceError: see ``read``.
        """
        while len(self._preface) < _READ_BYTES and len(self._preface.lstrip()) < _PREFACE_BYTES:
            data = self._read_next()
            if not data:
                break
            self._preface += data
        return self._preface

    def read(self) -> bytes:
        """Return the next available bytes; empty at the end.

        Raises:
            NoAnswerError: no data arrived in time.
            SourceError: the connection failed.
        """
        preface, self._preface = self._preface, b""
        return preface or self._read_next()

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes as they arrive, until the end.

        Raises:
            SourceError: see ``read``.
        """
        while data := self.read():
            yield data

    def read_all(self, limit: int, what: str) -> bytes:
        """Return the whole body, of at most ``limit`` bytes.

        Raises:
            SourceError: the body is larger; or see ``read``.
        """
        data = bytearray()
        for piece in self.pieces():
            data += piece
            if len(data) > limit:
                raise SourceError(f"{redact(self.url)}: {what} over {limit} bytes")
        return bytes(data)

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    def _read_next(self) -> bytes:
        """Return bytes of the requested range from the connection."""
        data = b""
        while not data and self._remaining != 0:
            data = self._receive()
            if not data:
                break
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self._remaining is not None:
            data = data[: self._remaining]
            self._remaining -= len(data)
        return data

    def _receive(self) -> bytes:
        if self._cancel_event.is_set():
            raise SourceError(f"{redact(self.url)}: given up")
        try:
            return self._response.read1(_READ_BYTES)
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise _create_error(self.url, error) from None

    def _count_bytes_before(self, offset: int) -> int:
        """Return the number of bytes to skip before the range, if the server ignored it."""
        if self._response.status != HTTPStatus.PARTIAL_CONTENT:
            return offset
        found = _CONTENT_RANGE.match(self._response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != offset:
            self.close()
            raise SourceError(f"{redact(self.url)}: the server sent another part than requested")
        return 0


class _Connection(http.client.HTTPConnection):
    """Connection that passes its socket to ``watch`` as soon as it is connected."""

    def __init__(self, host: str, *, watch: Any, **options: Any) -> None:
        super().__init__(host, **options)
        self._watch = watch

    def connect(self) -> None:
        super().connect()
        self._watch(self.sock)


class _TlsConnection(_Connection):
    """TLS connection; the socket is passed to ``watch`` before the handshake, which may block."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock = _tls_context().wrap_socket(
            self.sock, server_hostname=self.host, do_handshake_on_connect=False
        )
        self._watch(self.sock)
        self.sock.do_handshake()


class _HttpHandler(urllib.request.HTTPHandler):
    """Opens ``http:`` URLs."""

    def __init__(self, watch: Any) -> None:
        super().__init__()
        self._watch = watch

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_Connection, watch=self._watch), req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    """Opens ``https:`` URLs."""

    def __init__(self, watch: Any) -> None:
        super().__init__(context=_tls_context())
        self._watch = watch

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_TlsConnection, watch=self._watch), req)


class _ErrorProcessor(urllib.request.HTTPErrorProcessor):
    """Handles error statuses, but not redirections, which ``HttpClient.get`` checks and follows."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        is_redirection = response.status in _REDIRECTIONS
        return response if is_redirection else super().http_response(request, response)

    https_response = http_response


class _Basic(urllib.request.HTTPBasicAuthHandler):
    """Repeats a request with a password; closes the first response, which urllib doesn't."""

    def http_error_401(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_401(req, fp, code, msg, headers)


class _Digest(urllib.request.HTTPDigestAuthHandler):
    """Digest authentication; see ``_Basic``."""

    def http_error_401(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_401(req, fp, code, msg, headers)


def check_allowed(url: str, hosts: set[str]) -> None:
    """Check that a URL is HTTP, without a user name, and of an allowed host.

    Raises:
        SourceError: the URL is refused.
    """
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        raise SourceError(f"{redact(url)}: not allowed in a stream over HTTP")
    if "@" in parts.netloc:
        raise SourceError(f"{redact(url)}: a stream must not lead to an address with a user name")
    if parse_host(url) not in hosts:
        raise SourceError(
            f"{redact(url)}: leads to another host: add it to the source's hosts if you trust it"
        )


def parse_host(url: str) -> str:
    """Return the host of a URL in lower case.

    Raises:
        SourceError: the URL has no host.
    """
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if not host:
        raise SourceError(f"{redact(url)}: has no host")
    return host


def join_url(base: str, target: str) -> str:
    """Resolve ``target`` relative to ``base``, and percent-encode invalid characters.

    Raises:
        SourceError: the result is not a valid URL.
    """
    try:
        parts = urlsplit(urljoin(base, target.strip()))
        path, query = (quote(text, safe=string.punctuation) for text in (parts.path, parts.query))
        return urlunsplit(parts._replace(path=path, query=query, fragment=""))
    except ValueError:
        raise SourceError(f"{redact(base)}: leads to an invalid address") from None


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Return the shared TLS context with the certificates of the system, several megabytes.

    urllib would load them for each connection attempt.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _shut_down(sock: socket.socket) -> None:
    """Shut a connection down, which wakes a thread blocked in it."""
    try:
        # Not SSLSocket.shutdown, which would remove the TLS session that the other thread uses.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already


def _read_boundary(headers: Message) -> str:
    boundary = headers.get_param("boundary")
    return boundary if isinstance(boundary, str) else ""


def _get_root_url(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"


def _describe_status(status: int) -> str:
    """Describe an error status, without text from the server."""
    if status in _REASONS:
        return _REASONS[status]
    known = {each.value: each.phrase for each in HTTPStatus}
    return f"the server responded {status} {known.get(status, '')}".rstrip()


def _create_error(url: str, error: Exception) -> SourceError:
    """Return the error for a failed request, without text from the server."""
    if isinstance(error, TimeoutError):
        return NoAnswerError(f"{redact(url)}: no answer")
    if isinstance(error, http.client.RemoteDisconnected):
        return SourceError(f"{redact(url)}: the server closed the connection without a response")
    if isinstance(error, http.client.IncompleteRead):
        return SourceError(f"{redact(url)}: the response is incomplete")
    if isinstance(error, (http.client.HTTPException, ValueError)):
        return SourceError(f"{redact(url)}: the response isn't valid HTTP, or exceeds a limit")
    return SourceError(f"{redact(url)}: {getattr(error, 'strerror', None) or type(error).__name__}")
