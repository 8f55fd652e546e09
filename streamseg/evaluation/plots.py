"""Plots as PNG files: precision-recall curves, confusion matrices and training curves.

matplotlib is imported on first use, and only its object interface: no window system is started and
no global setting is changed. Colors are Okabe and Ito's ("Color Universal Design", 2008), which
people with color vision deficiency can distinguish; lines also differ in their dashes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from streamseg.errors import StreamsegError
from streamseg.evaluation.coco_ap import CocoScores
from streamseg.evaluation.confusion_matrix import ConfusionMatrix
from streamseg.sinks.files.results import write_bytes_atomically
from streamseg.structures.masks import IntArray

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("-", "--", "-.", ":")
TEXT_COLOR, GRID_COLOR = "#333333", "#dddddd"
DPI = 150
MAX_CLASSES = 20
"""Classes that a plotted confusion matrix has room for."""
MAX_MARKERS = 40
"""Points of a line up to which each has a marker; more markers would hide the line."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot.

    Attributes:
        name: its name in the legend.
        x: x coordinates.
        y: y coordinates, as many; None leaves a gap.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


def plot_series(
    path: Path, title: str, series: Sequence[Series], x_label: str, y_label: str
) -> None:
    """Plot lines over one axis.

    Args:
        path: the PNG file.
        title: title of the plot.
        series: the lines.
        x_label: label of the x axis.
        y_label: label of the y axis.

    Raises:
        StreamsegError: matplotlib isn't installed.
        OutputError: the file can't be written.
    """
    figure, axes = _make_figure(title, (7, 4.2))
    for number, line in enumerate(series):
        axes.plot(
            line.x,
            np.array(line.y, np.float64),  # None becomes NaN, which isn't drawn
            label=_escape_math(line.name),
            color=COLORS[number % len(COLORS)],
            linestyle=DASHES[number % len(DASHES)],
            linewidth=1.8,
            marker="o" if len(line.x) <= MAX_MARKERS else None,
            markersize=3.5,
        )
    axes.set_xlabel(x_label, color=TEXT_COLOR)
    axes.set_ylabel(y_label, color=TEXT_COLOR)
    if series:
        axes.legend(frameon=False, labelcolor=TEXT_COLOR)
    _save(figure, path)


def plot_precision_recall(path: Path, title: str, scores: CocoScores) -> None:
    """Plot precision-recall curves at IoU .50, .75 and averaged over .50 to .95.

    Args:
        path: the PNG file.
        title: title of the plot.
        scores: scores with the curves, which are means over classes.

    Raises:
        StreamsegError: matplotlib isn't installed.
        OutputError: the file can't be written.
    """
    figure, axes = _make_figure(title, (5.6, 5))
    if scores.curves is None:
        axes.text(0.5, 0.5, "no ground truth", ha="center", color=TEXT_COLOR)
    else:
        curves = scores.curves
        lines = (
            (f"IoU .50: AP {_percent(scores.ap50)}", curves.at50),
            (f"IoU .75: AP {_percent(scores.ap75)}", curves.at75),
            (f"IoU .50 to .95: AP {_percent(scores.ap)}", curves.mean),
        )
        for number, (name, precision) in enumerate(lines):
            axes.plot(
                curves.recall,
                precision,
                label=name,
                color=COLORS[number],
                linestyle=DASHES[number],
                linewidth=1.8,
            )
        axes.legend(frameon=False, labelcolor=TEXT_COLOR)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall", color=TEXT_COLOR)
    axes.set_ylabel("precision", color=TEXT_COLOR)
    _save(figure, path)


def plot_confusion(path: Path, title: str, matrix: ConfusionMatrix) -> None:
    """Plot a confusion matrix whose rows are normalized by the number of annotated objects.

    At most ``MAX_CLASSES`` classes are shown, the most frequent ones that occur. The others are
    left out, so a row may sum to less than one.

    Args:
        path: the PNG file.
        title: title of the plot.
        matrix: the confusion matrix.

    Raises:
        StreamsegError: matplotlib isn't installed.
        OutputError: the file can't be written.
    """
    classes = select_classes(matrix)
    shown = np.array([*classes, len(matrix.names)])
    counts = matrix.counts[np.ix_(shown, shown)]
    totals = matrix.counts[shown].sum(axis=1, keepdims=True)
    fractions = counts / np.maximum(totals, 1)
    fractions[-1] = 0  # predictions without an object have no total: only their number is shown
    names = [_escape_math(matrix.names[index]) for index in classes]
    side = 2.8 + 0.36 * len(shown)
    figure, axes = _make_figure(title, (side + 0.8, side))
    axes.grid(visible=False)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(shown)), [*names, "(missed)"], rotation=45, ha="right")
    axes.set_yticks(range(len(shown)), [*names, "(background)"])
    axes.set_xlabel("predicted", color=TEXT_COLOR)
    axes.set_ylabel("annotated", color=TEXT_COLOR)
    for row, column in np.argwhere(counts > 0).tolist():
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if fractions[row, column] > 0.55 else TEXT_COLOR,
        )
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(b=False)
    bar.set_label("fraction of annotated objects", color=TEXT_COLOR)
    bar.ax.tick_params(colors=TEXT_COLOR, length=0)
    _save(figure, path)


def select_classes(matrix: ConfusionMatrix) -> list[int]:
    """Return the indices of the most frequent classes that occur, at most ``MAX_CLASSES``."""
    count = len(matrix.names)
    totals: IntArray = matrix.counts.sum(axis=0)[:count] + matrix.counts.sum(axis=1)[:count]
    ranked = np.argsort(-totals, kind="stable")[:MAX_CLASSES]
    return sorted(index for index in ranked.tolist() if totals[index])


def _make_figure(title: str, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure of ``size`` inches and its axes with a light grid.

    Raises:
        StreamsegError: matplotlib isn't installed.
    """
    try:
        figure = import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
        import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    except ModuleNotFoundError as error:
        raise StreamsegError(
            f"plots need matplotlib, and {error.name} isn't installed: "
            "pip install 'streamseg[train]'"
        ) from None
    axes = figure.add_subplot()
    axes.set_title(_escape_math(title), color=TEXT_COLOR, fontsize=11, wrap=True)
    axes.grid(color=GRID_COLOR, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT_COLOR, length=0)
    for side in axes.spines.values():
        side.set_color(GRID_COLOR)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, facecolor="white")
    write_bytes_atomically(path, png.getbuffer())


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _escape_math(text: str) -> str:
    """Escape dollar signs: matplotlib renders text between two of them as a formula."""
    return text.replace("$", r"\$")
