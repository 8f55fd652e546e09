"""Which categories are classes: the rule of ``streamseg.datasets.coco_categories``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.annotations import coco, panoptic, write_coco, write_panoptic

from streamseg.datasets import open_dataset
from streamseg.errors import DataError

USED = [{"id": 90, "name": "brush"}, {"id": 7, "name": "cup"}]


def classes(folder: Path, *categories: dict[str, Any], first: int = 7) -> dict[int, str]:
    """The classes of a dataset with these categories besides; its first annotation is ``first``."""
    content = coco()
    content["annotations"][0]["category_id"] = first
    content["categories"] = [*categories, *USED]
    return dict(open_dataset(write_coco(folder, content), folder).categories)


PLAIN = {7: "cup", 90: "brush"}


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([{"id": 0, "name": "cup", "supercategory": "none"}], PLAIN),
        ([{"id": 0, "name": "_background_"}], PLAIN),
        ([{"id": 0, "name": "Background", "supercategory": None}], PLAIN),
        ([{"id": 0, "name": "fork"}], {0: "fork", **PLAIN}),
        ([{"id": 1000, "name": "person", "supercategory": "person"}], PLAIN | {1000: "person"}),
        ([{"id": 1, "name": "Cup"}], {1: "Cup", **PLAIN}),
        (
            [
                {"id": 0, "name": "Tools", "supercategory": "none"},
                {"id": 1, "name": "saw", "supercategory": "tools"},
            ],
            {1: "saw", **PLAIN},
        ),
        (
            [
                {"id": 1, "name": "things"},
                {"id": 2, "name": "tools", "supercategory": "things"},
                {"id": 3, "name": "saw", "supercategory": "tools"},
            ],
            {3: "saw", **PLAIN},
        ),
        ([{"id": 5, "name": "saw"}, {"id": 6, "name": "saw"}], {5: "saw", **PLAIN}),
    ],
)
def test_unused_categories(tmp_path: Path, others: list[dict[str, Any]], expected: dict[int, str]):
    assert classes(tmp_path, *others) == expected


def test_a_group_that_is_annotated_is_a_class(tmp_path: Path):
    group = {"id": 1, "name": "dishes"}
    member = {"id": 2, "name": "plate", "supercategory": "dishes"}
    assert classes(tmp_path, group, member, first=1) == {1: "dishes", 2: "plate", **PLAIN}


def test_one_name_twice_is_one_class(tmp_path: Path):
    content = coco()
    content["categories"].append({"id": 8, "name": "cup"})
    content["annotations"][3]["category_id"] = 8
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert dict(dataset.categories) == PLAIN
    assert [a.category_id for a in dataset.images[1].annotations] == [7, 7, 90]


def test_one_name_for_a_thing_and_for_stuff_is_refused(tmp_path: Path):
    content = panoptic()
    content["categories"][2]["name"] = "cup"
    with pytest.raises(DataError, match=r"categories 7 and 200 are both 'cup': rename one$"):
        open_dataset(write_panoptic(tmp_path, content), tmp_path, "skip")


def test_a_used_category_that_cant_be_read_is_refused_even_when_rows_are_skipped(tmp_path: Path):
    content = coco()
    del content["categories"][1]["name"]
    with pytest.raises(DataError, match=r"set\.json: categories\[1\]: Object missing required"):
        open_dataset(write_coco(tmp_path, content), tmp_path, "skip")


def test_an_unused_category_that_cant_be_read_is_skipped(tmp_path: Path):
    content = coco()
    content["categories"].append({"id": 3, "name": 3})
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path, "skip")
    assert dict(dataset.categories) == PLAIN
    assert [str(each) for each in dataset.skipped] == [
        "set: categories[2].name: Expected `str`, got `int`"
    ]
