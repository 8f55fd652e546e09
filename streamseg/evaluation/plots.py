"""Pictures of scores: precision over recall, what is taken for what, and how a training went.

matplotlib is imported when used, and only its objects: no window system is chosen, no setting of
the program that calls is changed. Colours are Okabe and Ito's ("Color Universal Design", 2008),
which colour-blind people tell apart; lines differ in their dashes as well.
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
from streamseg.evaluation.confusion import ConfusionMatrix
from streamseg.sinks.files.results import write_bytes_atomically
from streamseg.structures.masks import IntArray

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("-", "--", "-.", ":")
INK, FAINT = "#333333", "#dddddd"
DPI = 150
MOST_CLASSES = 20
MARKED_UP_TO = 40  # points of a line, beyond which a mark on each would hide it


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a picture.

    Attributes:
        name: in the legend.
        x: steps, epochs, seconds.
        y: as many numbers; None leaves a gap.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


def plot_series(
    path: Path, title: str, series: Sequence[Series], x_label: str, y_label: str
) -> None:
    """Lines over one axis, as PNG.

    Raises:
        StreamsegError: matplotlib isn't installed.
        OutputError: the file can't be written.
    """
    figure, axes = _canvas(title, (7, 4.2))
    for number, line in enumerate(series):
        axes.plot(
            line.x,
            np.array(line.y, np.float64),  # None becomes NaN, which isn't drawn
            label=_plain(line.name),
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number % len(DASHES)],
            linewidth=1.8,
            marker="o" if len(line.x) <= MARKED_UP_TO else None,
            markersize=3.5,
        )
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    if series:
        axes.legend(frameon=False, labelcolor=INK)
    _save(figure, path)


def plot_precision_recall(path: Path, title: str, scores: CocoScores) -> None:
    """Precision over recall at IoU .5, .75 and on average, the mean over classes, as PNG.

    Raises:
        StreamsegError: matplotlib isn't installed.
        OutputError: the file can't be written.
    """
    figure, axes = _canvas(title, (5.6, 5))
    if scores.curves is None:
        axes.text(0.5, 0.5, "nothing to find in the truth", ha="center", color=INK)
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
                color=COLOURS[number],
                linestyle=DASHES[number],
                linewidth=1.8,
            )
        axes.legend(frameon=False, labelcolor=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall", color=INK)
    axes.set_ylabel("precision", color=INK)
    _save(figure, path)


def plot_confusion(path: Path, title: str, matrix: ConfusionMatrix) -> None:
    """What was taken for what, in parts of what is there, as PNG.

    Of many classes, those that occur are shown, the most frequent and at most 20; the others
    aren't in the picture, so that a row may sum to less than one.

    Raises:
        StreamsegError: matplotlib isn't installed.
        OutputError: the file can't be written.
    """
    shown = shown_classes(matrix)
    nothing = len(matrix.names)
    picked = np.array([*shown, nothing])
    counts = matrix.counts[np.ix_(picked, picked)]
    totals = matrix.counts[picked].sum(axis=1, keepdims=True)
    parts = counts / np.maximum(totals, 1)
    parts[-1] = 0  # what was found where nothing is isn't a part of anything: a number alone
    names = [_plain(matrix.names[place]) for place in shown]
    side = 2.8 + 0.36 * len(picked)
    figure, axes = _canvas(title, (side + 0.8, side))
    axes.grid(visible=False)
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(picked)), [*names, "(missed)"], rotation=45, ha="right")
    axes.set_yticks(range(len(picked)), [*names, "(nothing)"])
    axes.set_xlabel("found", color=INK)
    axes.set_ylabel("there", color=INK)
    for row, column in np.argwhere(counts > 0).tolist():
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if parts[row, column] > 0.55 else INK,
        )
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(b=False)
    bar.set_label("part of what is there", color=INK)
    bar.ax.tick_params(colors=INK, length=0)
    _save(figure, path)


def shown_classes(matrix: ConfusionMatrix) -> list[int]:
    """The places of the classes that a picture has room for, in the matrix's order."""
    classes = len(matrix.names)
    often: IntArray = matrix.counts.sum(axis=0)[:classes] + matrix.counts.sum(axis=1)[:classes]
    ranked = np.argsort(-often, kind="stable")[:MOST_CLASSES]
    return sorted(place for place in ranked.tolist() if often[place])


def _canvas(title: str, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of ``size`` inches, and its axes with a light grid."""
    try:
        figure = import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
        import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    except ModuleNotFoundError as error:
        raise StreamsegError(
            f"pictures of scores need matplotlib, and there is no {error.name}: "
            "pip install 'streamseg[train]'"
        ) from None
    axes = figure.add_subplot()
    axes.set_title(_plain(title), color=INK, fontsize=11, wrap=True)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in axes.spines.values():
        side.set_color(FAINT)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, facecolor="white")
    write_bytes_atomically(path, png.getbuffer())


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _plain(text: str) -> str:
    """``text`` as it is: between two dollar signs matplotlib would read mathematics."""
    return text.replace("$", r"\$")
