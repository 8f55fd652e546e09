"""One way to every format: a dataset's section of the config becomes a ``Dataset``, or is refused.

Sound is what has no problem that can be found without opening an image: opening them all takes
minutes for a large dataset, and :func:`~streamseg.datasets.inspection.inspect` does it. One that is
damaged all the same is refused when it is loaded.
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
from streamseg.datasets.coco import read_coco
from streamseg.datasets.dataset import Dataset
from streamseg.datasets.findings import Findings
from streamseg.datasets.instance_png import read_instance_png
from streamseg.datasets.panoptic import read_panoptic
from streamseg.datasets.test_pattern import read_pattern
from streamseg.errors import DataError


def open_dataset(config: DatasetConfig, root: Path, problems: ProblemPolicy = "refuse") -> Dataset:
    """The dataset that a section of the config names.

    Args:
        config: its format and where it is.
        root: the folder that its paths are relative to.
        problems: ``refuse`` a dataset in which something is wrong, or ``skip`` what is wrong; the
            dataset then says in ``skipped`` what was left out.

    Raises:
        DataError: it can't be read, is empty, or something in it is wrong and isn't skipped.
        ConfigError: ``annotated`` names a category that there isn't, or a pattern's url is wrong.
        TooLargeError: a pattern's frames have more pixels than the limit.
    """
    findings = Findings(name_of(config))
    dataset = read_dataset(config, root, findings)
    found = findings.problems
    if found and problems == "refuse":
        raise DataError(
            f"{dataset.name}: {len(found)} problem{'s' if len(found) > 1 else ''}, the first: "
            f"{found[0].located}; list them with streamseg eval --check FILE, or leave them out "
            "with data.problems: skip"
        )
    if not dataset.images:
        why = f": all have problems, the first: {found[0].located}" if found else ""
        raise DataError(f"{dataset.name}: there are no images in it{why}")
    return replace(dataset, skipped=tuple(found))


def read_dataset(config: DatasetConfig, root: Path, findings: Findings) -> Dataset:
    """What can be read of a dataset; see :func:`open_dataset` for what makes it unreadable.

    Args:
        config: its format and where it is.
        root: the folder that its paths are relative to.
        findings: where everything that is wrong with it goes; what is wrong is left out.
    """
    if isinstance(config, CocoData):
        return read_coco(config, root, findings)
    if isinstance(config, PanopticData):
        return read_panoptic(config, root, findings)
    if isinstance(config, InstancePngData):
        return read_instance_png(config, root, findings)
    return read_pattern(config, findings.dataset)


def name_of(config: DatasetConfig) -> str:
    """How a dataset is called in reports: as the config says, or after its JSON or folder."""
    if config.name:
        return config.name
    place = Path(place_of(config))
    if isinstance(config, CocoData | PanopticData):
        return place.stem
    return place.name if isinstance(config, InstancePngData) else "pattern"


def place_of(config: DatasetConfig) -> str:
    """Where a dataset is: its JSON, the folder of its pictures, or its url."""
    if isinstance(config, CocoData | PanopticData):
        return config.annotations
    return config.images if isinstance(config, InstancePngData) else config.url
