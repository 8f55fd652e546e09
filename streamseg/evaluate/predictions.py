"""What a model finds in a dataset, as COCO results under the dataset's own category ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamseg.config import Thresholds
from streamseg.data import Dataset, coco_truth, load_picture
from streamseg.errors import DataError
from streamseg.evaluate.coco import CocoScores, evaluate_coco
from streamseg.evaluate.coco_rows import CocoRow, On
from streamseg.models.base import Segmenter
from streamseg.types import Instances


@dataclass(frozen=True, slots=True)
class Classes:
    """How a model's categories and a dataset's go together: by name.

    Attributes:
        dataset_ids: the dataset's id of each of the model's that the dataset has.
        unmeasured: names that the model knows and the dataset doesn't annotate.
        unknown: names that the dataset annotates and the model doesn't know.
    """

    dataset_ids: Mapping[int, int]
    unmeasured: tuple[str, ...]
    unknown: tuple[str, ...]

    @classmethod
    def match(cls, model: Mapping[int, str], dataset: Dataset) -> Classes:
        """Match a model's categories with those of a dataset.

        Raises:
            DataError: they have no name in common.
        """
        annotated = {dataset.categories[number]: number for number in dataset.annotated}
        ids = {number: annotated[name] for number, name in model.items() if name in annotated}
        if not ids:
            raise DataError(
                f"{dataset.name}: the model knows none of its classes: {_some(annotated)}; it "
                f"knows {_some(list(model.values()))}"
            )
        names = set(model.values())
        return cls(
            ids,
            tuple(name for name in model.values() if name not in annotated),
            tuple(name for name in annotated if name not in names),
        )

    def rows(self, instances: Instances, image_id: int) -> list[dict[str, Any]]:
        """COCO results of one picture; classes that the dataset doesn't annotate are left out."""
        kept = np.flatnonzero(np.isin(instances.labels, list(self.dataset_ids)))
        rows = instances[kept].to_coco(image_id)
        return [row | {"category_id": self.dataset_ids[row["category_id"]]} for row in rows]


def predict_dataset(
    model: Segmenter,
    dataset: Dataset,
    thresholds: Thresholds,
    *,
    batch: int,
    progress: Callable[[str, int, int | None], None],
) -> list[dict[str, Any]]:
    """What ``model`` finds in every picture of ``dataset``, as COCO results.

    Args:
        model: finds it.
        dataset: its pictures are read one batch at a time.
        thresholds: for all pictures.
        batch: pictures in a forward, at most.
        progress: told how far it is.

    Raises:
        DataError: a picture can't be read, or the model knows none of the classes.
    """
    classes = Classes.match(model.categories, dataset)
    results: list[dict[str, Any]] = []
    for start in range(0, len(dataset.images), batch):
        chosen = dataset.images[start : start + batch]
        found = model.predict([load_picture(image) for image in chosen], thresholds)
        for image, instances in zip(chosen, found, strict=True):
            results += classes.rows(instances, image.id)
        progress(dataset.name, start + len(chosen), len(dataset.images))
    return results


def measured_truth(dataset: Dataset) -> CocoRow:
    """The truth of the classes that are annotated everywhere; of others it says too little."""
    truth = coco_truth(dataset)
    measured = [row for row in truth["categories"] if row["id"] in dataset.annotated]
    return truth | {"categories": measured}


def score_dataset(dataset: Dataset, results: Sequence[CocoRow]) -> tuple[CocoScores, ...]:
    """How good results are: on boxes, and on masks where any object has more than its box."""
    truth = measured_truth(dataset)
    masked = any(a.segmentation is not None for image in dataset.images for a in image.annotations)
    on: tuple[On, ...] = ("boxes", "masks") if masked else ("boxes",)
    return tuple(evaluate_coco(truth, results, each) for each in on)


def _some(names: Sequence[str] | Mapping[str, int]) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (", …" if len(shown) > 5 else "")
