"""The validator: every kind of problem, with its ids; and no content whatever is a traceback."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image
from support.annotations import (
    SIZE,
    coco,
    describe_problems,
    encode_compressed,
    encode_uncompressed,
    make_panoptic_content,
    make_segment_values,
    problems_of,
    rectangle_mask,
    write_coco,
    write_instance_png,
    write_json,
    write_panoptic,
    write_picture,
    write_values,
)

from streamseg.config.training import (
    CocoData,
    DataConfig,
    InstancePngData,
    PanopticData,
    PatternData,
)
from streamseg.datasets import Problem, check, coco_truth, load_sample, open_dataset
from streamseg.errors import StreamsegError
from streamseg.sources.base import BadImageError
from streamseg.sources.imagefile import read_labels

Spoil = Callable[[dict[str, Any]], object]


def set_at(*path: str | int, to: Any) -> Spoil:
    """Something else at a path; ``...`` removes what is there."""

    def spoil(content: dict[str, Any]) -> None:
        at: Any = content
        for key in path[:-1]:
            at = at[key]
        if to is ...:
            del at[path[-1]]
        else:
            at[path[-1]] = to

    return spoil


def annotation(row: int, **changes: Any) -> Spoil:
    return lambda content: content["annotations"][row].update(changes)


def again(key: str, row: int, **changes: Any) -> Spoil:
    """One more entry, like another."""
    return lambda content: content[key].append({**content[key][row], **changes})


def both(first: Spoil, second: Spoil) -> Spoil:
    return lambda content: (first(content), second(content))


OUT = "reaches out of the image of 20 x 16"
CUT_OFF = encode_compressed(rectangle_mask(6, 3, 16, 15))["counts"][:-2]
HERE = "image 3, annotation 100: "

COCO: dict[str, tuple[Spoil, list[str]]] = {
    "zero width": (annotation(0, bbox=[2, 2, 0, 6]), [HERE + "the box [2, 2, 0, 6] has no area"]),
    "negative height": (
        annotation(0, bbox=[2, 2, 8, -6]),
        [HERE + "the box [2, 2, 8, -6] has no area"],
    ),
    "box to the right": (
        annotation(0, bbox=[13, 2, 7.6, 6]),
        [HERE + f"the box [13, 2, 7.6, 6] {OUT}"],
    ),
    "box below": (annotation(0, bbox=[2, 9, 8, 8]), [HERE + f"the box [2, 9, 8, 8] {OUT}"]),
    "box to the left": (
        annotation(0, bbox=[-0.6, 2, 8, 6]),
        [HERE + f"the box [-0.6, 2, 8, 6] {OUT}"],
    ),
    "box above": (annotation(0, bbox=[2, -9, 8, 16]), [HERE + f"the box [2, -9, 8, 16] {OUT}"]),
    "box of rounding": (annotation(0, bbox=[-0.5, -0.01, 21.0, 16.5]), []),
    "box not finite": (
        annotation(0, bbox=[2, math.nan, 8, math.inf]),
        [HERE + "the box [2, nan, 8, inf] has a number that isn't finite"],
    ),
    "box of enormous numbers": (
        annotation(0, bbox=[1e308, 2, 1e308, 6]),
        [HERE + f"the box [1e+308, 2, 1e+308, 6] {OUT}"],
    ),
    "polygon not finite": (
        annotation(0, segmentation=[[2, 2, math.nan, 2, 10, 8]]),
        [HERE + "a polygon has a number that isn't finite"],
    ),
    "area not finite": (
        annotation(0, area=math.inf),
        [HERE + "the area inf isn't a number of pixels"],
    ),
    "area negative": (annotation(0, area=-1), [HERE + "the area -1 isn't a number of pixels"]),
    "category": (annotation(0, category_id=99), [HERE + "category 99 isn't declared"]),
    "two points": (
        annotation(0, segmentation=[[2, 2, 10, 8]]),
        [HERE + "a polygon has fewer than three points, 2"],
    ),
    "one point": (
        annotation(0, segmentation=[[2, 2]]),
        [HERE + "a polygon has fewer than three points, 1"],
    ),
    "odd polygon": (
        annotation(0, segmentation=[[2, 2, 10, 2, 10, 8, 2]]),
        [HERE + "a polygon has an odd number of coordinates, 7"],
    ),
    "polygon outside": (
        annotation(0, segmentation=[[2, 2, 10, 2, 1e12, 8]]),
        [HERE + f"a polygon {OUT}"],
    ),
    "polygon of rounding": (annotation(0, segmentation=[[-0.5, 0, 20.5, 0, 20.5, 16.5]]), []),
    "all that is wrong with one annotation": (
        annotation(0, category_id=99, bbox=[0, 0, 0, 0], segmentation=[[1], [1, 2]]),
        [
            HERE + "category 99 isn't declared",
            HERE + "the box [0, 0, 0, 0] has no area",
            HERE + "a polygon has an odd number of coordinates, 1",
            HERE + "a polygon has fewer than three points, 1",
        ],
    ),
    "run lengths of another size": (
        annotation(1, segmentation={"size": [20, 16], "counts": [320]}),
        ["image 3, annotation 101: run lengths of 16 x 20 in an image of 20 x 16"],
    ),
    "run lengths that are too short": (
        annotation(1, segmentation={"size": [16, 20], "counts": [300, 19]}),
        ["image 3, annotation 101: run lengths of 319 pixels in an image of 320"],
    ),
    "negative run lengths": (
        annotation(1, segmentation={"size": [16, 20], "counts": [400, -80]}),
        ["image 3, annotation 101: annotations[1].segmentation.counts[1]: Expected `int` >= 0"],
    ),
    "compressed run lengths that are cut off": (
        annotation(
            2,
            segmentation={
                "size": [16, 20],
                "counts": encode_compressed(rectangle_mask(6, 3, 16, 15))["counts"][:-2],
            },
        ),
        ["image 3, annotation 102: run lengths of "],
    ),
    "compressed run lengths in another code": (
        annotation(2, segmentation={"size": [16, 20], "counts": "no code!"}),
        [
            "image 3, annotation 102: run lengths hold a character outside COCO's code",
        ],
    ),
    "no run lengths": (
        annotation(2, segmentation={"size": [16, 20], "counts": ""}),
        ["image 3, annotation 102: run lengths of 0 pixels in a frame of 16 x 20"],
    ),
    "no image": (
        annotation(0, image_id=77),
        ["image 77, annotation 100: there is no image 77"],
    ),
    "image id twice": (
        again("images", 0, file_name="b.jpg"),
        ["image 3: the image id 3 is given twice"],
    ),
    "annotation twice": (
        again("annotations", 0),
        [HERE + "the annotation 100 is there twice, the same both times"],
    ),
    "category id twice": (
        again("categories", 0, name="broom"),
        ["set.json: the category id 90 is given twice, for 'brush' and 'broom'"],
    ),
    "category name twice": (
        both(again("categories", 0, id=91, supercategory="tool"), annotation(1, category_id=91)),
        ["set.json: categories 90 and 91 are both 'brush': rename one"],
    ),
    "picture missing": (
        set_at("images", 0, "file_name", to="c.png"),
        ["image 3: images/c.png: can't be read: No such file or directory"],
    ),
    "picture a folder": (
        set_at("images", 0, "file_name", to="."),
        ["image 3: images: can't be read: Is a directory"],
    ),
    "picture with a name that can't be": (
        set_at("images", 0, "file_name", to="a\0.png"),
        ["image 3: images[0].file_name: Expected `str` matching regex"],
    ),
    "picture of another size": (
        set_at("images", 2, "width", to=21),
        ["image 40: images/empty.png: it is 20 x 16, its annotations are for 21 x 16"],
    ),
    "picture too large": (
        set_at("images", 2, to={"id": 40, "file_name": "a.png", "width": 10**5, "height": 10**5}),
        ["image 40: 100000 x 100000 pixels are over 64000000"],
    ),
    "a key is missing": (
        set_at("annotations", 0, "category_id", to=...),
        [HERE + "annotations[0]: Object missing required field `category_id`"],
    ),
    "neither box nor mask": (
        annotation(0, bbox=None, segmentation=[]),
        [HERE + "it has neither a box nor a mask"],
    ),
    "no box and a mask without area": (
        annotation(0, bbox=None, segmentation=[[2, 2, 9, 2, 5, 2]]),
        [HERE + "the mask has no area"],
    ),
    "an id that isn't declared": (
        annotation(0, category_id="cup"),
        [HERE + "category cup isn't declared"],
    ),
    "wrong type of an id": (
        annotation(0, image_id=[3]),
        ["annotation 100: annotations[0].image_id: Expected `int | str`, got `array`"],
    ),
    "an id with a fraction": (
        annotation(0, image_id=3.5),
        ["annotation 100: annotations[0].image_id: Expected `int | str`, got `float`"],
    ),
    "an id of an image that is left out": (
        both(set_at("images", 0, "file_name", to="c.png"), annotation(0, area=-1)),
        [
            "image 3: images/c.png: can't be read: No such file or directory",
            HERE + "the area -1 isn't a number of pixels",
        ],
    ),
    "a box of three": (
        annotation(0, bbox=[1, 2, 3]),
        [HERE + "annotations[0].bbox: Expected `array` of length 4"],
    ),
    "a crowd of two": (annotation(0, iscrowd=2), [HERE + "annotations[0].iscrowd: Expected "]),
    "a box where the polygon should be": (
        annotation(0, segmentation=[2, 2, 10, 2]),
        [HERE + "a polygon has fewer than three points, 2"],
    ),
    "no entry at all": (
        set_at("annotations", 0, to=None),
        ["annotations[0]: Expected `object`, got `null`"],
    ),
    "an image's key": (
        set_at("images", 2, "height", to=-3),
        ["image 40: images[2].height: Expected `int` >= 1"],
    ),
    "a category's key": (
        set_at("categories", 1, "name", to=""),
        [
            "set.json: categories[1].name: Expected `str` of length >= 1",
        ],
    ),
}


def begins(found: list[str], expected: list[str]) -> bool:
    return len(found) == len(expected) and all(map(str.startswith, found, expected))


@pytest.mark.parametrize("kind", COCO)
def test_coco(tmp_path, kind):
    spoil, expected = COCO[kind]
    content = coco()
    spoil(content)
    found = describe_problems(write_coco(tmp_path, content), tmp_path)
    assert begins(found, expected), found


@pytest.mark.parametrize("write", [write_coco, write_panoptic, write_instance_png])
def test_what_is_right_has_no_problems(tmp_path, write):
    config = write(tmp_path)
    assert problems_of(config, tmp_path) == []
    assert open_dataset(config, tmp_path).images


PANOPTIC: dict[str, tuple[Spoil, list[str]]] = {
    "segment without pixels": (
        set_at("annotations", 0, "segments_info", 0, "id", to=6),
        [
            "image 3: segments/a.png has pixels of 5, which no segment is",
            "image 3, annotation 6: the segment has no pixels in segments/a.png",
        ],
    ),
    "id without segment": (
        set_at("annotations", 0, "segments_info", 2, to=...),
        ["image 3: segments/a.png has pixels of 300, which no segment is"],
    ),
    "png missing": (
        set_at("annotations", 0, "file_name", to="b.png"),
        ["image 3: segments/b.png: can't be read: No such file or directory"],
    ),
    "segment id twice": (
        lambda content: content["annotations"][0]["segments_info"].append(
            content["annotations"][0]["segments_info"][1]
        ),
        ["image 3, annotation 66049: the segment id 66049 is given twice"],
    ),
    "segment's category": (
        set_at("annotations", 0, "segments_info", 2, "category_id", to=201),
        ["image 3, annotation 300: category 201 isn't declared"],
    ),
    "segment's box": (
        set_at("annotations", 0, "segments_info", 0, "bbox", to=[2, 2, 0, 6]),
        ["image 3, annotation 5: the box [2, 2, 0, 6] has no area"],
    ),
    "segment's area": (
        set_at("annotations", 0, "segments_info", 0, "area", to=-math.inf),
        ["image 3, annotation 5: the area -inf isn't a number of pixels"],
    ),
    "segment's key": (
        set_at("annotations", 0, "segments_info", 0, "category_id", to=...),
        ["image 3, annotation 5: segments_info[0]: Object missing required field `category_id`"],
    ),
    "no segments": (
        set_at("annotations", 0, "segments_info", to=3),
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
        again("annotations", 0),
        ["image 3: it has two entries in annotations"],
    ),
    "category name twice": (
        set_at("categories", 2, "name", to="cup"),
        ["set.json: categories 7 and 200 are both 'cup': rename one"],
    ),
    "picture of another size": (
        set_at("images", 0, "height", to=17),
        [
            "image 3: segments/a.png is 20 x 16, the image 20 x 17",
            "image 3: images/a.png: it is 20 x 16, its annotations are for 20 x 17",
        ],
    ),
}


@pytest.mark.parametrize("kind", PANOPTIC)
def test_panoptic(tmp_path, kind):
    spoil, expected = PANOPTIC[kind]
    content = make_panoptic_content()
    spoil(content)
    assert describe_problems(write_panoptic(tmp_path, content), tmp_path) == expected


def test_panoptic_png_of_another_size(tmp_path):
    config = write_panoptic(tmp_path)
    write_values(tmp_path / "segments" / "a.png", np.pad(make_segment_values(), ((0, 1), (0, 0))))
    expected = ["image 3: segments/a.png is 20 x 17, the image 20 x 16"]
    assert describe_problems(config, tmp_path) == expected


def test_panoptic_png_that_is_none(tmp_path):
    config = write_panoptic(tmp_path)
    Image.new("RGB", (20, 16)).save(tmp_path / "segments" / "a.png", format="JPEG")
    assert describe_problems(config, tmp_path) == ["image 3: segments/a.png: isn't a PNG"]


def test_instance_png_mask_and_image_without_the_other(tmp_path):
    config = write_instance_png(tmp_path)
    (tmp_path / "images" / "q.jpg").unlink()
    (tmp_path / "masks" / "s_mask.png").unlink()
    assert describe_problems(config, tmp_path) == [
        "image 2: images/s.png has no mask",
        "masks/q_mask.png belongs to no image in images",
    ]


def test_instance_png_two_masks_and_two_pictures(tmp_path):
    config = write_instance_png(tmp_path)
    write_values(tmp_path / "masks" / "q.png", np.zeros(SIZE, np.int32))
    write_picture(tmp_path / "images" / "r.jpg")
    assert describe_problems(config, tmp_path) == [
        "image 1: images/q.jpg has 2 masks, q.png, q_mask.png",
        "image 2: there are 2 images called r",
        "image 3: there are 2 images called r",
    ]


def test_instance_png_of_another_size_and_damaged(tmp_path):
    config = write_instance_png(tmp_path)
    write_values(tmp_path / "masks" / "r.png", np.zeros((16, 21), np.int32))
    damaged = tmp_path / "masks" / "s_mask.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    size, damage = describe_problems(config, tmp_path)[::-1]
    assert size == "image 2: images/r.png: it is 20 x 16, its annotations are for 21 x 16"
    assert damage.startswith("image 3: masks/s_mask.png: can't be decoded")


@pytest.mark.parametrize("kind", ["cut off", "not an image", "empty"])
def test_pictures_that_cant_be_read(tmp_path, kind):
    config = write_coco(tmp_path)
    picture = tmp_path / "images" / "b.jpg"
    whole = picture.read_bytes()
    picture.write_bytes({"cut off": whole[: len(whole) // 2], "empty": b""}.get(kind, b"hello"))
    (found,) = describe_problems(config, tmp_path)
    assert found.startswith("image 12: images/b.jpg: ")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_exif_annotations_of_the_picture_as_it_is_stored(tmp_path, orientation, ending):
    content = coco()
    content["images"][2]["file_name"] = f"turned{ending}"
    config = write_coco(tmp_path, content)
    write_picture(tmp_path / "images" / f"turned{ending}", SIZE, orientation)
    expected = (
        f"image 40: images/turned{ending}: it is 16 x 20, its annotations are for 20 x 16, as it "
        f"is before its EXIF orientation {orientation} turns it upright: turn the annotations, or "
        "take the orientation out of the file"
    )
    assert describe_problems(config, tmp_path) == ([expected] if orientation >= 5 else [])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_annotations_of_the_upright_picture_are_right(tmp_path, orientation):
    content = coco()
    height, width = SIZE if orientation < 5 else SIZE[::-1]
    content["images"][2] |= {"width": width, "height": height}
    config = write_coco(tmp_path, content)
    write_picture(tmp_path / "images" / "empty.png", SIZE, orientation)
    assert problems_of(config, tmp_path) == []


def test_datasets_are_checked_one_by_one(tmp_path):
    one, two = tmp_path / "data" / "one", tmp_path / "data" / "two"
    for folder in (one, two):
        folder.mkdir(parents=True)
    content = coco()
    content["annotations"][0]["category_id"] = 99
    first = write_coco(one, content)
    second = write_coco(two)
    write_picture(two / "images" / "a.png", (4, 5))
    train = (
        replace(first, images="one/images", annotations="one/set.json"),
        replace(second, images="two/images", annotations="two/set.json"),
        CocoData(images=".", annotations="three.json"),
        CocoData(images="one/images", annotations="one/set.json", annotated=("cap",), name="four"),
        PatternData(url="test:?frames=0"),
    )
    val = (train[0], PatternData(url="test:?size=8x8&frames=2", name="fine"))
    found = check(DataConfig(root="data", train=train, val=val), tmp_path)
    wrong_size = "it is 5 x 4, its annotations are for 20 x 16"
    texts = [str(problem).replace(f"{tmp_path}/", "") for problem in found]
    assert texts == [
        "set (one/set.json): image 3, annotation 100: category 99 isn't declared",
        f"set (two/set.json): image 3: data/two/images/a.png: {wrong_size}",
        "three: data/three.json: there is no such file",
        "four: image 3, annotation 100: category 99 isn't declared",
        "four: annotated: four has no category 'cap'; did you mean 'cup'?",
        "pattern: test:?frames=0: frames must be a whole number from 1 to 1000000000",
    ]
    assert found[0] == Problem("set (one/set.json)", 3, 100, "category 99 isn't declared")


def test_labels_are_exact_or_refused(tmp_path):
    file = tmp_path / "labels.png"
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for image, expected in (
        (Image.fromarray(values), values),
        (Image.fromarray(values).convert("LA"), values),
        (Image.fromarray(values.astype(np.uint16) * 5000), values.astype(int) * 5000),
        (Image.fromarray(values > 5), (values > 5) * 255),
        (Image.fromarray(np.stack([values, values + 1, values + 2], 2)), None),
        (Image.fromarray(np.stack([values, values + 1, values + 2, values], 2)), None),
    ):
        image.save(file)
        wanted = values + 256 * (values + 1.0) + 65536 * (values + 2.0)
        assert (read_labels(file, 100) == (wanted if expected is None else expected)).all()
    Image.fromarray(values).save(file, exif=_turned())
    assert (read_labels(file, 100) == np.rot90(values, -1)).all()
    import cv2

    cv2.imwrite(str(file), np.zeros((3, 4, 3), np.uint16))
    with pytest.raises(BadImageError, match="isn't a PNG of labels: its pixels are rgb48be"):
        read_labels(file, 100)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# Whatever stands anywhere in a file: problems or an error in one line, never a traceback; and what
# has no problem can be used.

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 3, 7, 16, 20, 90, 100, 2**31, 2**63, 10**400, -1])
    | st.floats()
    | st.text(st.characters(codec=None), max_size=6)
    | st.sampled_from(["a.png", "b.jpg", "../set.json", "cup", "/", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
RUNS = st.fixed_dictionaries(
    {"size": st.just([16, 20]) | JSON, "counts": st.lists(st.integers(), max_size=5) | st.text()}
)
POLYGONS = st.lists(st.lists(st.floats(-1, 21) | st.floats(), max_size=9), max_size=3)


def paths(content: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """All places in a JSON value."""
    yield before
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from paths(content[key], (*before, key))


def replaced(content: Any, path: tuple[str | int, ...], value: Any) -> Any:
    if not path:
        return value
    content = copy.copy(content)
    content[path[0]] = replaced(content[path[0]], path[1:], value)
    return content


def use(config: CocoData | PanopticData | InstancePngData, folder: Path) -> None:
    """All that can be done with a dataset; raises what nobody should see."""
    problems = problems_of(config, folder)
    for problem in problems:
        assert len(str(problem).splitlines()) == 1
        str(problem).encode()
    if problems:
        with contextlib.suppress(StreamsegError):
            open_dataset(config, folder)
        return
    dataset = open_dataset(config, folder)
    json.dumps(coco_truth(dataset), allow_nan=False)
    for image in dataset.images:
        load_sample(dataset, image, tuple(dataset.categories.values()), 0)


WITHIN = settings(
    deadline=None,
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@given(data=st.data())
@WITHIN
def test_any_value_anywhere_in_cocos_json(tmp_path, data):
    content = coco()
    places = list(paths(content))
    config = write_coco(tmp_path, content) if not (tmp_path / "images").exists() else None
    config = config or CocoData(images="images", annotations="set.json")
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places))
        value = data.draw(RUNS | POLYGONS | JSON if path[-1:] == ("segmentation",) else JSON)
        try:
            content = replaced(content, path, value)
        except (KeyError, IndexError, TypeError):
            continue  # the place is gone with what was replaced before
    write_json(tmp_path / "set.json", content)
    use(config, tmp_path)


@given(data=st.data())
@WITHIN
def test_any_value_anywhere_in_a_panoptic_json(tmp_path, data):
    config = write_panoptic(tmp_path)
    content = make_panoptic_content()
    path = data.draw(st.sampled_from(list(paths(content))))
    write_json(tmp_path / "set.json", replaced(content, path, data.draw(JSON)))
    use(config, tmp_path)


@pytest.mark.parametrize("seed", range(40))
def test_any_byte_anywhere_in_any_file(tmp_path, seed):
    rng = random.Random(seed)
    write = rng.choice([write_coco, write_panoptic, write_instance_png])
    config = write(tmp_path)
    file = rng.choice(sorted(path for path in tmp_path.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 3, 30])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    file.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content) + 1)])])
    use(config, tmp_path)


def test_many_pictures_take_seconds_at_most(tmp_path):
    content = coco()
    content["images"] = [content["images"][0] | {"id": number} for number in range(800)]
    content["annotations"] = [
        content["annotations"][number % 3] | {"id": number, "image_id": number}
        for number in range(800)
    ]
    content["annotations"][799] |= {"segmentation": encode_uncompressed(rectangle_mask(0, 0, 3, 3))}
    assert problems_of(write_coco(tmp_path, content), tmp_path) == []
