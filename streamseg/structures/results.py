"""Frames, instances and results.

All classes are frozen. Coordinates are pixels of the source frame. Boxes are ``x1, y1, x2, y2``;
the right and lower bounds are exclusive. Sizes are (height, width).
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

from streamseg.errors import ArgumentError
from streamseg.structures.coco import NOT_TRACKED, read_coco_row
from streamseg.structures.conversions import to_pandas, to_supervision
from streamseg.structures.indexing import row_index, row_number
from streamseg.structures.masks import (
    BoolArray,
    FloatArray,
    IntArray,
    Masks,
    Size,
    check_size,
)
from streamseg.structures.pickling import PickledByFields
from streamseg.structures.segments import MAX_SEGMENT_ID, Segment, SegmentMap, draw_segment_map

Image: TypeAlias = npt.NDArray[np.uint8]
SOURCE_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, eq=False)
class Frame(PickledByFields):
    """One frame of a source.

    Attributes:
        source: source name, ``[A-Za-z0-9._-]{1,64}`` but not ``.`` or ``..``.
        index: index of the frame in the source, from 0; skipped frames are counted.
        epoch: number of the connection, increased by one at each reconnection or jump in time;
            track ids are only comparable within an epoch.
        pts: presentation time in seconds, from the time base of the source.
        captured_at: Unix time of decoding, in seconds.
        monotonic: ``time.monotonic()`` of decoding; used to compute ages.
        image: uint8 (H, W, 3) RGB, upright, read-only.
        item: file name, if the source is a folder of images.
        pixel_aspect: width of a pixel divided by its height.

    Raises:
        ArgumentError: the name, the image or the time is invalid.
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
            raise ArgumentError(
                f"{self.source}: frame {self.index}: pts must be a finite number of seconds"
            )
        self.image.flags.writeable = False

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Instances(PickledByFields):
    """N instances of one frame, stored as columns with N rows each.

    Supports indexing by slices, index arrays and boolean arrays; an integer gives one row, and so
    does iteration.

        people = instances[instances.labels == 1]
        with_high_score = instances[instances.scores > 0.8]

    Attributes:
        boxes: float32 (N, 4) xyxy.
        scores: float32 (N,), 0 to 1.
        labels: int64 (N,), category ids of the dataset.
        masks: N masks in a frame of ``size``.
        categories: category names by id.
        track_ids: int64 (N,), -1 for untracked instances.
        features: float32 (N, D), appearance features for the tracker, or None; not published.

    Raises:
        ArgumentError: a column has a wrong type, shape or length, or a value that is not finite.
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
            "boxes": _to_column("boxes", self.boxes, np.float32, (-1, 4)),
            "scores": _to_column("scores", self.scores, np.float32, (-1,)),
            "labels": _to_column("labels", self.labels, np.int64, (-1,)),
            "track_ids": _to_column("track_ids", ids, np.int64, (-1,)),
        }
        if self.features is not None:
            columns["features"] = _to_column("features", self.features, np.float32, None)
        for name, column in columns.items():
            if len(column) != rows:
                raise ArgumentError(f"{name} has {len(column)} rows, masks has {rows}")
            if not np.isfinite(column).all():
                raise ArgumentError(f"{name} contains a value that isn't finite")
            object.__setattr__(self, name, column)

    @classmethod
    def empty(cls, size: Size, categories: Mapping[int, str]) -> Instances:
        """Return ``Instances`` with no rows, for a frame of ``size``."""
        column = np.zeros(0)
        return cls(np.zeros((0, 4)), column, column, Masks.empty(size), categories)  # type: ignore[arg-type]

    @classmethod
    def from_coco(
        cls, rows: Iterable[Mapping[str, Any]], size: Size, names: Mapping[int, str]
    ) -> Instances:
        """Convert COCO results or annotations of one image.

        Args:
            rows: mappings with a ``category_id`` and a ``segmentation`` (polygons, compressed or
                uncompressed RLE), a ``bbox`` (x, y, width, height) or both. Without a segmentation
                the mask is the box, and is flagged as such; without a bbox the box is that of the
                mask. ``score`` (default 1) and ``track_id`` are optional.
            size: (height, width) of the image.
            names: category names by id.

        Raises:
            ArgumentError: ``rows`` is not a list of mappings, or a field is missing or invalid.
            MaskError: a segmentation is not a mask of a frame of ``size``.
        """
        frame = check_size(size)
        if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
            raise ArgumentError(f"rows must be a list of COCO rows, not {type(rows).__name__}")
        parsed = [read_coco_row(row, number, frame) for number, row in enumerate(rows)]
        return cls(
            np.array([row.box for row in parsed], np.float32).reshape(-1, 4),
            np.array([row.score for row in parsed], np.float32),
            np.array([row.category_id for row in parsed], np.int64),
            Masks.concatenate([Masks.empty(frame), *(row.mask for row in parsed)]),
            names,
            np.array([row.track_id for row in parsed], np.int64),
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Convert to COCO results: one dict of plain Python values per row.

        Args:
            image_id: ``image_id`` of the rows.
        """
        extents = self.boxes[:, 2:] - self.boxes[:, :2]
        xywh = np.concatenate([self.boxes[:, :2], extents], axis=1)
        columns = zip(
            xywh.tolist(),
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

    def to_dict(self) -> dict[str, list[Any]]:
        """Convert to a dict of columns, lists of N plain Python values that JSON can represent.

            >>> instances[:2].to_dict()
            {"track_id": [4, -1], "label": [1, 3], "name": ["person", "car"], "score": [0.9, 0.7],
             "box": [[10.0, 20.0, 50.0, 90.0], [60.0, 20.0, 99.0, 40.0]],
             "segmentation": [{"size": [480, 640], "counts": "fW1…"}, {…}]}

        ``track_id`` is -1 for untracked instances, ``label`` is the category id, ``box`` is x1, y1,
        x2, y2 and ``segmentation`` is COCO RLE. For one dict per row see :meth:`to_coco`.
        """
        return {
            "track_id": self.track_ids.tolist(),
            "label": self.labels.tolist(),
            "name": self.names,
            "score": self.scores.tolist(),
            "box": self.boxes.tolist(),
            "segmentation": [dict(rle) for rle in self.masks.to_rle()],
        }

    def to_pandas(self) -> Any:
        """Convert to a ``pandas.DataFrame`` with one row per instance.

        The columns are ``track_id``, ``label``, ``name``, ``score``, ``x1``, ``y1``, ``x2``,
        ``y2``, ``area`` (pixels) and ``rle`` (COCO counts).

            instances.to_pandas().groupby("name")["area"].mean()

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return to_pandas(self)

    def to_supervision(self) -> Any:
        """Convert to ``supervision.Detections``.

        Masks become full-frame bitmaps, bool (N, H, W). ``tracker_id`` is None if no instance is
        tracked; otherwise untracked instances have -1. Names are in ``data["class_name"]``.

            detections = instances.to_supervision()
            image = supervision.MaskAnnotator().annotate(image, detections)

        Raises:
            MissingExtraError: supervision is not installed.
        """
        return to_supervision(self)

    @property
    def size(self) -> Size:
        """Height and width of the frame in pixels."""
        return self.masks.size

    @property
    def names(self) -> list[str]:
        """Category names, N strings; for an id without a name, the id as text."""
        return [self.categories.get(label, str(label)) for label in self.labels.tolist()]

    def with_track_ids(self, track_ids: npt.ArrayLike) -> Instances:
        """Return a copy with the given track ids, int (N,)."""
        return replace(self, track_ids=cast(IntArray, track_ids))  # converted by the constructor

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, rows: int | slice | npt.NDArray[Any] | Sequence[int]) -> Instances:
        if isinstance(rows, int | np.integer):
            rows = [row_number(rows, len(self))]
        indices = row_index(rows, len(self))
        return Instances(
            self.boxes[indices],
            self.scores[indices],
            self.labels[indices],
            self.masks[indices],
            self.categories,
            self.track_ids[indices],
            None if self.features is None else self.features[indices],
        )


def is_number(value: object) -> bool:
    """Return whether ``value`` is a real number of Python or NumPy, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, eq=False)
