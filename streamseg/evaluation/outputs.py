"""What is shown and kept of an evaluation: tables, JSON, pictures."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

import msgspec

from streamseg.config import source_names
from streamseg.datasets import skipped_rows_counts
from streamseg.errors import OutputError, StreamsegError
from streamseg.evaluation import (
    Listing,
    coco_classes,
    coco_summary,
    panoptic_classes,
    panoptic_summary,
    plot_confusion,
    plot_precision_recall,
    tracking_summary,
)
from streamseg.evaluation import to_dict as scores_to_dict
from streamseg.evaluation.runner import DatasetReport, Report
from streamseg.sinks.files.part_file import make_folder, make_subfolder
from streamseg.sinks.files.results import write_bytes_atomically, write_json_atomically


def listings(report: Report) -> Iterator[Listing]:
    """Its tables, the summary of each thing before its classes."""
    for dataset in report.datasets:
        yield _turned(coco_summary(dataset.name, dataset.scores))
        for scores in dataset.scores:
            yield coco_classes(dataset.name, scores)
        if dataset.panoptic is not None:
            yield panoptic_summary(dataset.name, dataset.panoptic)
            yield panoptic_classes(dataset.name, dataset.panoptic)
    for name, panoptic in report.panoptic:
        yield panoptic_summary(name, panoptic)
        yield panoptic_classes(name, panoptic)
    for tracking in report.tracking:
        yield _turned(tracking_summary(tracking))


def to_dict(report: Report) -> dict[str, Any]:
    """All its numbers and what they are of, as JSON takes them; fractions are of one."""
    measured = bool(report.datasets)
    return {
        "model": msgspec.structs.asdict(report.evaluation.model) if measured else None,
        "least_score": report.evaluation.least_score,
        "most": report.evaluation.most,
        "class_agnostic_iou": report.evaluation.class_agnostic_iou if measured else None,
        "through_service": report.through_service,
        "datasets": [_dataset_to_dict(dataset) for dataset in report.datasets],
        "panoptic": [{"name": name} | scores_to_dict(scores) for name, scores in report.panoptic],
        "tracking": [scores_to_dict(scores) for scores in report.tracking],
    }


def prepare(folder: Path | None, file: Path | None) -> None:
    """Make the folder that ``write`` takes, and say now what would fail in the end.

    Raises:
        OutputError: the folder can't be made, or ``file`` can't be there.
        StreamsegError: what pictures are drawn with isn't installed.
    """
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise OutputError(f"{file}: isn't a file in a folder that there is")
    if folder is not None:
        if find_spec("matplotlib") is None:
            raise StreamsegError("--out draws with matplotlib: pip install 'streamseg[train]'")
        make_folder(folder)


def write(report: Report, folder: Path | None, file: Path | None) -> None:
    """Write an evaluation's numbers and what is behind them.

    Args:
        report: what it came to.
        folder: takes ``report.json``, and a folder for each dataset with its COCO results and
            pictures; None writes none of them.
        file: takes what ``report.json`` does; None writes none.

    Raises:
        OutputError: something can't be written.
    """
    if file is not None:
        write_json_atomically(file, to_dict(report))
    if folder is not None:
        write_json_atomically(folder / "report.json", to_dict(report))
        names = source_names([("", dataset.name) for dataset in report.datasets])
        for dataset, name in zip(report.datasets, names, strict=True):
            make_subfolder(folder, PurePath(name))
            _write_dataset(dataset, folder / name)


def _turned(table: Listing) -> Listing:
    """Rows as columns: side by side, the numbers are wider than a terminal."""
    columns = zip(table.columns, *table.rows, strict=True)
    heads, *rows = columns
    return Listing(table.title, ("", *heads[1:]), tuple(rows))


def _write_dataset(dataset: DatasetReport, folder: Path) -> None:
    write_bytes_atomically(folder / "results.json", msgspec.json.encode(dataset.results))
    for scores in dataset.scores:
        title = f"{dataset.name}: {scores.on}"
        plot_precision_recall(folder / f"precision-recall-{scores.on}.png", title, scores)
    matrix = dataset.confusion
    title = f"{dataset.name}: {matrix.on}, score {matrix.score:g} and IoU {matrix.iou:g} or more"
    plot_confusion(folder / "confusion.png", title, matrix)


def _dataset_to_dict(dataset: DatasetReport) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "name": dataset.name,
        "images": dataset.images,
        "unknown": list(dataset.classes.unknown),
        "unmeasured": list(dataset.classes.unmeasured),
        **{scores.on: scores_to_dict(scores) for scores in dataset.scores},
        "confusion": scores_to_dict(dataset.confusion),
    }
    if dataset.skipped:
        numbers["skipped"] = skipped_rows_counts(dataset.skipped)
    if dataset.panoptic is not None:
        numbers["panoptic"] = scores_to_dict(dataset.panoptic)
    return numbers
