"""Everything that is wrong with the datasets of a config, in one list.

Every picture is decoded, with the reader that training uses: what passes can be trained on. A
picture is what it is upright. Where a file's EXIF orientation turns it and the annotations are for
the picture as it is stored, that shows in the size and is said; where the size stays the same
(mirrored, upside down, square) nothing can tell, and it is taken for right.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from streamseg.data.dataset import AnnotatedImage
from streamseg.data.findings import Findings, Problem
from streamseg.data.loading import load_picture
from streamseg.data.opening import name_of, place_of, read_dataset
from streamseg.errors import ConfigError, DataError, TooLargeError
from streamseg.recipe import DataConfig, DatasetConfig


def check(config: DataConfig, folder: Path) -> list[Problem]:
    """All problems of all datasets; none means that they can be trained on and measured with.

    A dataset that can't be read at all is one problem, and the others are checked all the same.
    Where several have one name, their problems name the file or folder, too.

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
        dataset = read_dataset(config, root, findings, thorough=True)
    except (ConfigError, DataError, TooLargeError) as error:
        findings.add(str(error))
        return findings.problems
    for image in dataset.images:
        _check_picture(image, findings)
    return findings.problems


def _check_picture(image: AnnotatedImage, findings: Findings) -> None:
    try:
        load_picture(image)
    except (DataError, TooLargeError) as error:
        findings.add(str(error), image.id)
