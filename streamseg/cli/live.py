"""``streamseg serve``, ``watch`` and ``view``: a live service and its subscribers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from streamseg.cli import shutdown
from streamseg.cli.app import (
    ClassNamesOption,
    ModelName,
    Sets,
    WeightsOption,
    app,
    build_config,
    fail,
    missing_extra,
    note,
    out,
    stopped_by_signals,
)

if TYPE_CHECKING:
    from streamseg.config import Config

ServerKey = Annotated[
    str | None,
    typer.Option(metavar="KEY|FILE", help="Public key of the service, if it uses keys."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="Your own secret key; needed with --server-key."),
]
FramesAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDR", help="Address of the images; by default the one that the service announces."
    ),
]


@app.command()
def serve(
    file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="See configs/ for examples.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="URL", help="Additional source; repeatable."),
    ] = None,
    model: ModelName = None,
    weights: WeightsOption = None,
    class_names: ClassNamesOption = None,
    bind: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR", help="Address of masks and status; tcp://host:port or ipc://path"
        ),
    ] = None,
    bind_frames: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="Address of images; by default the next port."),
    ] = None,
    bind_replay: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="Address of replay; by default the port after that."),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Key folder: only keys allowed there may subscribe; see `streamseg keys`.",
        ),
    ] = None,
    wait_subscribers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Start the sources when N subscribers have joined."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow other addresses than loopback without keys.")
    ] = False,
    control: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Address of the HTTP API; by default the masks' port + 3."
        ),
    ] = None,
    sets: Sets = None,
) -> int:
    """Publish the masks of live or recorded sources until they end or the service is stopped.

    SIGHUP reloads the config. `streamseg ctl` changes a running service.

    Example: `streamseg serve --source rtsp://10.0.0.7/live --source rtsp://10.0.0.8/live`
    """
    publish = {
        "bind": bind,
        "bind_frames": bind_frames,
        "bind_replay": bind_replay,
        "keys": keys,
        "wait_subscribers": wait_subscribers,
        "insecure": insecure or None,
    }
    from streamseg.cli.terminal import summary_table
    from streamseg.service.service import Service
    from streamseg.service.supervisor import Supervisor

    sources = [{"url": url} for url in source or []]

    def load() -> Config:
        options: dict[str, dict[str, Any]] = {"publish": publish, "control": {"bind": control}}
        return build_config(file, sets, sources, model, weights, class_names, **options)

    config = load()
    service = Service(config)
    signals = shutdown.installed()
    supervisor = Supervisor(
        service,
        config,
        None if file is None else load,
        None if signals is None else signals.hangup_calls,
    )
    endpoints = {**service.endpoints, "control": supervisor.http_api_address}
    for endpoint, address in endpoints.items():
        if address is not None:
            note(f"{endpoint} at {address}")
    with stopped_by_signals(supervisor):
        summary = supervisor.run()
    out.print(summary_table(summary))
    for problem in service.problems:
        fail(problem)
    return 1 if service.problems else 0


@app.command()
def watch(
    address: Annotated[
        str, typer.Argument(metavar="ADDR", help="Address of the masks of a service.")
    ],
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME", help="Only this source; repeatable."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="out.mp4", help="Write the annotated video of one source."),
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(metavar="out.jsonl", help="Write the results.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after this many results.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, help="Fail after this many seconds without a result.")
    ] = None,
    frames_address: FramesAddress = None,
    server_key: ServerKey = None,
    key_file: KeyFile = None,
) -> int:
    """Show the results of a service in a table, and record them if asked.

    Example: `streamseg watch tcp://127.0.0.1:5555 --save out.mp4 --jsonl out.jsonl`
    """
    from streamseg.cli.watch import Watch
    from streamseg.client import connect
    from streamseg.errors import UsageError

    if save is not None and len(set(source or ())) > 1:
        raise UsageError(f"--save {save}: a video holds one source: name it with --source")
    if frames_address is not None and save is None:
        raise UsageError(f"--frames-address {frames_address}: images are only used with --save")
    frames: Literal[False, "annotated"] = "annotated" if save else False
    with connect(
        address,
        source,
        frames=frames,
        frames_address=frames_address,
        server_key=server_key,
        key_file=key_file,
    ) as subscriber:
        run = Watch(subscriber, save=save, jsonl=jsonl, limit=limit, timeout=timeout)
        with stopped_by_signals(run):
            run.show()
    return 0


@app.command()
def view(
    address: Annotated[
        str, typer.Argument(metavar="ADDR", help="Address of the masks of a service.")
    ],
    host: Annotated[str, typer.Option(help="Address of the web page.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 chooses a free port.")] = 8080,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME", help="Only this source; repeatable."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Additional host name of the page, for example of a proxy."
        ),
    ] = None,
    frames_address: FramesAddress = None,
    server_key: ServerKey = None,
    key_file: KeyFile = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow other addresses than loopback.")
    ] = False,
) -> int:
    """Serve a web page that shows the results of a service.

    Example: `streamseg view tcp://127.0.0.1:5555`
    """
    try:
        from streamseg.viewer import Viewer
    except ImportError as error:
        fail(missing_extra(error, "view"))
        return 1
    viewer = Viewer(
        address,
        host=host,
        port=port,
        sources=source,
        allow_hosts=allow_host or (),
        frames_address=frames_address,
        server_key=server_key,
        key_file=key_file,
        insecure=insecure,
    )
    note(f"web page at {viewer.url}")
    with stopped_by_signals(viewer):
        viewer.run()
    return 0
