"""Everything that is wrong with the datasets of a config, in one list."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from streamseg.config.training import DataConfig, DatasetConfig
from streamseg.datasets.findings import Fault, Findings, Problem
from streamseg.datasets.inspection import inspect
from streamseg.datasets.opening import name_of, place_of, read_dataset
from streamseg.errors import ConfigError, DataError, TooLargeError


def check(config: DataConfig, folder: Path) -> list[Problem]:
    """All problems of all datasets; none means that they can be trained on and measured with.

    Every image is opened. A dataset that can't be read at all is one problem, and the others are
    checked all the same. Where several have one name, their problems name the file or folder, too.

    Args:
        config: the datasets.
        folder: what its ``root`` is relative to: where the config was read from.
    """
    root = folder / config.root
    sections = list(dict.fromkeys((*config.train, *config.val)))
    names = Counter(name_of(section) for section in sections)
    return [
        problem
        for section in sections
        for problem in _check_dataset(section, root, shared=names[name_of(section)] > 1)
    ]


def _check_dataset(config: DatasetConfig, root: Path, *, shared: bool) -> list[Problem]:
    name = name_of(config)
    findings = Findings(f"{name} ({place_of(config)})" if shared else name)
    try:
        dataset = read_dataset(config, root, findings)
    except (ConfigError, DataError, TooLargeError) as error:
        findings.add(Fault("dataset can't be read", str(error)))
        return findings.problems
    if not dataset.images and not findings.problems:
        findings.add(Fault("dataset is empty", "there are no images in it"))
    found = inspect(replace(dataset, skipped=tuple(findings.problems)))
    return findings.problems + [replace(problem, dataset=findings.dataset) for problem in found]
