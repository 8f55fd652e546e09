"""Selection of classes among the categories of a COCO file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.annotations import make_coco_content, make_panoptic_content, write_coco, write_panoptic

from streamseg.datasets import open_dataset
from streamseg.errors import DataError

USED_ENTRIES = [{"id": 90, "name": "brush"}, {"id": 7, "name": "cup"}]


def read_classes(folder: Path, *categories: dict[str, Any], first: int = 7) -> dict[int, str]:
    """Return the classes of a dataset with additional categories.

    Args:
        folder: where the dataset is written.
        categories: additional entries of ``categories``.
        first: category id of the first annotation.
    """
    content = make_coco_content()
    content["annotations"][0]["category_id"] = first
    content["categories"] = [*categories, *USED_ENTRIES]
    return dict(open_dataset(write_coco(folder, content), folder).categories)


USED_CLASSES = {7: "cup", 90: "brush"}


@pytest.mark.parametrize(
    ("unused", "expected"),
    [
        ([{"id": 0, "name": "cup", "supercategory": "none"}], USED_CLASSES),
        ([{"id": 0, "name": "_background_"}], USED_CLASSES),
        ([{"id": 0, "name": "Background", "supercategory": None}], USED_CLASSES),
        ([{"id": 0, "name": "fork"}], {0: "fork", **USED_CLASSES}),
        (
            [{"id": 1000, "name": "person", "supercategory": "person"}],
            USED_CLASSES | {1000: "person"},
        ),
        ([{"id": 1, "name": "Cup"}], {1: "Cup", **USED_CLASSES}),
        (
            [
                {"id": 0, "name": "Tools", "supercategory": "none"},
                {"id": 1, "name": "saw", "supercategory": "tools"},
            ],
            {1: "saw", **USED_CLASSES},
        ),
        (
            [
                {"id": 1, "name": "things"},
                {"id": 2, "name": "tools", "supercategory": "things"},
                {"id": 3, "name": "saw", "supercategory": "tools"},
            ],
            {3: "saw", **USED_CLASSES},
        ),
        ([{"id": 5, "name": "saw"}, {"id": 6, "name": "saw"}], {5: "saw", **USED_CLASSES}),
    ],
)
def test_classes_among_unused_categories(
    tmp_path: Path, unused: list[dict[str, Any]], expected: dict[int, str]
):
    assert read_classes(tmp_path, *unused) == expected


def test_used_group_is_a_class(tmp_path: Path):
    group = {"id": 1, "name": "dishes"}
    member = {"id": 2, "name": "plate", "supercategory": "dishes"}
    assert read_classes(tmp_path, group, member, first=1) == {
        1: "dishes",
        2: "plate",
        **USED_CLASSES,
    }


def test_categories_of_one_name_are_one_class(tmp_path: Path):
    content = make_coco_content()
    content["categories"].append({"id": 8, "name": "cup"})
    content["annotations"][3]["category_id"] = 8
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert dict(dataset.categories) == USED_CLASSES
    assert [a.category_id for a in dataset.images[1].annotations] == [7, 7, 90]


def test_same_name_for_thing_and_stuff_raises(tmp_path: Path):
    content = make_panoptic_content()
    content["categories"][2]["name"] = "cup"
    with pytest.raises(DataError, match=r"categories 7 and 200 are both 'cup': rename one$"):
        open_dataset(write_panoptic(tmp_path, content), tmp_path, "skip")


def test_invalid_used_category_raises_even_if_problems_are_skipped(tmp_path: Path):
    content = make_coco_content()
    del content["categories"][1]["name"]
    with pytest.raises(DataError, match=r"set\.json: categories\[1\]: Object missing required"):
        open_dataset(write_coco(tmp_path, content), tmp_path, "skip")


def test_invalid_unused_category_is_skipped(tmp_path: Path):
    content = make_coco_content()
    content["categories"].append({"id": 3, "name": 3})
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path, "skip")
    assert dict(dataset.categories) == USED_CLASSES
    assert [str(each) for each in dataset.skipped] == [
        "set: categories[2].name: Expected `str`, got `int`"
    ]
