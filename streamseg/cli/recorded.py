"""``demo`` and ``process``: from recordings into files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamseg.cli.app import (
    ClassNamesOption,
    ConfigFile,
    ModelName,
    Sets,
    WeightsOption,
    app,
    build_config,
    fail,
    note,
    out,
    stopped_by_signals,
)
from streamseg.cli.shutdown import INTERRUPTED


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option("--out", help="Where annotated.mp4 and results.jsonl go.")
    ] = Path("demo-out"),
) -> int:
    """Segment and track a real street, publish it, receive it and write it: nothing to set up.

    Example: `streamseg demo --out demo-out`
    """
    from streamseg.cli.demo_run import Demo
    from streamseg.cli.terminal import ProgressReport, summary_table

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
    class_names: ClassNamesOption = None,
    stride: Annotated[int | None, typer.Option(help="Take every n-th frame.")] = None,
    max_fps: Annotated[float | None, typer.Option(help="Frames a second of video.")] = None,
    start: Annotated[float | None, typer.Option(help="Seconds from its beginning.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds from its beginning.")] = None,
    panoptic: Annotated[
        bool,
        typer.Option("--panoptic", help="Things and stuff, too, as COCO's panoptic PNGs and JSON."),
    ] = False,
    recursive: Annotated[
        bool,
        typer.Option("--recursive", help="Go into sub-folders and keep their layout in DIR."),
    ] = False,
    config_file: ConfigFile = None,
    sets: Sets = None,
) -> int:
    """Masks, tracks and annotated video of recordings.

    Each input gets results.jsonl, annotated.mp4 and summary.json; with `--panoptic` also
    panoptic.json and the folder panoptic. Files of a folder that are no media are counted.

    Example: `streamseg process recordings/ --out results`
    """
    from streamseg.cli.terminal import ProgressReport, listing
    from streamseg.recording.process import Processor
    from streamseg.service.service import load_configured
    from streamseg.sources import find_inputs, place_outputs

    cut = {"stride": stride, "max_fps": max_fps, "start": start, "end": end}
    given = {key: value for key, value in cut.items() if value is not None}
    found = [
        each for text in inputs for each in find_inputs(text, recursive=recursive, output=folder)
    ]
    left_out = dict.fromkeys(each.remark for each in found if each.remark)
    for remark in left_out:
        note(remark)
    sources = [{"url": each.url, **given} for each in found]
    config = build_config(config_file, sets, sources, model, weights, class_names)
    names = [source.name for source in config.sources[-len(found) :]]
    placed = dict(zip(names, place_outputs(found, names), strict=True))
    with ProgressReport() as progress:
        network = load_configured(config)
        run = Processor(config, network, folder, progress, panoptic=panoptic, inputs=placed)
        with stopped_by_signals(run):
            outcomes = list(run.run())
    columns = ("input", "state", "frames", "fps", "instances", "tracks")
    out.print(listing(f"in {folder}", columns, [outcome.row() for outcome in outcomes]))
    for outcome in outcomes:
        for remark in outcome.notes:
            if remark not in left_out:
                note(f"{outcome.source.name}: {remark}")
        if outcome.state in ("failed", "incomplete"):
            fail(outcome.reason)
    if run.stopped:
        return INTERRUPTED
    return 0 if all(outcome.state == "complete" for outcome in outcomes) else 1
