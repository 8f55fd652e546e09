"""Training log: losses and metrics as CSV files, plots and TensorBoard events.

``steps.csv`` gets a line every few optimizer steps, ``measures.csv`` one line per dataset and
evaluation, ``panoptic.csv`` three lines per dataset with panoptic quality. Lines are on disk
before the next checkpoint, which stores their number: a resumed run keeps that many and drops later
ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from streamseg.evaluation.coco_ap import CocoScores
from streamseg.evaluation.panoptic_quality import PanopticScores, Quality
from streamseg.evaluation.plots import Series, plot_series
from streamseg.training.csv_table import CsvTable

AP_METRICS = ("ap", "ap50", "ap75")
PANOPTIC_METRICS = ("pq", "sq", "rq")


class TrainingLog:
    """Log files of one training.

    Args:
        folder: folder of the files.
        line_counts: lines of each file to keep, as ``line_counts`` was at the checkpoint that the
            training resumes from; empty for a new training.

    Raises:
        DataError: a line that belongs to the checkpoint is damaged, and a later one is not.
        OutputError: a file can't be written.
    """

    def __init__(self, folder: Path, line_counts: Mapping[str, int]) -> None:
        def open_table(name: str) -> CsvTable:
            return CsvTable(folder / name, line_counts.get(name, 0))

        self._folder = folder
        self._steps = open_table("steps.csv")
        self._ap = open_table("measures.csv")
        self._panoptic = open_table("panoptic.csv")
        self._tables = (self._steps, self._ap, self._panoptic)
        self._tensorboard = _open_tensorboard(folder)

    @property
    def line_counts(self) -> dict[str, int]:
        """Number of lines of each file, without its head."""
        return {table.path.name: len(table.rows) for table in self._tables}

    @property
    def notes(self) -> list[str]:
        """Descriptions of damaged lines that were dropped, one per file."""
        return [table.note for table in self._tables if table.note]

    def log_step(self, step: int, epoch: int, rate: float, losses: Mapping[str, float]) -> None:
        """Log the learning rate and the mean losses of the latest steps."""
        total = sum(losses.values())
        self._steps.append({"step": step, "epoch": epoch, "rate": rate, "loss": total, **losses})
        self._log_scalars("loss", losses, step)
        if self._tensorboard is not None:
            self._tensorboard.add_scalar("rate", rate, step)

    def log_coco_scores(self, step: int, epoch: int, dataset: str, scores: CocoScores) -> None:
        """Log the average precision on one dataset."""
        metrics = {name: getattr(scores, name) for name in AP_METRICS}
        row = {"step": step, "epoch": epoch, "dataset": dataset, "on": scores.on}
        self._ap.append(row | metrics)
        self._log_scalars(f"{dataset}/{scores.on}", metrics, step)

    def log_panoptic_scores(
        self, step: int, epoch: int, dataset: str, scores: PanopticScores
    ) -> None:
        """Log the panoptic quality of all classes, things and stuff on one dataset."""
        for part in ("all", "things", "stuff"):
            metrics = panoptic_metrics(getattr(scores, part))
            row = {"step": step, "epoch": epoch, "dataset": dataset, "of": part}
            self._panoptic.append(row | metrics)
            self._log_scalars(f"{dataset}/{part}", metrics, step)

    def plot(self) -> None:
        """Plot losses and metrics as PNG files; does nothing if matplotlib isn't installed."""
        if missing_plots_note():
            return
        self._plot_losses()
        self._plot_metric(self._ap, "on", "ap", "Average precision")
        self._plot_metric(self._panoptic, "of", "pq", "Panoptic quality")

    def close(self) -> None:
        """Close the TensorBoard writer."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _log_scalars(self, prefix: str, values: Mapping[str, float | None], step: int) -> None:
        if self._tensorboard is not None:
            for name, value in values.items():
                if value is not None:
                    self._tensorboard.add_scalar(f"{prefix}/{name}", value, step)

    def _plot_losses(self) -> None:
        rows = self._steps.rows
        if not rows:
            return
        names = [name for name in rows[0] if name not in ("step", "epoch", "rate")]
        steps = [float(row["step"]) for row in rows]
        series = [Series(name, steps, [float(row[name]) for row in rows]) for name in names]
        path = self._folder / "losses.png"
        plot_series(path, "Losses", series, "optimizer steps", "weighted loss")

    def _plot_metric(self, table: CsvTable, column: str, metric: str, title: str) -> None:
        """Plot one metric with a line for each dataset and each value of ``column``."""
        keys = list(dict.fromkeys((row["dataset"], row[column]) for row in table.rows))
        series = []
        for key in keys:
            rows = [
                row
                for row in table.rows
                if (row["dataset"], row[column]) == key and row[metric] not in ("", None)
            ]
            steps, values = ([float(row[name]) for row in rows] for name in ("step", metric))
            series.append(Series(", ".join(key), steps, values))
        if series:
            path = table.path.with_suffix(".png")
            plot_series(path, title, series, "optimizer steps", metric.upper())


class MeanLosses:
    """Mean of each loss since the previous line of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, batches: Iterable[Mapping[str, float]]) -> None:
        """Add the losses of some batches."""
        for losses in batches:
            self._count += 1
            for name, value in losses.items():
                self._sums[name] = self._sums.get(name, 0.0) + value

    def pop(self) -> dict[str, float]:
        """Return the means and reset them."""
        means = {name: value / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the number of batches, for a checkpoint."""
        return {"sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._sums, self._count = dict(state["sums"]), state["count"]


def panoptic_metrics(quality: Quality | None) -> dict[str, float | None]:
    """Return panoptic quality and its factors by key; None if there were no segments."""
    return {name: None if quality is None else getattr(quality, name) for name in PANOPTIC_METRICS}


def missing_plots_note() -> str:
    """Return a note that plots need matplotlib; empty if it is installed."""
    return "" if find_spec("matplotlib") else "; no curves: pip install 'streamseg[train]'"


def _open_tensorboard(folder: Path) -> Any:
    """Return a TensorBoard writer, None if tensorboard isn't installed."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
