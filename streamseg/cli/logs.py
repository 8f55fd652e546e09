"""What the log looks like: lines for people, or JSON for whoever collects them; never a password.

Every logger of the process, uvicorn's and Prometheus' too, comes out on stderr in one format.
Whatever ends up in a message, an extra or a traceback is redacted here once more: a library may
log the URL that it was given. With ``take_over`` so does what they and the interpreter print.
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
from streamseg.errors.redaction import printable, redact

log = logging.getLogger(__name__)

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


def take_over() -> None:
    """Have what is printed to stderr come as records: for a program, from its beginning to its end.

    Tracebacks of threads and of the program itself are logged in either style. In JSON, so is each
    line that a library prints; in text, where a terminal shows progress, those stay as they are.
    """
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Stderr) and isinstance(handler.formatter, JsonFormatter):
            handler.wrap_foreign_lines(handler.formatter)


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
    """Writes to what ``sys.stderr`` is at the time, or around the pipe that wraps it."""

    def __init__(self) -> None:
        super().__init__()
        self._wrapped: stderr.WrappedStderr | None = None

    def wrap_foreign_lines(self, formatter: JsonFormatter) -> None:
        """Make records of the lines that this process prints to stderr past this handler."""

        def wrap(line: str) -> str:
            fields = {"name": "stderr", "levelno": logging.WARNING, "levelname": "WARNING"}
            return formatter.format(logging.makeLogRecord({**fields, "msg": line}))

        try:
            self._wrapped = stderr.WrappedStderr(wrap)
        except OSError as error:
            log.warning("what libraries print stays as it is: %s", error.strerror)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self._wrapped is not None:
                self._wrapped.write(line)
                return
            sys.stderr.write(line + "\n")
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


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log.critical("unexpected %s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(hooked: threading.ExceptHookArgs) -> None:
    if hooked.exc_type is SystemExit:
        return
    name = hooked.thread.name if hooked.thread else "a thread"
    error = hooked.exc_value or hooked.exc_type()
    log.error(
        "unexpected %s in %s: %s",
        hooked.exc_type.__name__,
        name,
        error,
        exc_info=(hooked.exc_type, error, hooked.exc_traceback),
    )


def _log_unraisable(hooked: sys.UnraisableHookArgs) -> None:
    error = hooked.exc_value or hooked.exc_type()
    log.warning(
        "%s: %s",
        hooked.err_msg or f"unexpected {hooked.exc_type.__name__}",
        error,
        exc_info=(hooked.exc_type, error, hooked.exc_traceback),
    )
