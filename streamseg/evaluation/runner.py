"""Evaluation runner: from a config to scores; :mod:`~streamseg.evaluation.outputs` writes files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from streamseg.config import ModelConfig, Thresholds, convert
from streamseg.config.class_names import parse_class_names
from streamseg.config.training import (
    DataConfig,
    DatasetConfig,
    EvaluationConfig,
    PanopticTask,
    ProblemPolicy,
)
from streamseg.datasets import (
    Dataset,
    Problem,
    check_measurable,
    inspect,
    open_dataset,
    skipped_rows_summary,
)
from streamseg.errors import ConfigError
from streamseg.evaluation import (
    CocoScores,
    ConfusionMatrix,
    PanopticScores,
    TrackingScores,
    confusion,
    evaluate_tracks,
    panoptic_quality,
)
from streamseg.evaluation.coco_rows import CocoRow
from streamseg.evaluation.predictions import Classes, measured_truth, predict_dataset, score_dataset
from streamseg.evaluation.served import predict_through_service
from streamseg.models import load_model
from streamseg.models.base import Segmenter
from streamseg.pipeline.summary import Progress

FEW = 5
"""Names of classes that a remark lists; of more it gives the number."""


@dataclass(frozen=True, slots=True, eq=False)
class DatasetReport:
    """How good a model is on one dataset.

    Attributes:
        name: the dataset's.
        images: how many pictures it has.
        classes: how the model's classes and the dataset's go together.
        results: what was found, COCO's.
        scores: on boxes, and on masks if the dataset has any.
        confusion: what was taken for what, on masks if the dataset has any.
        panoptic: how good the panoptic parts are; None where model or dataset has no stuff.
        skipped: the problems of what was left out of the dataset.
    """

    name: str
    images: int
    classes: Classes
    results: Sequence[CocoRow]
    scores: tuple[CocoScores, ...]
    confusion: ConfusionMatrix
    panoptic: PanopticScores | None
    skipped: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What an evaluation came to.

    Attributes:
        evaluation: what was asked for.
        through_service: whether the results are messages that a service published.
        datasets: of ``data.val``, in its order.
        panoptic: of each panoptic task, by name.
        tracking: of each tracking task.
    """

    evaluation: EvaluationConfig
    through_service: bool
    datasets: tuple[DatasetReport, ...]
    panoptic: tuple[tuple[str, PanopticScores], ...]
    tracking: tuple[TrackingScores, ...]


class Measurement:
    """An evaluation, ready to run.

    Args:
        evaluation: what to measure.
        root: the folder that its own roots are relative to.
        progress: told (dataset, pictures done, pictures in all).
        through_service: have a real service publish the results that are measured.

    Attributes:
        notes: what is to be known before the numbers are read, one line each.

    Raises:
        ConfigError: nothing for a service to do, or two datasets of one name.
        DataError: a dataset has problems, or no class in common with the model.
        WeightsError: the weights can't be had, or are of another architecture.
    """

    def __init__(
        self,
        evaluation: EvaluationConfig,
        root: Path,
        progress: Progress,
        *,
        through_service: bool = False,
    ) -> None:
        self._evaluation, self._root, self._progress = evaluation, root, progress
        self._through_service = through_service
        self.notes: tuple[str, ...] = ()
        self._datasets: list[Dataset] = []
        if evaluation.data is not None:
            self._datasets = _open_all(evaluation.data, root)
            self._model = load_model(**msgspec.structs.asdict(evaluation.model))
            if evaluation.class_agnostic_iou == "auto":
                iou = self._model.class_agnostic_iou if through_service else None
                self._evaluation = msgspec.structs.replace(evaluation, class_agnostic_iou=iou)
            for dataset in self._datasets:
                check_measurable(dataset, stuff=bool(self._model.stuff))
            self.notes = tuple(
                note for dataset in self._datasets for note in _notes(self._model, dataset)
            )
        elif through_service:
            raise ConfigError("--through-service measures data, and the config has none")

    def run(self) -> Report:
        """Measure everything; files first, because they take seconds.

        Raises:
            StreamsegError: what is measured can't be read, or can't be measured with what is
                installed; see :func:`predict_through_service` for what a service can do.
        """
        evaluation, root = self._evaluation, self._root / self._evaluation.root
        panoptic = tuple((task.name, _score_panoptic(task, root)) for task in evaluation.panoptic)
        tracking = tuple(evaluate_tracks(task, root) for task in evaluation.tracking)
        datasets = tuple(self._measure(dataset) for dataset in self._datasets)
        return Report(evaluation, self._through_service, datasets, panoptic, tracking)

    def _measure(self, dataset: Dataset) -> DatasetReport:
        evaluation = self._evaluation
        predict = predict_through_service if self._through_service else predict_dataset
        found = predict(
            self._model,
            dataset,
            Thresholds(
                score=evaluation.least_score,
                max_instances=evaluation.most,
                class_agnostic_iou=evaluation.class_agnostic_iou,
            ),
            batch=evaluation.batch,
            progress=self._progress,
        )
        scores = score_dataset(dataset, found.results)
        return DatasetReport(
            dataset.name,
            len(dataset.images),
            Classes.match(self._model.categories, dataset),
            found.results,
            scores,
            confusion(measured_truth(dataset), found.results, scores[-1].on),
            found.panoptic,
            dataset.skipped,
        )


