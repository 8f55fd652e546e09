"""HTTP client of a running service's HTTP API, for ``streamseg ctl``."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from streamseg.errors import ConfigError, StreamsegError

TIMEOUT = 30.0
"""Time that a response may take, in seconds: a recording is opened before it is added."""
MAX_RESPONSE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpApiClient:
    """Client of a service's HTTP API.

    Every method raises ``StreamsegError`` if the service can't be reached or refuses the request.

    Attributes:
        address: address of the API, ``http://host:port``.
        token: token of the API, or empty.
    """

    address: str
    token: str = ""

    def sources(self) -> list[dict[str, Any]]:
        """Return every source, with the fields of ``http_api.SourceStatus``."""
        sources: list[dict[str, Any]] = self._request("GET", "sources")
        return sources

    def add(self, source: dict[str, Any]) -> str:
        """Add a source, given as in a config; return its name."""
        name: str = self._request("POST", "sources", source)["name"]
        return name

    def remove(self, name: str) -> None:
        """Remove a source."""
        self._request("DELETE", f"sources/{quote(name, safe='')}")

    def pause(self, name: str) -> None:
        """Take no more frames of a source until ``resume``."""
        self._request("POST", f"sources/{quote(name, safe='')}/pause")

    def resume(self, name: str) -> None:
        """Take frames of a paused source again."""
        self._request("POST", f"sources/{quote(name, safe='')}/resume")

    def thresholds(self, name: str | None) -> dict[str, Any]:
        """Return the thresholds of a source, or the default ones."""
        if name is None:
            return dict(self._request("GET", "thresholds"))
        return dict(self._request("GET", f"sources/{quote(name, safe='')}")["thresholds"])

    def set_thresholds(self, thresholds: dict[str, Any] | None, name: str | None) -> dict[str, Any]:
        """Replace the thresholds of a source, or the default ones; return those in effect then.

        Args:
            thresholds: the new ones; None removes a source's own.
            name: name of the source; None replaces the default ones.
        """
        path = "thresholds" if name is None else f"sources/{quote(name, safe='')}/thresholds"
        return dict(self._request("PUT", path, thresholds))

    def reload(self) -> dict[str, list[str]]:
        """Make the service reload its config file; return the changes."""
        changes: dict[str, list[str]] = self._request("POST", "reload")
        return changes

    def _request(self, method: str, path: str, body: Any = msgspec.UNSET) -> Any:
        """Return the decoded response.

        Raises:
            StreamsegError: the service refuses the request, or can't be reached.
        """
        _check_address(self.address)
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is msgspec.UNSET else msgspec.json.encode(body)
        url = f"{self.address.rstrip('/')}/v1/{path}"
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - checked
        # The environment may name a proxy, which must not receive the token.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT) as response:
                return _decode(response.read(MAX_RESPONSE_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise StreamsegError(_refusal_reason(error)) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            why = getattr(reason, "strerror", None) or reason
            raise StreamsegError(f"{self.address}: {why}; is a service running there?") from None


def _check_address(address: str) -> None:
    """Check that an address is a scheme, a host and perhaps a port.

    Raises:
        ConfigError: it isn't; the message doesn't quote it, since it may contain a password.
    """
    try:
        parts = urlsplit(address)
        is_valid = parts.port is None or parts.port > 0
    except ValueError:
        is_valid = False
    more = is_valid and ("@" in parts.netloc or parts.query or parts.fragment or " " in address)
    if not is_valid or more or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("the control's address: write http://HOST:PORT, and no password in it")


def _refusal_reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(_decode(error.read(MAX_RESPONSE_BYTES))["error"])
    except (msgspec.DecodeError, TypeError, KeyError):
        return f"the service responded {error.code} {error.reason}"


def _decode(body: bytes) -> Any:
    return msgspec.json.decode(body) if body else None
