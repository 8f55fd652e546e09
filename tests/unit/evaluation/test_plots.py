"""Plots: line colors and unchanged matplotlib settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from streamseg.errors import OutputError, StreamsegError
from streamseg.evaluation import (
    ConfusionMatrix,
    Series,
    evaluate_coco,
    plot_confusion,
    plot_precision_recall,
    plot_series,
)
from streamseg.evaluation import plots as module
from streamseg.evaluation.plots import select_classes

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def read_pixels(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image[..., ::-1]


def count_pixels(path: Path, color: tuple[int, int, int]) -> int:
    return int((read_pixels(path) == color).all(axis=-1).sum())


def make_matrix(counts: np.ndarray) -> ConfusionMatrix:
    names = tuple(f"class {number}" for number in range(len(counts) - 1))
    return ConfusionMatrix(names, counts, "boxes", 0.5, 0.5)


def make_scores(has_ground_truth: bool):
    box = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
    truth = {
        "images": [{"id": 1, "height": 50, "width": 50}],
        "categories": [{"id": 1, "name": "$person$"}],
        "annotations": [box | {"id": 1}] if has_ground_truth else [],
    }
    return evaluate_coco(truth, [box | {"score": 0.9}], "boxes", "pycocotools")


def test_plot_series_draws_a_line_per_series(tmp_path: Path):
    steps = list(range(200))
    series = [
        Series("loss, $ per step", steps, [3 / (1 + step / 30) for step in steps]),
        Series("mask loss", steps[::10], [None if step == 50 else 1.0 for step in steps[::10]]),
    ]
    plot_series(tmp_path / "lines.png", "a training", series, "step", "loss")
    assert read_pixels(tmp_path / "lines.png").shape == (630, 1050, 3)
    assert count_pixels(tmp_path / "lines.png", BLUE) > 500
    assert count_pixels(tmp_path / "lines.png", ORANGE) > 200
    plot_series(tmp_path / "none.png", "no data", [], "step", "loss")
    assert count_pixels(tmp_path / "none.png", BLUE) == 0


def test_plot_precision_recall_draws_curves(tmp_path: Path):
    plot_precision_recall(tmp_path / "curve.png", "val", make_scores(has_ground_truth=True))
    assert count_pixels(tmp_path / "curve.png", BLUE) > 100
    plot_precision_recall(tmp_path / "empty.png", "val", make_scores(has_ground_truth=False))
    assert count_pixels(tmp_path / "empty.png", BLUE) == 0


def test_plot_confusion_colors_the_cells(tmp_path: Path):
    counts = np.array([[8, 2, 0], [0, 5, 5], [1, 0, 0]])
    plot_confusion(tmp_path / "matrix.png", "val", make_matrix(counts))
    image = read_pixels(tmp_path / "matrix.png").astype(int)
    assert (image[..., 2] - image[..., 0] > 60).sum() > 1000  # a cell of .8 is dark blue


def test_most_frequent_classes_are_selected():
    counts = np.zeros((81, 81), int)
    for place in range(0, 60, 2):
        counts[place, place] = 100 - place
    counts[80, 79] = 1000  # never annotated, often predicted
    shown = select_classes(make_matrix(counts))
    assert shown == [*range(0, 38, 2), 79]
    assert select_classes(make_matrix(np.zeros((3, 3), int))) == []


def test_plot_of_an_empty_confusion_matrix(tmp_path: Path):
    plot_confusion(tmp_path / "matrix.png", "val", make_matrix(np.zeros((81, 81), int)))
    assert (tmp_path / "matrix.png").stat().st_size > 1000


@pytest.mark.slow
def test_plots_do_not_change_matplotlib_settings(tmp_path: Path):
    program = """
import sys
from pathlib import Path
from streamseg.evaluation import Series, plot_series
assert "matplotlib" not in sys.modules
import matplotlib
def raw():  # reading the backend through rcParams would choose one
    return {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams}
before = raw()
plot_series(Path(sys.argv[1]), "t", [Series("s", [0, 1], [0, 1])], "x", "y")
assert raw() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    command = [sys.executable, "-c", program, str(tmp_path / "a.png")]
    subprocess.run(command, check=True, timeout=60)


def test_missing_matplotlib_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(module, "import_module", missing)
    with pytest.raises(StreamsegError, match=r"pip install 'streamseg\[train\]'") as error:
        plot_series(tmp_path / "a.png", "t", [], "x", "y")
    assert "\n" not in str(error.value)


def test_missing_folder_is_an_output_error(tmp_path: Path):
    with pytest.raises(
        OutputError, match=r"nowhere/a.png: can't be written: there is no such folder"
    ):
        plot_series(tmp_path / "nowhere" / "a.png", "t", [], "x", "y")
