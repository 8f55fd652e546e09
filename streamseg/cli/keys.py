"""``streamseg keys``: CURVE keys of a service and of its subscribers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamseg.cli.app import app, fail, note

keys = typer.Typer(
    name="keys",
    help="CURVE keys of a service and of its subscribers.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(keys)

Folder = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="Key folder of a service, with its server.key; see `new`."),
]


@keys.command()
def new(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="`server` for a service; any name for a subscriber."),
    ],
    folder: Annotated[
        Path,
        typer.Option("--dir", metavar="DIR", help="Folder of the key files; created if missing."),
    ] = Path(),
) -> int:
    """Create a key pair: NAME.key is secret, NAME.pub is public.

    Example: `streamseg keys new server --dir keys`
    """
    from streamseg.protocol.curve import create_pair

    pair = create_pair(folder, name)
    note(f"{folder / name}.key is secret, {folder / name}.pub is the public key:")
    print(pair.public)  # noqa: T201
    return 0


@keys.command()
def allow(
    folder: Folder,
    key: Annotated[
        str,
        typer.Argument(metavar="KEY", help="A .pub file, or the 40 characters of a public key."),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="By default the name of the file.")
    ] = None,
) -> int:
    """Allow a public key to subscribe; a running service applies it immediately.

    Example: `streamseg keys allow keys alice.pub`
    """
    from streamseg.errors import KeyFileError
    from streamseg.protocol.curve import KeyFolder, parse_public_key

    public = parse_public_key(key)
    if name is None:
        if public == key:
            raise KeyFileError("a key that isn't in a file needs a name: add it after the key")
        name = Path(key).name.removesuffix(".pub")
    KeyFolder(folder).allow(public, name)
    return 0


@keys.command()
def revoke(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name as shown by `list`.")],
) -> int:
    """Revoke a key; its connections are closed within a second.

    Example: `streamseg keys revoke keys alice`
    """
    from streamseg.protocol.curve import KeyFolder

    KeyFolder(folder).revoke(name)
    return 0


@keys.command("list")
def list_keys(folder: Folder) -> int:
    """List the allowed keys: one line each, name and public key.

    Example: `streamseg keys list keys`
    """
    from streamseg.protocol.curve import KeyFolder

    allowed = KeyFolder(folder).allowed()
    for name, key in allowed.keys.items():
        print(name, key)  # noqa: T201
    for problem in allowed.problems:
        fail(problem)
    return 1 if allowed.problems else 0
