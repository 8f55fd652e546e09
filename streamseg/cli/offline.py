"""``streamseg train``, ``eval``, ``models`` and ``bench``."""

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
        typer.Option("--out", metavar="DIR", help="By default runs/NAME for NAME.yaml."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from DIR/last.pt, as if the training had not been interrupted.",
        ),
    ] = False,
    sets: Sets = None,
) -> int:
    """Train a model on annotated images, with validation.

    Writes best.pt, last.pt, model.safetensors, steps.csv, measures.csv and plots to DIR.

    Example: `streamseg train configs/train/tiny.yaml --out runs/tiny`
    """
    from streamseg.cli.terminal import ProgressReport, make_table
    from streamseg.config.training import load_training_config
    from streamseg.training import Trainer, join_process_group

    config = load_training_config(file, sets or [])
    target = folder or Path("runs") / file.stem
    with join_process_group() as processes:
        with ProgressReport("batches") as progress:
            run = Trainer(config, file.parent, target, progress, processes, resume=resume)
            if processes.is_main:
                for line in (run.summary, *run.notes):
                    note(line)
            with stopped_by_signals(run):
                report = run.run()
        if processes.is_main:
            out.print(make_table(f"in {target}", report.columns(), report.rows()))
    return INTERRUPTED if report.interrupted else 0


@app.command("eval")
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="See configs/eval/.")],
    weights: WeightsOption = None,
    model: ModelName = None,
    class_names: ClassNamesOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the datasets of the config.")
    ] = False,
    through_service: Annotated[
        bool,
        typer.Option(
            "--through-service", help="Evaluate the messages that a service publishes for the data."
        ),
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for results and plots.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="File for the scores.")
    ] = None,
    sets: Sets = None,
) -> int:
    """Evaluate a model on annotated images, or panoptic results and tracks in files.

    With `--check`, the config may be any file with datasets: of a training, of an evaluation, or a
    list of datasets alone.

    Example: `streamseg eval configs/eval/coco.yaml --weights runs/tiny/best.pt --out eval-out`
    """
    from streamseg.cli.terminal import ProgressReport, make_table
    from streamseg.config.training import load_evaluation_config
    from streamseg.evaluation.evaluator import Evaluator, override_model
    from streamseg.evaluation.report_files import prepare_outputs, write_report
    from streamseg.evaluation.tables import make_report_tables

    if check:
        options = (weights, model, class_names, through_service, folder, json_file)
        return check_data(file, sets or [], alone=not any(options))
    evaluation = override_model(
        load_evaluation_config(file, sets or []), model, weights, class_names
    )
    prepare_outputs(folder, json_file)
    with ProgressReport("images") as progress:
        run = Evaluator(evaluation, file.parent, progress, through_service=through_service)
        for remark in run.notes:
            note(remark)
        with interrupted_by_signals():
            report = run.run()
    write_report(report, folder, json_file)
    for table in make_report_tables(report):
        out.print(make_table(table.title, table.columns, table.rows))
    return 0


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Show the details of one model.")] = None,
) -> int:
    """List the models with size, cost and published accuracy, or show one in detail.

    Example: `streamseg models` or `streamseg models solov2_r50`
    """
    from streamseg.cli.terminal import make_table, model_description, model_row, plugin_row
    from streamseg.config.plugins import find_plugins
    from streamseg.models.registry import REGISTRY, find

    plugins = find_plugins("streamseg.models")
    if name in plugins:
        out.print(f"{name}: plug-in of {plugins[name].origin}", highlight=False)
        return 0
    if name is not None:
        out.print(model_description(find(name)), soft_wrap=True, highlight=False)
        return 0
    columns = ("name", "params", "GFLOPs", "box AP", "mask", "PQ", "weights")
    rows = [model_row(entry) for entry in REGISTRY]
    rows += [plugin_row(plugin) for plugin in plugins.values()]
    out.print(make_table("models", columns, rows))
    out.print("`streamseg models NAME` shows license, input size and the source of the weights.")
    return 0


@app.command()
def bench(
    part: Annotated[
        list[str] | None,
        typer.Argument(
            help="postprocess, maps, clip, mask_rcnn, memory, tracking; all by default."
        ),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for bench.json.")] = Path(
        "bench-out"
    ),
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with kitti_mots/ and mot15/, for `tracking`."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few frames: a smoke test, not a measurement.")
    ] = False,
) -> int:
    """Benchmark streamseg and a baseline on this machine.

    Example: `streamseg bench postprocess clip --out bench-out`
    """
    from streamseg.bench.runner import Bench
    from streamseg.cli.terminal import make_table

    run = Bench(folder, data, quick=quick, console=out, make_table=make_table)
    with interrupted_by_signals():
        run.run(part or [])
    return 0


def check_data(file: Path, sets: list[str], *, alone: bool) -> int:
    """Print the problems of the datasets in ``file``, one per line; return 1 if there are any.

    Raises:
        ConfigError: the file is invalid, or other options were given.
    """
    from streamseg.config.training import load_data_config
    from streamseg.datasets import find_problems
    from streamseg.errors import ConfigError
    from streamseg.evaluation.evaluator import count_images_and_annotations

    if not alone:
        raise ConfigError("--check can't be combined with other options: remove them")
    data = load_data_config(file, sets)
    problems = find_problems(data, file.parent)
    for problem in problems:
        print(problem)  # noqa: T201 - one line each, whatever the width of the terminal
    if problems:
        fail(f"{file}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
        return 1
    images, annotations = count_images_and_annotations(data, file.parent)
    print(f"{images} images, {annotations} annotations: no problems")  # noqa: T201 - as above
    return 0
