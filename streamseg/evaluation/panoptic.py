"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), as panopticapi counts it.

A segment that was found and one that is there are the same where they are of one category and
their intersection over union is above one half; there can be only one such pair. All numbers are
fractions of one. What the truth doesn't say (void, 0 in its PNGs) is taken out of unions, and a
segment that lies mostly in it or in a crowd of its own category is no mistake.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamseg.errors import DataError

IdMap: TypeAlias = npt.NDArray[np.integer[Any]]
Shared: TypeAlias = Mapping[tuple[int, int], int]
"""Pixels of each pair of ids, of a true segment and one that was found."""
VOID = 0
MATCH = 0.5  # above it there can be only one match


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One segment of an image.

    Attributes:
        id: the value of its pixels.
        category_id: what it is.
        iscrowd: whether it stands for many things; in the truth only.
        area: its pixels, as the truth says; results needn't say it, and it isn't used there.
    """

    id: int
    category_id: int
    iscrowd: bool = False
    area: float | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted of one category.

    Attributes:
        iou: the sum of the matches' intersections over unions.
        matched: segments that are there and were found.
        wrong: segments that were found and aren't there.
        missed: segments that are there and weren't found.
    """

    iou: float = 0.0
    matched: int = 0
    wrong: int = 0
    missed: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.iou + other.iou,
            self.matched + other.matched,
            self.wrong + other.wrong,
            self.missed + other.missed,
        )

    @property
    def segments(self) -> int:
        """How many were looked at; without any the category isn't in the means."""
        return self.matched + self.wrong + self.missed

    @property
    def quality(self) -> Quality | None:
        """PQ, SQ and RQ; None without any segments."""
        if not self.segments:
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
        pq: panoptic quality; sq x rq for one category, but not for means over categories.
        sq: segmentation quality, the mean overlap of matches.
        rq: recognition quality, an F1.
    """

    pq: float
    sq: float
    rq: float


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """How well one category is segmented.

    Attributes:
        category_id: the dataset's.
        name: the category's.
        thing: false for stuff.
        tally: what was counted.
        quality: None where neither truth nor results have any.
    """

    category_id: int
    name: str
    thing: bool
    tally: Tally
    quality: Quality | None


@dataclass(frozen=True, slots=True)
class PanopticScores:
    """Means over the categories that occur, None where none does.

    Attributes:
        all: of all categories.
        things: of things.
        stuff: of stuff.
        classes: every category, ids ascending.
        images: how many were compared.
    """

    all: Quality | None
    things: Quality | None
    stuff: Quality | None
    classes: tuple[ClassQuality, ...]
    images: int


@dataclass(frozen=True, slots=True, eq=False)
class PanopticMap:
    """A picture that is divided up.

    Attributes:
        ids: which segment each pixel is of, whole numbers (H, W), 0 is void.
        segments: what they are.
        of: what it is called in errors.
    """

    ids: IdMap
    segments: Sequence[SegmentInfo]
    of: str


@dataclass(frozen=True, slots=True)
class Category:
    """A category of the truth.

    Attributes:
        id: the dataset's.
        name: the category's.
        isthing: False for stuff.
    """

    id: int
    name: str
    isthing: bool = True


class PanopticCount:
    """Compares picture after picture, wherever they come from.

    Args:
        categories: of the truth.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        self._categories = tuple(categories)
        self._tallies: dict[int, Tally] = {}
        self._images = 0

    def add(self, truth: PanopticMap, found: PanopticMap) -> None:
        """Count what of ``truth`` was found.

        Raises:
            DataError: the two are of different sizes, or one says something else than its
                segments; the message says which.
        """
        if truth.ids.shape != found.ids.shape:
            raise DataError(
                f"{found.of}: is {found.ids.shape}, but {truth.of} is {truth.ids.shape}"
            )
        _check_ids(truth)
        _check_areas(truth)
        _check_ids(found)
        counted = count_image(truth.ids, truth.segments, found.ids, found.segments)
        self._tallies = _sum(self._tallies, counted)
        self._images += 1

    def scores(self) -> PanopticScores:
        """What all of them came to."""
        return summarise(self._tallies, self._categories, self._images)


def count_image(
    truth: IdMap,
    truth_segments: Sequence[SegmentInfo],
    found: IdMap,
    found_segments: Sequence[SegmentInfo],
) -> dict[int, Tally]:
    """Compare the segments of one image.

    Args:
        truth: which segment each pixel is of, whole numbers (H, W), 0 is void.
        truth_segments: what they are.
        found: likewise, what was found.
        found_segments: what they are.

    Returns:
        What was counted, by category id.
    """
    shared = _histogram(truth, found)
    there = {segment.id: segment for segment in truth_segments if not segment.iscrowd}
    crowds = {s.category_id: s.id for s in truth_segments if s.iscrowd}  # the last one counts
    matches = _matches(shared, there, {segment.id: segment for segment in found_segments})
    seen, right = {id_ for id_, _ in matches}, {other_id for _, other_id in matches}
    counted = [
        *((there[id_].category_id, Tally(iou=iou, matched=1)) for (id_, _), iou in matches.items()),
        *((s.category_id, Tally(missed=1)) for s in there.values() if s.id not in seen),
        *(
            (s.category_id, Tally(wrong=1))
            for s in found_segments
            if s.id not in right and not _excused(s, shared, crowds)
        ),
    ]
    return reduce(_sum, ({category: tally} for category, tally in counted), {})


