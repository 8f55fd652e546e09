"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), as in panopticapi.

A predicted and a true segment match if they have the same category and an IoU above one half; a
segment has at most one match. All scores are fractions of one. Void pixels of the ground truth
(0 in its PNGs) are removed from unions, and a predicted segment that lies mostly in void or in a
crowd of its category isn't counted as wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamseg.errors import DataError

IdMap: TypeAlias = npt.NDArray[np.integer[Any]]
VOID = 0
"""Id of pixels without a segment."""
MIN_IOU = 0.5
"""IoU above which two segments match; above one half there can be only one match."""


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """Member of ``segments_info``: one segment of an image.

    Attributes:
        id: value of its pixels in the map.
        category_id: its category.
        iscrowd: whether it is a crowd region; ground truth only.
        area: its number of pixels as the file states it; checked in ground truth only.
    """

    id: int
    category_id: int
    iscrowd: bool = False
    area: float | None = None


@dataclass(frozen=True, slots=True)
class SegmentCounts:
    """Counts of one category that panoptic quality is computed from.

    Attributes:
        iou: sum of the IoUs of all matches.
        matched: true positives: true segments with a match.
        wrong: false positives: predicted segments without a match.
        missed: false negatives: true segments without a match.
    """

    iou: float = 0.0
    matched: int = 0
    wrong: int = 0
    missed: int = 0

    def __add__(self, other: SegmentCounts) -> SegmentCounts:
        return SegmentCounts(
            self.iou + other.iou,
            self.matched + other.matched,
            self.wrong + other.wrong,
            self.missed + other.missed,
        )

    @property
    def quality(self) -> Quality | None:
        """PQ, SQ and RQ; None without any segment."""
        if not self.matched + self.wrong + self.missed:
            return None
        weight = self.matched + self.wrong / 2 + self.missed / 2
        return Quality(
            pq=self.iou / weight,
            sq=self.iou / self.matched if self.matched else 0.0,
            rq=self.matched / weight,
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """Panoptic quality and its factors.

    Attributes:
        pq: panoptic quality; the product of SQ and RQ for one category, but not for means.
        sq: segmentation quality, the mean IoU of matches.
        rq: recognition quality, an F1 score.
    """

    pq: float
    sq: float
    rq: float


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """Panoptic quality of one category.

    Attributes:
        category_id: the dataset's category id.
        name: the category's name.
        thing: whether it is a thing; false for stuff.
        tally: the counts.
        quality: None if neither ground truth nor predictions have a segment of it.
    """

    category_id: int
    name: str
    thing: bool
    tally: SegmentCounts
    quality: Quality | None


@dataclass(frozen=True, slots=True)
class PanopticScores:
    """Panoptic quality, as means over the categories that occur; None if none does.

    Attributes:
        all: mean over all categories.
        things: mean over things.
        stuff: mean over stuff.
        classes: every category, ids ascending.
        images: number of images.
    """

    all: Quality | None
    things: Quality | None
    stuff: Quality | None
    classes: tuple[ClassQuality, ...]
    images: int


@dataclass(frozen=True, slots=True, eq=False)
class PanopticMap:
    """Panoptic segmentation of one image.

    Attributes:
        ids: integer (H, W), the segment id of each pixel; 0 is void.
        segments: the segments.
        label: name of the image or file in errors.
    """

    ids: IdMap
    segments: Sequence[SegmentInfo]
    label: str


@dataclass(frozen=True, slots=True)
class PanopticCategory:
    """Category of the ground truth.

    Attributes:
        id: the dataset's category id.
        name: the category's name.
        isthing: whether it is a thing; false for stuff.
    """

    id: int
    name: str
    isthing: bool = True


class PanopticEvaluator:
    """Panoptic quality that is accumulated image by image.

    Args:
        categories: categories of the ground truth.
    """

    def __init__(self, categories: Sequence[PanopticCategory]) -> None:
        self._categories = sorted(categories, key=lambda category: category.id)
        self._counts: defaultdict[int, SegmentCounts] = defaultdict(SegmentCounts)
        self._images = 0

    def add(self, truth: PanopticMap, prediction: PanopticMap) -> None:
        """Match the segments of one image and add the counts.

        Raises:
            DataError: the maps differ in size, or a map doesn't agree with its segments.
        """
        if truth.ids.shape != prediction.ids.shape:
            raise DataError(
                f"{prediction.label}: is {prediction.ids.shape}, but {truth.label} is "
                f"{truth.ids.shape}"
            )
        _check_ids(truth)
        _check_areas(truth)
        _check_ids(prediction)
        for category_id, counts in _count_segments(truth, prediction).items():
            self._counts[category_id] += counts
        self._images += 1

    def scores(self) -> PanopticScores:
        """Return the scores of all images added so far."""
        classes = tuple(
            ClassQuality(category.id, category.name, category.isthing, counts, counts.quality)
            for category in self._categories
            for counts in [self._counts.get(category.id, SegmentCounts())]
        )
        return PanopticScores(
            all=_mean_quality(classes),
            things=_mean_quality(c for c in classes if c.thing),
            stuff=_mean_quality(c for c in classes if not c.thing),
            classes=classes,
            images=self._images,
        )


def _count_segments(truth: PanopticMap, prediction: PanopticMap) -> dict[int, SegmentCounts]:
    """Match the segments of one image and return the counts by category id."""
    overlaps = _intersection_areas(truth.ids, prediction.ids)
    true_areas: Counter[int] = Counter()
    predicted_areas: Counter[int] = Counter()
    for (true_id, predicted_id), area in overlaps.items():
        true_areas[true_id] += area
        predicted_areas[predicted_id] += area
    true_segments = {s.id: s for s in truth.segments if not s.iscrowd}
    predicted_segments = {s.id: s for s in prediction.segments}
    # Of several crowds of one category the last counts, as in panopticapi.
    crowds = {s.category_id: s.id for s in truth.segments if s.iscrowd}
    counts: defaultdict[int, SegmentCounts] = defaultdict(SegmentCounts)
    matched_true, matched_predicted = set(), set()
    for (true_id, predicted_id), area in overlaps.items():
        if true_id not in true_segments or predicted_id not in predicted_segments:
            continue
        # Void is removed from the union, crowds aren't.
        void = overlaps.get((VOID, predicted_id), 0)
        iou = area / (true_areas[true_id] + predicted_areas[predicted_id] - area - void)
        category_id = true_segments[true_id].category_id
        if category_id == predicted_segments[predicted_id].category_id and iou > MIN_IOU:
            matched_true.add(true_id)
            matched_predicted.add(predicted_id)
            counts[category_id] += SegmentCounts(iou=iou, matched=1)
    for segment in true_segments.values():
        if segment.id not in matched_true:
            counts[segment.category_id] += SegmentCounts(missed=1)
    for segment in prediction.segments:
        ignored_ids = {VOID, crowds.get(segment.category_id, VOID)}
        ignored = sum(overlaps.get((id_, segment.id), 0) for id_ in ignored_ids)
        if segment.id not in matched_predicted and ignored <= predicted_areas[segment.id] / 2:
            counts[segment.category_id] += SegmentCounts(wrong=1)
    return counts


def _intersection_areas(true_ids: IdMap, predicted_ids: IdMap) -> dict[tuple[int, int], int]:
    """Return the pixels that each (true id, predicted id) shares; ids are below 2**24."""
    joint = true_ids.astype(np.int64) << 24 | predicted_ids.astype(np.int64)
    pairs, counts = np.unique(joint, return_counts=True)
    keys = zip((pairs >> 24).tolist(), (pairs & (1 << 24) - 1).tolist(), strict=True)
    return dict(zip(keys, counts.tolist(), strict=True))


def _mean_quality(classes: Iterable[ClassQuality]) -> Quality | None:
    qualities = [c.quality for c in classes if c.quality is not None]
    if not qualities:
        return None
    return Quality(
        pq=sum(quality.pq for quality in qualities) / len(qualities),
        sq=sum(quality.sq for quality in qualities) / len(qualities),
        rq=sum(quality.rq for quality in qualities) / len(qualities),
    )


def _check_ids(segmentation: PanopticMap) -> None:
    """Check that the ids of the map and of its segments are the same."""
    listed = Counter(segment.id for segment in segmentation.segments)
    ids = set(np.unique(segmentation.ids).tolist()) - {VOID}
    for id_, times in listed.items():
        if times > 1:
            raise DataError(f"{segmentation.label}: segment {id_} is in segments_info twice")
    if unlisted := ids - set(listed):
        raise DataError(f"{segmentation.label}: segment {min(unlisted)} isn't in segments_info")
    if empty := set(listed) - ids:
        raise DataError(
            f"{segmentation.label}: segment {min(empty)} of segments_info has no pixels"
        )


def _check_areas(segmentation: PanopticMap) -> None:
    """Check the areas in the JSON: panopticapi uses them, so wrong ones would change its scores."""
    values, counts = np.unique(segmentation.ids, return_counts=True)
    pixels: Mapping[int, int] = dict(zip(values.tolist(), counts.tolist(), strict=True))
    for segment in segmentation.segments:
        if segment.area not in (None, pixels[segment.id]):
            raise DataError(
                f"{segmentation.label}: segment {segment.id} has {pixels[segment.id]} pixels, and "
                f"{segment.area:.12g} in segments_info"
            )
