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
from numbers import Real
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from streamseg.errors import ArgumentError, StreamsegError
from streamseg.structures.coco import NOT_TRACKED, read_coco_row
from streamseg.structures.masks import (
    BoolArray,
    FloatArray,
    IntArray,
    Mask,
    Masks,
    Size,
    check_size,
    row_index,
    row_number,
)
from streamseg.structures.pickling import PickledByFields

Image: TypeAlias = npt.NDArray[np.uint8]
SegmentMap: TypeAlias = npt.NDArray[np.int32]
SOURCE_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,64}")
MAX_SEGMENT_ID = 2**24 - 1
"""What three bytes hold: in COCO's PNGs a pixel is R + 256 G + 65536 B."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame(PickledByFields):
    """One picture of one source, with where and when it was taken.

    Attributes:
        source: the source's name, ``[A-Za-z0-9._-]{1,64}`` but not ``.`` or ``..``.
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
        if not isinstance(self.source, str) or not SOURCE_NAME.fullmatch(self.source):
            raise ArgumentError(
                f"source name {self.source!r}: use 1 to 64 letters, digits, dots, dashes and _"
            )
        image = np.asarray(self.image)
        if image is not self.image or image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise ArgumentError(
                f"a frame's image must be uint8 (H, W, 3), not {image.dtype} {image.shape}"
            )
        if not is_number(self.pts) or not math.isfinite(self.pts):
            raise ArgumentError(f"{self.source}: frame {self.index} has no time")
        self.image.flags.writeable = False

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Instances(PickledByFields):
    """N objects in one frame, one column a property; all columns have N rows.

    Takes slices, index arrays and boolean arrays like an array does; an integer gives one row, as
    iterating does.

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
        if not isinstance(self.masks, Masks):
            raise ArgumentError(f"masks must be Masks, not {type(self.masks).__name__}")
        if not isinstance(self.categories, Mapping):
            raise ArgumentError(
                f"categories must map category ids to names, not {type(self.categories).__name__}"
            )
        rows = len(self.masks)
        ids = np.full(rows, NOT_TRACKED) if self.track_ids is None else self.track_ids
        columns = {
            "boxes": _column("boxes", self.boxes, np.float32, (-1, 4)),
            "scores": _column("scores", self.scores, np.float32, (-1,)),
            "labels": _column("labels", self.labels, np.int64, (-1,)),
            "track_ids": _column("track_ids", ids, np.int64, (-1,)),
        }
        if self.features is not None:
            columns["features"] = _column("features", self.features, np.float32, None)
        for name, column in columns.items():
            if len(column) != rows:
                raise ArgumentError(f"{name} has {len(column)} rows, masks has {rows}")
            if not np.isfinite(column).all():
                raise ArgumentError(f"{name} holds a value that isn't finite")
            object.__setattr__(self, name, column)

    @classmethod
    def empty(cls, size: Size, categories: Mapping[int, str]) -> Instances:
        """No objects in a frame of ``size``."""
        none = np.zeros(0)
        return cls(np.zeros((0, 4)), none, none, Masks.empty(size), categories)  # type: ignore[arg-type]

    @classmethod
    def from_coco(
        cls, rows: Iterable[Mapping[str, Any]], size: Size, names: Mapping[int, str]
    ) -> Instances:
        """Return the instances of one image's COCO results or annotations.

        Args:
            rows: each has a ``category_id``, and a ``segmentation`` (polygons, compressed or
                uncompressed run lengths) or a ``bbox`` (x, y, width, height) or both. Without a
                segmentation the box stands for the mask and is flagged; without a box it is the
                tight one of the mask. ``score`` (1 by default) and ``track_id`` are optional.
            size: (height, width) of the image.
            names: the name of each category id.

        Raises:
            ArgumentError: ``rows`` is no list of rows, or a field is missing or of a wrong kind.
            MaskError: a segmentation isn't a mask of a frame of ``size``.
        """
        frame = check_size(size)
        if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
            raise ArgumentError(f"rows must be a list of COCO rows, not {type(rows).__name__}")
        read = [read_coco_row(row, number, frame) for number, row in enumerate(rows)]
        return cls(
            np.array([row.box for row in read], np.float32).reshape(-1, 4),
            np.array([row.score for row in read], np.float32),
            np.array([row.category_id for row in read], np.int64),
            Masks.concatenate([Masks.empty(frame), *(row.mask for row in read)]),
            names,
            np.array([row.track_id for row in read], np.int64),
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
        return replace(self, track_ids=cast(IntArray, track_ids))  # the constructor converts

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, rows: int | slice | npt.NDArray[Any] | Sequence[int]) -> Instances:
        if isinstance(rows, int | np.integer):
            rows = [row_number(rows, len(self))]
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


def is_number(value: object) -> bool:
    """Return whether ``value`` is a real number of Python or numpy, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


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


def _column(name: str, values: Any, dtype: type[Any], shape: tuple[int, ...] | None) -> Any:
    """``values`` as an array of ``dtype``, -1 in ``shape`` being the rows."""
    try:
        given = np.asarray(values)
    except ValueError:
        raise ArgumentError(f"{name} has rows of different lengths") from None
    if given.dtype.kind not in "biuf" or (np.issubdtype(dtype, np.integer) and _rounds(given)):
        raise ArgumentError(f"{name} must be numbers of {np.dtype(dtype)}, not {given.dtype}")
    column = given.astype(dtype, copy=False)
    try:
        return np.atleast_1d(column) if shape is None else column.reshape(shape)
    except ValueError:
        wanted = "(N,)" if shape == (-1,) else "(N, 4)"
        raise ArgumentError(f"{name} must be {wanted}, not {given.shape}") from None


def _rounds(values: npt.NDArray[Any]) -> bool:
    """Whether some of ``values`` are no whole numbers."""
    return bool((values % 1 != 0).any())


__all__ = [
    "NOT_TRACKED",
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
    "is_number",
    "segment_map",
]