class Result(PickledByFields):
    """Result of one frame.

    Attributes:
        frame: the frame.
        instances: its instances; tracked after the tracker stage.
        model: model name.
        timing: milliseconds per stage.
        segments: panoptic segments; None for models without them.
    """

    frame: Frame
    instances: Instances
    model: str
    timing: Mapping[str, float] = field(default_factory=dict)
    segments: tuple[Segment, ...] | None = None

    @property
    def source(self) -> str:
        """Source name."""
        return self.frame.source


def _to_column(name: str, values: Any, dtype: type[Any], shape: tuple[int, ...] | None) -> Any:
    """Convert ``values`` to an array of ``dtype`` and ``shape``, in which -1 is N."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ArgumentError(f"{name} has rows of different lengths") from None
    is_fraction = np.issubdtype(dtype, np.integer) and array.dtype.kind == "f"
    if array.dtype.kind not in "biuf" or (is_fraction and bool((array % 1 != 0).any())):
        raise ArgumentError(f"{name} must be numbers of {np.dtype(dtype)}, not {array.dtype}")
    column = array.astype(dtype, copy=False)
    try:
        return np.atleast_1d(column) if shape is None else column.reshape(shape)
    except ValueError:
        expected = "(N,)" if shape == (-1,) else "(N, 4)"
        raise ArgumentError(f"{name} must be {expected}, not {array.shape}") from None


__all__ = [
    "MAX_SEGMENT_ID",
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
    "draw_segment_map",
    "is_number",
]
