"""``ctl``: look at a running service, and change it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from streamseg.cli.app import app, out
from streamseg.errors import ConfigError

DEFAULT = "http://127.0.0.1:5558"

ctl = typer.Typer(
    name="ctl",
    help="Look at a running service, and change it: sources and thresholds.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(ctl)

At = Annotated[
    str, typer.Option("--at", metavar="URL", envvar="STREAMSEG_CONTROL", help="Its control.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="Or STREAMSEG_TOKEN.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of a source; see `list`.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option, as in a config; repeatable."),
]


@ctl.command("list")
def list_sources(
    at: At = DEFAULT,
    token_file: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
) -> int:
    """The sources: how they are, and what became of their frames.

    Example: `streamseg ctl list`
    """
    from streamseg.cli.terminal import listing

    sources = service(at, token_file).sources()
    if as_json:
        print(json.dumps(sources, indent=2))  # noqa: T201 - data
        return 0
    columns = ("source", "state", "published", "dropped", "failed", "age p99", "why")
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
    out.print(listing(f"at {at}", columns, rows))
    return 0


@ctl.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="As `url` of a source in a config.")],
    name: Annotated[str, typer.Option(help="By default made from the url.")] = "",
    sets: Settings = None,
    at: At = DEFAULT,
    token_file: TokenFile = None,
) -> int:
    """Add a source.

    Example: `streamseg ctl add rtsp://10.0.0.7/live --name gate --set stall_after=3`
    """
    source = {"url": url, "name": name, **values(sets)}
    print(service(at, token_file).add(source))  # noqa: T201 - data
    return 0


@ctl.command()
def remove(name: Name, at: At = DEFAULT, token_file: TokenFile = None) -> int:
    """Take a source away; what was taken of it is still published.

    Example: `streamseg ctl remove gate`
    """
    service(at, token_file).remove(name)
    return 0


@ctl.command()
def pause(name: Name, at: At = DEFAULT, token_file: TokenFile = None) -> int:
    """Take no more frames of a source; a camera is let go of.

    Example: `streamseg ctl pause gate`
    """
    service(at, token_file).pause(name)
    return 0


@ctl.command()
def resume(name: Name, at: At = DEFAULT, token_file: TokenFile = None) -> int:
    """Go on with a source.

    Example: `streamseg ctl resume gate`
    """
    service(at, token_file).resume(name)
    return 0


@ctl.command()
def thresholds(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Of a source; else the service's.")
    ] = None,
    sets: Settings = None,
    default: Annotated[
        bool, typer.Option("--default", help="Give the source the service's again.")
    ] = False,
    at: At = DEFAULT,
    token_file: TokenFile = None,
) -> int:
    """Show the thresholds, or change some of them from the next frame on.

    Example: `streamseg ctl thresholds gate --set score=0.6 --set 'classes=[person]'`
    """
    if default and (sets or name is None):
        raise ConfigError("--default needs the name of a source, and nothing to set")
    there = service(at, token_file)
    if default:
        now = there.set_thresholds(None, name)
    elif sets:
        now = there.set_thresholds({**there.thresholds(name), **values(sets)}, name)
    else:
        now = there.thresholds(name)
    print(json.dumps(now, indent=2))  # noqa: T201 - data
    return 0


@ctl.command()
def reload(at: At = DEFAULT, token_file: TokenFile = None) -> int:
    """Have the service read its config file again: sources and thresholds.

    Example: `streamseg ctl reload`
    """
    for what, names in service(at, token_file).reload().items():
        print(f"{what}: {', '.join(names) or '-'}")  # noqa: T201 - data
    return 0


def service(at: str, token_file: Path | None) -> Any:
    """The service to talk to."""
    import os

    from streamseg.config import read_secret
    from streamseg.service.http_client import Controlled

    file = "" if token_file is None else str(token_file)
    token = read_secret("", file, "--token-file") or os.environ.get("STREAMSEG_TOKEN", "")
    return Controlled(at, token)


def values(sets: list[str] | None) -> dict[str, Any]:
    """``--set`` options as a mapping.

    Raises:
        ConfigError: one isn't written so.
    """
    from streamseg.config import override

    given: dict[str, Any] = {}
    override(given, sets or [])
    return given
