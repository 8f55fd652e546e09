"""One way to every format: a dataset's section of the config becomes a ``Dataset``, or is refused.

Sound is what has no problem that can be found without opening a picture: opening them all takes
minutes for a large dataset, and :func:`~streamseg.data.check.check` does it once for all. One that
is damaged all the same is refused when it is loaded.
"""

from __future__ import annotations

from pathlib import Path

from streamseg.data.coco import read_coco
from streamseg.data.dataset import Dataset
from streamseg.data.findings import Findings
from streamseg.data.instance_png import read_instance_png
from streamseg.data.panoptic import read_panoptic
from streamseg.data.pattern import read_pattern
from streamseg.errors import DataError
from streamseg.recipe import (
    CocoData,
    DatasetConfig,
    InstancePngData,
    PanopticData,
)


def open_dataset(config: DatasetConfig, root: Path) -> Dataset:
    """The dataset that a section of the config names.

    Args:
        config: its format and where it is.
        root: the folder that its paths are relative to.

    Raises:
        DataError: it can't be read, is empty, or something in it is wrong.
        ConfigError: ``annotated`` names a category that there isn't, or a pattern's url is wrong.
        TooLargeError: a pattern's frames have more pixels than the limit.
    """
    findings = Findings(name_of(config))
    dataset = read_dataset(config, root, findings)
    if findings.problems:
        count = len(findings.problems)
        raise DataError(
            f"{dataset.name}: {count} problem{'s' if count > 1 else ''}, the first: "
            f"{findings.problems[0].located}; list them with streamseg eval --check FILE"
        )
    return dataset


def read_dataset(
    config: DatasetConfig, root: Path, findings: Findings, *, thorough: bool = False
) -> Dataset:
    """What can be read of a dataset; see :func:`open_dataset` for what makes it unreadable.

    Args:
        config: its format and where it is.
        root: the folder that its paths are relative to.
        findings: where everything that is wrong with it goes; what is wrong is left out.
        thorough: open the PNGs of masks, too, where the format doesn't need them anyway.
    """
    if isinstance(config, CocoData):
        dataset = read_coco(config, root, findings)
    elif isinstance(config, PanopticData):
        dataset = read_panoptic(config, root, findings, thorough=thorough)
    elif isinstance(config, InstancePngData):
        dataset = read_instance_png(config, root, findings)
    else:
        dataset = read_pattern(config, findings.dataset)
    if not dataset.images and not findings.problems:
        findings.add("there are no images in it")
    return dataset


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
