"""``serve``, ``watch`` and ``view``: a service, and those who subscribe to it."""

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
    typer.Option(metavar="KEY|FILE", help="The service's public key, where it has one."),
]
KeyFile = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="Your own secret key, with it.")
]
FramesAddress = Annotated[
    str | None,
    typer.Option(metavar="ADDR", help="Of its pictures; by default what the service says."),
]


@app.command()
def serve(
    file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="See configs/ for examples.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="URL", help="A source, beside the config's; repeatable."),
    ] = None,
    model: ModelName = None,
    weights: WeightsOption = None,
    class_names: ClassNamesOption = None,
    bind: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Masks and status; tcp://host:port or ipc://")
    ] = None,
    bind_frames: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Pictures; by default the next port.")
    ] = None,
    bind_replay: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Replay; by default the port after that.")
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Only keys allowed there may subscribe: `streamseg keys`"),
    ] = None,
    wait_subscribers: Annotated[
        int | None, typer.Option(metavar="N", help="Hold the first frame until N have joined.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address that isn't loopback without keys.")
    ] = False,
    control: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Health, metrics, `ctl`; by default masks' + 3."),
    ] = None,
    sets: Sets = None,
) -> int:
    """Publish the masks of live or recorded sources until they end or it is stopped.

    SIGHUP has it read the config again. `streamseg ctl` changes it while it runs.

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
    endpoints = {**service.endpoints, "control": supervisor.control_address}
    for what, address in endpoints.items():
        if address is not None:
            note(f"{what} at {address}")
    with stopped_by_signals(supervisor):
        summary = supervisor.run()
    out.print(summary_table(summary))
    for problem in service.problems:
        fail(problem)
    return 1 if service.problems else 0


@app.command()
def watch(
    address: Annotated[str, typer.Argument(metavar="ADDR", help="Where a service publishes.")],
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME", help="Only this source; repeatable."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="out.mp4", help="Write one source's annotated pictures.")
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(metavar="out.jsonl", help="Write the results.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many results.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, help="Fail after so many seconds without a result.")
    ] = None,
    frames_address: FramesAddress = None,
    server_key: ServerKey = None,
    key_file: KeyFile = None,
) -> int:
    """Show what a service publishes, and record it if asked.

    Example: `streamseg watch tcp://127.0.0.1:5555 --save out.mp4 --jsonl out.jsonl`
    """
    from streamseg.cli.watch import Watch
    from streamseg.client import connect
    from streamseg.errors import UsageError

    if save is not None and len(set(source or ())) > 1:
        raise UsageError(f"--save {save}: a video is of one source: name one with --source")
    if frames_address is not None and save is None:
        raise UsageError(f"--frames-address {frames_address}: pictures are only for --save")
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
    address: Annotated[str, typer.Argument(metavar="ADDR", help="Where a service publishes.")],
    host: Annotated[str, typer.Option(help="Where the page is served.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8080,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME", help="Only this source; repeatable."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name that the page is asked for by."),
    ] = None,
    frames_address: FramesAddress = None,
    server_key: ServerKey = None,
    key_file: KeyFile = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve the page beyond this machine.")
    ] = False,
) -> int:
    """Serve a web page to look at what a service publishes.

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
    note(f"the page is at {viewer.url}")
    with stopped_by_signals(viewer):
        viewer.run()
    return 0
