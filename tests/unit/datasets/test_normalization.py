"""Normalization: COCO files that tools write in different ways give the same dataset."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from support.annotations import (
    RECTANGLE,
    SIZE,
    TRIANGLE,
    encode_compressed,
    encode_uncompressed,
    make_coco_content,
    make_panoptic_content,
    rectangle_mask,
    write_coco,
    write_image,
    write_json,
    write_panoptic,
)

from streamseg.datasets import dataset_to_coco, load_sample, open_dataset
from streamseg.datasets.normalization import normalize_id, normalize_segmentation

Change = Callable[[dict[str, Any]], Any]
LISTS = ("images", "annotations", "categories")
IDS = ("id", "image_id", "category_id")


def convert_key(key: str, convert: Callable[[Any], Any]) -> Change:
    """Return a change that converts every value of a key in all three lists."""

    def change(content: dict[str, Any]) -> None:
        for row in (row for name in LISTS for row in content[name]):
            if key in row:
                row[key] = convert(row[key])

    return change


def apply_all(*changes: Change) -> Change:
    return lambda content: [change(content) for change in changes]


def remove_keys(list_name: str, *keys: str) -> Change:
    return lambda content: [row.pop(key, None) for row in content[list_name] for key in keys]


def convert_polygons(convert: Callable[[list[list[float]]], Any]) -> Change:
    """Return a change that converts every segmentation of polygons."""

    def change(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            if isinstance(row.get("segmentation"), list):
                row["segmentation"] = convert(row["segmentation"])

    return change


def convert_rles(convert: Callable[[dict[str, Any]], Any]) -> Change:
    """Return a change that converts every segmentation of run lengths."""

    def change(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            if isinstance(row.get("segmentation"), dict):
                row["segmentation"] = convert(row["segmentation"])

    return change


def to_points(polygon: list[float]) -> list[list[float]]:
    return [list(point) for point in zip(polygon[0::2], polygon[1::2], strict=True)]


EQUIVALENT_CHANGES: dict[str, Change] = {
    "ids as digits": apply_all(*(convert_key(key, str) for key in IDS)),
    "ids with a point": apply_all(*(convert_key(key, float) for key in IDS)),
    "ids as text with a point": apply_all(
        *(convert_key(key, lambda value: f"{value}.0") for key in IDS)
    ),
    "ids with spaces in image_id": convert_key("image_id", lambda value: f" {value} "),
    "sizes as text": apply_all(convert_key("width", str), convert_key("height", "{}.0".format)),
    "no sizes": remove_keys("images", "width", "height"),
    "sizes of zero": apply_all(
        convert_key("width", lambda _: 0), convert_key("height", lambda _: None)
    ),
    "iscrowd as text": convert_key("iscrowd", str),
    "iscrowd as words": convert_key("iscrowd", lambda value: "true" if value else "False"),
    "iscrowd with a point": convert_key("iscrowd", float),
    "iscrowd null where it is 0": convert_key("iscrowd", lambda value: value or None),
    "iscrowd NaN where it is 0": convert_key("iscrowd", lambda value: value or math.nan),
    "areas as text": convert_key("area", "{:.3f}".format),
    "boxes as text": convert_key("bbox", lambda box: [str(number) for number in box]),
    "no annotation ids": remove_keys("annotations", "id"),
    "annotation ids twice": convert_key("id", lambda value: min(value, 100)),
    "keys of other programs": apply_all(
        convert_key("id", int), lambda content: content.update(info={}, licenses=[{"id": "x"}])
    ),
    "polygons as pairs": convert_polygons(
        lambda polygons: [to_points(polygon) for polygon in polygons]
    ),
    "polygons as points": convert_polygons(
        lambda polygons: [[{"x": x, "y": y} for x, y in to_points(polygon)] for polygon in polygons]
    ),
    "polygons as two lists": convert_polygons(
        lambda polygons: [{"all_points_x": r[0::2], "all_points_y": r[1::2]} for r in polygons]
    ),
    "numbers of polygons as text": convert_polygons(
        lambda polygons: [list(map(str, r)) for r in polygons]
    ),
    "stray points next to polygons": convert_polygons(
        lambda polygons: [*polygons, [3.0, 3.0], [2, 2, 4, 4]]
    ),
    "one polygon, not in a list": convert_polygons(
        lambda polygons: polygons[0] if len(polygons) == 1 else polygons
    ),
    "one polygon of pairs": convert_polygons(
        lambda polygons: to_points(polygons[0]) if len(polygons) == 1 else polygons
    ),
    "run lengths with a size as text": convert_rles(lambda rle: rle | {"size": ["16", "20.0"]}),
    "run lengths without a size": convert_rles(lambda rle: {"counts": rle["counts"]}),
    "run lengths in a list": convert_rles(lambda rle: [rle]),
    "run lengths with a point": convert_rles(
        lambda rle: (
            rle
            if isinstance(rle["counts"], str)
            else rle | {"counts": [float(run) for run in rle["counts"]]}
        )
    ),
    "an image listed twice": lambda content: content["images"].append(content["images"][0]),
    "a category listed twice": lambda content: content["categories"].append(
        content["categories"][0]
    ),
}


@pytest.mark.parametrize("kind", EQUIVALENT_CHANGES)
def test_equivalent_files_give_the_same_dataset(tmp_path: Path, kind: str):
    expected = dataset_to_coco(open_dataset(write_coco(tmp_path / "plain"), tmp_path / "plain"))
    content = copy.deepcopy(make_coco_content())
    EQUIVALENT_CHANGES[kind](content)
    found = open_dataset(write_coco(tmp_path / "changed", content), tmp_path / "changed")
    assert found.skipped == ()
    assert sort_annotations(dataset_to_coco(found)) == sort_annotations(expected)


def sort_annotations(truth: dict[str, Any]) -> dict[str, Any]:
    """Return the ground truth with annotations sorted by content, without their ids."""
    rows = [{**row, "id": 0} for row in truth["annotations"]]
    return truth | {"annotations": sorted(rows, key=str)}


def test_text_image_ids_are_kept(tmp_path: Path):
    content = make_coco_content()
    names = {3: "frankfurt_000000", 12: "a7", 40: "0040"}
    for row in content["images"]:
        row["id"] = names[row["id"]]
    for row in content["annotations"]:
        row["image_id"] = names[row["image_id"]]
        row["category_id"] = {7: "cup", 90: "brush"}[row["category_id"]]
    for row in content["categories"]:
        row["id"] = row["name"]
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert [image.id for image in dataset.images] == ["0040", "a7", "frankfurt_000000"]
    assert dict(dataset.categories) == {1: "brush", 2: "cup"}
    assert {row["image_id"] for row in dataset_to_coco(dataset)["annotations"]} == {
        "a7",
        "frankfurt_000000",
    }


def test_ids_with_leading_zeros_match(tmp_path: Path):
    content = make_coco_content()
    for row in content["images"]:
        row["id"] = f"{row['id']:012}"
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert [len(image.annotations) for image in dataset.images] == [3, 3, 0]


def test_missing_boxes_and_areas_are_computed_from_the_masks(tmp_path: Path):
    content = make_coco_content()
    for row in content["annotations"]:
        if "segmentation" in row:
            row["bbox"] = []
            row["area"] = None
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    boxes = [a.box for image in dataset.images for a in image.annotations]
    assert boxes == [
        (2, 2, 10, 8),
        (1, 1, 5, 4),
        (6, 3, 16, 15),
        (0, 0, 20, 5),
        (3.5, 4.5, 8.75, 10.5),
        (2, 2, 18, 15),
    ]
    areas = [a.area for image in dataset.images for a in image.annotations]
    assert areas[:5] == [48, 12, 120, 100, 5.25 * 6]


@pytest.mark.parametrize("empty", [[[]], [[], []], {}, math.nan])
def test_empty_segmentation_is_a_box_only_annotation(tmp_path: Path, empty: Any):
    content = make_coco_content()
    content["annotations"][0]["segmentation"] = empty
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert dataset.images[0].annotations[0].segmentation is None


def test_missing_sizes_are_read_from_the_files_upright(tmp_path: Path):
    content = make_coco_content()
    config = write_coco(tmp_path, content)
    write_image(tmp_path / "images" / "empty.png", (20, 16), orientation=6)
    EQUIVALENT_CHANGES["no sizes"](content)
    write_json(tmp_path / "set.json", content)
    dataset = open_dataset(config, tmp_path)
    assert [image.size for image in dataset.images] == [SIZE, SIZE, SIZE]


def test_equivalent_panoptic_files_give_the_same_dataset(tmp_path: Path):
    expected = open_dataset(write_panoptic(tmp_path / "plain"), tmp_path / "plain")
    content = make_panoptic_content()
    for row in (*content["images"], *content["annotations"]):
        key = "id" if "id" in row else "image_id"
        row[key] = "frankfurt_000000_000294"
    content["annotations"][0]["file_name"] = ".\\a.jpg"
    for segment in content["annotations"][0]["segments_info"]:
        segment |= {"id": str(segment["id"]), "area": float(segment["area"]), "bbox": None}
        segment["category_id"] = f"{segment['category_id']}.0"
    found = open_dataset(write_panoptic(tmp_path / "changed", content), tmp_path / "changed")
    (expected_image,), (image,) = expected.images, found.images
    assert image.id == "frankfurt_000000_000294"
    for one, other in zip(
        (*expected_image.annotations, *expected_image.stuff),
        (*image.annotations, *image.stuff),
        strict=True,
    ):
        for name in ("id", "category_id", "box", "area", "crowd"):
            assert getattr(one, name) == getattr(other, name)
    masks = [
        load_sample(d, d.images[0], ("cup", "brush"), 0).targets.masks for d in (expected, found)
    ]
    assert (masks[0] == masks[1]).all()


POINTS = st.lists(
    st.tuples(st.floats(0, 20, width=32), st.floats(0, 16, width=32)), min_size=3, max_size=8
)
POLYGONS = st.lists(
    POINTS.map(lambda points: [n for p in points for n in p]), min_size=1, max_size=3
)
CONVERSIONS: list[Callable[[list[list[float]]], Any]] = [
    lambda polygons: polygons,
    lambda polygons: [to_points(polygon) for polygon in polygons],
    lambda polygons: [[{"x": x, "y": y} for x, y in to_points(polygon)] for polygon in polygons],
    lambda polygons: [list(map(repr, polygon)) for polygon in polygons],
    lambda polygons: polygons[0] if len(polygons) == 1 else polygons,
    lambda polygons: to_points(polygons[0]) if len(polygons) == 1 else polygons,
]


@given(polygons=POLYGONS, convert=st.sampled_from(CONVERSIONS))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_masks_of_polygons_are_those_of_pycocotools(tmp_path: Path, polygons, convert):
    with warnings.catch_warnings():
        # pycocotools' decoder uses what NumPy 2 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *SIZE)))
    found = load_mask(tmp_path, convert(copy.deepcopy(polygons)))
    assert (found == expected).all()


@given(
    mask=st.lists(st.booleans(), min_size=320, max_size=320).filter(any),
    encode=st.sampled_from([encode_compressed, encode_uncompressed]),
    size=st.sampled_from([list(SIZE), ["16", "20"], [16.0, "20.0"], None]),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_masks_of_run_lengths_are_those_of_pycocotools(tmp_path: Path, mask, encode, size):
    expected = np.array(mask, np.uint8).reshape(SIZE)
    found = load_mask(tmp_path, {**encode(expected), "size": size})
    assert (found == expected).all()


def load_mask(folder: Path, segmentation: Any) -> np.ndarray:
    """Return the mask that a dataset with this segmentation gives."""
    content = make_coco_content()
    content["annotations"] = [
        {"image_id": 3, "category_id": 7, "bbox": [0, 0, 20, 16], "segmentation": segmentation}
    ]
    dataset = open_dataset(write_coco(folder, content), folder)
    image = dataset.images[0]
    (mask,) = load_sample(dataset, image, ("cup",), 0).targets.masks.numpy()
    return mask


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        ("7", 7),
        (7.0, 7),
        ("7.", 7),
        ("-3", -3),
        ("07", "07"),
        ("7.5", "7.5"),
        (7.5, 7.5),
        ("a", "a"),
        ("", ""),
        (True, True),
        (math.inf, math.inf),
        ("9" * 40, "9" * 40),
    ],
)
def test_normalize_id(value: Any, expected: Any):
    found = normalize_id(value)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize("value", [3, "abc", {"a": 1}, [None], [[None]], ["a"], [{"x": 1}]])
def test_invalid_segmentation_is_returned_unchanged(value: Any):
    assert normalize_segmentation(value) in (value, [value])


def test_standard_segmentation_is_returned_unchanged():
    polygons = [RECTANGLE, TRIANGLE]
    assert normalize_segmentation(polygons) == polygons
    rle = encode_compressed(rectangle_mask(1, 1, 3, 3))
    assert normalize_segmentation(rle) == rle
