"""``demo`` and ``process``: from recordings into files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamseg.cli.app import (
    INTERRUPTED,
    ConfigFile,
    ModelName,
    Sets,
    WeightsOption,
    app,
    build_config,
    fail,
    out,
    stopped_by_signals,
)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option("--out", help="Where annotated.mp4 and results.jsonl go.")
    ] = Path("demo-out"),
) -> int:
    """Segment and track a real street, publish it, receive it and write it: nothing to set up.

    Example: `streamseg demo --out demo-out`
    """
    from streamseg.demo import Demo
    from streamseg.terminal import ProgressReport, summary_table

    with ProgressReport() as progress:
        run = Demo(folder, progress)
        with stopped_by_signals(run):
            report = run.run()
    out.print(summary_table(report.summary))
    out.print(
        f"received {report.results} results and {report.pictures} pictures over ZeroMQ, "
        f"{report.lost} lost"
    )
    out.print(f"{folder / 'annotated.mp4'}\n{folder / 'results.jsonl'}", soft_wrap=True)
    return INTERRUPTED if report.interrupted else 0


@app.command()
def process(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Videos, folders of images, globs.")
    ],
    folder: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Takes a folder for each input.")
    ],
    model: ModelName = None,
    weights: WeightsOption = None,
    stride: Annotated[int | None, typer.Option(help="Take every n-th frame.")] = None,
    max_fps: Annotated[float | None, typer.Option(help="Frames a second of video.")] = None,
    start: Annotated[float | None, typer.Option(help="Seconds from its beginning.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds from its beginning.")] = None,
    panoptic: Annotated[
        bool,
        typer.Option("--panoptic", help="Things and stuff, too, as COCO's panoptic PNGs and JSON."),
    ] = False,
    config_file: ConfigFile = None,
    sets: Sets = None,
) -> int:
    """Masks, tracks and annotated video of recordings.

    Each input gets results.jsonl, annotated.mp4 and summary.json; with `--panoptic` also
    panoptic.json and the folder panoptic.

    Example: `streamseg process recordings/ --out results`
    """
    from streamseg.process import Processor
    from streamseg.serve import load_configured
    from streamseg.sources import expand_inputs
    from streamseg.terminal import ProgressReport, listing

    cut = {"stride": stride, "max_fps": max_fps, "start": start, "end": end}
    given = {key: value for key, value in cut.items() if value is not None}
    sources = [{"url": url, **given} for text in inputs for url in expand_inputs(text)]
    config = build_config(config_file, sets, sources, model, weights)
    with ProgressReport() as progress:
        network = load_configured(config)
        run = Processor(config, network, folder, progress, panoptic=panoptic)
        with stopped_by_signals(run):
            outcomes = list(run.run())
    columns = ("input", "state", "frames", "fps", "instances", "tracks")
    out.print(listing(f"in {folder}", columns, [outcome.row() for outcome in outcomes]))
    for outcome in outcomes:
        if outcome.state in ("failed", "incomplete"):
            fail(outcome.reason)
    if run.stopped:
        return INTERRUPTED
    return 0 if all(outcome.state == "complete" for outcome in outcomes) else 1