def with_model(
    evaluation: EvaluationConfig,
    name: str | None,
    weights: str | None,
    class_names: str | None = None,
) -> EvaluationConfig:
    """The same evaluation of another model, or of other weights; None keeps what it says.

    Raises:
        ConfigError: it has no data, so that no model is measured; or the class names can't be
            read or aren't possible.
    """
    names = None if class_names is None else tuple(parse_class_names(class_names))
    options = {"name": name, "weights": weights, "class_names": names}
    given = {key: value for key, value in options.items() if value is not None}
    if given and evaluation.data is None:
        raise ConfigError(
            "--model, --weights and --class-names are for data, and the config has none"
        )
    changed = {**msgspec.structs.asdict(evaluation.model), **given}
    model = convert(changed, ModelConfig, "the command")
    return msgspec.structs.replace(evaluation, model=model)


def data_size(config: DataConfig, root: Path) -> tuple[int, int]:
    """Images and annotations in all the datasets of a config.

    Raises:
        DataError: a dataset has problems.
    """
    sections = dict.fromkeys((*config.train, *config.val))
    datasets = [open_dataset(section, root / config.root) for section in sections]
    images = [image for dataset in datasets for image in dataset.images]
    return len(images), sum(len(image.annotations) for image in images)


def _open_all(config: DataConfig, root: Path) -> list[Dataset]:
    datasets = [_open(section, root / config.root, config.problems) for section in config.val]
    names = [dataset.name for dataset in datasets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"data.val: two datasets are called {repeated[0]!r}: give each a name")
    return datasets


def _open(section: DatasetConfig, root: Path, problems: ProblemPolicy) -> Dataset:
    """A dataset; where problems are skipped, every image is opened first to find all of them."""
    dataset = open_dataset(section, root, problems)
    return dataset.without(inspect(dataset)) if problems == "skip" else dataset


def _notes(model: Segmenter, dataset: Dataset) -> list[str]:
    """What the model and the dataset don't have in common."""
    classes = Classes.match(model.categories, dataset)
    notes = list(skipped_rows_summary(dataset.name, dataset.skipped))
    if classes.unknown:
        unknown = ", ".join(classes.unknown)
        notes.append(f"{dataset.name}: {model.name} doesn't know and can't find: {unknown}")
    if classes.unmeasured:
        unmeasured = _few(classes.unmeasured)
        notes.append(f"{dataset.name}: known to {model.name}, not annotated there: {unmeasured}")
    stuff = [name for name in dataset.stuff.values() if name not in model.stuff.values()]
    if model.stuff and stuff:
        notes.append(f"{dataset.name}: stuff that {model.name} can't find: {', '.join(stuff)}")
    return notes


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= FEW else f"{len(names)} classes"


def _score_panoptic(task: PanopticTask, root: Path) -> PanopticScores:
    return panoptic_quality(
        root / task.truth,
        root / task.truth_segments,
        root / task.results,
        root / task.result_segments,
    )
