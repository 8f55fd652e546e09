"""What a model finds in a dataset: COCO results under the dataset's own ids, panoptic quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamseg.config import Thresholds
from streamseg.datasets import (
    AnnotatedImage,
    Dataset,
    Id,
    PngSegment,
    coco_truth,
    load_image,
    load_segment_ids,
)
from streamseg.errors import DataError
from streamseg.evaluation.coco_ap import CocoScores, evaluate_coco
from streamseg.evaluation.coco_rows import CocoRow, On
from streamseg.evaluation.panoptic import (
    Category,
    PanopticCount,
    PanopticMap,
    PanopticScores,
    SegmentInfo,
)
from streamseg.models.base import Segmenter
from streamseg.structures.results import Instances, Segment, segment_map


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

    def rows(self, instances: Instances, image_id: Id) -> list[dict[str, Any]]:
        """COCO results of one picture; classes that the dataset doesn't annotate are left out."""
        kept = np.flatnonzero(np.isin(instances.labels, list(self.dataset_ids)))
        rows = instances[kept].to_coco(0)
        return [
            row | {"image_id": image_id, "category_id": self.dataset_ids[row["category_id"]]}
            for row in rows
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What was found in a dataset.

    Attributes:
        results: COCO's, under the dataset's own category ids.
        panoptic: how good the panoptic parts are; None where model or dataset has no stuff.
    """

    results: Sequence[CocoRow]
    panoptic: PanopticScores | None


class Collector:
    """Takes what is found in a dataset, picture after picture.

    Panoptic parts go by the names of their classes, as instances do. What the model doesn't know
    is missed wherever the dataset has it; parts of classes that the dataset doesn't know are left
    out, which makes their pixels void.

    Args:
        model: finds it.
        dataset: in its pictures.

    Raises:
        DataError: they have no class in common.
    """

    def __init__(self, model: Segmenter, dataset: Dataset) -> None:
        self._classes = Classes.match(model.categories, dataset)
        self._results: list[CocoRow] = []
        self._dataset = dataset
        names = {**dataset.categories, **dataset.stuff}
        self._ids = {name: number for number, name in names.items()}
        self._count: PanopticCount | None = None
        if model.stuff and dataset.stuff:
            self._count = PanopticCount(
                [Category(n, name, n in dataset.categories) for n, name in names.items()]
            )

    def add(
        self, image: AnnotatedImage, instances: Instances, segments: Sequence[Segment] | None
    ) -> None:
        """Take what was found in one picture.

        Raises:
            DataError: the truth can't be read, or PNG and JSON don't agree.
        """
        self._results += self._classes.rows(instances, image.id)
        if self._count is not None:
            self._count.add(self._truth(image), self._found(image, segments or ()))

    def predictions(self) -> Predictions:
        """All that was taken."""
        scores = None if self._count is None else self._count.scores()
        return Predictions(self._results, scores)

    def _truth(self, image: AnnotatedImage) -> PanopticMap:
        annotations = (*image.annotations, *image.stuff)
        segments = [
            SegmentInfo(each.segmentation.value, each.category_id, each.crowd)
            for each in annotations
            if isinstance(each.segmentation, PngSegment)
        ]
        return PanopticMap(load_segment_ids(image), segments, self._name(image))

    def _found(self, image: AnnotatedImage, segments: Sequence[Segment]) -> PanopticMap:
        known = [segment for segment in segments if segment.name in self._ids]
        return PanopticMap(
            segment_map(known, image.size),
            [SegmentInfo(segment.id, self._ids[segment.name]) for segment in known],
            f"{self._name(image)}, what was found",
        )

    def _name(self, image: AnnotatedImage) -> str:
        return f"{self._dataset.name}, image {image.id}"


def predict_dataset(
    model: Segmenter,
    dataset: Dataset,
    thresholds: Thresholds,
    *,
    batch: int,
    progress: Callable[[str, int, int | None], None],
) -> Predictions:
    """What ``model`` finds in every picture of ``dataset``.

    Args:
        model: finds it.
        dataset: its pictures are read one batch at a time.
        thresholds: for all pictures.
        batch: pictures in a forward, at most.
        progress: told how far it is.

    Raises:
        DataError: a picture or its truth can't be read, or the model knows none of the classes.
    """
    found = Collector(model, dataset)
    for start in range(0, len(dataset.images), batch):
        chosen = dataset.images[start : start + batch]
        prepared = model.prepare([load_image(image) for image in chosen])
        predicted = model.postprocess(model.forward(prepared, thresholds))
        for image, prediction in zip(chosen, predicted, strict=True):
            found.add(image, prediction.instances, prediction.segments)
        progress(dataset.name, start + len(chosen), len(dataset.images))
    return found.predictions()


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
