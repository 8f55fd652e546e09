"""Evaluation report: all scores of an evaluation, and their JSON form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np

from streamseg.config.training import EvaluationConfig
from streamseg.datasets import Problem, count_skipped_rows
from streamseg.evaluation.coco_ap import CocoScores
from streamseg.evaluation.coco_rows import CocoDict
from streamseg.evaluation.confusion_matrix import ConfusionMatrix
from streamseg.evaluation.panoptic_quality import PanopticScores
from streamseg.evaluation.predictions import ClassMatch
from streamseg.evaluation.tracking_metrics import TrackingScores

Scores: TypeAlias = CocoScores | ConfusionMatrix | PanopticScores | TrackingScores


@dataclass(frozen=True, slots=True, eq=False)
class DatasetReport:
    """Predictions and scores of a model on one dataset.

    Attributes:
        name: the dataset's name.
        images: number of images.
        classes: the model's classes matched with the dataset's.
        results: the predictions as COCO results.
        scores: COCO scores on boxes, and on masks if the dataset has any.
        confusion: confusion matrix, on masks if the dataset has any.
        panoptic: panoptic quality; None if the model or the dataset has no stuff.
        skipped: problems of the rows that were skipped.
    """

    name: str
    images: int
    classes: ClassMatch
    results: Sequence[CocoDict]
    scores: tuple[CocoScores, ...]
    confusion: ConfusionMatrix
    panoptic: PanopticScores | None
    skipped: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationReport:
    """Outcome of an evaluation.

    Attributes:
        evaluation: the config that was evaluated.
        through_service: whether the predictions are messages that a service published.
        datasets: reports of ``data.val``, in its order.
        panoptic: name and scores of each panoptic task.
        tracking: scores of each tracking task.
    """

    evaluation: EvaluationConfig
    through_service: bool
    datasets: tuple[DatasetReport, ...]
    panoptic: tuple[tuple[str, PanopticScores], ...]
    tracking: tuple[TrackingScores, ...]


def report_to_dict(report: EvaluationReport) -> dict[str, Any]:
    """Return a report as plain values for JSON; scores are fractions of one."""
    config, has_datasets = report.evaluation, bool(report.datasets)
    return {
        "model": msgspec.structs.asdict(config.model) if has_datasets else None,
        "least_score": config.least_score,
        "most": config.most,
        "class_agnostic_iou": config.class_agnostic_iou if has_datasets else None,
        "through_service": report.through_service,
        "datasets": [_dataset_to_dict(dataset) for dataset in report.datasets],
        "panoptic": [{"name": name} | scores_to_dict(scores) for name, scores in report.panoptic],
        "tracking": [scores_to_dict(scores) for scores in report.tracking],
    }


def scores_to_dict(scores: Scores) -> dict[str, Any]:
    """Return scores as plain values for JSON; a score without ground truth is None."""
    values: dict[str, Any] = _to_plain_values(scores)
    return values


def _dataset_to_dict(dataset: DatasetReport) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": dataset.name,
        "images": dataset.images,
        "unknown": list(dataset.classes.only_in_dataset),
        "unmeasured": list(dataset.classes.only_in_model),
        **{scores.on: scores_to_dict(scores) for scores in dataset.scores},
        "confusion": scores_to_dict(dataset.confusion),
    }
    if dataset.skipped:
        values["skipped"] = count_skipped_rows(dataset.skipped)
    if dataset.panoptic is not None:
        values["panoptic"] = scores_to_dict(dataset.panoptic)
    return values


def _to_plain_values(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _to_plain_values(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {key: _to_plain_values(member) for key, member in value.items()}
    if isinstance(value, tuple | list):
        return [_to_plain_values(member) for member in value]
    return msgspec.to_builtins(value)
