"""Dataset formats: what each reader returns, and errors of open_dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image
from support.annotations import (
    RECTANGLE,
    SIZE,
    TRIANGLE,
    encode_compressed,
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

from streamseg.config.training import (
    CocoData,
    InstancePngData,
    PatternData,
)
from streamseg.datasets import (
    PngSegment,
    find_file_problems,
    format_skipped_rows,
    load_sample,
    open_dataset,
)
from streamseg.errors import ConfigError, DataError


def test_coco_ids_and_annotations_of_every_kind(tmp_path):
    dataset = open_dataset(write_coco(tmp_path), tmp_path)
    assert dataset.name == "set"
    assert dict(dataset.categories) == {7: "cup", 90: "brush"}
    assert list(dataset.categories) == [7, 90]
    assert dataset.annotated == {7, 90}
    assert dataset.repeat == 1
    assert [image.id for image in dataset.images] == [3, 12, 40]
    first, second, third = dataset.images
    assert first.file == tmp_path / "images" / "a.png"
    assert first.size == SIZE
    polygon, runs, counts = first.annotations
    assert (polygon.id, polygon.category_id, polygon.box) == (100, 7, (2, 2, 10, 8))
    assert polygon.segmentation == (RECTANGLE,)
    assert runs.segmentation == encode_compressed(rectangle_mask(1, 1, 5, 4))
    assert counts.segmentation == encode_compressed(rectangle_mask(6, 3, 16, 15))
    crowd, box, two = second.annotations
    assert crowd.crowd
    assert not box.crowd
    assert box.segmentation is None
    assert box.box == (3.5, 4.5, 8.75, 10.5)
    assert two.segmentation == (RECTANGLE, TRIANGLE)
    assert third.annotations == ()


@pytest.mark.parametrize("empty", [None, []])
def test_coco_empty_segmentation_is_a_box_only_annotation(tmp_path, empty):
    content = make_coco_content()
    content["annotations"][0]["segmentation"] = empty
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert dataset.images[0].annotations[0].segmentation is None


def test_coco_missing_areas_are_computed(tmp_path):
    content = make_coco_content()
    content["annotations"][0]["area"] = 47.5
    for annotation in content["annotations"][1:]:
        del annotation["area"]
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    areas = [a.area for image in dataset.images for a in image.annotations]
    triangle = areas.pop() - 48
    assert areas == [47.5, 12, 120, 100, 5.25 * 6]
    assert triangle == pytest.approx(15, abs=5)


def test_images_are_sorted_by_id(tmp_path):
    content = make_coco_content()
    content["images"].reverse()
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert [image.id for image in dataset.images] == [3, 12, 40]


def test_name_and_repeat_come_from_the_config(tmp_path):
    config = replace(write_coco(tmp_path), name="kitchen", repeat=4)
    dataset = open_dataset(config, tmp_path)
    assert (dataset.name, dataset.repeat) == ("kitchen", 4)


def test_annotated_names_are_converted_to_ids(tmp_path):
    config = replace(write_coco(tmp_path), annotated=("brush",))
    dataset = open_dataset(config, tmp_path)
    assert dataset.annotated == {90}
    sample = load_sample(dataset, dataset.images[0], ("cup", "person", "brush"), 0)
    assert sample.targets.annotated.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cpu", "did you mean 'cup'?"), ("elephant", "there are cup, brush")],
)
def test_unknown_annotated_name_raises(tmp_path, name, hint):
    config = replace(write_coco(tmp_path), annotated=(name,))
    with pytest.raises(ConfigError) as error:
        open_dataset(config, tmp_path)
    assert str(error.value) == f"annotated: set has no category {name!r}; {hint}"


def test_annotated_stuff_raises(tmp_path):
    config = replace(write_panoptic(tmp_path), annotated=("sky",))
    with pytest.raises(ConfigError, match="set has no category 'sky'; there are cup, brush"):
        open_dataset(config, tmp_path)


def test_error_for_problems_has_their_number_and_the_first(tmp_path):
    content = make_coco_content()
    content["annotations"][2]["category_id"] = 99
    content["annotations"][4]["bbox"] = [0, 0, 0, 5]
    config = write_coco(tmp_path, content)
    with pytest.raises(DataError) as error:
        open_dataset(config, tmp_path)
    assert str(error.value) == (
        "set: 2 problems, the first: image 3, annotation 102: category 99 isn't declared; "
        "list them with streamseg eval --check FILE, or leave them out with data.problems: skip"
    )
    assert error.value.exit_code == 1
    content["annotations"][4]["bbox"] = [0, 0, 1, 5]
    with pytest.raises(DataError, match=r"^set: 1 problem, the first: image 3, annotation 102"):
        open_dataset(write_coco(tmp_path, content), tmp_path)


def test_problems_are_skipped_and_summarized(tmp_path):
    content = make_coco_content()
    content["annotations"][2]["category_id"] = 99
    content["annotations"][4]["bbox"] = [0, 0, 0, 5]
    content["annotations"].append({"image_id": 3})
    content["images"][2]["width"] = "wide"
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path, "skip")
    assert [[a.id for a in image.annotations] for image in dataset.images] == [
        [100, 101],
        [103, 105],
    ]
    assert [(each.location, each.reason) for each in dataset.skipped] == [
        ("image 40", "images.width: Expected `int | null`, got `str`"),
        ("image 3", "annotations: Object missing required field `category_id`"),
        ("image 3, annotation 102", "category isn't declared"),
        ("image 12, annotation 104", "box has no area"),
    ]
    content["annotations"] = content["annotations"][2:3] * 7
    for number, row in enumerate(content["annotations"]):
        content["annotations"][number] = row | {"id": number}
    skipped = open_dataset(write_coco(tmp_path, content), tmp_path, "skip").skipped
    assert list(format_skipped_rows("set", skipped)) == [
        "set: skipped 8 rows with problems (data.problems: skip):",
        "  7 x category isn't declared: "
        + "; ".join(f"image 3, annotation {number}" for number in range(5))
        + ", …",
        "  1 x images.width: Expected `int | null`, got `str`: image 40",
    ]


def test_without_removes_images_and_annotations_with_file_problems(tmp_path):
    content = make_panoptic_content()
    content["images"].append({"id": 4, "file_name": "b.png", "height": 16, "width": 20})
    content["annotations"].append(content["annotations"][0] | {"image_id": 4})
    content["annotations"][0] = content["annotations"][0] | {
        "segments_info": [
            *content["annotations"][0]["segments_info"],
            {"id": 9, "category_id": 7, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0},
        ]
    }
    write_image(tmp_path / "images" / "b.png", (4, 4))
    dataset = open_dataset(write_panoptic(tmp_path, content), tmp_path)
    problems = find_file_problems(dataset)
    assert [(each.image_id, each.annotation_id) for each in problems] == [(3, 9), (4, None)]
    (image,) = dataset.without(problems).images
    assert [a.id for a in image.annotations] == [5, 66049]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "isn't JSON: Expecting value: line 1 column 1 (char 0)"),
        ("{'a': 1}", "isn't JSON: "),
        ("\xff\xfe\xff", "isn't JSON: "),
        ("[" * 100_000, "isn't JSON: "),
        ("1" * 10_000, "isn't JSON: "),
        ("[]", "holds no object with images, annotations and categories"),
        ("{}", "images must be a list; is it an annotation file of COCO's?"),
        ('{"images": [], "annotations": {}}', "annotations must be a list"),
        ('{"images": [], "annotations": []}', "categories must be a list"),
    ],
)
@pytest.mark.parametrize("write", [write_coco, write_panoptic])
def test_invalid_annotation_file_raises_a_one_line_error(tmp_path, write, text, message):
    config = write(tmp_path)
    (tmp_path / "set.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as error:
        open_dataset(config, tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'set.json'}: {message}")
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_raise(tmp_path):
    with pytest.raises(DataError, match=r"set\.json: there is no such file$"):
        open_dataset(CocoData(images="images", annotations="set.json"), tmp_path)
    with pytest.raises(DataError, match="can't be read: Is a directory"):
        open_dataset(CocoData(images="images", annotations="."), tmp_path)
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match="masks: can't be read: No such file or directory"):
        open_dataset(InstancePngData(images="images", masks="masks"), tmp_path)


def test_dataset_without_images_raises(tmp_path):
    config = write_coco(tmp_path, {"images": [], "annotations": [], "categories": []})
    with pytest.raises(DataError, match=r"^set: there are no images in it$"):
        open_dataset(config, tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none: there are no images in it"):
        open_dataset(InstancePngData(images="none", masks="none"), tmp_path)


def test_panoptic_things_become_annotations(tmp_path):
    dataset = open_dataset(write_panoptic(tmp_path), tmp_path)
    assert dict(dataset.categories) == {7: "cup", 90: "brush"}
    assert dataset.annotated == {7, 90}
    (image,) = dataset.images
    cup, brush = image.annotations
    png = tmp_path / "segments" / "a.png"
    assert (cup.id, cup.category_id, cup.box, cup.area) == (5, 7, (2, 2, 10, 8), 48)
    assert cup.segmentation == PngSegment(png, 5)
    assert brush.crowd
    assert brush.segmentation == PngSegment(png, 66049)
    targets = load_sample(dataset, image, ("cup", "brush"), 0).targets
    assert (
        targets.masks.numpy() == [make_segment_values() == 5, make_segment_values() == 66049]
    ).all()
    assert targets.crowd.tolist() == [False, True]


def test_panoptic_missing_areas_are_counted(tmp_path):
    content = make_panoptic_content()
    for segment in content["annotations"][0]["segments_info"]:
        del segment["area"]
    dataset = open_dataset(write_panoptic(tmp_path, content), tmp_path)
    assert [a.area for a in dataset.images[0].annotations] == [48, 30]


def test_instance_png_palette_rgb_and_gray(tmp_path):
    config = write_instance_png(tmp_path)
    gray = np.zeros(SIZE, np.uint16)
    gray[4:6, 3:9] = 41000
    write_image(tmp_path / "images" / "t.jpg")
    Image.fromarray(gray).save(tmp_path / "masks" / "t.png")
    dataset = open_dataset(config, tmp_path)
    assert dataset.name == "images"
    assert dict(dataset.categories) == {1: "pedestrian"}
    assert dataset.annotated == {1}
    assert [image.id for image in dataset.images] == [1, 2, 3, 4]
    names = [image.file.name for image in dataset.images]
    assert names == ["q.jpg", "r.png", "s.png", "t.jpg"]
    rows = [[(a.id, a.box, a.area) for a in image.annotations] for image in dataset.images]
    assert rows == [
        [(1, (2, 2, 10, 8), 48), (2, (12, 10, 18, 15), 30)],  # both are red in the palette
        [(70000, (1, 1, 5, 4), 12)],
        [],
        [(41000, (3, 4, 9, 6), 12)],
    ]
    targets = load_sample(dataset, dataset.images[0], ("pedestrian",), 0).targets
    assert (
        targets.masks.numpy() == [rectangle_mask(2, 2, 10, 8), rectangle_mask(12, 10, 18, 15)]
    ).all()
    assert load_sample(dataset, dataset.images[3], ("pedestrian",), 0).targets.masks.sum() == 12


def test_instance_png_images_with_mask_in_their_name(tmp_path):
    config = write_instance_png(tmp_path)
    for name, value in (("q_mask.v2", 3), ("r_mask", 4)):
        write_image(tmp_path / "images" / f"{name}.jpg")
        write_label_png(
            tmp_path / "masks" / f"{name}.png", value * rectangle_mask(1, 1, 3, 3).astype(int)
        )
    (tmp_path / "images" / "._q.jpg").write_bytes(b"macOS resource fork")
    images = open_dataset(config, tmp_path).images
    ids = {image.file.name: [a.id for a in image.annotations] for image in images}
    assert ids == {
        "q.jpg": [1, 2],
        "q_mask.v2.jpg": [3],
        "r.png": [70000],
        "r_mask.jpg": [4],
        "s.png": [],
    }


def test_instance_png_boxes_of_scattered_pixels(tmp_path):
    rng = np.random.default_rng(3)
    values = rng.integers(0, 6, SIZE).astype(np.int32) * 1000
    config = write_instance_png(tmp_path)
    write_label_png(tmp_path / "masks" / "r.png", values)
    image = open_dataset(config, tmp_path).images[1]
    assert [a.id for a in image.annotations] == [1000, 2000, 3000, 4000, 5000]
    for annotation in image.annotations:
        y, x = np.nonzero(values == annotation.id)
        assert annotation.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert annotation.area == len(x)


def test_invalid_pattern_url_raises():
    with pytest.raises(ConfigError, match=r"^clip\.mp4: a pattern's url begins with test:$"):
        open_dataset(PatternData(url="clip.mp4"), Path())
    with pytest.raises(ConfigError, match="'sice' is unknown"):
        open_dataset(PatternData(url="test:?sice=1x1"), Path())
