"""The other end of ``control``: asks a running service, over HTTP, for ``streamseg ctl``."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from streamseg.errors import ConfigError, StreamsegError

PATIENCE = 30.0
"""Seconds that an answer may take: a recorded source is opened before it is added."""
MAX_ANSWER_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Controlled:
    """A running service.

    Attributes:
        address: where its control endpoint is, ``http://host:port``.
        token: what it asks for, or empty.
    """

    address: str
    token: str = ""

    def sources(self) -> list[dict[str, Any]]:
        """Every source, as ``control.SourceStatus`` has it."""
        found: list[dict[str, Any]] = self._ask("GET", "sources")
        return found

    def add(self, source: dict[str, Any]) -> str:
        """Add a source, given as in a config; its name."""
        name: str = self._ask("POST", "sources", source)["name"]
        return name

    def remove(self, name: str) -> None:
        """Take a source away."""
        self._ask("DELETE", f"sources/{quote(name, safe='')}")

    def pause(self, name: str) -> None:
        """Take no more frames of a source."""
        self._ask("POST", f"sources/{quote(name, safe='')}/pause")

    def resume(self, name: str) -> None:
        """Go on with a source."""
        self._ask("POST", f"sources/{quote(name, safe='')}/resume")

    def thresholds(self, name: str | None) -> dict[str, Any]:
        """The thresholds of a source, or of the service."""
        if name is None:
            found: dict[str, Any] = self._ask("GET", "thresholds")
            return found
        return dict(self._ask("GET", f"sources/{quote(name, safe='')}")["thresholds"])

    def set_thresholds(self, thresholds: dict[str, Any] | None, name: str | None) -> dict[str, Any]:
        """Replace them; None gives a source the service's. What holds then."""
        path = "thresholds" if name is None else f"sources/{quote(name, safe='')}/thresholds"
        found: dict[str, Any] = self._ask("PUT", path, thresholds)
        return found

    def reload(self) -> dict[str, list[str]]:
        """Have the service read its config file again; what changed."""
        found: dict[str, list[str]] = self._ask("POST", "reload")
        return found

    def _ask(self, method: str, path: str, body: Any = msgspec.UNSET) -> Any:
        """The answer, decoded.

        Raises:
            StreamsegError: the service refuses, in its own words, or isn't there.
        """
        _check_address(self.address)
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is msgspec.UNSET else msgspec.json.encode(body)
        url = f"{self.address.rstrip('/')}/v1/{path}"
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - checked
        # A proxy that the environment names would be given the token.
        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with directly.open(request, timeout=PATIENCE) as answer:
                return _decoded(answer.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise StreamsegError(_reason(error)) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            why = getattr(reason, "strerror", None) or reason
            raise StreamsegError(f"{self.address}: {why}; is a service running there?") from None


def _check_address(address: str) -> None:
    """Refuse what isn't a host and a port.

    Raises:
        ConfigError: it isn't; it isn't quoted, since it may have a password in it.
    """
    try:
        parts = urlsplit(address)
        is_sound = parts.port is None or parts.port > 0
    except ValueError:
        is_sound = False
    more = is_sound and ("@" in parts.netloc or parts.query or parts.fragment or " " in address)
    if not is_sound or more or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("the control's address: write http://HOST:PORT, and no password in it")


def _reason(error: urllib.error.HTTPError) -> str:
    """What the service says is wrong."""
    try:
        return str(_decoded(error.read(MAX_ANSWER_BYTES))["error"])
    except (msgspec.DecodeError, TypeError, KeyError):
        return f"it answers {error.code} {error.reason}"


def _decoded(answer: bytes) -> Any:
    return msgspec.json.decode(answer) if answer else None
