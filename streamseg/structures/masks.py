"""Masks of many objects in one frame, as crops or as COCO run lengths, and never as full frames.

A mask is kept where it is: a small bitmap and the place it sits at, or the run lengths that go on
the wire. Either form is made from the other when it is first asked for, once. A bitmap of the
whole frame exists only where a caller asks for one (``to_array``).

Coordinates are pixels. A box is ``x1, y1, x2, y2`` with the right and lower edges exclusive, so
that a mask of one pixel at (0, 0) has the box (0, 0, 1, 1). ``size`` is (height, width).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypedDict, overload

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from streamseg.errors import ArgumentError, MaskError, RowError
from streamseg.structures.polygons import outer_rings
from streamseg.structures.rle import crop_of, parse_all, parse_counts, run_lengths

BoolArray: TypeAlias = npt.NDArray[np.bool_]
FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
Size: TypeAlias = tuple[int, int]
Polygon: TypeAlias = list[float]

MAX_PIXELS = 64_000_000
"""Frames larger than this are refused before anything is allocated for them."""


class RLE(TypedDict):
    """A COCO run-length encoding: ``size`` is [height, width], ``counts`` the compressed string."""

    size: list[int]
    counts: str


class Masks:
    """The masks of N objects in a frame of ``size``; immutable.

    Rows are taken by integer (a :class:`Mask`), slice, index array or boolean array.

    Attributes:
        size: (height, width) of the frame.
        from_box: bool (N,), true where there was no mask and the object's box stands for it.
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
        """Use the ``from_…`` constructors: they check what they are given, this does not."""
        rows = len(crops) if crops is not None else len(counts or ())
        self.size = size
        self.from_box = np.zeros(rows, np.bool_) if from_box is None else from_box
        self._crops = None if crops is None else tuple(crops)
        self._windows = windows
        self._counts = None if counts is None else tuple(counts)

    @classmethod
    def empty(cls, size: Size) -> Masks:
        """No masks at all."""
        return cls(check_size(size), crops=(), windows=np.zeros((0, 4), np.int64), counts=())

    @classmethod
    def from_crops(cls, crops: Sequence[BoolArray], origins: npt.ArrayLike, size: Size) -> Masks:
        """Masks from bool (h, w) crops whose upper left pixels are at ``origins``, int (N, 2) x, y.

        Raises:
            MaskError: a crop isn't a two-dimensional bool array or reaches out of the frame.
        """
        height, width = check_size(size)
        corners = _numbers("origins", origins, 2, "iu")
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
            raise MaskError(f"a crop reaches out of its frame of {height} x {width}")
        return cls((height, width), crops=crops, windows=windows)

    @classmethod
    def from_arrays(cls, arrays: npt.NDArray[Any], size: Size | None = None) -> Masks:
        """Masks from full-frame bitmaps, (N, H, W); anything that isn't zero is inside."""
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
        """The pixels whose centres lie in each box, float (N, 4) xyxy; flagged ``from_box``."""
        height, width = check_size(size)
        edges = _numbers("boxes", boxes, 4, "iuf").astype(np.float64)
        if not np.isfinite(edges).all():
            raise MaskError("boxes hold a value that isn't finite")
        corners = np.ceil(edges - 0.5).clip(0, (width, height, width, height)).astype(np.int64)
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
        """Masks from COCO's compressed counts; every run is checked before anything is decoded.

        Raises:
            MaskError: the frame is too large, or the runs are malformed or don't fill the frame.
        """
        height, width = check_size(size, max_pixels)
        listed = isinstance(counts, Iterable) and not isinstance(counts, str | bytes)
        if not listed or not all(isinstance(c, str | bytes) for c in counts):
            raise MaskError("counts must be a list of texts, one per mask")
        texts = [c.decode("latin-1") if isinstance(c, bytes) else c for c in counts]
        runs, first = parse_all(texts)
        totals = np.add.reduceat(runs, first) if texts and all(texts) else np.zeros(len(texts))
        # Each run is looked at too: the sum of absurd ones can wrap around to the right one.
        if ((runs < 0) | (runs > height * width)).any() or (totals != height * width).any():
            wrong = next((int(t) for t in totals if t != height * width), height * width)
            raise MaskError(f"run lengths of {wrong} pixels in a frame of {height} x {width}")
        return cls((height, width), counts=texts)

    @classmethod
    def concatenate(cls, parts: Sequence[Masks]) -> Masks:
        """All rows of several ``Masks`` of one frame size, in order."""
        if not isinstance(parts, Iterable) or not all(isinstance(part, Masks) for part in parts):
            raise MaskError("only Masks can be concatenated")
        sizes = {part.size for part in parts}
        if len(sizes) != 1:
            raise MaskError(f"masks of different frame sizes don't go together: {sorted(sizes)}")
        from_box = np.concatenate([part.from_box for part in parts])
        if all(part._counts is not None for part in parts):  # noqa: SLF001 - its own class
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
        picked = row_index(rows, len(self))
        return Masks(
            self.size,
            crops=None if self._crops is None else [self._crops[i] for i in picked],
            windows=None if self._windows is None else self._windows[picked],
            counts=None if self._counts is None else [self._counts[i] for i in picked],
            from_box=self.from_box[picked],
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
        """The N bitmaps, bool (h, w) each, at their ``windows``; don't write into them."""
        if self._crops is None:
            self._decode()
        assert self._crops is not None
        return self._crops

    @property
    def windows(self) -> IntArray:
        """Where the crops sit: int64 (N, 4) xyxy, exclusive at the right and below."""
        if self._windows is None:
            self._decode()
        assert self._windows is not None
        return self._windows

    @property
    def counts(self) -> tuple[str, ...]:
        """COCO's compressed counts of the full frame, one ASCII string a mask."""
        if self._counts is None:
            self._counts = self._encode()
        return self._counts

    @property
    def areas(self) -> IntArray:
        """Pixels in each mask, int64 (N,)."""
        if self._crops is None:
            return np.array([parse_counts(c)[1::2].sum() for c in self.counts], np.int64)
        return np.array([np.count_nonzero(crop) for crop in self._crops], np.int64)

    @property
    def boxes(self) -> FloatArray:
        """The tight box of each mask's pixels, float32 (N, 4) xyxy; zeros for an empty mask."""
        boxes = np.zeros((len(self), 4), np.float32)
        for row, (crop, (x, y, _, _)) in enumerate(zip(self.crops, self.windows, strict=True)):
            window = _tight_window(crop)
            if window[2] > window[0]:
                boxes[row] = np.add(window, (x, y, x, y))
        return boxes

    def to_rle(self) -> list[RLE]:
        """COCO run-length encodings, as pycocotools takes them and JSON can hold them."""
        return [RLE(size=list(self.size), counts=counts) for counts in self.counts]

    def to_arrays(self) -> BoolArray:
        """Full-frame bitmaps, bool (N, H, W): N frames of memory, for offline use."""
        full = np.zeros((len(self), *self.size), np.bool_)
        for row, (crop, (x1, y1, x2, y2)) in enumerate(zip(self.crops, self.windows, strict=True)):
            full[row, y1:y2, x1:x2] = crop
        return full

    def pairwise_iou(self, other: Masks) -> npt.NDArray[np.float64]:
        """Intersection over union of every pair, float64 (N, M); 0 where both are empty."""
        if not isinstance(other, Masks):
            raise MaskError(f"masks can't be compared with {type(other).__name__}")
        if self.size != other.size:
            raise MaskError(f"masks of {self.size} and {other.size} can't be compared")
        shared = _intersections(self, other)
        union = self.areas[:, None] + other.areas[None] - shared
        return _ratio(shared, union)

    def overlapping_pairs(self, iou: float) -> Iterator[tuple[int, int]]:
        """Yield the pairs of rows i < j whose intersection over union is above ``iou``, in order.

        Pixels are compared only for pairs whose areas and windows allow such an overlap.
        """
        low, high = _shared_windows(self, self)
        areas = self.areas
        most = np.maximum(high - low, 0).prod(axis=2)
        most = np.minimum(most, np.minimum(areas[:, None], areas[None]))
        union = areas[:, None] + areas[None]
        for i, j in np.argwhere(np.triu(most > iou * (union - most), 1)).tolist():
            shared = _shared_pixels(self, i, self, j, (*low[i, j], *high[i, j]))
            if shared > iou * (union[i, j] - shared):
                yield i, j

    def _encode(self) -> tuple[str, ...]:
        height, width = self.size
        runs = [
            {"size": [height, width], "counts": run_lengths(crop, int(w[0]), int(w[1]), self.size)}
            for crop, w in zip(self.crops, self.windows, strict=True)
        ]
        encoded = coco_mask.frPyObjects(runs, height, width) if runs else []
        return tuple(rle["counts"].decode("ascii") for rle in encoded)

    def _decode(self) -> None:
        decoded = [crop_of(parse_counts(counts), self.size[0]) for counts in self.counts]
        self._crops = tuple(crop for crop, _ in decoded)
        self._windows = np.array(
            [(x, y, x + crop.shape[1], y + crop.shape[0]) for crop, (x, y) in decoded], np.int64
        ).reshape(-1, 4)


class Mask:
    """One row of a :class:`Masks`: a view, nothing is copied."""

    __slots__ = ("_masks", "_row")

    def __init__(self, masks: Masks, row: int) -> None:
        self._masks = masks
        self._row = row

    @classmethod
    def from_box(cls, box: npt.ArrayLike, size: Size) -> Mask:
        """The pixels whose centres lie in ``box`` (xyxy), flagged as no real mask."""
        return Masks.from_boxes(np.asarray(box)[None], size)[0]

    @classmethod
    def from_array(cls, bitmap: npt.NDArray[Any]) -> Mask:
        """From a full-frame bitmap (H, W); anything that isn't zero is inside."""
        return Masks.from_arrays(np.asarray(bitmap)[None])[0]

    @classmethod
    def from_rle(cls, counts: str | bytes, size: Size) -> Mask:
        """From COCO's compressed counts, checked."""
        return Masks.from_rle([counts], size)[0]

    @property
    def size(self) -> Size:
        """(height, width) of the frame."""
        return self._masks.size

    @property
    def is_box(self) -> bool:
        """True where the object's box stands for a mask that there wasn't."""
        return bool(self._masks.from_box[self._row])

    @property
    def crop(self) -> BoolArray:
        """The bitmap, bool (h, w), at ``window``."""
        return self._masks.crops[self._row]

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Where the crop sits: x1, y1, x2, y2."""
        x1, y1, x2, y2 = (int(edge) for edge in self._masks.windows[self._row])
        return x1, y1, x2, y2

    @property
    def area(self) -> int:
        """Pixels inside."""
        return int(self._masks[[self._row]].areas[0])

    @property
    def box(self) -> FloatArray:
        """The tight box of the pixels, float32 (4,) xyxy; zeros for an empty mask."""
        box: FloatArray = self._masks[[self._row]].boxes[0]
        return box

    def to_array(self) -> BoolArray:
        """The full-frame bitmap, bool (H, W)."""
        bitmap: BoolArray = self._masks[[self._row]].to_arrays()[0]
        return bitmap

    def to_rle(self) -> RLE:
        """COCO's compressed run-length encoding of the full frame."""
        return RLE(size=list(self.size), counts=self._masks.counts[self._row])

    def polygons(self) -> list[Polygon]:
        """The outlines as COCO polygons, [x1, y1, x2, y2, …] along pixel edges.

        One polygon for each part (parts that touch at a corner only are two). Holes are filled,
        because COCO's polygons can't say them: use run lengths where holes matter.
        """
        x, y, _, _ = self.window
        return [
            np.add(ring, (x, y)).ravel().astype(float).tolist() for ring in outer_rings(self.crop)
        ]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.to_rle() == other.to_rle()

    __hash__ = None  # type: ignore[assignment]  # compared by value, and too large to hash

    def __reduce__(self) -> tuple[Any, ...]:
        return Mask, (self._masks[[self._row]], 0)  # not the masks of the whole frame

    def __repr__(self) -> str:
        return f"Mask({self.area} pixels in {self.size[0]} x {self.size[1]})"


def check_size(size: Size, max_pixels: int = MAX_PIXELS) -> Size:
    """Return ``size`` as two positive ints of at most ``max_pixels`` in all.

    Raises:
        MaskError: it is something else.
    """
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise MaskError(f"a size must be (height, width) in pixels, not {size!r}"[:120]) from None
    if height < 1 or width < 1 or height * width > max_pixels:
        raise MaskError(f"a frame of {height} x {width} pixels is empty or over {max_pixels}")
    return height, width


def row_index(rows: slice | npt.NDArray[Any] | Sequence[int], count: int) -> IntArray:
    """Return the row numbers, int64, that a slice, index array or boolean array picks of ``count``.

    Raises:
        RowError: there is no such row.
        ArgumentError: ``rows`` is none of these.
    """
    if isinstance(rows, slice):
        return np.arange(count)[rows]
    try:
        index = np.asarray(rows)
        index = index if index.size else index.astype(np.int64)
        if index.ndim != 1 or index.dtype.kind not in "biu":
            raise ArgumentError(
                "rows are picked by a number, a slice, or a list of numbers or booleans, "
                f"not {type(rows).__name__}"
            )
        picked: IntArray = np.arange(count)[index]
    except IndexError as error:
        raise RowError(f"there are {count} rows: {error}") from None
    return picked


def row_number(row: int | np.integer[Any], count: int) -> int:
    """Return which of ``count`` rows an integer means, from 0; negative ones count from the end.

    Raises:
        RowError: there is no such row.
    """
    if not -count <= row < count:
        raise RowError(f"there is no row {row}: there are {count}")
    return int(row) % count


def box_iou(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Intersection over union of boxes (N, 4) and (M, 4) xyxy, float64 (N, M)."""
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas_a = np.maximum(a[:, 2:] - a[:, :2], 0).prod(axis=1)
    areas_b = np.maximum(b[:, 2:] - b[:, :2], 0).prod(axis=1)
    union = areas_a[:, None] + areas_b[None] - shared
    return _ratio(shared, union)


def _numbers(what: str, values: npt.ArrayLike, columns: int, kinds: str) -> npt.NDArray[Any]:
    """Return ``values`` as an array (N, columns) of numpy's ``kinds`` of numbers."""
    try:
        numbers = np.asarray(values)
        if numbers.size == 0:
            return np.zeros((0, columns), np.int64)
        if numbers.dtype.kind not in kinds and not (numbers % 1 == 0).all():
            raise MaskError(f"{what} must be whole numbers, not {numbers.dtype}")
        return numbers.reshape(-1, columns).astype(np.int64 if kinds == "iu" else numbers.dtype)
    except (TypeError, ValueError) as error:
        if isinstance(error, MaskError):
            raise
        raise MaskError(f"{what} must be numbers, (N, {columns})") from None


def _ratio(
    shared: npt.NDArray[np.float64], union: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """``shared`` over ``union``, 0 where the union is empty."""
    ratio: npt.NDArray[np.float64] = np.divide(
        shared, union, out=np.zeros_like(shared), where=union > 0
    )
    return ratio


def _intersections(a: Masks, b: Masks) -> npt.NDArray[np.float64]:
    """Pixels that each pair shares, (N, M); only pairs whose windows meet are looked at."""
    low, high = _shared_windows(a, b)
    shared = np.zeros((len(a), len(b)))
    for i, j in np.argwhere((high > low).all(axis=2)):
        shared[i, j] = _shared_pixels(a, i, b, j, (*low[i, j], *high[i, j]))
    return shared


def _shared_windows(a: Masks, b: Masks) -> tuple[IntArray, IntArray]:
    """The upper left and lower right corners of what the windows of each pair share, (N, M, 2)."""
    low = np.maximum(a.windows[:, None, :2], b.windows[None, :, :2])
    high = np.minimum(a.windows[:, None, 2:], b.windows[None, :, 2:])
    return low, high


def _shared_pixels(a: Masks, i: int, b: Masks, j: int, window: tuple[int, int, int, int]) -> int:
    """Pixels that row ``i`` of ``a`` and row ``j`` of ``b`` share, all inside ``window``."""
    x1, y1, x2, y2 = window
    ax, ay = a.windows[i, :2]
    bx, by = b.windows[j, :2]
    part_a = a.crops[i][y1 - ay : y2 - ay, x1 - ax : x2 - ax]
    part_b = b.crops[j][y1 - by : y2 - by, x1 - bx : x2 - bx]
    return int(np.count_nonzero(part_a & part_b))


def _tight_window(bitmap: BoolArray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the true pixels; zeros if there are none."""
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
