"""Masks: equality with pycocotools and full-frame bitmaps, for random shapes and borders."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from scipy import ndimage

from streamseg.errors import MaskError
from streamseg.structures.masks import Mask, Masks, box_iou
from streamseg.structures.rle import parse_counts

Bitmap = npt.NDArray[np.bool_]


@st.composite
def crops_in_frames(draw: st.DrawFn) -> tuple[Bitmap, tuple[int, int], tuple[int, int]]:
    """Generate a crop, its (x, y) and its frame size; often at a border, tiny, empty or full."""
    height, width = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    y1, y2 = sorted(draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    x1, x2 = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    shape = (y2 - y1, x2 - x1)
    fill = draw(st.sampled_from(["any", "full", "empty"]))
    crop = draw(hnp.arrays(np.bool_, shape)) if fill == "any" else np.full(shape, fill == "full")
    return crop, (x1, y1), (height, width)


def paste(crop: Bitmap, origin: tuple[int, int], size: tuple[int, int]) -> Bitmap:
    full = np.zeros(size, np.bool_)
    x, y = origin
    full[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    return full


def pycocotools_counts(full: Bitmap) -> str:
    return coco_mask.encode(np.asfortranarray(full.astype(np.uint8)))["counts"].decode()


@given(crops_in_frames())
def test_counts_of_a_crop_equal_those_of_the_full_frame(case) -> None:  # type: ignore[no-untyped-def]
    crop, origin, size = case
    masks = Masks.from_crops([crop], [origin], size)
    assert masks.counts[0] == pycocotools_counts(paste(crop, origin, size))


@given(crops_in_frames())
def test_decoded_crop_is_the_tight_part_of_the_full_frame(case) -> None:  # type: ignore[no-untyped-def]
    crop, origin, size = case
    full = paste(crop, origin, size)
    mask = Masks.from_rle([pycocotools_counts(full)], size)[0]
    np.testing.assert_array_equal(mask.to_array(), full)
    assert mask.area == full.sum()
    assert mask.crop.size == 0 or (mask.crop.any(axis=0).any() and mask.crop.any(axis=1).any())
    x, y, w, h = coco_mask.toBbox({"size": list(size), "counts": pycocotools_counts(full)})
    np.testing.assert_array_equal(mask.box, (x, y, x + w, y + h) if full.any() else (0, 0, 0, 0))


@pytest.mark.parametrize(
    "full",
    [
        np.ones((7, 5), np.bool_),
        np.zeros((7, 5), np.bool_),
        np.pad(np.ones((1, 1), np.bool_), ((0, 6), (0, 4))),
        np.pad(np.ones((1, 1), np.bool_), ((6, 0), (4, 0))),
        np.repeat([[True], [False]], [3, 4], axis=0).repeat(5, axis=1),
        np.ones((1, 1), np.bool_),
    ],
    ids=["full", "empty", "first pixel", "last pixel", "upper border", "one-pixel frame"],
)
def test_encoding_and_decoding_are_inverse(full: Bitmap) -> None:
    masks = Masks.from_arrays(full[None])
    assert masks.counts[0] == pycocotools_counts(full)
    assert Masks.from_rle(masks.counts, masks.size) == masks
    np.testing.assert_array_equal(Masks.from_rle(masks.counts, masks.size).to_arrays()[0], full)


@given(crops_in_frames(), st.data())
def test_pairwise_iou_equals_that_of_bitmaps(case, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    crop, origin, size = case
    other = data.draw(hnp.arrays(np.bool_, (2, *size)))
    iou = Masks.from_crops([crop], [origin], size).pairwise_iou(Masks.from_arrays(other))
    full = paste(crop, origin, size)
    union = (full | other).sum(axis=(1, 2))
    expected = np.divide((full & other).sum(axis=(1, 2)), union, out=np.zeros(2), where=union > 0)
    np.testing.assert_allclose(iou[0], expected)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14)))
def test_polygons_cover_the_mask_with_filled_holes(full: Bitmap) -> None:
    polygons = Mask.from_array(full).polygons()
    filled = ndimage.binary_fill_holes(full, structure=np.ones((3, 3)))
    # Polygons outline 4-connected components; one inside the hole of another is covered twice.
    assert len(polygons) == ndimage.label(full)[1] or (full != filled).any()
    drawn = np.zeros(full.shape, np.bool_)
    for polygon in polygons:
        drawn |= rasterize(polygon, full.shape)
    assert (drawn >= full).all()
    labels, count = ndimage.label(full)
    expected = np.zeros(full.shape, np.bool_)
    for part in range(1, count + 1):
        expected |= ndimage.binary_fill_holes(labels == part, structure=np.ones((3, 3)))
    np.testing.assert_array_equal(drawn, expected)


def rasterize(polygon: list[float], shape: tuple[int, ...]) -> Bitmap:
    """Return the pixels whose centers are inside by the even-odd rule."""
    points = np.array(polygon).reshape(-1, 2)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    result = np.zeros(shape, np.bool_)
    for (x1, y1), (_, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y1 != y2:
            result ^= ((y1 > y) != (y2 > y)) & (x < x1)
    return result


@given(st.binary(max_size=40), st.integers(1, 30), st.integers(1, 30))
def test_random_counts_are_refused_or_a_valid_mask(raw: bytes, height: int, width: int) -> None:
    try:
        masks = Masks.from_rle([raw], (height, width))
    except MaskError:
        return
    bitmap = masks.to_arrays()[0]
    assert bitmap.shape == (height, width)
    assert bitmap.sum() == masks[0].area


def test_counts_of_another_frame_size_are_refused() -> None:
    counts = pycocotools_counts(np.eye(8, dtype=np.bool_))
    with pytest.raises(MaskError, match="64 pixels in a frame of 8 x 9"):
        Masks.from_rle([counts], (8, 9))
    with pytest.raises(MaskError, match="over"):
        Masks.from_rle([counts], (100_000, 100_000))


# rleToString of pycocotools allocates six characters per run. Runs below 2**24 need at most five,
# which leaves space for the terminating zero.
@given(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=30))
def test_parsed_counts_equal_the_run_lengths_that_pycocotools_encoded(runs: list[int]) -> None:
    encoded = coco_mask.frPyObjects([{"size": [1, 1], "counts": runs}], 1, 1)[0]["counts"]
    assert encode_counts(runs) == encoded.decode()
    np.testing.assert_array_equal(parse_counts(encoded.decode()), runs)


@given(st.lists(st.integers(0, 2**33), min_size=1, max_size=30))
def test_parsed_counts_equal_encoded_run_lengths_of_up_to_33_bits(runs: list[int]) -> None:
    np.testing.assert_array_equal(parse_counts(encode_counts(runs)), runs)


def encode_counts(runs: list[int]) -> str:
    """Encode run lengths like ``rleToString`` of the COCO API, without its size limit."""
    characters = []
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        has_more = True
        while has_more:
            digit = value & 31
            value >>= 5
            has_more = value != (-1 if digit & 16 else 0)
            characters.append(chr(48 + (digit | 32 * has_more)))
    return "".join(characters)


def test_rows_are_indexed_like_an_array() -> None:
    masks = Masks.from_arrays(np.eye(4, dtype=np.bool_)[:, None, :].repeat(3, axis=1))
    assert masks[1].box.tolist() == [1, 0, 2, 3]
    assert masks[-1] == masks[3]
    assert masks[[0, 2]].boxes[:, 0].tolist() == [0, 2]
    assert masks[masks.boxes[:, 0] > 1].counts == masks[2:].counts
    empty = masks[[]]
    assert (len(empty), empty.areas.shape, empty.boxes.shape, empty.counts) == (0, (0,), (0, 4), ())
    with pytest.raises(IndexError):
        masks[4]


def test_mask_from_box_is_marked_as_a_box() -> None:
    mask = Mask.from_box([1.4, 1.6, 4.5, 3.0], (5, 6))
    assert mask.is_box
    assert mask.box.tolist() == [1, 2, 4, 3]
    assert Mask.from_box([-5, -5, 100, 100], (5, 6)).area == 30
    assert Mask.from_box([3, 3, 3, 3], (5, 6)).area == 0
    concatenated = Masks.concatenate(
        [Masks.from_boxes([[0, 0, 2, 2]], (5, 6)), Masks.empty((5, 6))]
    )
    assert concatenated.from_box.tolist() == [True]


def test_overlapping_pairs_have_an_iou_above_the_limit() -> None:
    bitmaps = np.zeros((2, 3, 3), np.bool_)
    bitmaps[0, [0, 1, 2], [0, 1, 2]] = True
    bitmaps[1, [0, 1, 2], [0, 1, 0]] = True
    bitmaps[1, 1, 2] = bitmaps[0, 1, 2] = True  # three of five pixels in common
    masks = Masks.from_arrays(bitmaps)
    assert list(masks.overlapping_pairs(0.59)) == [(0, 1)]
    assert list(masks.overlapping_pairs(0.6)) == []


@pytest.mark.parametrize("counts", ["o" * 7 + "0", "o" * 8 + "0"])
def test_run_length_of_more_than_35_bits_is_refused(counts: str) -> None:
    with pytest.raises(MaskError, match="35 bits"):
        parse_counts(counts)


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 4), np.float32), np.zeros((0, 2), np.int64)])
def test_no_crops_and_no_boxes_are_no_masks(nothing: npt.ArrayLike) -> None:
    for masks in (Masks.from_crops([], nothing, (8, 12)), Masks.from_boxes(nothing, (8, 12))):
        assert len(masks) == len(masks.boxes) == len(masks.areas) == 0
        assert masks.size == (8, 12)


def test_crops_beyond_the_frame_are_refused() -> None:
    with pytest.raises(MaskError, match="beyond its frame"):
        Masks.from_crops([np.ones((3, 3), np.bool_)], [(4, 4)], (6, 6))
    with pytest.raises(MaskError, match="bool"):
        Masks.from_crops([np.ones((3, 3))], [(0, 0)], (6, 6))  # type: ignore[list-item]


def test_box_iou_handles_empty_boxes() -> None:
    a = np.array([[0, 0, 2, 2], [5, 5, 5, 5]])
    b = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 5, 5]])
    np.testing.assert_allclose(box_iou(a, b), [[1 / 7, 1, 0], [0, 0, 0]])
    assert box_iou(a[:0], b).shape == (0, 3)
