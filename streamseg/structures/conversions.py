"""Conversion of instances to the data structures of pandas and supervision.

Both packages are optional and imported when a conversion is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from streamseg.errors import MissingExtraError
from streamseg.structures.coco import NOT_TRACKED

if TYPE_CHECKING:
    from streamseg.structures.results import Instances


def to_pandas(instances: Instances) -> Any:
    """Convert to a ``pandas.DataFrame``, see :meth:`Instances.to_pandas`."""
    pandas = _import_package("pandas")
    x1, y1, x2, y2 = instances.boxes.T
    return pandas.DataFrame(
        {
            "track_id": instances.track_ids,
            "label": instances.labels,
            "name": instances.names,
            "score": instances.scores,
            "x1": x1,
            "y1": y1,
            "x2": x2,
            "y2": y2,
            "area": instances.masks.areas,
            "rle": list(instances.masks.counts),
        }
    )


def to_supervision(instances: Instances) -> Any:
    """Convert to ``supervision.Detections``, see :meth:`Instances.to_supervision`."""
    supervision = _import_package("supervision")
    is_tracked = bool((instances.track_ids != NOT_TRACKED).any())
    return supervision.Detections(
        xyxy=instances.boxes.copy(),
        mask=instances.masks.to_arrays(),
        confidence=instances.scores.copy(),
        class_id=instances.labels.copy(),
        tracker_id=instances.track_ids.copy() if is_tracked else None,
        data={"class_name": np.array(instances.names, dtype=str)},
    )


def _import_package(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # a dependency of the package is missing
            raise
        raise MissingExtraError(f"{name} isn't installed: pip install {name}", name=name) from None
