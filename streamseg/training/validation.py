"""Evaluation of a model on the validation datasets during its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from streamseg.config import Thresholds
from streamseg.datasets import Dataset
from streamseg.evaluation.predictions import Predictions, predict_dataset, score_dataset
from streamseg.models.base import Segmenter
from streamseg.pipeline.summary import Progress
from streamseg.training.log import TrainingLog, panoptic_metrics

THRESHOLDS = Thresholds(score=0.05)
"""Thresholds of detections that are evaluated, the same as those of ``streamseg eval``."""

Metrics: TypeAlias = Mapping[str, Mapping[str, float | None]]
"""Metrics by dataset and metric key, for example ``{"val, masks": {"ap": 0.4, "ap50": 0.6}}``."""


class _StoppedError(Exception):
    """The training was stopped during an evaluation."""


def predict_datasets(
    model: Segmenter,
    datasets: Sequence[Dataset],
    progress: Progress,
    is_stopped: Callable[[], bool],
) -> list[Predictions] | None:
    """Run the model on each dataset.

    Args:
        model: the model.
        datasets: the validation datasets.
        progress: called with (dataset name, images done, images in total).
        is_stopped: returns whether the training was stopped; asked after each batch.

    Returns:
        The predictions of each dataset, or None if the training was stopped.
    """

    def report_progress(name: str, done: int, total: int | None) -> None:
        if is_stopped():
            raise _StoppedError
        progress(name, done, total)

    try:
        return [
            predict_dataset(model, dataset, THRESHOLDS, batch=4, progress=report_progress)
            for dataset in datasets
        ]
    except _StoppedError:
        return None


def score_and_log(
    datasets: Sequence[Dataset],
    predictions: Sequence[Predictions],
    log: TrainingLog,
    step: int,
    epoch: int,
) -> Metrics:
    """Score the predictions of each dataset, log the scores and return the metrics."""
    metrics: dict[str, Mapping[str, float | None]] = {}
    for dataset, predicted in zip(datasets, predictions, strict=True):
        name = dataset.name
        for scores in score_dataset(dataset, predicted.results):
            log.log_coco_scores(step, epoch, name, scores)
            metrics[f"{name}, {scores.on}"] = {"ap": scores.ap, "ap50": scores.ap50}
        if predicted.panoptic is not None:
            log.log_panoptic_scores(step, epoch, name, predicted.panoptic)
            metrics[f"{name}, panoptic"] = panoptic_metrics(predicted.panoptic.all)
    return metrics


def overall_score(metrics: Metrics) -> float | None:
    """Return the score that decides which weights are best.

    It is the mean PQ over the datasets, or the mean AP if no dataset has a PQ; None without any.
    """
    for key in ("pq", "ap"):
        values = [value for each in metrics.values() if (value := each.get(key)) is not None]
        if values:
            return math.fsum(values) / len(values)
    return None
