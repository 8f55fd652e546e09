"""What the log looks like: lines for people, or JSON for whoever collects them; never a password.

Every logger of the process, uvicorn's and Prometheus' too, comes out on stderr in one format.
Whatever ends up in a message, an extra or a traceback is redacted here once more: a library may
log the URL that it was given.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from datetime import datetime, timezone
from typing import Any, Literal, TextIO, TypeAlias

from streamseg.errors import printable, redact

Format: TypeAlias = Literal["text", "json"]

_FOREIGN = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "prometheus_client")
"""Loggers of libraries, that may have handlers of their own."""
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest are a call's ``extra``."""


def configure(style: Format = "text", *, debug: bool = False) -> None:
    """Log to stderr from now on; calling it again replaces what it did before.

    Args:
        style: ``text``, or ``json`` with an object a line.
        debug: everything; otherwise warnings and what is worse.
    """
    handler = _Stderr()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    for former in [h for h in root.handlers if isinstance(h, _Stderr)]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.WARNING)
    for name in _FOREIGN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    warnings.showwarning = _log_warning


def is_json() -> bool:
    """Whether stderr is for programs: what isn't logged must not be written there either."""
    handlers = logging.getLogger().handlers
    return any(isinstance(h, _Stderr) and isinstance(h.formatter, JsonFormatter) for h in handlers)


class TextFormatter(logging.Formatter):
    """``LEVEL message``, and a traceback below. What came from outside can't begin a new line."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging has it
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """An object: ``time``, ``level``, ``logger``, ``message``, extras, and ``exception`` if any."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc)
        fields = {
            "time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        extras = {key: value for key, value in vars(record).items() if key not in _OWN}
        fields |= {key: value for key, value in extras.items() if key not in fields}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(_plain(fields))


class _Stderr(logging.Handler):
    """Writes to what ``sys.stderr`` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - logging's own way out: it says so on stderr
            self.handleError(record)


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it, without secrets."""
    if (
        value is None
        or isinstance(value, int)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return redact(str(value))


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - as warnings calls it
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Python's own warnings are records as all others."""
    logger = logging.getLogger("py.warnings")
    logger.warning("%s: %s (%s:%d)", category.__name__, message, filename, lineno)
