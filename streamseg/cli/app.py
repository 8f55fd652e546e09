"""What all commands share: common options, how a config is made of them, how a run is stopped."""

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

from streamseg.cli import logs, shutdown
from streamseg.cli.shutdown import INTERRUPTED, Stoppable
from streamseg.errors.redaction import printable, redact

if TYPE_CHECKING:
    from streamseg.config import Config

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # what a command says is said, whatever libraries may not

ENDED_BY_SIGNALS = ("serve", "watch", "view")
"""Commands that a stop signal ends as it should: their exit code is then 0."""

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
"""Extra of ``pyproject.toml`` that brings a module; None where several do."""


def exit_with(code: int, **_options: Any) -> None:
    """What a command returns is its exit code."""
    raise typer.Exit(code)


app = typer.Typer(
    name="streamseg",
    help="Every object's mask, with an identity that lasts, from any camera, stream or recording.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    result_callback=exit_with,
    rich_markup_mode="markdown",
)
out = Console()

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Override a key of the config; repeatable."),
]
ModelName = Annotated[str | None, typer.Option("--model", help="A name of `streamseg models`.")]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="`default`, a path, or `none` (random).")
]
ClassNamesOption = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        metavar="A,B|FILE",
        help="What own weights were trained on, in their order; a file has a name on each line.",
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file, as for `serve`.")]


@app.callback()
def common(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and debug logs; works anywhere.")
    ] = False,
    log: Annotated[
        str, typer.Option("--log", metavar="text|json", help="What logs look like; anywhere.")
    ] = "text",
) -> None:
    """Declare the command to the stop signals.

    The options are taken out of the arguments by ``main``; they are declared for ``--help``.
    """
    del debug, log
    signals = shutdown.installed()
    if signals is not None:
        command = context.invoked_subcommand
        code = 0 if command in ENDED_BY_SIGNALS else INTERRUPTED
        signals.begin(code, note, hangup_stops=command != "serve")


def fail(message: str, *, trace: bool = False) -> None:
    """One line on stderr, or one record where the log is JSON; with the traceback if asked."""
    line = printable(redact(" ".join(message.split())))
    if not line:  # of a command without arguments: its help was shown
        return
    if logs.is_json():
        log.error(line, exc_info=trace)
        return
    if trace:
        sys.stderr.write(redact(traceback.format_exc()))
    print(f"streamseg: {line}", file=sys.stderr)  # noqa: T201 - a CLI's voice


def note(message: str) -> None:
    """One line on stderr that is no failure, or one record where the log is JSON."""
    if logs.is_json():
        log.info(message)
        return
    with suppress(OSError):  # who read it has left, and the work goes on
        print(printable(redact(message)), file=sys.stderr, flush=True)  # noqa: T201 - a CLI's voice


def missing_extra(error: ImportError, extra: str = "server") -> str:
    """Return what is to be installed, in one line.

    Args:
        error: names the module that is missing.
        extra: what the command needs, unless the module is another extra's.
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
    """The config of a file, the options and the ``--set`` overrides, in that order.

    Raises:
        ConfigError: what ``config.load`` and ``config.validate`` say.
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
        there = raw.get(section) or {}
        if given and isinstance(there, dict):  # else ``validate`` says what it is
            raw[section] = {**there, **given}
    there = raw.get("sources") or []
    if sources and isinstance(there, list):
        raw["sources"] = [*there, *sources]
    config.override(raw, sets or [])
    return config.validate(raw, str(file or "the command"))


@contextmanager
def stopped_by_signals(run: Stoppable) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets ``run`` finish what it has; a second ends it now."""
    signals = shutdown.installed()
    with nullcontext() if signals is None else signals.stopping(_Announced(run)):
        yield


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises KeyboardInterrupt here: for work that only cleans up."""
    signals = shutdown.installed()
    with nullcontext() if signals is None else signals.interrupting():
        yield


class _Announced:
    """A run that says on stderr that it is being stopped."""

    def __init__(self, run: Stoppable) -> None:
        self._run = run

    def stop(self) -> None:
        self._run.stop()
        note("stopping: finishing what was taken; once more to end now")

    def abort(self) -> None:
        self._run.abort()
