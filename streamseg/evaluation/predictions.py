"""Predictions of a model on a dataset: COCO results and panoptic quality."""

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
    dataset_to_coco,
    load_image,
    load_segment_ids,
)
from streamseg.errors import DataError
from streamseg.evaluation.coco_ap import CocoScores, evaluate_coco
from streamseg.evaluation.coco_rows import CocoDict, IouType
from streamseg.evaluation.panoptic_quality import (
    PanopticCategory,
    PanopticEvaluator,
    PanopticMap,
    PanopticScores,
    SegmentInfo,
)
from streamseg.models.base import Segmenter
from streamseg.structures.results import Instances, Segment, draw_segment_map

MAX_LISTED_NAMES = 5
"""Class names that an error message lists."""


@dataclass(frozen=True, slots=True)
class ClassMatch:
    """Classes of a model matched by name with those of a dataset.

    Attributes:
        dataset_ids: the dataset's category id, by the model's category id.
        only_in_model: names that the model has and the dataset doesn't annotate.
        only_in_dataset: names that the dataset annotates and the model doesn't have.
    """

    dataset_ids: Mapping[int, int]
    only_in_model: tuple[str, ...]
    only_in_dataset: tuple[str, ...]


def match_classes(categories: Mapping[int, str], dataset: Dataset) -> ClassMatch:
    """Match a model's categories by name with the classes that a dataset annotates.

    Raises:
        DataError: they have no name in common.
    """
    annotated = {dataset.categories[number]: number for number in dataset.annotated}
    ids = {number: annotated[name] for number, name in categories.items() if name in annotated}
    names = tuple(categories.values())
    if not ids:
        raise DataError(
            f"{dataset.name}: the model has none of its classes: {_list_names(list(annotated))}; "
            f"the model's classes are {_list_names(names)}"
        )
    return ClassMatch(
        ids,
        tuple(name for name in names if name not in annotated),
        tuple(name for name in annotated if name not in names),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Predictions on a dataset.

    Attributes:
        results: COCO results under the dataset's category ids.
        panoptic: panoptic quality; None if the model or the dataset has no stuff.
    """

    results: Sequence[CocoDict]
    panoptic: PanopticScores | None


class PredictionCollector:
    """Collects a model's predictions on a dataset, image by image.

    Panoptic segments are matched by class name, as instances are. Segments of a class that the
    model doesn't have are missed; predicted segments of a class that the dataset doesn't have are
    left out, so that their pixels are void.

    Args:
        model: the model.
        dataset: the dataset.

    Raises:
        DataError: they have no class in common.
    """

    def __init__(self, model: Segmenter, dataset: Dataset) -> None:
        self._dataset_ids = match_classes(model.categories, dataset).dataset_ids
        self._results: list[CocoDict] = []
        self._dataset = dataset
        names = {**dataset.categories, **dataset.stuff}
        self._category_ids = {name: number for number, name in names.items()}
        self._panoptic: PanopticEvaluator | None = None
        if model.stuff and dataset.stuff:
            self._panoptic = PanopticEvaluator(
                [PanopticCategory(n, name, n in dataset.categories) for n, name in names.items()]
            )

    def add(
        self, image: AnnotatedImage, instances: Instances, segments: Sequence[Segment] | None
    ) -> None:
        """Add the predictions on one image.

        Raises:
            DataError: the panoptic ground truth can't be read, or its PNG and JSON don't agree.
        """
        self._results += self._make_results(instances, image.id)
        if self._panoptic is not None:
            truth = self._make_true_map(image)
            self._panoptic.add(truth, self._make_predicted_map(image, segments or ()))

    def predictions(self) -> Predictions:
        """Return the predictions on all images so far."""
        scores = None if self._panoptic is None else self._panoptic.scores()
        return Predictions(self._results, scores)

    def _make_results(self, instances: Instances, image_id: Id) -> list[dict[str, Any]]:
        """Return COCO results; classes that the dataset doesn't annotate are left out."""
        kept = np.flatnonzero(np.isin(instances.labels, list(self._dataset_ids)))
        return [
            row | {"image_id": image_id, "category_id": self._dataset_ids[row["category_id"]]}
            for row in instances[kept].to_coco(0)
        ]

    def _make_true_map(self, image: AnnotatedImage) -> PanopticMap:
        annotations = (*image.annotations, *image.stuff)
        segments = [
            SegmentInfo(each.segmentation.value, each.category_id, each.crowd)
            for each in annotations
            if isinstance(each.segmentation, PngSegment)
        ]
        label = f"{self._dataset.name}, image {image.id}"
        return PanopticMap(load_segment_ids(image), segments, label)

    def _make_predicted_map(
        self, image: AnnotatedImage, segments: Sequence[Segment]
    ) -> PanopticMap:
        known = [segment for segment in segments if segment.name in self._category_ids]
        return PanopticMap(
            draw_segment_map(known, image.size),
            [SegmentInfo(segment.id, self._category_ids[segment.name]) for segment in known],
            f"{self._dataset.name}, image {image.id}, predictions",
        )


def predict_dataset(
    model: Segmenter,
    dataset: Dataset,
    thresholds: Thresholds,
    *,
    batch: int,
    progress: Callable[[str, int, int | None], None],
) -> Predictions:
    """Run a model on every image of a dataset.

    Args:
        model: the model.
        dataset: the dataset; its images are read one batch at a time.
        thresholds: thresholds of the predictions.
        batch: maximum number of images in a forward pass.
        progress: called with (dataset name, images done, images in total).

    Raises:
        DataError: an image or its ground truth can't be read, or model and dataset have no class
            in common.
    """
    collector = PredictionCollector(model, dataset)
    for start in range(0, len(dataset.images), batch):
        images = dataset.images[start : start + batch]
        prepared = model.prepare([load_image(image) for image in images])
        predictions = model.postprocess(model.forward(prepared, thresholds))
        for image, prediction in zip(images, predictions, strict=True):
            collector.add(image, prediction.instances, prediction.segments)
        progress(dataset.name, start + len(images), len(dataset.images))
    return collector.predictions()


def make_ground_truth(dataset: Dataset) -> CocoDict:
    """Return the ground truth of the classes that the dataset annotates in every image.

    Other classes can't be evaluated: their objects may be in an image without an annotation.
    """
    ground_truth = dataset_to_coco(dataset)
    categories = [row for row in ground_truth["categories"] if row["id"] in dataset.annotated]
    return ground_truth | {"categories": categories}


def score_dataset(dataset: Dataset, results: Sequence[CocoDict]) -> tuple[CocoScores, ...]:
    """Return the COCO scores on boxes, and on masks if any annotation has a mask."""
    ground_truth = make_ground_truth(dataset)
    has_masks = any(
        annotation.segmentation is not None
        for image in dataset.images
        for annotation in image.annotations
    )
    iou_types: tuple[IouType, ...] = ("boxes", "masks") if has_masks else ("boxes",)
    return tuple(evaluate_coco(ground_truth, results, iou_type) for iou_type in iou_types)


def _list_names(names: Sequence[str]) -> str:
    more = ", …" if len(names) > MAX_LISTED_NAMES else ""
    return ", ".join(names[:MAX_LISTED_NAMES]) + more