def summarise(
    tallies: Mapping[int, Tally], categories: Iterable[Category], images: int
) -> PanopticScores:
    """The scores of what was counted over ``images`` images, by category id."""
    classes = tuple(
        ClassQuality(category.id, category.name, category.isthing, tally, tally.quality)
        for category in sorted(categories, key=lambda category: category.id)
        for tally in [tallies.get(category.id, Tally())]
    )
    return PanopticScores(
        all=_mean(classes),
        things=_mean(c for c in classes if c.thing),
        stuff=_mean(c for c in classes if not c.thing),
        classes=classes,
        images=images,
    )


def _matches(
    shared: Shared, there: Mapping[int, SegmentInfo], found: Mapping[int, SegmentInfo]
) -> dict[tuple[int, int], float]:
    """Which segments are the same, true id first, and their intersection over union."""
    areas, found_areas = _areas(shared, 0), _areas(shared, 1)
    matches = {}
    for (id_, other_id), overlap in shared.items():
        if id_ not in there or other_id not in found:
            continue
        # Only void is taken out of the union, no crowd.
        union = areas[id_] + found_areas[other_id] - overlap - shared.get((VOID, other_id), 0)
        if there[id_].category_id == found[other_id].category_id and overlap / union > MATCH:
            matches[id_, other_id] = overlap / union
    return matches


def _excused(segment: SegmentInfo, shared: Shared, crowds: Mapping[int, int]) -> bool:
    """Whether more than half of what was found lies in void or the crowd of its category."""
    ignored = {VOID, crowds.get(segment.category_id, VOID)}
    within = sum(shared.get((id_, segment.id), 0) for id_ in ignored)
    return within > _areas(shared, 1).get(segment.id, 0) / 2


def _mean(classes: Iterable[ClassQuality]) -> Quality | None:
    there = [c.quality for c in classes if c.quality is not None]
    if not there:
        return None
    return Quality(
        pq=sum(quality.pq for quality in there) / len(there),
        sq=sum(quality.sq for quality in there) / len(there),
        rq=sum(quality.rq for quality in there) / len(there),
    )


def _sum(some: Mapping[int, Tally], more: Mapping[int, Tally]) -> dict[int, Tally]:
    return {
        **some,
        **{category: some.get(category, Tally()) + tally for category, tally in more.items()},
    }


def _histogram(truth: IdMap, found: IdMap) -> dict[tuple[int, int], int]:
    """Pixels of each pair of ids that occurs, true id first; ids are below 2**24."""
    joint = truth.astype(np.int64) << 24 | found.astype(np.int64)
    pairs, counts = np.unique(joint, return_counts=True)
    truths, others = pairs >> 24, pairs & (1 << 24) - 1
    return dict(
        zip(zip(truths.tolist(), others.tolist(), strict=True), counts.tolist(), strict=True)
    )


def _areas(shared: Shared, side: int) -> dict[int, int]:
    """Pixels of each id on one side of the joint histogram."""
    ordered = sorted(shared.items(), key=lambda item: item[0][side])
    return {
        id_: sum(pixels for _, pixels in group)
        for id_, group in groupby(ordered, key=lambda item: item[0][side])
    }


def _check_ids(picture: PanopticMap) -> None:
    listed = Counter(segment.id for segment in picture.segments)
    painted = set(np.unique(picture.ids).tolist()) - {VOID}
    for id_, times in listed.items():
        if times > 1:
            raise DataError(f"{picture.of}: segment {id_} stands in segments_info twice")
    if unlisted := painted - set(listed):
        raise DataError(f"{picture.of}: segment {min(unlisted)} isn't in segments_info")
    if unpainted := set(listed) - painted:
        raise DataError(f"{picture.of}: segment {min(unpainted)} of segments_info has no pixels")


def _check_areas(picture: PanopticMap) -> None:
    """The JSON's areas: panopticapi believes them, and where they differ no number means much."""
    values, counts = np.unique(picture.ids, return_counts=True)
    pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    for segment in picture.segments:
        if segment.area not in (None, pixels[segment.id]):
            raise DataError(
                f"{picture.of}: segment {segment.id} has {pixels[segment.id]} pixels, and "
                f"{segment.area:.12g} in segments_info"
            )
