"""The training loop: read it from top to bottom.

    data → augmentation → batches → losses → gradients → steps → averaged weights → measures

Any family's network is trained by it: what it is trained to do is its ``Criterion``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from streamseg.config import Thresholds
from streamseg.config.training import TrainingConfig
from streamseg.datasets import Augmentation, Dataset, check_learnable, check_measurable
from streamseg.errors import ConfigError, OutputError, StreamsegError, TrainingError
from streamseg.evaluation.predictions import Predictions, predict_dataset, score_dataset
from streamseg.models.base import AUTOCAST
from streamseg.models.layers.losses import Criterion
from streamseg.models.loading import has_stuff, start_model
from streamseg.models.weights.files import Weights, read, to_safetensors
from streamseg.pipeline.summary import Progress
from streamseg.sinks.files.results import write_bytes_atomically
from streamseg.training import checkpoint
from streamseg.training.batches import Batches, TrainingBatch, draw_seed
from streamseg.training.checkpoint import Position
from streamseg.training.classes import check_annotation, classes_of
from streamseg.training.datasets import open_training_datasets
from streamseg.training.distributed import LostProcessError, Processes
from streamseg.training.log import Journal, qualities, without_curves
from streamseg.training.optimization import (
    AveragedWeights,
    freeze,
    make_optimiser,
    schedule,
    set_rate,
    train_mode,
)

LOG_EVERY = 20
"""Optimiser steps between lines of ``steps.csv``."""
COLUMNS = {"ap": "AP", "ap50": "AP50", "pq": "PQ", "sq": "SQ", "rq": "RQ"}
"""How measures are called in tables."""
MEASURED = Thresholds(score=0.05)
"""What counts as a detection when a training is measured: as ``streamseg eval`` has it."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training came to.

    Attributes:
        position: how far it is.
        interrupted: whether it was stopped before its end.
    """

    position: Position
    interrupted: bool

    def columns(self) -> tuple[str, ...]:
        """The heads of :meth:`rows`."""
        return ("measured", *(COLUMNS[measure] for measure in self._measures()))

    def rows(self) -> list[tuple[str, ...]]:
        """What was measured last, as a table shows it."""
        return [
            (name, *(_percent(scores.get(measure)) for measure in self._measures()))
            for name, scores in self.position.measures.items()
        ]

    def _measures(self) -> list[str]:
        """Those that there are."""
        found = {measure for scores in self.position.measures.values() for measure in scores}
        return [measure for measure in COLUMNS if measure in found]


class Trainer:
    """Trains as a recipe says; everything that can be wrong with it is said by the constructor.

    Args:
        recipe: what to do.
        root: the folder that the recipe's ``data.root`` is relative to.
        out: the folder for checkpoints and the journal.
        progress: told (what, batches done, batches in all).
        processes: those that train together.
        resume: go on from ``last.pt`` in ``out``.

    Raises:
        ConfigError, DataError, WeightsError, OutputError: see what they say.
    """

    def __init__(
        self,
        recipe: TrainingConfig,
        root: Path,
        out: Path,
        progress: Progress,
        processes: Processes = Processes(),  # noqa: B008 - it is frozen
        *,
        resume: bool = False,
    ) -> None:
        datasets = open_training_datasets(recipe.data, root, processes, out, resume=resume)
        torch.manual_seed(recipe.seed)
        self._recipe, self._out, self._progress = recipe, out, progress
        self._processes = processes
        self._stopped = False
        learnt, self._measured = datasets.train, datasets.val
        stuff = has_stuff(recipe.model.name)
        check_learnable(learnt, stuff=stuff)
        for dataset in self._measured:
            check_measurable(dataset, stuff=stuff)
        categories = classes_of(learnt, recipe.model.name)
        self.model, fresh = start_model(recipe.model, categories, MEASURED)
        self._fresh = tuple(fresh)
        criterion = self.model.criterion(recipe.losses)
        check_annotation(criterion, learnt, categories)
        if recipe.batch % processes.count:
            raise ConfigError(
                f"batch: {recipe.batch} can't be shared by {processes.count} processes"
            )
        self._batches = Batches(
            learnt,
            Augmentation(recipe.augment, self.model.input_size),
            self.model,
            size=recipe.batch,
            seed=recipe.seed,
            workers=recipe.workers,
            processes=processes,
        )
        network = self.model.network
        freeze(network, recipe.optimiser.frozen)
        self._objective = _distributed(criterion, processes)
        self._optimiser = make_optimiser(network, recipe.optimiser)
        self._scaler = torch.amp.GradScaler(enabled=recipe.model.precision == "fp16")
        served = copy.deepcopy(network) if recipe.ema else network
        self._average = AveragedWeights(network, served, recipe.ema) if recipe.ema else None
        self._served = self.model.with_network(served)
        per_epoch = -(-self._batches.in_epoch // recipe.accumulate)
        self._rate = schedule(recipe.schedule, recipe.optimiser.rate, per_epoch * recipe.epochs)
        self._losses = _MeanLosses()
        self._lines: Mapping[str, int] = {}
        self._statistics: Mapping[str, Tensor] = {}
        self._position = self._resumed() if resume else Position()
        self._notes = list(datasets.summary())
        if processes.leads:
            _make_folder(out, resume=resume)
            if not resume:
                datasets.write_record(out)
            self._journal = Journal(out, self._lines)
            self._notes += self._journal.notes
        self._settle()

    @property
    def introduction(self) -> str:
        """What is about to happen, in one line."""
        fresh = f"; new: {', '.join(self._fresh[:5])}" if self._fresh else ""
        stuff = f" and {len(self.model.stuff)} of stuff" if self.model.stuff else ""
        return (
            f"{self.model.name}: {len(self.model.categories)} classes{stuff}{fresh}; "
            f"{self._batches.in_epoch} batches of {self._batches.size} an epoch{without_curves()}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on what was left out of the datasets, and of logs that were damaged."""
        return tuple(self._notes)

    def stop(self) -> None:
        """End after the current optimiser step, or the images being measured, with a checkpoint."""
        self._stopped = True

    abort = stop  # a step is short, and half of one can't be saved

    def run(self) -> TrainingReport:
        """Train to the end, or until it is stopped.

        Raises:
            TrainingError: a loss isn't finite, which names the pictures; or a process that loads
                images, or that trains too, died.
            DataError: a picture can't be read any more.
            OutputError: a checkpoint can't be written; the one before stays.
        """
        try:
            while self._position.epoch < self._recipe.epochs:
                if not (self._run_epoch() and self._end_epoch()):
                    self._save("last.pt")
                    return self._report(interrupted=True)
        except LostProcessError as error:
            self._save_after(error)
            raise
        self._export()
        return self._report(interrupted=False)

    def _end_epoch(self) -> bool:
        """Measure if it is time to, and save; False if training was stopped while it measured.

        The position is then behind the epoch's last batch: it is measured when training goes on.
        """
        epoch, recipe = self._position.epoch + 1, self._recipe
        is_due = epoch % recipe.evaluate_every == 0 or epoch == recipe.epochs
        if is_due and not self._measure(epoch):
            return False
        self._position = replace(self._position, epoch=epoch, batch=0)
        self._settle()
        self._save("last.pt")
        return True

    def _settle(self) -> None:
        """Keep what a checkpoint holds until the next step, whatever changes in between.

        A forward without its step moves the running statistics of batch norms, and a measurement
        writes lines that are written again by a training that goes on before it.
        """
        if self._processes.leads:
            self._lines = self._journal.lines
        if self._recipe.accumulate > 1 or self._processes.count > 1:
            buffers = self.model.network.named_buffers()
            self._statistics = {name: buffer.clone() for name, buffer in buffers}

    def _run_epoch(self) -> bool:
        """One epoch, or what is left of it; False if training was stopped on the way."""
        recipe, done = self._recipe, self._position
        train_mode(self.model.network)
        count = self._batches.in_epoch
        what = f"epoch {done.epoch + 1} of {recipe.epochs}"
        losses: list[dict[str, float]] = []
        with closing(self._saved_when_lost(done)) as batches:
            for number, batch in enumerate(batches, start=done.batch + 1):
                losses.append(self._learn(batch, number))
                if number % recipe.accumulate and number != count:
                    continue
                self._step()
                self._losses.add(losses)
                losses.clear()
                self._position = replace(self._position, batch=number)
                step = self._position.step
                if self._processes.leads:
                    self._progress(what, number, count)
                    if step % LOG_EVERY == 0 or number == count:
                        rate, means = self._rate(step - 1), self._losses.take()
                        self._journal.note_step(step, done.epoch + 1, rate, means)
                self._settle()
                if self._processes.any(self._stopped):
                    return False
                if recipe.save_every and step % recipe.save_every == 0:
                    self._save("last.pt")
        return self._position.batch == count

    def _saved_when_lost(self, done: Position) -> Generator[TrainingBatch, None, None]:
        """The epoch's batches; when one can't be had, the state as of the last step is saved.

        Raises:
            StreamsegError: a picture can't be read, or a process that loads them died; unless the
                training is stopping, when a signal may have ended that process, too.
        """
        try:
            yield from self._batches.epoch(done.epoch, done.batch)
        except StreamsegError as error:
            if not self._stopped:
                self._save_after(error)
                raise

    def _save_after(self, error: StreamsegError) -> None:
        """Save the state as of the last step, because training ends with ``error``."""
        self.model.network.load_state_dict(self._statistics, strict=False)
        try:
            self._save("last.pt")
        except OutputError as unsaved:
            raise TrainingError(f"{error}; and {unsaved}") from error

    def _learn(self, batch: TrainingBatch, number: int) -> dict[str, float]:
        """Add the gradients of an epoch's batch ``number``; its losses by name."""
        processes, precision = self._processes, self._recipe.model.precision
        # Layers and losses may draw from torch's own generators: the same after an interruption.
        place = number * processes.count + processes.rank
        torch.manual_seed(draw_seed(self._recipe.seed, self._position.epoch, -place))
        with processes.losses_of_peers_reported():
            with torch.autocast(
                self.model.device.type, AUTOCAST[precision], enabled=precision != "fp32"
            ):
                losses: dict[str, Tensor] = self._objective(batch.images, batch.targets)
            total = torch.stack(list(losses.values())).sum()
            if not bool(torch.isfinite(total)):
                self._refuse(losses, batch)
            torch.autograd.backward(self._scaler.scale(total / self._recipe.accumulate))
            shared = processes.mean(torch.stack(list(losses.values())).detach())
        return dict(zip(losses, shared.tolist(), strict=True))

    def _step(self) -> None:
        """One optimiser step with what gradients there are."""
        set_rate(self._optimiser, self._rate(self._position.step))
        if self._recipe.optimiser.clip:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self.model.network.parameters(), self._recipe.optimiser.clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad(set_to_none=True)
        self._position = replace(self._position, step=self._position.step + 1)
        if self._average is not None:
            self._average.update(self._position.step)

    def _refuse(self, losses: Mapping[str, Tensor], batch: TrainingBatch) -> NoReturn:
        wrong = [name for name, loss in losses.items() if not bool(torch.isfinite(loss))]
        raise TrainingError(
            f"loss {', '.join(wrong)} isn't finite in epoch {self._position.epoch + 1}, after "
            f"step {self._position.step}, with the images {', '.join(batch.names)}: lower "
            "optimiser.rate or look at these images; the latest checkpoint is intact"
        )

    def _measure(self, epoch: int) -> bool:
        """Measure the served weights on every dataset; keep them if they are the best so far.

        Returns:
            False if training was stopped on the way; nothing is noted then.
        """
        stopped = False
        if self._processes.leads:
            self._served.network.eval()  # without averaged weights it is the one that learns
            try:
                found = [(dataset, self._predict(dataset)) for dataset in self._measured]
            except _StoppedError:
                stopped = True
            else:
                self._note_measures(epoch, found)
        self._processes.wait()
        return not self._processes.any(stopped)

    def _predict(self, dataset: Dataset) -> Predictions:
        """Run the served weights on a dataset.

        Raises:
            _StoppedError: training was stopped on the way.
        """

        def progress(name: str, done: int, expected: int | None) -> None:
            if self._stopped:
                raise _StoppedError
            self._progress(name, done, expected)

        return predict_dataset(self._served, dataset, MEASURED, batch=4, progress=progress)

    def _note_measures(self, epoch: int, found: Sequence[tuple[Dataset, Predictions]]) -> None:
        measures: dict[str, Mapping[str, float | None]] = {}
        for dataset, predictions in found:
            measures |= self._measures_of(dataset, predictions, epoch)
        self._journal.draw()
        self._position = replace(self._position, measures=measures)
        value = _overall(measures)
        if value is None or self._position.best is None or value > self._position.best:
            self._position = replace(self._position, best=value)
            self._save("best.pt")

    def _measures_of(
        self, dataset: Dataset, found: Predictions, epoch: int
    ) -> dict[str, Mapping[str, float | None]]:
        """What the served weights reach on one dataset, by what it was measured on."""
        step, name = self._position.step, dataset.name
        measures: dict[str, Mapping[str, float | None]] = {}
        for scores in score_dataset(dataset, found.results):
            self._journal.note_measure(step, epoch, name, scores)
            measures[f"{name}, {scores.on}"] = {"ap": scores.ap, "ap50": scores.ap50}
        if found.panoptic is not None:
            self._journal.note_quality(step, epoch, name, found.panoptic)
            measures[f"{name}, panoptic"] = qualities(found.panoptic.all)
        return measures

    def _save(self, name: str) -> None:
        if not self._processes.leads:
            return
        states: dict[str, Any] = {
            "network": self.model.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "losses": self._losses.state_dict(),
            "lines": dict(self._lines),
        }
        checkpoint.save(self._out / name, self._recipe, self._weights(), self._position, states)

    def _resumed(self) -> Position:
        position, weights, states = checkpoint.load(
            self._out / "last.pt", self._recipe, self.model.name, self.model.all_categories
        )
        self._served.network.load_state_dict(dict(weights.state))
        self.model.network.load_state_dict(states["network"])
        self._optimiser.load_state_dict(states["optimiser"])
        self._scaler.load_state_dict(states["scaler"])
        self._losses.load_state_dict(states["losses"])
        self._lines = states["lines"]
        return position

    def _export(self) -> None:
        """The best weights as safetensors, to be served."""
        if self._processes.leads:
            best = read(self._out / "best.pt")
            write_bytes_atomically(self._out / "model.safetensors", to_safetensors(best))
        self._processes.wait()

    def _weights(self) -> Weights:
        state = self._served.network.state_dict()
        return Weights(state, self.model.name, self.model.all_categories)

    def _report(self, *, interrupted: bool) -> TrainingReport:
        if self._processes.leads:
            self._journal.close()
        return TrainingReport(self._position, interrupted)


class _StoppedError(Exception):
    """Training was stopped while it was measured."""


class _MeanLosses:
    """The mean of each loss since it was last asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, batches: Iterable[Mapping[str, float]]) -> None:
        for losses in batches:
            self._count += 1
            for name, value in losses.items():
                self._sums[name] = self._sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        means = {name: value / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums, self._count = dict(state["sums"]), state["count"]


def _distributed(criterion: Criterion, processes: Processes) -> nn.Module:
    return criterion if processes.count == 1 else DistributedDataParallel(criterion)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _overall(measures: Mapping[str, Mapping[str, float | None]]) -> float | None:
    """What decides which weights are best: the mean PQ, or the mean AP where there is no PQ."""
    for measure in ("pq", "ap"):
        values = [v for scores in measures.values() if (v := scores.get(measure)) is not None]
        if values:
            return math.fsum(values) / len(values)
    return None


def _make_folder(folder: Path, *, resume: bool) -> None:
    if not resume and (folder / "last.pt").exists():
        raise ConfigError(
            f"{folder}: holds a training already: go on with --resume, or choose another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't make this folder: {error.strerror}") from None
