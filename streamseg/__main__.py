"""Program entry point: ``streamseg``, ``python -m streamseg`` and the files in ``tools/``."""

from __future__ import annotations

import sys
from typing import NoReturn

from streamseg.cli import shutdown


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit code."""
    shutdown.install()  # before the slow imports of the commands
    from streamseg.cli import main as run_command

    code: object = 0
    try:
        run_command(arguments)
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - reported like the interpreter does
        sys.excepthook(*sys.exc_info())
        code = 1
    shutdown.end_process(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
