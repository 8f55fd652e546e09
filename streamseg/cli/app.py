"""Typer application: options common to several commands, config assembly, stop signals."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import streamseg
from streamseg.cli import logs, shutdown
from streamseg.cli.shutdown import INTERRUPTED, Stoppable
from streamseg.errors.redaction import escape_unprintable, redact

if TYPE_CHECKING:
    from streamseg.config import Config

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # notes of commands are shown; libraries only log warnings

ENDED_BY_SIGNALS = ("serve", "watch", "view")
"""Commands whose normal end is a stop signal; it gives exit code 0."""

EXTRAS = {
    **dict.fromkeys(("PIL", "av", "cv2", "prometheus_client", "safetensors", "scipy"), "server"),
    **dict.fromkeys(("torch", "torchvision", "yaml"), "server"),
    **dict.fromkeys(("starlette", "uvicorn"), None),
    "websockets": "view",
    "paho": "mqtt",
    "matplotlib": "train",
    "trackers": "bench",
    "trackeval": "bench",
}
"""Extra of ``pyproject.toml`` that installs a module; None where several extras do."""


def exit_with(code: int, **_options: Any) -> None:
    """Exit with the value that a command returned."""
    raise typer.Exit(code)


app = typer.Typer(
    name="streamseg",
    help="Instance segmentation and tracking of cameras, streams and recordings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    result_callback=exit_with,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Override a key of the config; repeatable."),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Name of a model; see `streamseg models`.")
]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="`default`, a path, or `none` (random weights).")
]
ClassNamesOption = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        metavar="A,B|FILE",
        help="Classes of your own weights, in training order; a file has one name per line.",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML config file, as for `serve`.")
]


def _print_version(value: bool) -> None:
    if value:
        print(f"streamseg {streamseg.__version__}")  # noqa: T201 - data
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and debug logs; accepted anywhere.")
    ] = False,
    log: Annotated[
        str,
        typer.Option("--log", metavar="text|json", help="Format of the log; accepted anywhere."),
    ] = "text",
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Register the command with the stop signals.

    ``--debug`` and ``--log`` are handled before parsing; they are declared here for ``--help``.
    """
    del debug, log, version
    signals = shutdown.installed()
    if signals is not None:
        command = context.invoked_subcommand
        code = 0 if command in ENDED_BY_SIGNALS else INTERRUPTED
        signals.begin(code, note, hangup_stops=command != "serve")


def fail(message: str, *, trace: bool = False) -> None:
    """Print an error as one line on stderr, or as one record of a JSON log.

    Args:
        message: the error.
        trace: whether to add the traceback of the current exception.
    """
    line = escape_unprintable(redact(" ".join(message.split())))
    if not line:  # a command without arguments: its help was printed
        return
    if logs.is_json():
        log.error(line, exc_info=trace)
        return
    if trace:
        sys.stderr.write(redact(traceback.format_exc()))
    print(f"streamseg: {line}", file=sys.stderr)  # noqa: T201


def note(message: str) -> None:
    """Print a note as one line on stderr, or as one record of a JSON log."""
    if logs.is_json():
        log.info(message)
        return
    with suppress(OSError):  # a closed stderr must not end the work
        print(escape_unprintable(redact(message)), file=sys.stderr, flush=True)  # noqa: T201


def missing_extra(error: ImportError, extra: str = "server") -> str:
    """Return one line that names the package to install.

    Args:
        error: error of importing a module.
        extra: extra to name if several extras install the module.
    """
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not module:
        return f"{module or 'a library'} can't be loaded: {error}"
    if module in EXTRAS:
        return f"{module} isn't installed: pip install 'streamseg[{EXTRAS[module] or extra}]'"
    return f"{module} isn't installed"


def build_config(
    file: Path | None,
    sets: list[str] | None,
    sources: list[dict[str, Any]],
    model: str | None,
    weights: str | None,
    class_names: str | None = None,
    **sections: dict[str, Any],
) -> Config:
    """Build the config from a file, command line options and ``--set`` overrides, in that order.

    Raises:
        ConfigError: the file can't be read, or the config is invalid.
    """
    from streamseg import config
    from streamseg.config.class_names import parse_class_names

    raw = config.load(file)
    names = None if class_names is None else parse_class_names(class_names)
    options: dict[str, dict[str, Any]] = {
        "model": {"name": model, "weights": weights, "class_names": names},
        **sections,
    }
    for section, values in options.items():
        given = {key: value for key, value in values.items() if value is not None}
        in_file = raw.get(section) or {}
        if given and isinstance(in_file, dict):  # other types are refused by ``validate``
            raw[section] = {**in_file, **given}
    in_file = raw.get("sources") or []
    if sources and isinstance(in_file, list):
        raw["sources"] = [*in_file, *sources]
    config.override(raw, sets or [])
    return config.validate(raw, str(file or "the command"))


@contextmanager
def stopped_by_signals(run: Stoppable) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM stop ``run`` and a second one abort it."""
    signals = shutdown.installed()
    with nullcontext() if signals is None else signals.stopping(_AnnouncedStop(run)):
        yield


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first SIGINT or SIGTERM, for work without a ``stop``."""
    signals = shutdown.installed()
    with nullcontext() if signals is None else signals.interrupting():
        yield


class _AnnouncedStop:
    """Wrapper of a run that prints a note when the run is stopped."""

    def __init__(self, run: Stoppable) -> None:
        self._run = run

    def stop(self) -> None:
        self._run.stop()
        note("stopping: finishing the frames in progress; repeat the signal to end now")

    def abort(self) -> None:
        self._run.abort()
