"""Datasets of a training run: opened, validated, and without the rows that have problems.

Skipped rows are recorded in ``skipped.json``. A resumed run reads this file instead of
validating again, because it must continue with the same images in the same order.
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
    find_file_problems,
    find_problems,
    format_skipped_rows,
    open_dataset,
)
from streamseg.errors import DataError
from streamseg.sinks.files.results import write_json_atomically
from streamseg.training.distributed import ProcessGroup

RECORD_NAME = "skipped.json"


class _SkippedRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """Skipped row of a dataset.

    Attributes:
        what: description of the row.
        reason: the problem.
        image: its image's id.
        annotation: its annotation's id.
        inspected: whether the problem was found by opening the files, not in the annotations.
    """

    what: str
    reason: str
    image: Id | None = None
    annotation: Id | None = None
    inspected: bool = False


class _SkippedRows(msgspec.Struct, frozen=True):
    """All skipped rows of one dataset."""

    dataset: str
    rows: list[_SkippedRow]


class _Record(msgspec.Struct, frozen=True):
    """Content of ``skipped.json``."""

    datasets: list[_SkippedRows]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingDatasets:
    """Training and validation datasets, in the order of the config.

    Attributes:
        train: datasets for training.
        val: datasets for evaluation.
        opened: every distinct dataset, by its section of the config.
        inspected: for each of these, the problems that were found by opening its files.
    """

    train: tuple[Dataset, ...]
    val: tuple[Dataset, ...]
    opened: Mapping[DatasetConfig, Dataset]
    inspected: Sequence[Sequence[Problem]]

    def summarize_skipped_rows(self) -> Iterator[str]:
        """Yield lines that report the skipped rows; none if no rows were skipped."""
        for dataset in self.opened.values():
            yield from format_skipped_rows(dataset.name, dataset.skipped)

    def write_record(self, out: Path) -> None:
        """Write the skipped rows to ``skipped.json``; no file is written if there are none.

        Raises:
            OutputError: the file can't be written.
        """
        rows = [
            _SkippedRows(dataset.name, list(_skipped_rows(dataset, len(inspected))))
            for dataset, inspected in zip(self.opened.values(), self.inspected, strict=True)
        ]
        if any(dataset.rows for dataset in rows):
            write_json_atomically(out / RECORD_NAME, msgspec.to_builtins(_Record(rows)))


def open_training_datasets(
    config: DataConfig, folder: Path, group: ProcessGroup, out: Path, *, resume: bool
) -> TrainingDatasets:
    """Open the datasets; unless the training resumes, also open every image to find problems.

    Args:
        config: the datasets.
        folder: the folder that its ``root`` is relative to.
        group: the process group; the main process opens the images.
        out: the folder with the ``skipped.json`` of the run that is resumed.
        resume: whether the training resumes.

    Raises:
        DataError: a dataset can't be read, or has problems that aren't skipped.
        ConfigError: see :func:`~streamseg.datasets.open_dataset`.
    """
    sections = list(dict.fromkeys((*config.train, *config.val)))
    if config.problems == "refuse" and group.is_main and not resume:
        _refuse_problems(find_problems(config, folder))
    root = folder / config.root
    datasets = [open_dataset(section, root, config.problems) for section in sections]
    inspected: list[list[Problem]] = [[] for _ in datasets]
    if config.problems == "skip" and resume:
        inspected = _read_record(out / RECORD_NAME, datasets)
    elif config.problems == "skip":
        found = [find_file_problems(each) for each in datasets] if group.is_main else inspected
        inspected = group.broadcast(found)
    opened = {
        section: dataset.without(problems)
        for section, dataset, problems in zip(sections, datasets, inspected, strict=True)
    }
    return TrainingDatasets(
        tuple(opened[section] for section in config.train),
        tuple(opened[section] for section in config.val),
        opened,
        inspected,
    )


def _skipped_rows(dataset: Dataset, inspected: int) -> Iterator[_SkippedRow]:
    """Yield a dataset's skipped rows; the last ``inspected`` were found by opening its files."""
    for number, each in enumerate(dataset.skipped, inspected - len(dataset.skipped)):
        yield _SkippedRow(
            each.message, each.reason, each.image_id, each.annotation_id, inspected=number >= 0
        )


def _read_record(path: Path, datasets: Sequence[Dataset]) -> list[list[Problem]]:
    """Return, for each dataset, the problems found by opening its files when training started."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
    except FileNotFoundError:
        return [[] for _ in datasets]
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: is damaged: {error}: start in another folder") from None
    if [each.dataset for each in record.datasets] != [each.name for each in datasets]:
        raise DataError(f"{path}: belongs to other datasets: start in another folder")
    return [
        [
            Problem(each.dataset, row.image, row.annotation, row.what, row.reason)
            for row in each.rows
            if row.inspected
        ]
        for each in record.datasets
    ]


def _refuse_problems(problems: Sequence[Problem]) -> None:
    """Raise a ``DataError`` if there are problems."""
    if problems:
        raise DataError(
            f"the data have {len(problems)} problem{'s' if len(problems) > 1 else ''}, the first: "
            f"{problems[0]}; list them with streamseg eval --check, or leave them out with "
            "data.problems: skip"
        )
