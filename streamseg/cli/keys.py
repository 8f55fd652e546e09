"""``keys``: who a service is, and who may subscribe to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamseg.cli.app import app, fail, note

keys = typer.Typer(
    name="keys",
    help="Keys of a service, and of those who may subscribe to it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(keys)

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A service's, with its server.key; see `new`.")
]


@keys.command()
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="`server` for a service; else as you like.")
    ],
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Made if it isn't there.")
    ] = Path(),
) -> int:
    """Make a pair: NAME.key, the secret, and NAME.pub, which may be given to anybody.

    Example: `streamseg keys new server --dir keys`
    """
    from streamseg.protocol.curve import create_pair

    pair = create_pair(folder, name)
    note(f"{folder / name}.key is the secret, {folder / name}.pub is for everybody:")
    print(pair.public)  # noqa: T201 - data
    return 0


@keys.command()
def allow(
    folder: Folder,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="A .pub file, or the 40 characters in it.")
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="By default the file's.")
    ] = None,
) -> int:
    """Let the holder of a key subscribe; a service that runs knows at once.

    Example: `streamseg keys allow keys alice.pub`
    """
    from streamseg.errors import KeyFileError
    from streamseg.protocol.curve import KeyFolder, parse_public_key

    public = parse_public_key(key)
    if name is None:
        if public == key:
            raise KeyFileError("a key that isn't in a file needs a name: say it behind the key")
        name = Path(key).name.removesuffix(".pub")
    KeyFolder(folder).allow(public, name)
    return 0


@keys.command()
def revoke(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `list` says it.")],
) -> int:
    """Let the holder of a key subscribe no more; within a second he is cut off.

    Example: `streamseg keys revoke keys alice`
    """
    from streamseg.protocol.curve import KeyFolder

    KeyFolder(folder).revoke(name)
    return 0


@keys.command("list")
def list_keys(folder: Folder) -> int:
    """Who may subscribe: a line for each, name and public key.

    Example: `streamseg keys list keys`
    """
    from streamseg.protocol.curve import KeyFolder

    allowed = KeyFolder(folder).allowed()
    for name, key in allowed.keys.items():
        print(name, key)  # noqa: T201 - data
    for problem in allowed.problems:
        fail(problem)
    return 1 if allowed.problems else 0
