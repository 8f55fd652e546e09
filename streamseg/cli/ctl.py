"""``streamseg ctl``: inspect and change a running service through its HTTP API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from streamseg.cli.app import app, out
from streamseg.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:5558"

ctl = typer.Typer(
    name="ctl",
    help="Inspect and change a running service: sources and thresholds.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(ctl)

At = Annotated[
    str,
    typer.Option(
        "--at",
        metavar="URL",
        envvar="STREAMSEG_CONTROL",
        help="Address of the HTTP API of the service.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="File with the token; or set STREAMSEG_TOKEN."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a source; see `list`.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Option of the config; repeatable."),
]


@ctl.command("list")
def list_sources(
    at: At = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all fields as JSON.")] = False,
) -> int:
    """List the sources with their states and frame counts.

    Example: `streamseg ctl list`
    """
    from streamseg.cli.terminal import make_table

    sources = connect(at, token_file).sources()
    if as_json:
        print(json.dumps(sources, indent=2))  # noqa: T201
        return 0
    columns = ("source", "state", "published", "dropped", "failed", "age p99", "reason")
    rows = [
        (
            s["name"],
            s["state"],
            str(s["published"]),
            str(sum(s["dropped"].values())),
            str(sum(s["failed"].values())),
            f"{s['age_p99_ms']:.0f} ms",
            s["reason"] or "-",
        )
        for s in sources
    ]
    out.print(make_table(f"at {at}", columns, rows))
    return 0


@ctl.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL or path, as `url` in a config.")],
    name: Annotated[str, typer.Option(help="By default derived from the URL.")] = "",
    sets: Settings = None,
    at: At = DEFAULT_URL,
    token_file: TokenFile = None,
) -> int:
    """Add a source.

    Example: `streamseg ctl add rtsp://10.0.0.7/live --name gate --set stall_after=3`
    """
    source = {"url": url, "name": name, **parse_settings(sets)}
    print(connect(at, token_file).add(source))  # noqa: T201
    return 0


@ctl.command()
def remove(name: Name, at: At = DEFAULT_URL, token_file: TokenFile = None) -> int:
    """Remove a source; its frames in progress are still published.

    Example: `streamseg ctl remove gate`
    """
    connect(at, token_file).remove(name)
    return 0


@ctl.command()
def pause(name: Name, at: At = DEFAULT_URL, token_file: TokenFile = None) -> int:
    """Pause a source; the connection to a camera is closed.

    Example: `streamseg ctl pause gate`
    """
    connect(at, token_file).pause(name)
    return 0


@ctl.command()
def resume(name: Name, at: At = DEFAULT_URL, token_file: TokenFile = None) -> int:
    """Resume a paused source.

    Example: `streamseg ctl resume gate`
    """
    connect(at, token_file).resume(name)
    return 0


@ctl.command()
def thresholds(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Name of a source; without it, the default of all sources."
        ),
    ] = None,
    sets: Settings = None,
    default: Annotated[
        bool, typer.Option("--default", help="Reset the source to the default thresholds.")
    ] = False,
    at: At = DEFAULT_URL,
    token_file: TokenFile = None,
) -> int:
    """Show the thresholds, or change some of them.

    Example: `streamseg ctl thresholds gate --set score=0.6 --set 'classes=[person]'`
    """
    if default and (sets or name is None):
        raise ConfigError("--default needs the name of a source and no --set")
    remote = connect(at, token_file)
    if default:
        current = remote.set_thresholds(None, name)
    elif sets:
        current = remote.set_thresholds({**remote.thresholds(name), **parse_settings(sets)}, name)
    else:
        current = remote.thresholds(name)
    print(json.dumps(current, indent=2))  # noqa: T201
    return 0


@ctl.command()
def reload(at: At = DEFAULT_URL, token_file: TokenFile = None) -> int:
    """Reload the config file of the service: sources and thresholds.

    Example: `streamseg ctl reload`
    """
    for change, names in connect(at, token_file).reload().items():
        print(f"{change}: {', '.join(names) or '-'}")  # noqa: T201
    return 0


def connect(at: str, token_file: Path | None) -> Any:
    """Return a client of the HTTP API at ``at``."""
    import os

    from streamseg.config import read_secret
    from streamseg.service.http_client import HttpApiClient

    file = "" if token_file is None else str(token_file)
    token = read_secret("", file, "--token-file") or os.environ.get("STREAMSEG_TOKEN", "")
    return HttpApiClient(at, token)


def parse_settings(sets: list[str] | None) -> dict[str, Any]:
    """Return ``--set`` options as a mapping.

    Raises:
        ConfigError: an option is not KEY=VALUE.
    """
    from streamseg.config import override

    given: dict[str, Any] = {}
    override(given, sets or [])
    return given
