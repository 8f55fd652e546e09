"""``train``, ``eval``, ``models`` and ``bench``: what models there are, and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamseg.cli.app import (
    ClassNamesOption,
    ModelName,
    Sets,
    WeightsOption,
    app,
    fail,
    interrupted_by_signals,
    note,
    out,
    stopped_by_signals,
)
from streamseg.cli.shutdown import INTERRUPTED


@app.command()
def train(
    file: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="See configs/train/.")],
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="By default runs/ and the config's name."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from DIR/last.pt as if it had never stopped.")
    ] = False,
    sets: Sets = None,
) -> int:
    """Train a model on annotated pictures, and measure it while it learns.

    DIR gets best.pt, last.pt, model.safetensors, steps.csv, measures.csv and their curves.

    Example: `streamseg train configs/train/tiny.yaml --out runs/tiny`
    """
    from streamseg.cli.terminal import ProgressReport, listing
    from streamseg.config.training import load_training_config
    from streamseg.training import Trainer, joined

    recipe = load_training_config(file, sets or [])
    target = folder or Path("runs") / file.stem
    with joined() as processes:
        with ProgressReport("batches") as progress:
            run = Trainer(recipe, file.parent, target, progress, processes, resume=resume)
            if processes.leads:
                for line in (run.introduction, *run.notes):
                    note(line)
            with stopped_by_signals(run):
                report = run.run()
        if processes.leads:
            out.print(listing(f"in {target}", report.columns(), report.rows()))
    return INTERRUPTED if report.interrupted else 0


@app.command("eval")
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="See configs/eval/.")],
    weights: WeightsOption = None,
    model: ModelName = None,
    class_names: ClassNamesOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only look for problems in the data, train and val.")
    ] = False,
    through_service: Annotated[
        bool,
        typer.Option("--through-service", help="Measure what a service publishes of the data."),
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Takes results and pictures.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Takes the numbers.")
    ] = None,
    sets: Sets = None,
) -> int:
    """Measure a model on annotated pictures, and panoptic results and tracks in files.

    With `--check`, the config may be anything with datasets in it: a recipe, an evaluation, or a
    file of theirs alone.

    Example: `streamseg eval configs/eval/coco.yaml --weights runs/tiny/best.pt --out eval-out`
    """
    from streamseg.cli.terminal import ProgressReport, listing
    from streamseg.config.training import load_evaluation_config
    from streamseg.evaluation.evaluator import Measurement, with_model
    from streamseg.evaluation.report_files import prepare, write
    from streamseg.evaluation.tables import listings

    if check:
        options = (weights, model, class_names, through_service, folder, json_file)
        return check_data(file, sets or [], alone=not any(options))
    evaluation = with_model(load_evaluation_config(file, sets or []), model, weights, class_names)
    prepare(folder, json_file)
    with ProgressReport("images") as progress:
        run = Measurement(evaluation, file.parent, progress, through_service=through_service)
        for remark in run.notes:
            note(remark)
        with interrupted_by_signals():
            report = run.run()
    write(report, folder, json_file)
    for table in listings(report):
        out.print(listing(table.title, table.columns, table.rows))
    return 0


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(help="One alone, and where it is published.")
    ] = None,
) -> int:
    """The catalogue: every model's name, size, cost and published accuracy; one in full.

    Example: `streamseg models` or `streamseg models solov2_r50`
    """
    from streamseg.cli.terminal import listing, model_description, model_row
    from streamseg.models.registry import REGISTRY, find

    if name is not None:
        out.print(model_description(find(name)), soft_wrap=True, highlight=False)
        return 0
    columns = ("name", "params", "GFLOPs", "box AP", "mask", "PQ", "weights")
    out.print(listing("models", columns, [model_row(entry) for entry in REGISTRY]))
    out.print("streamseg models NAME says more: licence, input, where the weights are published.")
    return 0


@app.command()
def bench(
    part: Annotated[
        list[str] | None,
        typer.Argument(
            help="postprocess, maps, clip, mask_rcnn, memory, tracking; all by default."
        ),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Takes bench.json.")] = Path("bench-out"),
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With kitti_mots/ and mot15/, for the part tracking."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few frames: to see that it works, not to measure.")
    ] = False,
) -> int:
    """Measure streamseg beside the textbook's way, on this machine.

    Example: `streamseg bench postprocess clip --out bench-out`
    """
    from streamseg.bench.runner import Bench
    from streamseg.cli.terminal import listing

    run = Bench(folder, data, quick=quick, console=out, table_of=listing)
    with interrupted_by_signals():
        run.run(part or [])
    return 0


def check_data(file: Path, sets: list[str], *, alone: bool) -> int:
    """Print every problem of the datasets in ``file``, one a line; 1 if there are any.

    Raises:
        ConfigError: what ``recipe.load_data_config`` says, or there are options beside ``--check``.
    """
    from streamseg.config.training import load_data_config
    from streamseg.datasets import check
    from streamseg.errors import ConfigError
    from streamseg.evaluation.evaluator import data_size

    if not alone:
        raise ConfigError("--check looks at the data alone: leave the other options out")
    data = load_data_config(file, sets)
    problems = check(data, file.parent)
    for problem in problems:
        print(problem)  # noqa: T201 - data, one line each, however wide the terminal is
    if problems:
        fail(f"{file}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
        return 1
    images, annotations = data_size(data, file.parent)
    print(f"{images} images, {annotations} annotations: no problems")  # noqa: T201 - as above
    return 0
