"""Conversion of COCO rows to instances; masks must equal those of pycocotools."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from streamseg import Instances
from streamseg.errors import ArgumentError, MaskError, StreamsegError
from streamseg.structures.coco import read_coco_row

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (23, 31)
ROW = {"category_id": 3, "bbox": [1, 2, 10, 8]}
NAMES = {3: "bolt"}
SQUARE = [[2, 2, 9, 2, 9, 9, 2, 9]]

coordinates = st.one_of(st.integers(-20, 60), st.floats(-40, 80, allow_nan=False))
polygons = st.integers(3, 9).flatmap(
    lambda points: st.lists(coordinates, min_size=2 * points, max_size=2 * points)
)


def pycocotools_bitmap(segmentation, size=SIZE):
    """Decode a segmentation like the COCO class of pycocotools (``annToRLE``)."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, *size)
    else:
        rle = segmentation
    return coco_mask.decode(rle).astype(bool)


def read(*segmentations, size=SIZE, **fields):
    rows = [ROW | {"segmentation": each} | fields for each in segmentations]
    return Instances.from_coco(rows, size, NAMES)


@given(st.lists(polygons, min_size=1, max_size=4))
def test_polygon_masks_equal_those_of_pycocotools(parts):
    instances = read(parts)
    np.testing.assert_array_equal(instances.masks[0].to_array(), pycocotools_bitmap(parts))
    assert instances.masks.from_box.tolist() == [False]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_uncompressed_rle_masks_equal_those_of_pycocotools(runs, size):
    pixels = size[0] * size[1]
    runs_in_frame = np.diff(np.minimum(np.cumsum([0, *runs]), pixels)).tolist()
    filled = [*runs_in_frame, pixels - sum(runs_in_frame)]
    rle = {"size": list(size), "counts": filled}
    np.testing.assert_array_equal(
        read(rle, size=size).masks[0].to_array(), pycocotools_bitmap(rle, size)
    )


def test_polygons_both_kinds_of_rle_and_boxes_can_be_mixed():
    compressed = coco_mask.merge(coco_mask.frPyObjects(SQUARE, *SIZE))
    text = {"size": list(SIZE), "counts": compressed["counts"].decode()}
    runs = {"size": list(SIZE), "counts": [50, 30, SIZE[0] * SIZE[1] - 80]}
    rows = [
        ROW | {"segmentation": SQUARE, "score": 0.5},
        ROW | {"segmentation": compressed, "score": np.float32(0.25)},
        {"category_id": 3, "segmentation": text},
        {"category_id": np.int64(3), "segmentation": runs, "track_id": 7, "iscrowd": 1},
        ROW | {"segmentation": []},
        ROW | {"segmentation": None, "score": None},
        ROW,
    ]
    instances = Instances.from_coco((row for row in rows), list(SIZE), NAMES)
    for row, expected in enumerate((SQUARE, text, text, runs)):
        np.testing.assert_array_equal(instances.masks[row].to_array(), pycocotools_bitmap(expected))
    assert instances.masks.from_box.tolist() == [False] * 4 + [True] * 3
    assert instances.scores.tolist() == [0.5, 0.25, 1, 1, 1, 1, 1]
    assert instances.track_ids.tolist() == [-1, -1, -1, 7, -1, -1, -1]
    assert instances.names == ["bolt"] * 7
    x, y, width, height = coco_mask.toBbox(compressed)
    assert instances.boxes[2].tolist() == [x, y, x + width, y + height]
    assert instances.boxes[0].tolist() == [1, 2, 11, 10]


def test_flat_polygons_and_arrays_are_accepted():
    expected = pycocotools_bitmap(SQUARE)
    for segmentation in (SQUARE[0], tuple(SQUARE[0]), np.array(SQUARE), [np.array(SQUARE[0])]):
        np.testing.assert_array_equal(read(segmentation).masks[0].to_array(), expected)


def test_to_coco_and_from_coco_are_inverse():
    instances = read(SQUARE, {"size": list(SIZE), "counts": [50, 30, SIZE[0] * SIZE[1] - 80]})
    converted = Instances.from_coco(instances.to_coco(1), SIZE, NAMES)
    assert converted.to_coco(1) == instances.to_coco(1)
    assert len(Instances.from_coco([], SIZE, NAMES)) == 0


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2], [3, 4], [5, 6]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, 1e12]],
        [[0, 0, 1e5, 0, 0, 1] * 100],
        [["1", "2", "3", "4", "5", "6"]],
        [SQUARE[0], None],
        [[[1, 2, 3, 4, 5, 6]]],
        {"counts": [713]},
        {"size": list(SIZE)},
        {"size": None, "counts": [713]},
        {"size": [31, 23], "counts": [713]},
        {"size": list(SIZE), "counts": [700]},
        {"size": list(SIZE), "counts": [-1, 714]},
        {"size": list(SIZE), "counts": [0.5, 712.5]},
        {"size": list(SIZE), "counts": [2**70]},
        {"size": list(SIZE), "counts": [[1], [2, 3]]},
        {"size": list(SIZE), "counts": []},
        {"size": list(SIZE), "counts": None},
        {"size": list(SIZE), "counts": "~~~"},
        7,
        "text",
        True,
    ],
    ids=str,
)
def test_invalid_segmentation_is_refused_with_its_row(segmentation):
    with pytest.raises(MaskError, match=r"^row 1: [^\n]+$"):
        Instances.from_coco([ROW, ROW | {"segmentation": segmentation}], SIZE, NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": None}, "row 0 has no category_id"),
        ({"category_id": "3"}, "category_id"),
        ({"category_id": 1.5}, "whole number"),
        ({"category_id": 10**400}, "63 bits"),
        ({"bbox": [1, 2, 3]}, "x, y, width, height"),
        ({"bbox": "abcd"}, "x, y, width, height"),
        ({"bbox": [0, 0, -1, 2]}, "negative"),
        ({"bbox": [0, 0, float("inf"), 2]}, "finite"),
        ({"bbox": [0, 0, 1e300, 2]}, "finite"),
        ({"bbox": None}, "neither a bbox nor a segmentation"),
        ({"score": "high"}, "score"),
        ({"score": float("nan")}, "score"),
        ({"track_id": "a"}, "track_id"),
    ],
)
def test_invalid_field_is_refused_with_its_row(change, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        Instances.from_coco([ROW | change], SIZE, NAMES)
    assert "row 0" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("rows", "size", "names"),
    [
        (None, SIZE, NAMES),
        (5, SIZE, NAMES),
        (ROW, SIZE, NAMES),
        ("rows", SIZE, NAMES),
        ([5], SIZE, NAMES),
        ([ROW], None, NAMES),
        ([ROW], (5,), NAMES),
        ([ROW], (4.5, 5), NAMES),
        ([ROW], (10**6, 10**6), NAMES),
        ([ROW], SIZE, None),
        ([ROW], SIZE, ["bolt"]),
    ],
)
def test_invalid_arguments_are_refused(rows, size, names):
    with pytest.raises(StreamsegError):
        Instances.from_coco(rows, size, names)


def test_parsed_row_cannot_be_changed():
    row = read_coco_row(ROW, 0, SIZE)
    with pytest.raises(FrozenInstanceError):
        row.score = 0.5
