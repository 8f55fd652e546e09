"""A training's story in files: losses and measures as CSV, as curves, and for TensorBoard.

``steps.csv`` has a line for every few optimiser steps, ``measures.csv`` one for each dataset that
was measured, ``panoptic.csv`` three where panoptic quality was. A training that goes on drops the
lines after the checkpoint it goes on from.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from streamseg.evaluate.coco import CocoScores
from streamseg.evaluate.panoptic import PanopticScores, Quality
from streamseg.evaluate.pictures import Series, plot_series
from streamseg.sinks.files import write_bytes_atomically
from streamseg.sinks.part_file import append_bytes, writing

MEASURES = ("ap", "ap50", "ap75")
QUALITIES = ("pq", "sq", "rq")


class Journal:
    """The files of one training.

    Args:
        folder: takes them.
        step: optimiser steps done; lines of later ones, from before an interruption, are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder
        self._steps = _Table(folder / "steps.csv", step)
        self._measures = _Table(folder / "measures.csv", step)
        self._qualities = _Table(folder / "panoptic.csv", step)
        self._board = _tensorboard(folder)

    def note_step(self, step: int, epoch: int, rate: float, losses: Mapping[str, float]) -> None:
        """The mean losses of the latest steps."""
        total = sum(losses.values())
        self._steps.add({"step": step, "epoch": epoch, "rate": rate, "loss": total, **losses})
        for name, value in losses.items():
            self._scalar(f"loss/{name}", value, step)
        self._scalar("rate", rate, step)

    def note_measure(self, step: int, epoch: int, dataset: str, scores: CocoScores) -> None:
        """How good the averaged weights are on one dataset."""
        measures = {name: getattr(scores, name) for name in MEASURES}
        row = {"step": step, "epoch": epoch, "dataset": dataset, "on": scores.on}
        self._measures.add(row | measures)
        for name, value in measures.items():
            if value is not None:
                self._scalar(f"{dataset}/{scores.on}/{name}", value, step)

    def note_quality(self, step: int, epoch: int, dataset: str, scores: PanopticScores) -> None:
        """How good the averaged weights' panoptic parts are on one dataset."""
        for of in ("all", "things", "stuff"):
            measures = qualities(getattr(scores, of))
            row = {"step": step, "epoch": epoch, "dataset": dataset, "of": of}
            self._qualities.add(row | measures)
            for name, value in measures.items():
                if value is not None:
                    self._scalar(f"{dataset}/{of}/{name}", value, step)

    def draw(self) -> None:
        """Losses and measures as PNGs; nothing where matplotlib isn't installed."""
        if without_curves():
            return
        self._draw_losses()
        self._draw_measures(self._measures, "on", "ap", "Average precision")
        self._draw_measures(self._qualities, "of", "pq", "Panoptic quality")

    def close(self) -> None:
        """End what is open."""
        if self._board is not None:
            self._board.close()

    def _draw_losses(self) -> None:
        rows = self._steps.rows
        names = [
            name for name in (rows[0] if rows else {}) if name not in ("step", "epoch", "rate")
        ]
        curves = [
            Series(name, [float(r["step"]) for r in rows], [float(r[name]) for r in rows])
            for name in names
        ]
        if curves:
            path = self._folder / "losses.png"
            plot_series(path, "Losses", curves, "optimiser steps", "weighted loss")

    def _draw_measures(self, table: _Table, part: str, measure: str, title: str) -> None:
        """One measure's curves, one for each dataset and each of its parts."""
        keys = list(dict.fromkeys((r["dataset"], r[part]) for r in table.rows))
        curves = []
        for key in keys:
            rows = [r for r in table.rows if (r["dataset"], r[part]) == key]
            known = [r for r in rows if r[measure] not in ("", None)]
            xs, ys = [float(r["step"]) for r in known], [float(r[measure]) for r in known]
            curves.append(Series(", ".join(key), xs, ys))
        if curves:
            path = table.path.with_suffix(".png")
            plot_series(path, title, curves, "optimiser steps", measure.upper())

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._board is not None:
            self._board.add_scalar(name, value, step)


class _Table:
    """A CSV file that is whole after every line; there is none before the first."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if step and path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        if path.exists():
            self._rewrite()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._rewrite() if len(self.rows) == 1 else self._append(row)

    def _rewrite(self) -> None:
        lines = [",".join(self.rows[0])] if self.rows else []
        lines += [_line(row.values()) for row in self.rows]
        write_bytes_atomically(self.path, "".join(line + "\n" for line in lines).encode())

    def _append(self, row: dict[str, Any]) -> None:
        with writing(self.path):
            append_bytes(self.path, (_line(row.values()) + "\n").encode())


def qualities(quality: Quality | None) -> dict[str, float | None]:
    """Panoptic quality and its factors, None where nothing was there to be found."""
    return {name: None if quality is None else getattr(quality, name) for name in QUALITIES}


def without_curves() -> str:
    """What is to be said where curves can't be drawn; empty where they can."""
    return "" if find_spec("matplotlib") else "; no curves: pip install 'streamseg[train]'"


def _line(values: Sequence[Any] | Any) -> str:
    return ",".join(_cell(value) for value in values)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value).replace(",", " ")


def _tensorboard(folder: Path) -> Any:
    """A writer of TensorBoard's events, where it is installed."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
