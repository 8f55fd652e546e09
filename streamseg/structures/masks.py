"""Instance masks of one frame, stored as crops or as COCO RLE, never as full-frame bitmaps.

A crop is a small bitmap and its window in the frame. Each form is computed from the other at first
use, once. A full-frame bitmap is created only by ``to_array`` and ``to_arrays``.

Coordinates are pixels. Boxes are ``x1, y1, x2, y2`` with exclusive right and lower bounds: the
box of a mask of one pixel at (0, 0) is (0, 0, 1, 1). ``size`` is (height, width).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypedDict, overload

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from streamseg.errors import MaskError
from streamseg.structures.arrays import (
    MAX_PIXELS,
    BoolArray,
    FloatArray,
    IntArray,
    Size,
    check_size,
    to_numbers,
)
from streamseg.structures.indexing import row_index, row_number
from streamseg.structures.mask_overlap import (
    box_iou,
    intersection_area,
    intersection_areas,
    safe_ratio,
    window_intersections,
)
from streamseg.structures.polygons import trace_outlines
from streamseg.structures.rle import crop_to_runs, parse_all_counts, parse_counts, runs_to_crop

Polygon: TypeAlias = list[float]


class RLE(TypedDict):
    """COCO RLE: ``size`` is [height, width], ``counts`` the compressed string."""

    size: list[int]
    counts: str


class Masks:
    """Masks of N instances in a frame of ``size``; immutable.

    An integer index gives a :class:`Mask`; slices, index arrays and boolean arrays give ``Masks``.

    Attributes:
        size: (height, width) of the frame.
        from_box: bool (N,), true if the mask is the box of an instance without a mask.
    """

    __slots__ = ("_counts", "_crops", "_windows", "from_box", "size")

    def __init__(
        self,
        size: Size,
        *,
        crops: Sequence[BoolArray] | None = None,
        windows: IntArray | None = None,
        counts: Sequence[str] | None = None,
        from_box: BoolArray | None = None,
    ) -> None:
        """Store the given form without checks; use the ``from_…`` constructors instead."""
        rows = len(crops) if crops is not None else len(counts or ())
        self.size = size
        self.from_box = np.zeros(rows, np.bool_) if from_box is None else from_box
        self._crops = None if crops is None else tuple(crops)
        self._windows = windows
        self._counts = None if counts is None else tuple(counts)

    @classmethod
    def empty(cls, size: Size) -> Masks:
        """Return ``Masks`` with no rows."""
        return cls(check_size(size), crops=(), windows=np.zeros((0, 4), np.int64), counts=())

    @classmethod
    def from_crops(cls, crops: Sequence[BoolArray], origins: npt.ArrayLike, size: Size) -> Masks:
        """Create masks from crops.

        Args:
            crops: bool (h, w) bitmaps.
            origins: int (N, 2), x and y of their upper left pixels.
            size: (height, width) of the frame.

        Raises:
            MaskError: a crop is not a two-dimensional bool array or extends beyond the frame.
        """
        height, width = check_size(size)
        corners = to_numbers("origins", origins, 2, "iu")
        if len(corners) != len(crops):
            raise MaskError(f"{len(crops)} crops with {len(corners)} origins")
        for crop in crops:
            if not isinstance(crop, np.ndarray):
                raise MaskError(f"a crop must be a bool array, not {type(crop).__name__}")
            if crop.ndim != 2 or crop.dtype != np.bool_:
                raise MaskError(f"a crop must be bool (h, w), not {crop.dtype} {crop.shape}")
        extents = np.array([crop.shape[::-1] for crop in crops], np.int64).reshape(-1, 2)
        windows = np.concatenate([corners, corners + extents], axis=1)
        if (corners < 0).any() or (windows[:, 2:] > (width, height)).any():
            raise MaskError(f"a crop extends beyond its frame of {height} x {width}")
        return cls((height, width), crops=crops, windows=windows)

    @classmethod
    def from_arrays(cls, arrays: npt.NDArray[Any], size: Size | None = None) -> Masks:
        """Create masks from full-frame bitmaps (N, H, W); nonzero pixels are inside."""
        if not isinstance(arrays, np.ndarray):
            raise MaskError(f"bitmaps must be an array (N, H, W), not {type(arrays).__name__}")
        if arrays.ndim != 3:
            raise MaskError(f"bitmaps must be (N, H, W), not {arrays.shape}")
        bitmaps = arrays.astype(np.bool_)
        windows = [_tight_window(bitmap) for bitmap in bitmaps]
        crops = [
            b[y1:y2, x1:x2].copy() for b, (x1, y1, x2, y2) in zip(bitmaps, windows, strict=True)
        ]
        frame = size or (arrays.shape[1], arrays.shape[2])
        return cls.from_crops(crops, [w[:2] for w in windows], frame)

    @classmethod
    def from_boxes(cls, boxes: npt.ArrayLike, size: Size) -> Masks:
        """Create masks of the pixels whose centers lie in boxes (N, 4); sets ``from_box``."""
        height, width = check_size(size)
        xyxy = to_numbers("boxes", boxes, 4, "iuf").astype(np.float64)
        if not np.isfinite(xyxy).all():
            raise MaskError("boxes contain a value that isn't finite")
        corners = np.ceil(xyxy - 0.5).clip(0, (width, height, width, height)).astype(np.int64)
        extents = np.maximum(corners[:, 2:] - corners[:, :2], 0)
        masks = cls.from_crops(
            [np.ones((h, w), np.bool_) for w, h in extents], corners[:, :2], (height, width)
        )
        masks.from_box = np.ones(len(masks), np.bool_)
        return masks

    @classmethod
    def from_rle(
        cls, counts: Sequence[str | bytes], size: Size, max_pixels: int = MAX_PIXELS
    ) -> Masks:
        """Create masks from compressed COCO counts, which are validated before decoding.

        Args:
            counts: compressed counts, one string per mask.
            size: (height, width) of the frame.
            max_pixels: maximum number of pixels of the frame.

        Raises:
            MaskError: the frame is too large, or the counts are malformed or do not cover it.
        """
        height, width = check_size(size, max_pixels)
        is_list = isinstance(counts, Iterable) and not isinstance(counts, str | bytes)
        if not is_list or not all(isinstance(c, str | bytes) for c in counts):
            raise MaskError("counts must be a list of strings, one per mask")
        texts = [c.decode("latin-1") if isinstance(c, bytes) else c for c in counts]
        runs, first = parse_all_counts(texts)
        totals = np.add.reduceat(runs, first) if texts and all(texts) else np.zeros(len(texts))
        # Each run is checked as well, because the sum of huge runs can overflow to the right total.
        if ((runs < 0) | (runs > height * width)).any() or (totals != height * width).any():
            wrong = next((int(t) for t in totals if t != height * width), height * width)
            raise MaskError(f"run lengths of {wrong} pixels in a frame of {height} x {width}")
        return cls((height, width), counts=texts)

    @classmethod
    def concatenate(cls, parts: Sequence[Masks]) -> Masks:
        """Concatenate ``Masks`` of the same frame size, in order."""
        if not isinstance(parts, Iterable) or not all(isinstance(part, Masks) for part in parts):
            raise MaskError("only Masks can be concatenated")
        sizes = {part.size for part in parts}
        if len(sizes) != 1:
            raise MaskError(
                f"masks of different frame sizes can't be concatenated: {sorted(sizes)}"
            )
        from_box = np.concatenate([part.from_box for part in parts])
        if all(part._counts is not None for part in parts):  # noqa: SLF001 - the same class
            return cls(sizes.pop(), counts=[c for p in parts for c in p.counts], from_box=from_box)
        return cls(
            sizes.pop(),
            crops=[crop for part in parts for crop in part.crops],
            windows=np.concatenate([part.windows for part in parts]),
            from_box=from_box,
        )

    def __len__(self) -> int:
        return len(self.from_box)

    def __iter__(self) -> Iterator[Mask]:
        return (Mask(self, row) for row in range(len(self)))

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> Mask: ...
    @overload
    def __getitem__(self, rows: slice | npt.NDArray[Any] | Sequence[int]) -> Masks: ...
    def __getitem__(
        self, rows: int | np.integer[Any] | slice | npt.NDArray[Any] | Sequence[int]
    ) -> Mask | Masks:
        if isinstance(rows, int | np.integer):
            return Mask(self, row_number(rows, len(self)))
        indices = row_index(rows, len(self))
        return Masks(
            self.size,
            crops=None if self._crops is None else [self._crops[i] for i in indices],
            windows=None if self._windows is None else self._windows[indices],
            counts=None if self._counts is None else [self._counts[i] for i in indices],
            from_box=self.from_box[indices],
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self.size == other.size and self.counts == other.counts

    __hash__ = None  # type: ignore[assignment]  # compared by value, and too large to hash

    def __getstate__(self) -> tuple[Any, ...]:
        return self.size, self._crops, self._windows, self._counts, self.from_box

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.size, self._crops, self._windows, self._counts, self.from_box = state

    def __repr__(self) -> str:
        return f"Masks({len(self)} in {self.size[0]} x {self.size[1]})"

    @property
    def crops(self) -> tuple[BoolArray, ...]:
        """N bitmaps, bool (h, w) each, at their ``windows``; do not modify them."""
        if self._crops is None:
            self._decode()
        assert self._crops is not None
        return self._crops

    @property
    def windows(self) -> IntArray:
        """Windows of the crops in the frame, int64 (N, 4) xyxy."""
        if self._windows is None:
            self._decode()
        assert self._windows is not None
        return self._windows

    @property
    def counts(self) -> tuple[str, ...]:
        """Compressed COCO counts of the full frame, one ASCII string per mask."""
        if self._counts is None:
            self._counts = self._encode()
        return self._counts

    @property
    def areas(self) -> IntArray:
        """Number of pixels of each mask, int64 (N,)."""
        if self._crops is None:
            return np.array([parse_counts(c)[1::2].sum() for c in self.counts], np.int64)
        return np.array([np.count_nonzero(crop) for crop in self._crops], np.int64)

    @property
    def boxes(self) -> FloatArray:
        """Tight boxes of the masks, float32 (N, 4) xyxy; zeros for empty masks."""
        boxes = np.zeros((len(self), 4), np.float32)
        for row, (crop, (x, y, _, _)) in enumerate(zip(self.crops, self.windows, strict=True)):
            window = _tight_window(crop)
            if window[2] > window[0]:
                boxes[row] = np.add(window, (x, y, x, y))
        return boxes

    def to_rle(self) -> list[RLE]:
        """Convert to COCO RLE of the full frame; the dicts can be written as JSON."""
        return [RLE(size=list(self.size), counts=counts) for counts in self.counts]

    def to_arrays(self) -> BoolArray:
        """Convert to full-frame bitmaps, bool (N, H, W); needs the memory of N frames."""
        full = np.zeros((len(self), *self.size), np.bool_)
        for row, (crop, (x1, y1, x2, y2)) in enumerate(zip(self.crops, self.windows, strict=True)):
            full[row, y1:y2, x1:x2] = crop
        return full

    def pairwise_iou(self, other: Masks) -> npt.NDArray[np.float64]:
        """Return the IoU of every pair, float64 (N, M); 0 if both masks are empty."""
        if not isinstance(other, Masks):
            raise MaskError(f"masks can't be compared with {type(other).__name__}")
        if self.size != other.size:
            raise MaskError(f"masks of {self.size} and {other.size} can't be compared")
        intersections = intersection_areas(self, other)
        unions = self.areas[:, None] + other.areas[None] - intersections
        return safe_ratio(intersections, unions)

    def overlapping_pairs(self, iou: float) -> Iterator[tuple[int, int]]:
        """Yield the pairs of rows i < j with an IoU above ``iou``, in order.

        Pixels are only compared for pairs whose areas and windows allow such an IoU.
        """
        low, high = window_intersections(self, self)
        areas = self.areas
        bound = np.maximum(high - low, 0).prod(axis=2)
        bound = np.minimum(bound, np.minimum(areas[:, None], areas[None]))
        total = areas[:, None] + areas[None]
        for i, j in np.argwhere(np.triu(bound > iou * (total - bound), 1)).tolist():
            intersection = intersection_area(self, i, self, j, (*low[i, j], *high[i, j]))
            if intersection > iou * (total[i, j] - intersection):
                yield i, j

    def _encode(self) -> tuple[str, ...]:
        height, width = self.size
        runs = [
            {"size": [height, width], "counts": crop_to_runs(crop, int(w[0]), int(w[1]), self.size)}
            for crop, w in zip(self.crops, self.windows, strict=True)
        ]
        encoded = coco_mask.frPyObjects(runs, height, width) if runs else []
        return tuple(rle["counts"].decode("ascii") for rle in encoded)

    def _decode(self) -> None:
        decoded = [runs_to_crop(parse_counts(counts), self.size[0]) for counts in self.counts]
        self._crops = tuple(crop for crop, _ in decoded)
        self._windows = np.array(
            [(x, y, x + crop.shape[1], y + crop.shape[0]) for crop, (x, y) in decoded], np.int64
        ).reshape(-1, 4)


class Mask:
    """One mask: a view of a row of :class:`Masks`."""

    __slots__ = ("_masks", "_row")

    def __init__(self, masks: Masks, row: int) -> None:
        self._masks = masks
        self._row = row

    @classmethod
    def from_box(cls, box: npt.ArrayLike, size: Size) -> Mask:
        """Create the mask of the pixels whose centers lie in a box (xyxy); sets ``is_box``."""
        return Masks.from_boxes(np.asarray(box)[None], size)[0]

    @classmethod
    def from_array(cls, bitmap: npt.NDArray[Any]) -> Mask:
        """Create a mask from a full-frame bitmap (H, W); nonzero pixels are inside."""
        return Masks.from_arrays(np.asarray(bitmap)[None])[0]

    @classmethod
    def from_rle(cls, counts: str | bytes, size: Size) -> Mask:
        """Create a mask from compressed COCO counts, which are validated."""
        return Masks.from_rle([counts], size)[0]

    @property
    def size(self) -> Size:
        """Height and width of the frame in pixels."""
        return self._masks.size

    @property
    def is_box(self) -> bool:
        """True if the mask is the box of an instance without a mask."""
        return bool(self._masks.from_box[self._row])

    @property
    def crop(self) -> BoolArray:
        """Bitmap inside ``window``, bool (h, w)."""
        return self._masks.crops[self._row]

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Window of the crop in the frame: x1, y1, x2, y2."""
        x1, y1, x2, y2 = (int(bound) for bound in self._masks.windows[self._row])
        return x1, y1, x2, y2

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self._masks[[self._row]].areas[0])

    @property
    def box(self) -> FloatArray:
        """Tight box, float32 (4,) xyxy; zeros for an empty mask."""
        box: FloatArray = self._masks[[self._row]].boxes[0]
        return box

    def to_array(self) -> BoolArray:
        """Convert to a full-frame bitmap, bool (H, W)."""
        bitmap: BoolArray = self._masks[[self._row]].to_arrays()[0]
        return bitmap

    def to_rle(self) -> RLE:
        """Convert to COCO RLE of the full frame."""
        return RLE(size=list(self.size), counts=self._masks.counts[self._row])

    def polygons(self) -> list[Polygon]:
        """Convert to COCO polygons, [x1, y1, x2, y2, …] along pixel borders.

        There is one polygon per 4-connected component. Holes are filled, because COCO polygons
        can't represent them; RLE can.
        """
        x, y, _, _ = self.window
        return [
            np.add(ring, (x, y)).ravel().astype(float).tolist()
            for ring in trace_outlines(self.crop)
        ]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.to_rle() == other.to_rle()

    __hash__ = None  # type: ignore[assignment]  # compared by value, and too large to hash

    def __reduce__(self) -> tuple[Any, ...]:
        return Mask, (self._masks[[self._row]], 0)  # only this row

    def __repr__(self) -> str:
        return f"Mask({self.area} pixels in {self.size[0]} x {self.size[1]})"


def _tight_window(bitmap: BoolArray) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 of the true pixels, or zeros if there are none."""
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


__all__ = [
    "MAX_PIXELS",
    "RLE",
    "BoolArray",
    "FloatArray",
    "IntArray",
    "Mask",
    "Masks",
    "Polygon",
    "Size",
    "box_iou",
    "check_size",
]
