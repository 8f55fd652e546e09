"""Dataset validation: location and message of every kind of problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image
from support.annotations import (
    SIZE,
    describe_problems,
    encode_compressed,
    encode_uncompressed,
    find_dataset_problems,
    make_coco_content,
    make_panoptic_content,
    make_segment_values,
    rectangle_mask,
    write_coco,
    write_image,
    write_instance_png,
    write_label_png,
    write_panoptic,
)

from streamseg.config.training import CocoData, DataConfig, PatternData
from streamseg.datasets import (
    Problem,
    check_evaluable,
    check_trainable,
    find_problems,
    open_dataset,
)
from streamseg.errors import DataError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_label_map

Change = Callable[[dict[str, Any]], object]


def set_value(*path: str | int, to: Any) -> Change:
    """Return a change that sets the value at a path, or removes it with ``...``."""

    def change(content: dict[str, Any]) -> None:
        parent: Any = content
        for key in path[:-1]:
            parent = parent[key]
        if to is ...:
            del parent[path[-1]]
        else:
            parent[path[-1]] = to

    return change


def update_annotation(index: int, **values: Any) -> Change:
    return lambda content: content["annotations"][index].update(values)


def duplicate(key: str, index: int, **values: Any) -> Change:
    """Return a change that appends a copy of an entry with other values."""
    return lambda content: content[key].append({**content[key][index], **values})


def both(first: Change, second: Change) -> Change:
    return lambda content: (first(content), second(content))


OUTSIDE = "reaches out of the image of 20 x 16"
FIRST = "image 3, annotation 100: "

COCO_PROBLEMS: dict[str, tuple[Change, list[str]]] = {
    "zero width": (
        update_annotation(0, bbox=[2, 2, 0, 6]),
        [FIRST + "the box [2, 2, 0, 6] has no area"],
    ),
    "negative height": (
        update_annotation(0, bbox=[2, 2, 8, -6]),
        [FIRST + "the box [2, 2, 8, -6] has no area"],
    ),
    "box to the right": (
        update_annotation(0, bbox=[13, 2, 7.6, 6]),
        [FIRST + f"the box [13, 2, 7.6, 6] {OUTSIDE}"],
    ),
    "box below": (
        update_annotation(0, bbox=[2, 9, 8, 8]),
        [FIRST + f"the box [2, 9, 8, 8] {OUTSIDE}"],
    ),
    "box to the left": (
        update_annotation(0, bbox=[-0.6, 2, 8, 6]),
        [FIRST + f"the box [-0.6, 2, 8, 6] {OUTSIDE}"],
    ),
    "box above": (
        update_annotation(0, bbox=[2, -9, 8, 16]),
        [FIRST + f"the box [2, -9, 8, 16] {OUTSIDE}"],
    ),
    "box within the tolerance": (update_annotation(0, bbox=[-0.5, -0.01, 21.0, 16.5]), []),
    "box not finite": (
        update_annotation(0, bbox=[2, math.nan, 8, math.inf]),
        [FIRST + "the box [2, nan, 8, inf] has a number that isn't finite"],
    ),
    "box with huge numbers": (
        update_annotation(0, bbox=[1e308, 2, 1e308, 6]),
        [FIRST + f"the box [1e+308, 2, 1e+308, 6] {OUTSIDE}"],
    ),
    "polygon not finite": (
        update_annotation(0, segmentation=[[2, 2, math.nan, 2, 10, 8]]),
        [FIRST + "a polygon has a number that isn't finite"],
    ),
    "area not finite": (
        update_annotation(0, area=math.inf),
        [FIRST + "the area inf isn't a number of pixels"],
    ),
    "area negative": (
        update_annotation(0, area=-1),
        [FIRST + "the area -1 isn't a number of pixels"],
    ),
    "unknown category": (
        update_annotation(0, category_id=99),
        [FIRST + "category 99 isn't declared"],
    ),
    "two points": (
        update_annotation(0, segmentation=[[2, 2, 10, 8]]),
        [FIRST + "a polygon has fewer than three points, 2"],
    ),
    "one point": (
        update_annotation(0, segmentation=[[2, 2]]),
        [FIRST + "a polygon has fewer than three points, 1"],
    ),
    "odd polygon": (
        update_annotation(0, segmentation=[[2, 2, 10, 2, 10, 8, 2]]),
        [FIRST + "a polygon has an odd number of coordinates, 7"],
    ),
    "polygon outside": (
        update_annotation(0, segmentation=[[2, 2, 10, 2, 1e12, 8]]),
        [FIRST + f"a polygon {OUTSIDE}"],
    ),
    "polygon within the tolerance": (
        update_annotation(0, segmentation=[[-0.5, 0, 20.5, 0, 20.5, 16.5]]),
        [],
    ),
    "several problems of one annotation": (
        update_annotation(0, category_id=99, bbox=[0, 0, 0, 0], segmentation=[[1], [1, 2]]),
        [
            FIRST + "category 99 isn't declared",
            FIRST + "the box [0, 0, 0, 0] has no area",
            FIRST + "a polygon has an odd number of coordinates, 1",
            FIRST + "a polygon has fewer than three points, 1",
        ],
    ),
    "run lengths of another size": (
        update_annotation(1, segmentation={"size": [20, 16], "counts": [320]}),
        ["image 3, annotation 101: run lengths of 16 x 20 in an image of 20 x 16"],
    ),
    "too short run lengths": (
        update_annotation(1, segmentation={"size": [16, 20], "counts": [300, 19]}),
        ["image 3, annotation 101: run lengths of 319 pixels in an image of 320"],
    ),
    "negative run lengths": (
        update_annotation(1, segmentation={"size": [16, 20], "counts": [400, -80]}),
        ["image 3, annotation 101: annotations[1].segmentation.counts[1]: Expected `int` >= 0"],
    ),
    "truncated compressed run lengths": (
        update_annotation(
            2,
            segmentation={
                "size": [16, 20],
                "counts": encode_compressed(rectangle_mask(6, 3, 16, 15))["counts"][:-2],
            },
        ),
        ["image 3, annotation 102: run lengths of "],
    ),
    "compressed run lengths with invalid characters": (
        update_annotation(2, segmentation={"size": [16, 20], "counts": "no code!"}),
        [
            "image 3, annotation 102: run lengths hold a character outside COCO's code",
        ],
    ),
    "empty run lengths": (
        update_annotation(2, segmentation={"size": [16, 20], "counts": ""}),
        ["image 3, annotation 102: run lengths of 0 pixels in a frame of 16 x 20"],
    ),
    "unknown image": (
        update_annotation(0, image_id=77),
        ["image 77, annotation 100: there is no image 77"],
    ),
    "image id twice": (
        duplicate("images", 0, file_name="b.jpg"),
        ["image 3: the image id 3 is given twice"],
    ),
    "annotation twice": (
        duplicate("annotations", 0),
        [FIRST + "the annotation 100 is there twice, the same both times"],
    ),
    "category id twice": (
        duplicate("categories", 0, name="broom"),
        ["set.json: the category id 90 is given twice, for 'brush' and 'broom'"],
    ),
    "category name twice": (
        both(
            duplicate("categories", 0, id=91, supercategory="tool"),
            update_annotation(1, category_id=91),
        ),
        ["set.json: categories 90 and 91 are both 'brush': rename one"],
    ),
    "image file missing": (
        set_value("images", 0, "file_name", to="c.png"),
        ["image 3: images/c.png: can't be read: No such file or directory"],
    ),
    "image file is a folder": (
        set_value("images", 0, "file_name", to="."),
        ["image 3: images: can't be read: Is a directory"],
    ),
    "file name with NUL": (
        set_value("images", 0, "file_name", to="a\0.png"),
        ["image 3: images[0].file_name: Expected `str` matching regex"],
    ),
    "image of another size": (
        set_value("images", 2, "width", to=21),
        ["image 40: images/empty.png: it is 20 x 16, its annotations are for 21 x 16"],
    ),
    "image too large": (
        set_value(
            "images", 2, to={"id": 40, "file_name": "a.png", "width": 10**5, "height": 10**5}
        ),
        ["image 40: 100000 x 100000 pixels are over 64000000"],
    ),
    "required key missing": (
        set_value("annotations", 0, "category_id", to=...),
        [FIRST + "annotations[0]: Object missing required field `category_id`"],
    ),
    "neither box nor mask": (
        update_annotation(0, bbox=None, segmentation=[]),
        [FIRST + "it has neither a box nor a mask"],
    ),
    "no box and mask without area": (
        update_annotation(0, bbox=None, segmentation=[[2, 2, 9, 2, 5, 2]]),
        [FIRST + "the mask has no area"],
    ),
    "unknown text id": (
        update_annotation(0, category_id="cup"),
        [FIRST + "category cup isn't declared"],
    ),
    "id of another type": (
        update_annotation(0, image_id=[3]),
        ["annotation 100: annotations[0].image_id: Expected `int | str`, got `array`"],
    ),
    "id with a fraction": (
        update_annotation(0, image_id=3.5),
        ["annotation 100: annotations[0].image_id: Expected `int | str`, got `float`"],
    ),
    "annotation of an invalid image": (
        both(set_value("images", 0, "file_name", to="c.png"), update_annotation(0, area=-1)),
        [
            "image 3: images/c.png: can't be read: No such file or directory",
            FIRST + "the area -1 isn't a number of pixels",
        ],
    ),
    "box of three numbers": (
        update_annotation(0, bbox=[1, 2, 3]),
        [FIRST + "annotations[0].bbox: Expected `array` of length 4"],
    ),
    "iscrowd of 2": (
        update_annotation(0, iscrowd=2),
        [FIRST + "annotations[0].iscrowd: Expected "],
    ),
    "box instead of a polygon": (
        update_annotation(0, segmentation=[2, 2, 10, 2]),
        [FIRST + "a polygon has fewer than three points, 2"],
    ),
    "null instead of an annotation": (
        set_value("annotations", 0, to=None),
        ["annotations[0]: Expected `object`, got `null`"],
    ),
    "invalid image height": (
        set_value("images", 2, "height", to=-3),
        ["image 40: images[2].height: Expected `int` >= 1"],
    ),
    "empty category name": (
        set_value("categories", 1, "name", to=""),
        [
            "set.json: categories[1].name: Expected `str` of length >= 1",
        ],
    ),
}


@pytest.mark.parametrize("kind", COCO_PROBLEMS)
def test_coco_problem(tmp_path, kind):
    change, expected = COCO_PROBLEMS[kind]
    content = make_coco_content()
    change(content)
    problems = describe_problems(write_coco(tmp_path, content), tmp_path)
    assert len(problems) == len(expected)
    assert all(map(str.startswith, problems, expected)), problems


@pytest.mark.parametrize("write", [write_coco, write_panoptic, write_instance_png])
def test_valid_dataset_has_no_problems(tmp_path, write):
    config = write(tmp_path)
    assert find_dataset_problems(config, tmp_path) == []
    assert open_dataset(config, tmp_path).images


PANOPTIC_PROBLEMS: dict[str, tuple[Change, list[str]]] = {
    "segment without pixels": (
        set_value("annotations", 0, "segments_info", 0, "id", to=6),
        [
            "image 3: segments/a.png has pixels of 5, which no segment is",
            "image 3, annotation 6: the segment has no pixels in segments/a.png",
        ],
    ),
    "pixels without segment": (
        set_value("annotations", 0, "segments_info", 2, to=...),
        ["image 3: segments/a.png has pixels of 300, which no segment is"],
    ),
    "PNG missing": (
        set_value("annotations", 0, "file_name", to="b.png"),
        ["image 3: segments/b.png: can't be read: No such file or directory"],
    ),
    "segment id twice": (
        lambda content: content["annotations"][0]["segments_info"].append(
            content["annotations"][0]["segments_info"][1]
        ),
        ["image 3, annotation 66049: the segment id 66049 is given twice"],
    ),
    "unknown category of a segment": (
        set_value("annotations", 0, "segments_info", 2, "category_id", to=201),
        ["image 3, annotation 300: category 201 isn't declared"],
    ),
    "invalid box of a segment": (
        set_value("annotations", 0, "segments_info", 0, "bbox", to=[2, 2, 0, 6]),
        ["image 3, annotation 5: the box [2, 2, 0, 6] has no area"],
    ),
    "invalid area of a segment": (
        set_value("annotations", 0, "segments_info", 0, "area", to=-math.inf),
        ["image 3, annotation 5: the area -inf isn't a number of pixels"],
    ),
    "required key of a segment missing": (
        set_value("annotations", 0, "segments_info", 0, "category_id", to=...),
        ["image 3, annotation 5: segments_info[0]: Object missing required field `category_id`"],
    ),
    "no segments": (
        set_value("annotations", 0, "segments_info", to=3),
        ["image 3: annotations[0].segments_info: Expected `array`, got `int`"],
    ),
    "image without entry": (
        lambda content: content["images"].append({**content["images"][0], "id": 4}),
        ["image 4: it has no entry in annotations"],
    ),
    "entry without image": (
        lambda content: content["annotations"].append(
            {"image_id": 9, "file_name": "a.png", "segments_info": []}
        ),
        ["image 9: there is no image 9"],
    ),
    "image with two entries": (
        duplicate("annotations", 0),
        ["image 3: it has two entries in annotations"],
    ),
    "category name twice": (
        set_value("categories", 2, "name", to="cup"),
        ["set.json: categories 7 and 200 are both 'cup': rename one"],
    ),
    "image of another size": (
        set_value("images", 0, "height", to=17),
        [
            "image 3: segments/a.png is 20 x 16, the image 20 x 17",
            "image 3: images/a.png: it is 20 x 16, its annotations are for 20 x 17",
        ],
    ),
}


@pytest.mark.parametrize("kind", PANOPTIC_PROBLEMS)
def test_panoptic_problem(tmp_path, kind):
    change, expected = PANOPTIC_PROBLEMS[kind]
    content = make_panoptic_content()
    change(content)
    assert describe_problems(write_panoptic(tmp_path, content), tmp_path) == expected


def test_panoptic_png_of_another_size(tmp_path):
    config = write_panoptic(tmp_path)
    write_label_png(
        tmp_path / "segments" / "a.png", np.pad(make_segment_values(), ((0, 1), (0, 0)))
    )
    expected = ["image 3: segments/a.png is 20 x 17, the image 20 x 16"]
    assert describe_problems(config, tmp_path) == expected


def test_panoptic_png_in_another_format(tmp_path):
    config = write_panoptic(tmp_path)
    Image.new("RGB", (20, 16)).save(tmp_path / "segments" / "a.png", format="JPEG")
    assert describe_problems(config, tmp_path) == ["image 3: segments/a.png: isn't a PNG"]


def test_instance_png_image_without_mask_and_mask_without_image(tmp_path):
    config = write_instance_png(tmp_path)
    (tmp_path / "images" / "q.jpg").unlink()
    (tmp_path / "masks" / "s_mask.png").unlink()
    assert describe_problems(config, tmp_path) == [
        "image 2: images/s.png has no mask",
        "masks/q_mask.png belongs to no image in images",
    ]


def test_instance_png_duplicate_masks_and_images(tmp_path):
    config = write_instance_png(tmp_path)
    write_label_png(tmp_path / "masks" / "q.png", np.zeros(SIZE, np.int32))
    write_image(tmp_path / "images" / "r.jpg")
    assert describe_problems(config, tmp_path) == [
        "image 1: images/q.jpg has 2 masks, q.png, q_mask.png",
        "image 2: there are 2 images called r",
        "image 3: there are 2 images called r",
    ]


def test_instance_png_of_another_size_and_damaged(tmp_path):
    config = write_instance_png(tmp_path)
    write_label_png(tmp_path / "masks" / "r.png", np.zeros((16, 21), np.int32))
    damaged = tmp_path / "masks" / "s_mask.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    size_problem, damage_problem = describe_problems(config, tmp_path)[::-1]
    assert size_problem == "image 2: images/r.png: it is 20 x 16, its annotations are for 21 x 16"
    assert damage_problem.startswith("image 3: masks/s_mask.png: can't be decoded")


@pytest.mark.parametrize("kind", ["truncated", "not an image", "empty"])
def test_unreadable_image(tmp_path, kind):
    config = write_coco(tmp_path)
    path = tmp_path / "images" / "b.jpg"
    jpeg = path.read_bytes()
    contents = {"truncated": jpeg[: len(jpeg) // 2], "not an image": b"hello", "empty": b""}
    path.write_bytes(contents[kind])
    (problem,) = describe_problems(config, tmp_path)
    assert problem.startswith("image 12: images/b.jpg: ")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_annotations_of_the_stored_image_are_a_problem_if_exif_rotates_it(
    tmp_path, orientation, extension
):
    content = make_coco_content()
    content["images"][2]["file_name"] = f"rotated{extension}"
    config = write_coco(tmp_path, content)
    write_image(tmp_path / "images" / f"rotated{extension}", SIZE, orientation)
    expected = (
        f"image 40: images/rotated{extension}: it is 16 x 20, its annotations are for 20 x 16, as "
        f"it is before its EXIF orientation {orientation} turns it upright: turn the annotations, "
        "or take the orientation out of the file"
    )
    assert describe_problems(config, tmp_path) == ([expected] if orientation >= 5 else [])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotations_of_the_upright_image_are_valid(tmp_path, orientation):
    content = make_coco_content()
    height, width = SIZE if orientation < 5 else SIZE[::-1]
    content["images"][2] |= {"width": width, "height": height}
    config = write_coco(tmp_path, content)
    write_image(tmp_path / "images" / "empty.png", SIZE, orientation)
    assert find_dataset_problems(config, tmp_path) == []


def test_datasets_are_checked_separately(tmp_path):
    one, two = tmp_path / "data" / "one", tmp_path / "data" / "two"
    one.mkdir(parents=True)
    two.mkdir(parents=True)
    content = make_coco_content()
    content["annotations"][0]["category_id"] = 99
    first = write_coco(one, content)
    second = write_coco(two)
    write_image(two / "images" / "a.png", (4, 5))
    train = (
        replace(first, images="one/images", annotations="one/set.json"),
        replace(second, images="two/images", annotations="two/set.json"),
        CocoData(images=".", annotations="three.json"),
        CocoData(images="one/images", annotations="one/set.json", annotated=("cap",), name="four"),
        PatternData(url="test:?frames=0"),
    )
    val = (train[0], PatternData(url="test:?size=8x8&frames=2", name="fine"))
    problems = find_problems(DataConfig(root="data", train=train, val=val), tmp_path)
    wrong_size = "it is 5 x 4, its annotations are for 20 x 16"
    texts = [str(problem).replace(f"{tmp_path}/", "") for problem in problems]
    assert texts == [
        "set (one/set.json): image 3, annotation 100: category 99 isn't declared",
        f"set (two/set.json): image 3: data/two/images/a.png: {wrong_size}",
        "three: data/three.json: there is no such file",
        "four: image 3, annotation 100: category 99 isn't declared",
        "four: annotated: four has no category 'cap'; did you mean 'cup'?",
        "pattern: test:?frames=0: frames must be a whole number from 1 to 1000000000",
    ]
    assert problems[0] == Problem("set (one/set.json)", 3, 100, "category 99 isn't declared")


def test_label_maps_of_every_pixel_format(tmp_path):
    file = tmp_path / "labels.png"
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    rgb = np.stack([values, values + 1, values + 2], 2)
    rgb_values = values + 256 * (values + 1.0) + 65536 * (values + 2.0)
    for image, expected in (
        (Image.fromarray(values), values),
        (Image.fromarray(values).convert("LA"), values),
        (Image.fromarray(values.astype(np.uint16) * 5000), values.astype(int) * 5000),
        (Image.fromarray(values > 5), (values > 5) * 255),
        (Image.fromarray(rgb), rgb_values),
        (Image.fromarray(np.concatenate([rgb, values[..., None]], 2)), rgb_values),
    ):
        image.save(file)
        assert (read_label_map(file, 100) == expected).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(file, exif=exif)
    assert (read_label_map(file, 100) == np.rot90(values, -1)).all()
    cv2.imwrite(str(file), np.zeros((3, 4, 3), np.uint16))
    with pytest.raises(BadImageError, match="isn't a PNG of labels: its pixels are rgb48be"):
        read_label_map(file, 100)


def test_many_images_that_share_a_file(tmp_path):
    content = make_coco_content()
    content["images"] = [content["images"][0] | {"id": number} for number in range(800)]
    content["annotations"] = [
        content["annotations"][number % 3] | {"id": number, "image_id": number}
        for number in range(800)
    ]
    content["annotations"][799] |= {"segmentation": encode_uncompressed(rectangle_mask(0, 0, 3, 3))}
    assert find_dataset_problems(write_coco(tmp_path, content), tmp_path) == []


def test_datasets_without_usable_annotations_raise(tmp_path):
    valid = open_dataset(write_coco(tmp_path), tmp_path)
    content = make_coco_content()
    for row in content["annotations"]:
        row["iscrowd"] = 1
    crowds = open_dataset(write_coco(tmp_path, content), tmp_path)
    content["annotations"] = []
    background = open_dataset(write_coco(tmp_path, content), tmp_path)
    check_trainable([valid, background], stuff=False)
    check_evaluable(valid, stuff=False)
    with pytest.raises(DataError, match=r"^set: .* all of its 6 annotations are marked as a crowd"):
        check_trainable([valid, crowds], stuff=False)
    with pytest.raises(DataError, match=r"^set, set: .* its 3 images have no annotations$"):
        check_trainable([background, background], stuff=False)
    with pytest.raises(DataError, match=r"^set: .* its 3 images have no annotations$"):
        check_evaluable(background, stuff=False)


def test_stuff_alone_is_usable_for_panoptic_models_only(tmp_path):
    content = make_panoptic_content()
    for segment in content["annotations"][0]["segments_info"]:
        segment["category_id"] = 200
    dataset = open_dataset(write_panoptic(tmp_path, content), tmp_path)
    check_trainable([dataset], stuff=True)
    with pytest.raises(DataError, match="its 1 images have no annotations"):
        check_trainable([dataset], stuff=False)
