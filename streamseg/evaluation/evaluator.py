"""Evaluation of a model on datasets, and of panoptic and tracking results in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from streamseg.config import ModelConfig, Thresholds, convert
from streamseg.config.class_names import parse_class_names
from streamseg.config.training import DataConfig, EvaluationConfig
from streamseg.datasets import (
    Dataset,
    check_evaluable,
    find_file_problems,
    format_skipped_rows,
    open_dataset,
)
from streamseg.errors import ConfigError
from streamseg.evaluation.confusion_matrix import compute_confusion_matrix
from streamseg.evaluation.panoptic_files import evaluate_panoptic
from streamseg.evaluation.predictions import (
    make_ground_truth,
    match_classes,
    predict_dataset,
    score_dataset,
)
from streamseg.evaluation.report import DatasetReport, EvaluationReport
from streamseg.evaluation.service_predictions import predict_through_service
from streamseg.evaluation.tracking_metrics import evaluate_tracks
from streamseg.models import load_model
from streamseg.models.base import Segmenter
from streamseg.pipeline.summary import Progress

MAX_LISTED_NAMES = 5
"""Class names that a note lists; of more it gives the number."""


class Evaluator:
    """Evaluation as a config describes it.

    The constructor loads the model and opens the datasets; :meth:`run` evaluates.

    Args:
        evaluation: the config.
        root: the folder that the config's roots are relative to.
        progress: called with (dataset name, images done, images in total).
        through_service: whether the predictions are published by a service and received from it.

    Attributes:
        notes: lines about skipped rows and classes that model and dataset don't share.

    Raises:
        ConfigError: there is no data for a service to process, or two datasets have one name.
        DataError: a dataset has problems, or no class in common with the model.
        WeightsError: the weights can't be read or belong to another architecture.
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
            self._datasets = _open_datasets(evaluation.data, root)
            self._model = load_model(**msgspec.structs.asdict(evaluation.model))
            if evaluation.class_agnostic_iou == "auto":
                iou = self._model.class_agnostic_iou if through_service else None
                self._evaluation = msgspec.structs.replace(evaluation, class_agnostic_iou=iou)
            for dataset in self._datasets:
                check_evaluable(dataset, stuff=bool(self._model.stuff))
            self.notes = tuple(
                note for dataset in self._datasets for note in _make_notes(self._model, dataset)
            )
        elif through_service:
            raise ConfigError("--through-service needs data, and the config has none")

    def run(self) -> EvaluationReport:
        """Evaluate the result files, which takes seconds, and then the model on each dataset.

        Raises:
            StreamsegError: a file can't be read, a library isn't installed, or the service failed
                (see :func:`predict_through_service`).
        """
        evaluation, root = self._evaluation, self._root / self._evaluation.root
        panoptic = tuple(
            (
                task.name,
                evaluate_panoptic(
                    root / task.truth,
                    root / task.truth_segments,
                    root / task.results,
                    root / task.result_segments,
                ),
            )
            for task in evaluation.panoptic
        )
        tracking = tuple(evaluate_tracks(task, root) for task in evaluation.tracking)
        datasets = tuple(self._evaluate_dataset(dataset) for dataset in self._datasets)
        return EvaluationReport(evaluation, self._through_service, datasets, panoptic, tracking)

    def _evaluate_dataset(self, dataset: Dataset) -> DatasetReport:
        evaluation = self._evaluation
        predict = predict_through_service if self._through_service else predict_dataset
        predictions = predict(
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
        results = predictions.results
        scores = score_dataset(dataset, results)
        return DatasetReport(
            dataset.name,
            len(dataset.images),
            match_classes(self._model.categories, dataset),
            results,
            scores,
            compute_confusion_matrix(make_ground_truth(dataset), results, scores[-1].on),
            predictions.panoptic,
            dataset.skipped,
        )


def override_model(
    evaluation: EvaluationConfig,
    name: str | None,
    weights: str | None,
    class_names: str | None = None,
) -> EvaluationConfig:
    """Return the config with another model, weights or class names; None keeps the config's.

    Raises:
        ConfigError: the config has no data, so that no model is evaluated, or the class names
            can't be read or are invalid.
    """
    names = None if class_names is None else tuple(parse_class_names(class_names))
    options = {"name": name, "weights": weights, "class_names": names}
    given = {key: value for key, value in options.items() if value is not None}
    if given and evaluation.data is None:
        raise ConfigError("--model, --weights and --class-names need data, and the config has none")
    changed = {**msgspec.structs.asdict(evaluation.model), **given}
    model = convert(changed, ModelConfig, "the command")
    return msgspec.structs.replace(evaluation, model=model)


def count_images_and_annotations(config: DataConfig, root: Path) -> tuple[int, int]:
    """Return the number of images and of annotations in all datasets of a config.

    Raises:
        DataError: a dataset has problems.
    """
    sections = dict.fromkeys((*config.train, *config.val))
    datasets = [open_dataset(section, root / config.root) for section in sections]
    images = [image for dataset in datasets for image in dataset.images]
    return len(images), sum(len(image.annotations) for image in images)


def _open_datasets(config: DataConfig, root: Path) -> list[Dataset]:
    """Open ``data.val``; if problems are skipped, open every image first to find all of them."""
    datasets = []
    for section in config.val:
        dataset = open_dataset(section, root / config.root, config.problems)
        if config.problems == "skip":
            dataset = dataset.without(find_file_problems(dataset))
        datasets.append(dataset)
    names = [dataset.name for dataset in datasets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"data.val: two datasets are named {repeated[0]!r}: give each a name")
    return datasets


def _make_notes(model: Segmenter, dataset: Dataset) -> list[str]:
    """Return lines about skipped rows and the classes that model and dataset don't share."""
    classes = match_classes(model.categories, dataset)
    notes = list(format_skipped_rows(dataset.name, dataset.skipped))
    if classes.only_in_dataset:
        names = ", ".join(classes.only_in_dataset)
        notes.append(f"{dataset.name}: classes that {model.name} doesn't have: {names}")
    if classes.only_in_model:
        names = _list_names(classes.only_in_model)
        notes.append(f"{dataset.name}: classes of {model.name} that aren't annotated: {names}")
    stuff = [name for name in dataset.stuff.values() if name not in model.stuff.values()]
    if model.stuff and stuff:
        notes.append(f"{dataset.name}: stuff that {model.name} doesn't have: {', '.join(stuff)}")
    return notes


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MAX_LISTED_NAMES else f"{len(names)} classes"
