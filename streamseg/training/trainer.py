"""Training loop of every model family: losses, optimizer steps, evaluation, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from streamseg.config.training import TrainingConfig
from streamseg.datasets import Augmentation, check_evaluable, check_trainable
from streamseg.errors import ConfigError, OutputError, StreamsegError, TrainingError
from streamseg.models.base import AUTOCAST
from streamseg.models.loading import has_stuff, start_model
from streamseg.models.weights.files import Weights, read, to_safetensors
from streamseg.pipeline.summary import Progress
from streamseg.sinks.files.results import write_bytes_atomically
from streamseg.training.batches import BatchLoader, TrainingBatch, derive_seed
from streamseg.training.checkpoint import Position, load_checkpoint, save_checkpoint
from streamseg.training.classes import check_complete_annotation, merge_categories
from streamseg.training.datasets import open_training_datasets
from streamseg.training.distributed import LostProcessError, ProcessGroup
from streamseg.training.log import MeanLosses, TrainingLog, missing_plots_note
from streamseg.training.optimization import (
    AveragedWeights,
    freeze_parameters,
    make_optimizer,
    make_schedule,
    set_learning_rate,
    set_train_mode,
)
from streamseg.training.report import TrainingReport
from streamseg.training.validation import (
    THRESHOLDS,
    overall_score,
    predict_datasets,
    score_and_log,
)

STEPS_PER_LOG_LINE = 20
"""Optimizer steps between two lines of ``steps.csv``."""


class Trainer:
    """Training of one model as a config describes it.

    The constructor loads everything, so that errors in config and data come before the first step.

    Args:
        config: the training config.
        root: the folder that ``data.root`` of the config is relative to.
        out: the folder for checkpoints and logs.
        progress: called with (phase, batches or images done, batches or images in total).
        group: the process group.
        resume: whether to resume from ``last.pt`` in ``out``.

    Raises:
        ConfigError: an option doesn't fit the model or the data, or ``out`` holds a training.
        DataError: a dataset can't be read, has problems, or nothing to train or evaluate on.
        WeightsError: the weights or the checkpoint can't be loaded into the model.
        OutputError: ``out`` can't be written.
    """

    def __init__(
        self,
        config: TrainingConfig,
        root: Path,
        out: Path,
        progress: Progress,
        group: ProcessGroup = ProcessGroup(),  # noqa: B008 - it is frozen
        *,
        resume: bool = False,
    ) -> None:
        self._config, self._out, self._progress, self._group = config, out, progress, group
        self._stopped = False
        datasets = open_training_datasets(config.data, root, group, out, resume=resume)
        self._val = datasets.val
        torch.manual_seed(config.seed)
        stuff = has_stuff(config.model.name)
        check_trainable(datasets.train, stuff=stuff)
        for dataset in self._val:
            check_evaluable(dataset, stuff=stuff)
        categories = merge_categories(datasets.train, config.model.name)
        self.model, new_classes = start_model(config.model, categories, THRESHOLDS)
        self._new_classes = tuple(new_classes)
        criterion = self.model.criterion(config.losses)
        check_complete_annotation(criterion, datasets.train, categories)
        if config.batch % group.world_size:
            raise ConfigError(
                f"batch: {config.batch} can't be divided among {group.world_size} processes"
            )
        self._batches = BatchLoader(
            datasets.train,
            Augmentation(config.augment, self.model.input_size),
            self.model,
            size=config.batch,
            seed=config.seed,
            workers=config.workers,
            group=group,
        )
        network = self.model.network
        freeze_parameters(network, config.optimiser.frozen)
        self._criterion: nn.Module = criterion
        if group.world_size > 1:
            self._criterion = DistributedDataParallel(criterion)
        self._optimizer = make_optimizer(network, config.optimiser)
        self._scaler = torch.amp.GradScaler(enabled=config.model.precision == "fp16")
        served = copy.deepcopy(network) if config.ema else network
        self._average = AveragedWeights(network, served, config.ema) if config.ema else None
        self._served_model = self.model.with_network(served)
        steps_per_epoch = -(-self._batches.batches_per_epoch // config.accumulate)
        self._schedule = make_schedule(
            config.schedule, config.optimiser.rate, steps_per_epoch * config.epochs
        )
        self._losses = MeanLosses()
        self._log_lines: Mapping[str, int] = {}
        self._buffers: Mapping[str, Tensor] = {}
        self._position = self._load_checkpoint() if resume else Position()
        self._notes = list(datasets.summarize_skipped_rows())
        if group.is_main:
            _make_folder(out, resume=resume)
            if not resume:
                datasets.write_record(out)
            self._log = TrainingLog(out, self._log_lines)
            self._notes += self._log.notes
        self._keep_step_state()

    @property
    def summary(self) -> str:
        """One line that describes the model, its classes and the batches."""
        new = f"; new: {', '.join(self._new_classes[:5])}" if self._new_classes else ""
        stuff = f" and {len(self.model.stuff)} of stuff" if self.model.stuff else ""
        return (
            f"{self.model.name}: {len(self.model.categories)} classes{stuff}{new}; "
            f"{self._batches.batches_per_epoch} batches of {self._batches.size} an epoch"
            f"{missing_plots_note()}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about skipped rows of the datasets and damaged lines of the logs."""
        return tuple(self._notes)

    def stop(self) -> None:
        """Stop after the current optimizer step or evaluation batch, and save a checkpoint."""
        self._stopped = True

    abort = stop  # a step is short, and half of one can't be saved

    def run(self) -> TrainingReport:
        """Train to the end, or until :meth:`stop` is called.

        Raises:
            TrainingError: a loss isn't finite, or a data loading process or another process of
                the group died.
            DataError: an image can't be read any more.
            OutputError: a checkpoint can't be written; the previous one stays intact.
        """
        config = self._config
        try:
            while self._position.epoch < config.epochs:
                epoch = self._position.epoch + 1
                is_due = epoch % config.evaluate_every == 0 or epoch == config.epochs
                # Stopped in the evaluation: the position is after the epoch's last batch, and
                # a training that resumes evaluates first.
                if not self._train_epoch() or (is_due and not self._evaluate(epoch)):
                    self._save_checkpoint("last.pt")
                    return self._finish(interrupted=True)
                self._position = replace(self._position, epoch=epoch, batch=0)
                self._keep_step_state()
                self._save_checkpoint("last.pt")
        except LostProcessError as error:
            self._save_after_error(error)
            raise
        if self._group.is_main:
            best = read(self._out / "best.pt")
            write_bytes_atomically(self._out / "model.safetensors", to_safetensors(best))
        self._group.barrier()
        return self._finish(interrupted=False)

    def _train_epoch(self) -> bool:
        """Train for the rest of the epoch; return False if it was stopped before its end."""
        config, start, count = self._config, self._position, self._batches.batches_per_epoch
        set_train_mode(self.model.network)
        losses: list[dict[str, float]] = []
        with closing(self._load_batches(start)) as batches:
            for number, batch in enumerate(batches, start=start.batch + 1):
                losses.append(self._accumulate_gradients(batch, number))
                if number % config.accumulate and number != count:
                    continue
                self._step_optimizer()
                self._losses.add(losses)
                losses.clear()
                self._position = replace(self._position, batch=number)
                step = self._position.step
                if self._group.is_main:
                    self._progress(f"epoch {start.epoch + 1} of {config.epochs}", number, count)
                    if step % STEPS_PER_LOG_LINE == 0 or number == count:
                        rate = self._schedule(step - 1)
                        self._log.log_step(step, start.epoch + 1, rate, self._losses.pop())
                self._keep_step_state()
                if self._group.any(self._stopped):
                    return False
                if config.save_every and step % config.save_every == 0:
                    self._save_checkpoint("last.pt")
        return self._position.batch == count

    def _load_batches(self, start: Position) -> Generator[TrainingBatch, None, None]:
        """Yield the epoch's remaining batches; if loading fails, save the state of the last step.

        Raises:
            StreamsegError: an image can't be read, or a data loading process died. While the
                training stops, the same signal may have ended that process: then nothing is
                raised.
        """
        try:
            yield from self._batches.load_epoch(start.epoch, start.batch)
        except StreamsegError as error:
            if not self._stopped:
                self._save_after_error(error)
                raise

    def _accumulate_gradients(self, batch: TrainingBatch, number: int) -> dict[str, float]:
        """Add the gradients of an epoch's batch ``number`` and return its losses by name."""
        group, precision = self._group, self._config.model.precision
        # Layers and losses may use torch's global generator: seeded, they resume alike.
        index = number * group.world_size + group.rank
        torch.manual_seed(derive_seed(self._config.seed, self._position.epoch, -index))
        with group.lost_peer_raised():
            with torch.autocast(
                self.model.device.type, AUTOCAST[precision], enabled=precision != "fp32"
            ):
                losses: dict[str, Tensor] = self._criterion(batch.images, batch.targets)
            values = torch.stack(list(losses.values()))
            total = values.sum()
            if not bool(torch.isfinite(total)):
                self._raise_not_finite(losses, batch)
            torch.autograd.backward(self._scaler.scale(total / self._config.accumulate))
            means = group.mean(values.detach())
        return dict(zip(losses, means.tolist(), strict=True))

    def _raise_not_finite(self, losses: Mapping[str, Tensor], batch: TrainingBatch) -> NoReturn:
        names = [name for name, loss in losses.items() if not bool(torch.isfinite(loss))]
        raise TrainingError(
            f"loss {', '.join(names)} isn't finite in epoch {self._position.epoch + 1}, after "
            f"step {self._position.step}, with the images {', '.join(batch.names)}: lower "
            "optimiser.rate or check these images; the latest checkpoint is intact"
        )

    def _step_optimizer(self) -> None:
        """Update the weights with the accumulated gradients."""
        clip = self._config.optimiser.clip
        set_learning_rate(self._optimizer, self._schedule(self._position.step))
        if clip:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.network.parameters(), clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._position = replace(self._position, step=self._position.step + 1)
        if self._average is not None:
            self._average.update(self._position.step)

    def _evaluate(self, epoch: int) -> bool:
        """Evaluate the served weights; if they are the best so far, save them as ``best.pt``.

        Returns:
            False if training was stopped during the evaluation; then nothing is logged.
        """
        stopped = False
        if self._group.is_main:
            self._served_model.network.eval()  # without ema it is the network that is trained
            predictions = predict_datasets(
                self._served_model, self._val, self._progress, lambda: self._stopped
            )
            if predictions is None:
                stopped = True
            else:
                step = self._position.step
                metrics = score_and_log(self._val, predictions, self._log, step, epoch)
                self._log.plot()
                self._position = replace(self._position, measures=metrics)
                score, best = overall_score(metrics), self._position.best
                if score is None or best is None or score > best:
                    self._position = replace(self._position, best=score)
                    self._save_checkpoint("best.pt")
        self._group.barrier()
        return not self._group.any(stopped)

    def _keep_step_state(self) -> None:
        """Keep the state after a step that later work changes before the next checkpoint.

        A forward pass without a step changes the running statistics of batch norms, and an
        evaluation writes log lines that a training which resumes before it writes again.
        """
        if self._group.is_main:
            self._log_lines = self._log.line_counts
        if self._config.accumulate > 1 or self._group.world_size > 1:
            buffers = self.model.network.named_buffers()
            self._buffers = {name: buffer.clone() for name, buffer in buffers}

    def _save_after_error(self, error: StreamsegError) -> None:
        """Save the state after the last step, because training ends with ``error``."""
        self.model.network.load_state_dict(self._buffers, strict=False)
        try:
            self._save_checkpoint("last.pt")
        except OutputError as save_error:
            raise TrainingError(f"{error}; and {save_error}") from error

    def _save_checkpoint(self, name: str) -> None:
        if not self._group.is_main:
            return
        states: dict[str, Any] = {
            "network": self.model.network.state_dict(),
            "optimiser": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "losses": self._losses.state_dict(),
            "lines": dict(self._log_lines),
        }
        served = Weights(
            self._served_model.network.state_dict(), self.model.name, self.model.all_categories
        )
        save_checkpoint(self._out / name, self._config, served, self._position, states)

    def _load_checkpoint(self) -> Position:
        """Restore the state from ``last.pt`` and return its position."""
        position, weights, states = load_checkpoint(
            self._out / "last.pt", self._config, self.model.name, self.model.all_categories
        )
        self._served_model.network.load_state_dict(dict(weights.state))
        self.model.network.load_state_dict(states["network"])
        self._optimizer.load_state_dict(states["optimiser"])
        self._scaler.load_state_dict(states["scaler"])
        self._losses.load_state_dict(states["losses"])
        self._log_lines = states["lines"]
        return position

    def _finish(self, *, interrupted: bool) -> TrainingReport:
        if self._group.is_main:
            self._log.close()
        return TrainingReport(self._position, interrupted)


def _make_folder(folder: Path, *, resume: bool) -> None:
    """Create the output folder; refuse one that holds a training, unless it is resumed."""
    if not resume and (folder / "last.pt").exists():
        raise ConfigError(
            f"{folder}: holds a training already: continue it with --resume, or choose another "
            "--out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't create this folder: {error.strerror}") from None
