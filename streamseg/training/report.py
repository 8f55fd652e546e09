"""Report of a finished or interrupted training."""

from __future__ import annotations

from dataclasses import dataclass

from streamseg.training.checkpoint import Position

METRIC_NAMES = {"ap": "AP", "ap50": "AP50", "pq": "PQ", "sq": "SQ", "rq": "RQ"}
"""Column heads of the metrics, by key."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Outcome of a training run.

    Attributes:
        position: the position that the training reached, with the latest metrics.
        interrupted: whether the training was stopped before its end.
    """

    position: Position
    interrupted: bool

    def columns(self) -> tuple[str, ...]:
        """Return the column heads of :meth:`rows`."""
        return ("measured", *(METRIC_NAMES[metric] for metric in self._metrics()))

    def rows(self) -> list[tuple[str, ...]]:
        """Return the latest metrics as table rows, in percent, one row per evaluated dataset."""
        return [
            (name, *(_format_percent(metrics.get(metric)) for metric in self._metrics()))
            for name, metrics in self.position.measures.items()
        ]

    def _metrics(self) -> list[str]:
        """Return the keys of the metrics that any dataset has."""
        present = {metric for metrics in self.position.measures.values() for metric in metrics}
        return [metric for metric in METRIC_NAMES if metric in present]


def _format_percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
