"""The nouns: a frame, the instances found in it, and the result that says both.

All are frozen. Coordinates are pixels of the frame as it came from the source, boxes are
``x1, y1, x2, y2`` with exclusive right and lower edges, sizes are (height, width).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from streamseg.errors import MaskError, StreamsegError
from streamseg.masks import RLE, BoolArray, FloatArray, IntArray, Mask, Masks, Size, row_index
from streamseg.pickling import PickledByFields

Image: TypeAlias = npt.NDArray[np.uint8]
SegmentMap: TypeAlias = npt.NDArray[np.int32]
SOURCE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
NOT_TRACKED = -1
MAX_SEGMENT_ID = 2**24 - 1
"""What three bytes hold: in COCO's PNGs a pixel is R + 256 G + 65536 B."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame(PickledByFields):
    """One picture of one source, with where and when it was taken.

    Attributes:
        source: the source's name, ``[A-Za-z0-9._-]{1,64}``.
        index: which frame of the source it is, from 0, counting those that were skipped.
        epoch: goes up by one at each reconnection or jump in time; identities don't cross it.
        pts: seconds, from the source's own time base.
        captured_at: Unix seconds when it was decoded.
        monotonic: ``time.monotonic()`` at the same moment; ages are computed on it.
        image: uint8 (H, W, 3) RGB, upright, read-only.
        item: the file's name, where the source is a folder of images.
        pixel_aspect: width of a pixel over its height.
    """

    source: str
    index: int
    epoch: int
    pts: float
    captured_at: float
    monotonic: float
    image: Image
    item: str | None = None
    pixel_aspect: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        if not SOURCE_NAME.fullmatch(self.source):
            raise StreamsegError(
                f"source name {self.source!r}: use 1 to 64 letters, digits, dots, dashes and _"
            )
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise StreamsegError(
                f"a frame's image must be uint8 (H, W, 3), not {self.image.dtype} "
                f"{self.image.shape}"
            )
        if not math.isfinite(self.pts):
            raise StreamsegError(f"{self.source}: frame {self.index} has no time")
        self.image.flags.writeable = False

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Instances(PickledByFields):
    """N objects in one frame, one column a property; all columns have N rows.

    Takes slices, index arrays and boolean arrays like an array does.

    Attributes:
        boxes: float32 (N, 4) xyxy.
        scores: float32 (N,), in 0 to 1.
        labels: int64 (N,), category ids as the dataset has them.
        masks: the N masks, in a frame of ``size``.
        categories: the name of each category id.
        track_ids: int64 (N,), -1 where there is no identity.
        features: float32 (N, D) appearance for the tracker, or None; never on the wire.
    """

    boxes: FloatArray
    scores: FloatArray
    labels: IntArray
    masks: Masks
    categories: Mapping[int, str]
    track_ids: IntArray = field(default=cast(IntArray, None))
    features: FloatArray | None = None

    def __post_init__(self) -> None:
        rows = len(self.masks)
        ids = np.full(rows, NOT_TRACKED) if self.track_ids is None else self.track_ids
        columns: dict[str, npt.NDArray[Any]] = {
            "boxes": np.asarray(self.boxes, np.float32).reshape(-1, 4),
            "scores": np.asarray(self.scores, np.float32),
            "labels": np.asarray(self.labels, np.int64),
            "track_ids": np.asarray(ids, np.int64),
        }
        if self.features is not None:
            columns["features"] = np.asarray(self.features, np.float32)
        for name, column in columns.items():
            if len(column) != rows:
                raise StreamsegError(f"{name} has {len(column)} rows, masks has {rows}")
            if not np.isfinite(column).all():
                raise StreamsegError(f"{name} holds a value that isn't finite")
            object.__setattr__(self, name, column)

    @classmethod
    def empty(cls, size: Size, categories: Mapping[int, str]) -> Instances:
        """No objects in a frame of ``size``."""
        none = np.zeros(0)
        return cls(np.zeros((0, 4)), none, none, Masks.empty(size), categories)  # type: ignore[arg-type]

    @classmethod
    def from_coco(
        cls, rows: Sequence[Mapping[str, Any]], size: Size, names: Mapping[int, str]
    ) -> Instances:
        """From one image's COCO results: ``bbox`` (xywh), ``score``, ``category_id``, and masks.

        A row without a segmentation is given as its box and flagged; ``track_id`` is taken if
        there is one.

        Raises:
            MaskError: a segmentation isn't run lengths of a frame of ``size``.
        """
        corners = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
        masks = [_mask_from_coco(row, box, size) for row, box in zip(rows, boxes, strict=True)]
        return cls(
            boxes.astype(np.float32),
            np.array([row.get("score", 1.0) for row in rows], np.float32),
            np.array([row["category_id"] for row in rows], np.int64),
            Masks.concatenate([Masks.empty(size), *masks]),
            names,
            np.array([row.get("track_id", NOT_TRACKED) for row in rows], np.int64),
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results, one dict a row, of plain Python values."""
        extents = self.boxes[:, 2:] - self.boxes[:, :2]
        corners = np.concatenate([self.boxes[:, :2], extents], axis=1)
        columns = zip(
            corners.tolist(),
            self.scores.tolist(),
            self.labels.tolist(),
            self.masks.to_rle(),
            self.track_ids.tolist(),
            strict=True,
        )
        return [
            {
                "image_id": image_id,
                "category_id": label,
                "bbox": box,
                "score": score,
                "segmentation": rle,
            }
            | ({} if track == NOT_TRACKED else {"track_id": track})
            for box, score, label, rle, track in columns
        ]

    @property
    def size(self) -> Size:
        """(height, width) of the frame."""
        return self.masks.size

    @property
    def names(self) -> list[str]:
        """The N category names; an id that ``categories`` doesn't know is its number."""
        return [self.categories.get(label, str(label)) for label in self.labels.tolist()]

    def with_track_ids(self, track_ids: npt.ArrayLike) -> Instances:
        """The same rows with identities, int (N,)."""
        return replace(self, track_ids=np.asarray(track_ids, np.int64))

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, rows: slice | npt.NDArray[Any] | Sequence[int]) -> Instances:
        picked = row_index(rows, len(self))
        return Instances(
            self.boxes[picked],
            self.scores[picked],
            self.labels[picked],
            self.masks[picked],
            self.categories,
            self.track_ids[picked],
            None if self.features is None else self.features[picked],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Segment(PickledByFields):
    """One part of a panoptic result: a thing or a patch of stuff.

    Attributes:
        id: its number in the frame, from 1.
        label: category id.
        name: the category's.
        thing: false for stuff.
        mask: its pixels, which no other part has.
    """

    id: int
    label: int
    name: str
    thing: bool
    mask: Mask


def segment_map(segments: Iterable[Segment], size: Size) -> SegmentMap:
    """Which part each pixel of a frame belongs to.

    Args:
        segments: parts that don't overlap.
        size: (height, width) of the frame.

    Returns:
        int32 (H, W) of ids; 0 where there is none.

    Raises:
        StreamsegError: an id isn't from 1 to ``MAX_SEGMENT_ID``.
    """
    ids = np.zeros(size, np.int32)
    for segment in segments:
        if not 0 < segment.id <= MAX_SEGMENT_ID:
            raise StreamsegError(f"segment {segment.id}: ids go from 1 to {MAX_SEGMENT_ID}")
        x1, y1, x2, y2 = segment.mask.window
        ids[y1:y2, x1:x2][segment.mask.crop] = segment.id
    return ids


@dataclass(frozen=True, slots=True, eq=False)
class Result(PickledByFields):
    """What is known of one frame.

    Attributes:
        frame: the frame itself.
        instances: what was found in it, with identities once the tracker has seen it.
        model: the name of the model that found it.
        timing: milliseconds spent, by stage.
        segments: the panoptic parts, None for a model that has none.
    """

    frame: Frame
    instances: Instances
    model: str
    timing: Mapping[str, float] = field(default_factory=dict)
    segments: tuple[Segment, ...] | None = None

    @property
    def source(self) -> str:
        """The name of the source."""
        return self.frame.source


def _mask_from_coco(row: Mapping[str, Any], box: npt.NDArray[Any], size: Size) -> Masks:
    segmentation = row.get("segmentation")
    if not segmentation:
        return Masks.from_boxes(box, size)
    rle = cast(RLE, segmentation)
    if not isinstance(rle, Mapping) or not isinstance(rle["counts"], str | bytes):
        raise MaskError("a segmentation must be compressed run lengths {size, counts}")
    if tuple(rle["size"]) != tuple(size):
        raise MaskError(f"a segmentation of {rle['size']} in a frame of {list(size)}")
    return Masks.from_rle([rle["counts"]], size)


__all__ = [
    "BoolArray",
    "FloatArray",
    "Frame",
    "Image",
    "Instances",
    "IntArray",
    "Result",
    "Segment",
    "SegmentMap",
    "Size",
    "segment_map",
]
