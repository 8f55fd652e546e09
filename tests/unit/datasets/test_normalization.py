"""COCO files as tools write them: the same dataset, however its values are spelt."""

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
    bitmap,
    coco,
    compressed,
    panoptic,
    uncompressed,
    write_coco,
    write_json,
    write_panoptic,
    write_picture,
)

from streamseg.datasets import coco_truth, load_sample, open_dataset
from streamseg.datasets.normalization import canonical_id, canonical_segmentation

Change = Callable[[dict[str, Any]], Any]
ROWS = ("images", "annotations", "categories")
IDS = ("id", "image_id", "category_id")


def each(key: str, spell: Callable[[Any], Any]) -> Change:
    """Every value of a key, in all three lists, spelt otherwise."""

    def change(content: dict[str, Any]) -> None:
        for row in (row for rows in ROWS for row in content[rows]):
            if key in row:
                row[key] = spell(row[key])

    return change


def every(*changes: Change) -> Change:
    return lambda content: [change(content) for change in changes]


def without(rows: str, *keys: str) -> Change:
    return lambda content: [row.pop(key, None) for row in content[rows] for key in keys]


def polygons(spell: Callable[[list[list[float]]], Any]) -> Change:
    """The segmentations that are polygons, spelt otherwise."""

    def change(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            if isinstance(row.get("segmentation"), list):
                row["segmentation"] = spell(row["segmentation"])

    return change


def rles(spell: Callable[[dict[str, Any]], Any]) -> Change:
    def change(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            if isinstance(row.get("segmentation"), dict):
                row["segmentation"] = spell(row["segmentation"])

    return change


def pairs(ring: list[float]) -> list[list[float]]:
    return [list(point) for point in zip(ring[0::2], ring[1::2], strict=True)]


SAME: dict[str, Change] = {
    "ids as digits": every(*(each(key, str) for key in IDS)),
    "ids with a point": every(*(each(key, float) for key in IDS)),
    "ids as text with a point": every(*(each(key, lambda value: f"{value}.0") for key in IDS)),
    "ids in two spellings": each("image_id", lambda value: f" {value} "),
    "sizes as text": every(each("width", str), each("height", "{}.0".format)),
    "no sizes": without("images", "width", "height"),
    "sizes of zero": every(each("width", lambda _: 0), each("height", lambda _: None)),
    "iscrowd as text": each("iscrowd", str),
    "iscrowd as words": each("iscrowd", lambda value: "true" if value else "False"),
    "iscrowd with a point": each("iscrowd", float),
    "iscrowd null where it is 0": each("iscrowd", lambda value: value or None),
    "iscrowd NaN where it is 0": each("iscrowd", lambda value: value or math.nan),
    "areas as text": each("area", "{:.3f}".format),
    "boxes as text": each("bbox", lambda box: [str(number) for number in box]),
    "no annotation ids": without("annotations", "id"),
    "annotation ids twice": each("id", lambda value: min(value, 100)),
    "keys of other programs": every(
        each("id", int), lambda content: content.update(info={}, licenses=[{"id": "x"}])
    ),
    "polygons as pairs": polygons(lambda rings: [pairs(ring) for ring in rings]),
    "polygons as points": polygons(
        lambda rings: [[{"x": x, "y": y} for x, y in pairs(ring)] for ring in rings]
    ),
    "polygons as two lists": polygons(
        lambda rings: [{"all_points_x": r[0::2], "all_points_y": r[1::2]} for r in rings]
    ),
    "numbers of polygons as text": polygons(lambda rings: [list(map(str, r)) for r in rings]),
    "stray points beside polygons": polygons(lambda rings: [*rings, [3.0, 3.0], [2, 2, 4, 4]]),
    "one polygon, not in a list": polygons(lambda r: r[0] if len(r) == 1 else r),
    "one polygon of pairs": polygons(lambda r: pairs(r[0]) if len(r) == 1 else r),
    "run lengths of a size as text": rles(lambda rle: rle | {"size": ["16", "20.0"]}),
    "run lengths without a size": rles(lambda rle: {"counts": rle["counts"]}),
    "run lengths in a list": rles(lambda rle: [rle]),
    "run lengths with a point": rles(
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


@pytest.mark.parametrize("kind", SAME)
def test_the_same_dataset_in_another_spelling(tmp_path: Path, kind: str):
    expected = coco_truth(open_dataset(write_coco(tmp_path / "plain"), tmp_path / "plain"))
    content = copy.deepcopy(coco())
    SAME[kind](content)
    found = open_dataset(write_coco(tmp_path / "spelt", content), tmp_path / "spelt")
    assert found.skipped == ()
    if kind == "areas as text":
        content = coco()
    assert by_place(coco_truth(found)) == by_place(expected)


def by_place(truth: dict[str, Any]) -> dict[str, Any]:
    """Without the numbers of annotations, and in an order that doesn't depend on them."""
    rows = [{**row, "id": 0} for row in truth["annotations"]]
    return truth | {"annotations": sorted(rows, key=str)}


def test_text_ids_stay_and_go_into_results(tmp_path: Path):
    content = coco()
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
    assert {row["image_id"] for row in coco_truth(dataset)["annotations"]} == {
        "a7",
        "frankfurt_000000",
    }


def test_zeros_in_front_of_an_id_are_the_same_id(tmp_path: Path):
    content = coco()
    for row in content["images"]:
        row["id"] = f"{row['id']:012}"
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert [len(image.annotations) for image in dataset.images] == [3, 3, 0]


def test_boxes_that_are_missing_are_those_of_the_masks(tmp_path: Path):
    content = coco()
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


@pytest.mark.parametrize("nothing", [[[]], [[], []], {}, math.nan])
def test_no_mask_in_other_spellings(tmp_path: Path, nothing: Any):
    content = coco()
    content["annotations"][0]["segmentation"] = nothing
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert dataset.images[0].annotations[0].segmentation is None


def test_sizes_come_from_files_upright(tmp_path: Path):
    content = coco()
    config = write_coco(tmp_path, content)
    write_picture(tmp_path / "images" / "empty.png", (20, 16), orientation=6)
    SAME["no sizes"](content)
    write_json(tmp_path / "set.json", content)
    dataset = open_dataset(config, tmp_path)
    assert [image.size for image in dataset.images] == [SIZE, SIZE, SIZE]


def test_panoptic_values_in_other_spellings(tmp_path: Path):
    expected = open_dataset(write_panoptic(tmp_path / "plain"), tmp_path / "plain")
    content = panoptic()
    for row in (*content["images"], *content["annotations"]):
        key = "id" if "id" in row else "image_id"
        row[key] = "frankfurt_000000_000294"
    content["annotations"][0]["file_name"] = ".\\a.jpg"
    for segment in content["annotations"][0]["segments_info"]:
        segment |= {"id": str(segment["id"]), "area": float(segment["area"]), "bbox": None}
        segment["category_id"] = f"{segment['category_id']}.0"
    found = open_dataset(write_panoptic(tmp_path / "spelt", content), tmp_path / "spelt")
    (image,), (other,) = expected.images, found.images
    assert other.id == "frankfurt_000000_000294"
    for one, two in zip(
        (*image.annotations, *image.stuff), (*other.annotations, *other.stuff), strict=True
    ):
        assert (one.id, one.category_id, one.box, one.area, one.crowd) == (
            two.id,
            two.category_id,
            two.box,
            two.area,
            two.crowd,
        )
    masks = [
        load_sample(d, d.images[0], ("cup", "brush"), 0).targets.masks for d in (expected, found)
    ]
    assert (masks[0] == masks[1]).all()


# Masks: whatever the spelling, the pixels that pycocotools makes of the plain one.

POINTS = st.lists(
    st.tuples(st.floats(0, 20, width=32), st.floats(0, 16, width=32)), min_size=3, max_size=8
)
RINGS = st.lists(POINTS.map(lambda points: [n for p in points for n in p]), min_size=1, max_size=3)
SPELL: list[Callable[[list[list[float]]], Any]] = [
    lambda rings: rings,
    lambda rings: [pairs(ring) for ring in rings],
    lambda rings: [[{"x": x, "y": y} for x, y in pairs(ring)] for ring in rings],
    lambda rings: [list(map(repr, ring)) for ring in rings],
    lambda rings: rings[0] if len(rings) == 1 else rings,
    lambda rings: pairs(rings[0]) if len(rings) == 1 else rings,
]


@given(rings=RINGS, spell=st.sampled_from(SPELL))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_masks_of_polygons_are_those_of_pycocotools(tmp_path: Path, rings, spell):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its decoder, of NumPy 2
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, *SIZE)))
    found = loaded_mask(tmp_path, spell(copy.deepcopy(rings)))
    assert (found == expected).all()


@given(
    mask=st.lists(st.booleans(), min_size=320, max_size=320).filter(any),
    spell=st.sampled_from([compressed, uncompressed]),
    size=st.sampled_from([list(SIZE), ["16", "20"], [16.0, "20.0"], None]),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_masks_of_run_lengths_are_those_of_pycocotools(tmp_path: Path, mask, spell, size):
    expected = np.array(mask, np.uint8).reshape(SIZE)
    found = loaded_mask(tmp_path, {**spell(expected), "size": size})
    assert (found == expected).all()


def loaded_mask(folder: Path, segmentation: Any) -> np.ndarray:
    content = coco()
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
def test_ids(value: Any, expected: Any):
    found = canonical_id(value)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize("value", [3, "abc", {"a": 1}, [None], [[None]], ["a"], [{"x": 1}]])
def test_what_is_no_segmentation_comes_back_for_the_schema_to_refuse(value: Any):
    assert canonical_segmentation(value) in (value, [value])


def test_what_is_in_the_file_stays_as_it_was():
    rings = [RECTANGLE, TRIANGLE]
    assert canonical_segmentation(rings) == rings
    assert canonical_segmentation(compressed(bitmap(1, 1, 3, 3))) == compressed(bitmap(1, 1, 3, 3))
