"""What all commands share: common options, how a config is made of them, how a run is stopped."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console

from streamseg import logs
from streamseg.redaction import printable, redact

if TYPE_CHECKING:
    from streamseg.config import Config

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # what a command says is said, whatever libraries may not

INTERRUPTED = 130


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


class Stoppable(Protocol):
    """What a signal can end."""

    def stop(self) -> None: ...
    def abort(self) -> None: ...


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and debug logs; works anywhere.")
    ] = False,
    log: Annotated[
        str, typer.Option("--log", metavar="text|json", help="What logs look like; anywhere.")
    ] = "text",
) -> None:
    """Taken out of the arguments by ``main``; declared for ``--help``."""
    del debug, log


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
    from streamseg.class_names import parse_class_names

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
def hangups_ignored() -> Iterator[None]:
    """SIGHUP, which would end the process, does nothing until somebody takes it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def stopped_by_signals(run: Stoppable) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets ``run`` finish what it has; a second ends it now."""
    seen: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 1:
            run.stop()
            note("stopping: finishing what was taken; once more to end now")
        else:
            run.abort()

    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
