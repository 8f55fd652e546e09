"""Dataset formats: opening the dataset of a config section with the reader for its format.

Only problems that show without opening the images are found here, because opening all images of a
large dataset takes minutes. :func:`~streamseg.datasets.validation.find_file_problems` opens them.
A damaged image raises an error when it is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from streamseg.config.training import (
    CocoData,
    DatasetConfig,
    InstancePngData,
    PanopticData,
    ProblemPolicy,
)
from streamseg.datasets.coco_instances import read_coco
from streamseg.datasets.coco_panoptic import read_panoptic
from streamseg.datasets.dataset import Dataset
from streamseg.datasets.instance_png import read_instance_png
from streamseg.datasets.problems import ProblemReport
from streamseg.datasets.synthetic import read_pattern
from streamseg.errors import DataError


def open_dataset(config: DatasetConfig, root: Path, problems: ProblemPolicy = "refuse") -> Dataset:
    """Open the dataset of a config section.

    Args:
        config: section of the config with format and paths.
        root: the folder that the paths are relative to.
        problems: ``refuse`` a dataset with problems, or ``skip`` the images and annotations with
            problems and list the problems in ``Dataset.skipped``.

    Raises:
        DataError: the dataset can't be read, is empty, or has problems that are not skipped.
        ConfigError: ``annotated`` contains an unknown category, or a pattern's url is wrong.
        TooLargeError: the frames of a pattern have more pixels than the limit.
    """
    report = ProblemReport(get_dataset_name(config))
    dataset = read_dataset(config, root, report)
    found = report.problems
    if found and problems == "refuse":
        raise DataError(
            f"{dataset.name}: {len(found)} problem{'s' if len(found) > 1 else ''}, the first: "
            f"{found[0].description}; list them with streamseg eval --check FILE, or leave them "
            "out with data.problems: skip"
        )
    if not dataset.images:
        reason = f": all have problems, the first: {found[0].description}" if found else ""
        raise DataError(f"{dataset.name}: there are no images in it{reason}")
    return replace(dataset, skipped=tuple(found))


def read_dataset(config: DatasetConfig, root: Path, report: ProblemReport) -> Dataset:
    """Read the valid images and annotations of a dataset.

    Args:
        config: section of the config with format and paths.
        root: the folder that the paths are relative to.
        report: collects the problems; images and annotations with problems are left out.

    Raises:
        DataError, ConfigError, TooLargeError: as :func:`open_dataset`, but not for problems.
    """
    if isinstance(config, CocoData):
        return read_coco(config, root, report)
    if isinstance(config, PanopticData):
        return read_panoptic(config, root, report)
    if isinstance(config, InstancePngData):
        return read_instance_png(config, root, report)
    return read_pattern(config, report.dataset)


def get_dataset_name(config: DatasetConfig) -> str:
    """Return the name for reports: the config's ``name``, or the stem of its JSON or folder."""
    if config.name:
        return config.name
    location = Path(get_dataset_location(config))
    if isinstance(config, CocoData | PanopticData):
        return location.stem
    return location.name if isinstance(config, InstancePngData) else "pattern"


def get_dataset_location(config: DatasetConfig) -> str:
    """Return the path of the JSON or of the folder of images, or the pattern's url."""
    if isinstance(config, CocoData | PanopticData):
        return config.annotations
    return config.images if isinstance(config, InstancePngData) else config.url
