"""The datasets of a training: opened, inspected once, and without what has problems.

What was left out is written to ``skipped.json``. A training that goes on reads it, because it must
go on with the same images in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from streamseg.config.training import DataConfig, DatasetConfig
from streamseg.datasets import (
    Dataset,
    Id,
    Problem,
    check,
    inspect,
    open_dataset,
    skipped_rows_summary,
)
from streamseg.errors import DataError
from streamseg.sinks.files.results import write_json_atomically
from streamseg.training.distributed import Processes

RECORD = "skipped.json"


class _SkippedRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One row that was left out; ``inspected`` where only opening the files showed why."""

    what: str
    reason: str
    image: Id | None = None
    annotation: Id | None = None
    inspected: bool = False


class _SkippedRows(msgspec.Struct, frozen=True):
    """What was left out of one dataset."""

    dataset: str
    rows: list[_SkippedRow]


class _Record(msgspec.Struct, frozen=True):
    datasets: list[_SkippedRows]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingDatasets:
    """The datasets of a training, in the order of its config.

    Attributes:
        train: what is learnt from.
        val: what is measured on.
        opened: each dataset once, by its section of the config.
        inspected: the problems of each section that opening its files showed.
    """

    train: tuple[Dataset, ...]
    val: tuple[Dataset, ...]
    opened: Mapping[DatasetConfig, Dataset]
    inspected: Sequence[Sequence[Problem]]

    def summary(self) -> Iterator[str]:
        """The lines that report what was left out; none where nothing was."""
        for dataset in self.opened.values():
            yield from skipped_rows_summary(dataset.name, dataset.skipped)

    def write_record(self, out: Path) -> None:
        """Write all that was left out to ``skipped.json``; no file where nothing was.

        Raises:
            OutputError: it can't be written.
        """
        rows = [
            _SkippedRows(dataset.name, list(_rows(dataset, len(inspected))))
            for dataset, inspected in zip(self.opened.values(), self.inspected, strict=True)
        ]
        if any(each.rows for each in rows):
            write_json_atomically(out / RECORD, msgspec.to_builtins(_Record(rows)))


def open_training_datasets(
    config: DataConfig, folder: Path, processes: Processes, out: Path, *, resume: bool
) -> TrainingDatasets:
    """Open the datasets, and every image in them unless the training goes on.

    Args:
        config: the datasets.
        folder: the folder that its ``root`` is relative to.
        processes: those that train together; the leading one opens the images.
        out: where ``skipped.json`` is, of a training that goes on.
        resume: whether it goes on.

    Raises:
        DataError: a dataset can't be read, or has problems that aren't skipped.
        ConfigError: see :func:`~streamseg.datasets.open_dataset`.
    """
    sections = list(dict.fromkeys((*config.train, *config.val)))
    if config.problems == "refuse" and processes.leads and not resume:
        _refuse_problems(check(config, folder))
    datasets = [open_dataset(each, folder / config.root, config.problems) for each in sections]
    inspected: list[list[Problem]] = [[] for _ in datasets]
    if config.problems == "skip" and resume:
        inspected = _read_record(out / RECORD, datasets)
    elif config.problems == "skip":
        found = [inspect(each) for each in datasets] if processes.leads else inspected
        inspected = processes.broadcast(found)
    opened = {
        section: dataset.without(problems)
        for section, dataset, problems in zip(sections, datasets, inspected, strict=True)
    }
    return TrainingDatasets(
        tuple(opened[each] for each in config.train),
        tuple(opened[each] for each in config.val),
        opened,
        inspected,
    )


def _rows(dataset: Dataset, inspected: int) -> Iterator[_SkippedRow]:
    """What was left out of a dataset; its last ``inspected`` problems took opening its files."""
    for number, each in enumerate(dataset.skipped, inspected - len(dataset.skipped)):
        yield _SkippedRow(
            each.what, each.reason, each.image_id, each.annotation_id, inspected=number >= 0
        )


def _read_record(path: Path, datasets: Sequence[Dataset]) -> list[list[Problem]]:
    """The problems of each dataset that opening its files showed when the training began."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
    except FileNotFoundError:
        return [[] for _ in datasets]
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: is damaged: {error}: begin in another folder") from None
    if [each.dataset for each in record.datasets] != [each.name for each in datasets]:
        raise DataError(f"{path}: is of other datasets: begin in another folder")
    return [
        [
            Problem(each.dataset, row.image, row.annotation, row.what, row.reason)
            for row in each.rows
            if row.inspected
        ]
        for each in record.datasets
    ]


def _refuse_problems(problems: Sequence[Problem]) -> None:
    """Before hours are spent on it, every picture is opened."""
    if problems:
        raise DataError(
            f"the data have {len(problems)} problem{'s' if len(problems) > 1 else ''}, the first: "
            f"{problems[0]}; list them with streamseg eval --check, or leave them out with "
            "data.problems: skip"
        )
