"""``streamseg demo`` and ``process``: from recordings to files."""

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
        Path, typer.Option("--out", help="Folder for annotated.mp4 and results.jsonl.")
    ] = Path("demo-out"),
) -> int:
    """Run the bundled clip through a service, and record what a subscriber receives.

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
        f"received {report.results} results and {report.images} images over ZeroMQ, "
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
        Path,
        typer.Option("--out", metavar="DIR", help="Output folder; each input gets a folder in it."),
    ],
    model: ModelName = None,
    weights: WeightsOption = None,
    class_names: ClassNamesOption = None,
    stride: Annotated[int | None, typer.Option(help="Take every n-th frame.")] = None,
    max_fps: Annotated[
        float | None, typer.Option(help="Maximum frame rate, in frames per second of video.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="First second of the video.")] = None,
    end: Annotated[float | None, typer.Option(help="Last second of the video.")] = None,
    panoptic: Annotated[
        bool,
        typer.Option(
            "--panoptic", help="Also write things and stuff as COCO panoptic PNGs and JSON."
        ),
    ] = False,
    recursive: Annotated[
        bool,
        typer.Option("--recursive", help="Include sub-folders; DIR gets the same layout."),
    ] = False,
    config_file: ConfigFile = None,
    sets: Sets = None,
) -> int:
    """Write masks, tracks and annotated video of recordings.

    Writes results.jsonl, annotated.mp4 and summary.json for each input; with `--panoptic` also
    panoptic.json and the folder panoptic. Other files than media are skipped.

    Example: `streamseg process recordings/ --out results`
    """
    from streamseg.cli.terminal import ProgressReport, make_table
    from streamseg.recording.process import Processor
    from streamseg.service.service import load_configured_model
    from streamseg.sources import assign_output_folders, find_inputs

    selection = {"stride": stride, "max_fps": max_fps, "start": start, "end": end}
    selection = {key: value for key, value in selection.items() if value is not None}
    found = [
        each for text in inputs for each in find_inputs(text, recursive=recursive, output=folder)
    ]
    skipped = dict.fromkeys(each.remark for each in found if each.remark)
    for remark in skipped:
        note(remark)
    sources = [{"url": each.url, **selection} for each in found]
    config = build_config(config_file, sets, sources, model, weights, class_names)
    names = [source.name for source in config.sources[-len(found) :]]
    output_folders = dict(zip(names, assign_output_folders(found, names), strict=True))
    with ProgressReport() as progress:
        segmenter = load_configured_model(config)
        run = Processor(
            config, segmenter, folder, progress, panoptic=panoptic, inputs=output_folders
        )
        with stopped_by_signals(run):
            outcomes = list(run.run())
    columns = ("input", "state", "frames", "fps", "instances", "tracks")
    out.print(make_table(f"in {folder}", columns, [outcome.row() for outcome in outcomes]))
    for outcome in outcomes:
        for remark in outcome.notes:
            if remark not in skipped:
                note(f"{outcome.source.name}: {remark}")
        if outcome.state in ("failed", "incomplete"):
            fail(outcome.reason)
    if run.stopped:
        return INTERRUPTED
    return 0 if all(outcome.state == "complete" for outcome in outcomes) else 1
