"""Logging: text lines or JSON records on stderr, without secrets.

All loggers of the process use one format, including those of uvicorn and prometheus_client.
Messages, extras and tracebacks are redacted here again, because a library may log a URL that it
received. ``take_over`` also formats what libraries and the interpreter print to stderr.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import warnings
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Literal, TextIO, TypeAlias

from streamseg.cli import stderr
from streamseg.errors.redaction import escape_unprintable, redact

log = logging.getLogger(__name__)

Format: TypeAlias = Literal["text", "json"]

_LIBRARY_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "prometheus_client")
"""Loggers of libraries that may have handlers of their own."""
_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
}
"""Attributes of every log record; the others come from the ``extra`` of a call."""


def configure(style: Format = "text", *, debug: bool = False) -> None:
    """Configure logging to stderr, replacing an earlier configuration.

    Args:
        style: ``text``, or ``json`` with one object per line.
        debug: whether to log everything; otherwise warnings and errors.
    """
    handler = _Stderr()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    for previous in [h for h in root.handlers if isinstance(h, _Stderr)]:
        root.removeHandler(previous)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.WARNING)
    for name in _LIBRARY_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    warnings.showwarning = _log_warning


def take_over() -> None:
    """Log what is printed to stderr until the process ends.

    Uncaught exceptions of all threads are logged in both formats. With JSON, each line that a
    library prints becomes a record, too; with text, these lines are left unchanged, because a
    terminal may show a progress bar.
    """
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Stderr) and isinstance(handler.formatter, JsonFormatter):
            handler.wrap_printed_lines(handler.formatter)


def is_json() -> bool:
    """Return whether the log is JSON: then only records may be written to stderr."""
    handlers = logging.getLogger().handlers
    return any(isinstance(h, _Stderr) and isinstance(h.formatter, JsonFormatter) for h in handlers)


class TextFormatter(logging.Formatter):
    """``LEVEL message`` and the traceback; control characters in the message are escaped."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overrides logging.Formatter
        return escape_unprintable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """JSON object with ``time``, ``level``, ``logger``, ``message``, extras and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc)
        fields = {
            "time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        extras = {
            key: value for key, value in vars(record).items() if key not in _STANDARD_ATTRIBUTES
        }
        fields |= {key: value for key, value in extras.items() if key not in fields}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(_to_json(fields))


class _Stderr(logging.Handler):
    """Handler that writes to the current ``sys.stderr``, or past its capture."""

    def __init__(self) -> None:
        super().__init__()
        self._wrapped: stderr.WrappedStderr | None = None

    def wrap_printed_lines(self, formatter: JsonFormatter) -> None:
        """Convert lines that are printed to stderr to log records."""

        def wrap(line: str) -> str:
            fields = {"name": "stderr", "levelno": logging.WARNING, "levelname": "WARNING"}
            return formatter.format(logging.makeLogRecord({**fields, "msg": line}))

        try:
            self._wrapped = stderr.WrappedStderr(wrap)
        except OSError as error:
            log.warning("lines printed by libraries are not converted: %s", error.strerror)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self._wrapped is not None:
                self._wrapped.write(line)
                return
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - logging reports it on stderr
            self.handleError(record)


def _to_json(value: Any) -> Any:
    """Convert a value to JSON types, without secrets."""
    if (
        value is None
        or isinstance(value, int)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_to_json(item) for item in value]
    return redact(str(value))


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - signature of warnings.showwarning
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Log a warning of Python's ``warnings`` module."""
    logger = logging.getLogger("py.warnings")
    logger.warning("%s: %s (%s:%d)", category.__name__, message, filename, lineno)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log.critical("unexpected %s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(uncaught: threading.ExceptHookArgs) -> None:
    if uncaught.exc_type is SystemExit:
        return
    name = uncaught.thread.name if uncaught.thread else "a thread"
    error = uncaught.exc_value or uncaught.exc_type()
    log.error(
        "unexpected %s in %s: %s",
        uncaught.exc_type.__name__,
        name,
        error,
        exc_info=(uncaught.exc_type, error, uncaught.exc_traceback),
    )


def _log_unraisable(uncaught: sys.UnraisableHookArgs) -> None:
    error = uncaught.exc_value or uncaught.exc_type()
    log.warning(
        "%s: %s",
        uncaught.err_msg or f"unexpected {uncaught.exc_type.__name__}",
        error,
        exc_info=(uncaught.exc_type, error, uncaught.exc_traceback),
    )
