"""The command line: what it takes, what it prints, and how it exits.

Data goes to stdout, diagnostics to stderr. Exit 0 when the work is done, 2 for a wrong call or
config, 1 for a failure said in one line, 130 when ``process``, ``train`` or ``demo`` was
interrupted.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console

from streamseg.errors import StreamsegError

if TYPE_CHECKING:
    from streamseg.config import Config

INTERRUPTED = 130


def exit_with(code: int, **_options: Any) -> None:
    """What a command returns is its exit code."""
    raise typer.Exit(code)


app = typer.Typer(
    name="streamseg",
    help="Every object's mask, with an identity that lasts, from any camera, stream or recording.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    result_callback=exit_with,
    rich_markup_mode="markdown",
)
out = Console()
err = Console(stderr=True)

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Override a key of the config; repeatable."),
]
ModelName = Annotated[str | None, typer.Option("--model", help="A name of `streamseg models`.")]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="`default`, a path, or `none` (random).")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file, as for `serve`.")]


class Stoppable(Protocol):
    """What a signal can end."""

    def stop(self) -> None: ...
    def abort(self) -> None: ...


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit as the design says; ``--debug`` anywhere shows tracebacks."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(message)s"
    )
    try:
        app([a for a in given if a != "--debug"])
    except StreamsegError as error:
        if debug:
            traceback.print_exc()
        fail(str(error))
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if debug:
            traceback.print_exc()
        fail(f"{error.name} isn't installed: pip install 'streamseg[server]'")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def fail(message: str) -> None:
    """One line on stderr."""
    print(f"streamseg: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 - a CLI's voice


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and debug logs; works anywhere.")
    ] = False,
) -> None:
    """Taken out of the arguments by ``main``; declared for ``--help``."""
    del debug


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
    bind: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Masks and status; tcp://host:port or ipc://")
    ] = None,
    bind_frames: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Pictures; by default the next port.")
    ] = None,
    wait_subscribers: Annotated[
        int | None, typer.Option(metavar="N", help="Hold the first frame until N have joined.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address that isn't loopback.")
    ] = False,
    sets: Sets = None,
) -> int:
    """Publish the masks of live or recorded sources until they end or it is stopped.

    Example: `streamseg serve --source street.mp4 --wait-subscribers 1`
    """
    publish = {
        "bind": bind,
        "bind_frames": bind_frames,
        "wait_subscribers": wait_subscribers,
        "insecure": insecure or None,
    }
    from streamseg.serve import Service
    from streamseg.terminal import summary_table

    sources = [{"url": url} for url in source or []]
    config = build_config(file, sets, sources, model, weights, publish)
    service = Service(config)
    service.start()
    for what, address in service.endpoints.items():
        err.print(f"{what} at {address}", soft_wrap=True, highlight=False)
    with stopped_by_signals(service):
        summary = service.wait()
    out.print(summary_table(summary))
    for problem in service.problems:
        fail(problem)
    return 1 if service.problems else 0


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
    start: Annotated[float | None, typer.Option(help="Seconds to begin at.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds to stop before.")] = None,
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
    config = build_config(config_file, sets, sources, model, weights, {})
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


@app.command()
def watch(
    address: Annotated[str, typer.Argument(metavar="ADDR", help="Where a service publishes.")],
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME", help="Only this source; repeatable."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="out.mp4", help="Write the annotated pictures.")
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(metavar="out.jsonl", help="Write the results.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many results.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, help="Fail after so many seconds without a result.")
    ] = None,
) -> int:
    """Show what a service publishes, and record it if asked.

    Example: `streamseg watch tcp://127.0.0.1:5555 --save out.mp4 --jsonl out.jsonl`
    """
    from streamseg.client import connect
    from streamseg.watch import Watch

    with connect(address, source, frames="annotated" if save else False) as subscriber:
        run = Watch(subscriber, save=save, jsonl=jsonl, limit=limit, timeout=timeout)
        with stopped_by_signals(run):
            run.show()
    return 0


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
    from streamseg.recipe import load_recipe
    from streamseg.terminal import ProgressReport, listing
    from streamseg.train import Trainer, joined

    recipe = load_recipe(file, sets or [])
    target = folder or Path("runs") / file.stem
    with joined() as processes:
        with ProgressReport("batches") as progress:
            run = Trainer(recipe, file.parent, target, progress, processes, resume=resume)
            if processes.leads:
                err.print(run.introduction, soft_wrap=True, highlight=False)
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
    from streamseg.measure import Measurement, listings, prepare, with_model, write
    from streamseg.recipe import load_evaluation
    from streamseg.terminal import ProgressReport, listing

    if check:
        options = (weights, model, through_service, folder, json_file)
        return check_data(file, sets or [], alone=not any(options))
    evaluation = with_model(load_evaluation(file, sets or []), model, weights)
    prepare(folder, json_file)
    with ProgressReport("images") as progress:
        run = Measurement(evaluation, file.parent, progress, through_service=through_service)
        for note in run.notes:
            err.print(note, soft_wrap=True, highlight=False, markup=False)
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
    from streamseg.models.catalogue import CATALOGUE, find
    from streamseg.terminal import listing, model_description, model_row

    if name is not None:
        out.print(model_description(find(name)), soft_wrap=True, highlight=False)
        return 0
    columns = ("name", "params", "GFLOPs", "box AP", "mask", "PQ", "weights")
    out.print(listing("models", columns, [model_row(entry) for entry in CATALOGUE]))
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
    from streamseg.bench.run import Bench

    Bench(folder, data, quick=quick).run(part or [])
    return 0


def check_data(file: Path, sets: list[str], *, alone: bool) -> int:
    """Print every problem of the datasets in ``file``, one a line; 1 if there are any.

    Raises:
        ConfigError: what ``recipe.load_data`` says, or there are options beside ``--check``.
    """
    from streamseg.data import check
    from streamseg.errors import ConfigError
    from streamseg.measure import data_size
    from streamseg.recipe import load_data

    if not alone:
        raise ConfigError("--check looks at the data alone: leave the other options out")
    data = load_data(file, sets)
    problems = check(data, file.parent)
    for problem in problems:
        print(problem)  # noqa: T201 - data, one line each, however wide the terminal is
    if problems:
        fail(f"{file}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
        return 1
    images, annotations = data_size(data, file.parent)
    print(f"{images} images, {annotations} annotations: no problems")  # noqa: T201 - as above
    return 0


def build_config(
    file: Path | None,
    sets: list[str] | None,
    sources: list[dict[str, Any]],
    model: str | None,
    weights: str | None,
    publish: dict[str, Any],
) -> Config:
    """The config of a file, the options and the ``--set`` overrides, in that order.

    Raises:
        ConfigError: what ``config.load`` and ``config.validate`` say.
    """
    from streamseg import config

    raw = config.load(file)
    options = {"model": {"name": model, "weights": weights}, "publish": publish}
    for section, values in options.items():
        given = {key: value for key, value in values.items() if value is not None}
        if given:
            raw[section] = {**(raw.get(section) or {}), **given}
    if sources:
        raw["sources"] = [*(raw.get("sources") or []), *sources]
    config.override(raw, sets or [])
    return config.validate(raw, str(file or "the command"))


@contextmanager
def stopped_by_signals(run: Stoppable) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets ``run`` finish what it has; a second ends it now."""
    seen: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 1:
            fail("stopping: finishing what was taken; once more to end now")
            run.stop()
        else:
            run.abort()

    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
