"""A training's story in files: losses and measures as CSV, as curves, and for TensorBoard.

``steps.csv`` has a line for every few optimiser steps, ``measures.csv`` one for each dataset that
was measured, ``panoptic.csv`` three where panoptic quality was. Every line is on the disk before
the next checkpoint, which holds how many lines there are: a training that goes on keeps as many,
and drops later ones and what a kill or a full disk left behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from streamseg.errors import DataError
from streamseg.evaluation.coco_ap import CocoScores
from streamseg.evaluation.panoptic import PanopticScores, Quality
from streamseg.evaluation.plots import Series, plot_series
from streamseg.sinks.files.part_file import append_bytes, writing
from streamseg.sinks.files.results import write_bytes_atomically

MEASURES = ("ap", "ap50", "ap75")
QUALITIES = ("pq", "sq", "rq")
TEXT_COLUMNS = frozenset({"dataset", "on", "of"})
"""Columns that hold text; the others hold numbers."""


class Journal:
    """The files of one training.

    Args:
        folder: takes them.
        lines: how many lines of each file belong to the checkpoint that the training goes on
            from, as ``lines`` was then; none, of a training that begins.

    Raises:
        DataError: lines that belong to the checkpoint are damaged, and later ones are not.
        OutputError: a file can't be written.
    """

    def __init__(self, folder: Path, lines: Mapping[str, int]) -> None:
        self._folder = folder
        self._steps = _Table(folder / "steps.csv", lines)
        self._measures = _Table(folder / "measures.csv", lines)
        self._qualities = _Table(folder / "panoptic.csv", lines)
        self._board = _tensorboard(folder)

    @property
    def lines(self) -> dict[str, int]:
        """How many lines each file has, without its first."""
        return {table.path.name: len(table.rows) for table in self._tables}

    @property
    def notes(self) -> list[str]:
        """What was damaged and dropped, one line for each file."""
        return [table.note for table in self._tables if table.note]

    @property
    def _tables(self) -> tuple[_Table, ...]:
        return self._steps, self._measures, self._qualities

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
    """A CSV file that is whole after every line; there is none before the first.

    Attributes:
        path: the file.
        rows: its lines by column.
        note: what was damaged in the file that was there, empty if nothing was.
    """

    def __init__(self, path: Path, lines: Mapping[str, int]) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.note = ""
        count = lines.get(path.name, 0)
        if count or path.exists():
            self.rows, self.note = _read_lines(path, count)
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


def _read_lines(path: Path, count: int) -> tuple[list[dict[str, Any]], str]:
    """The first ``count`` lines of a file of ours, and what was damaged in it, in words.

    Damaged lines at the end are dropped: a kill or a full disk leaves them. So is what the last
    line break is followed by, which is a line that was cut.

    Raises:
        DataError: a damaged line is followed by a sound one, which no interruption leaves.
    """
    try:
        *complete, cut = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], f"{path}: is missing; it begins again"
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    columns = _text(complete[0]).split(",") if complete else []
    if count and len(complete) > 1 and "step" not in columns:
        raise DataError(_damaged(path, 1))
    rows = [_parse(line, columns) for line in complete[1 : count + 1]]
    sound = next((number for number, row in enumerate(rows) if row is None), len(rows))
    if any(rows[sound:]):
        raise DataError(_damaged(path, sound + 2))
    kept = [row for row in rows[:sound] if row is not None]
    if len(kept) < count:
        return (
            kept,
            f"{path}: {count - len(kept)} of its last lines are damaged or missing, dropped",
        )
    later = [_parse(line, columns) for line in complete[count + 1 :]]
    if cut or not all(later):
        return kept, f"{path}: its end is damaged, dropped"
    return kept, ""


def _damaged(path: Path, number: int) -> str:
    return (
        f"{path}: line {number} is damaged and later ones aren't: mend it, or move the file away "
        "to go on without its earlier lines"
    )


def _parse(line: bytes, columns: Sequence[str]) -> dict[str, Any] | None:
    """A line by column; None if it is damaged."""
    cells = _text(line).split(",")
    if len(cells) != len(columns) or "step" not in columns:
        return None
    row = dict(zip(columns, cells, strict=True))
    sound = all(_is_number(cell) for name, cell in row.items() if name not in TEXT_COLUMNS)
    return row if sound and row["step"] and all(map(str.isprintable, cells)) else None


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").replace("\ufffd", "\0")  # NUL is in no line of ours


def _is_number(cell: str) -> bool:
    """Whether a cell is empty or a number."""
    try:
        return not cell or not math.isnan(float(cell))
    except ValueError:
        return False


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
    return "" if value is None else " ".join(str(value).replace(",", " ").split("\n"))


def _tensorboard(folder: Path) -> Any:
    """A writer of TensorBoard's events, where it is installed."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
