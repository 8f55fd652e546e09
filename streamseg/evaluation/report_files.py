"""Output files of an evaluation: JSON report, COCO results and plots."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path, PurePath

import msgspec

from streamseg.config import assign_source_names
from streamseg.errors import OutputError, StreamsegError
from streamseg.evaluation.plots import plot_confusion, plot_precision_recall
from streamseg.evaluation.report import DatasetReport, EvaluationReport, report_to_dict
from streamseg.sinks.files.part_file import make_folder, make_subfolder
from streamseg.sinks.files.results import write_bytes_atomically, write_json_atomically


def prepare_outputs(folder: Path | None, file: Path | None) -> None:
    """Create the output folder and check that :func:`write_report` can succeed.

    Args:
        folder: as in :func:`write_report`.
        file: likewise.

    Raises:
        OutputError: the folder can't be created, or ``file`` is a folder or its folder is missing.
        StreamsegError: matplotlib isn't installed.
    """
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise OutputError(f"{file}: must be a file in an existing folder")
    if folder is not None:
        if find_spec("matplotlib") is None:
            raise StreamsegError("--out needs matplotlib: pip install 'streamseg[train]'")
        make_folder(folder)


def write_report(report: EvaluationReport, folder: Path | None, file: Path | None) -> None:
    """Write a report and its plots.

    Args:
        report: the report.
        folder: folder for ``report.json``, and for each dataset a folder with its COCO results and
            plots; None writes none of them.
        file: file with the content of ``report.json``; None writes none.

    Raises:
        OutputError: a file can't be written.
    """
    if file is not None:
        write_json_atomically(file, report_to_dict(report))
    if folder is not None:
        write_json_atomically(folder / "report.json", report_to_dict(report))
        names = assign_source_names([("", dataset.name) for dataset in report.datasets])
        for dataset, name in zip(report.datasets, names, strict=True):
            make_subfolder(folder, PurePath(name))
            _write_dataset(dataset, folder / name)


def _write_dataset(dataset: DatasetReport, folder: Path) -> None:
    write_bytes_atomically(folder / "results.json", msgspec.json.encode(dataset.results))
    for scores in dataset.scores:
        title = f"{dataset.name}: {scores.on}"
        plot_precision_recall(folder / f"precision-recall-{scores.on}.png", title, scores)
    matrix = dataset.confusion
    title = f"{dataset.name}: {matrix.on}, score {matrix.score:g} and IoU {matrix.iou:g} or more"
    plot_confusion(folder / "confusion.png", title, matrix)
