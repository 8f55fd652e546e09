"""Each format read, and loaded: what comes out is what was annotated."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from pycocotools.coco import COCO
from support.annotations import (
    RECTANGLE,
    SIZE,
    TRIANGLE,
    coco,
    encode_compressed,
    make_panoptic_content,
    make_segment_values,
    rectangle_mask,
    write_coco,
    write_instance_png,
    write_json,
    write_panoptic,
    write_picture,
    write_values,
)
from support.paths import SHARED

from streamseg.config.training import (
    CocoData,
    DataConfig,
    DatasetConfig,
    InstancePngData,
    PanopticData,
    PatternData,
)
from streamseg.datasets import (
    Dataset,
    PatternFrame,
    PngSegment,
    check,
    coco_truth,
    inspect,
    load_image,
    load_sample,
    open_dataset,
    skipped_rows_summary,
)
from streamseg.errors import ConfigError, DataError
from streamseg.sources.imagefile import read_image
from streamseg.structures.results import Image as Pixels
from streamseg.structures.targets import THING, UNKNOWN

ALL = ("brush", "person", "cup", "disc", "box", "pedestrian")


def pattern(_: Path) -> PatternData:
    return PatternData(url="test:?size=48x32&frames=3&objects=4&seed=5")


FORMATS = [write_coco, write_panoptic, write_instance_png, pattern]


def index(truth: dict[str, Any]) -> COCO:
    """pycocotools' own view of a dataset; it prints."""
    api = COCO()
    api.dataset = truth
    with redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def decode(api: COCO, row: dict[str, Any]) -> np.ndarray:
    """pycocotools' mask of an annotation, (H, W)."""
    with warnings.catch_warnings():
        # Its decoder still does what NumPy 2 warns of.
        warnings.simplefilter("ignore", DeprecationWarning)
        return api.annToMask(row)


def test_coco_keeps_ids_and_every_kind_of_annotation(tmp_path):
    dataset = open_dataset(write_coco(tmp_path), tmp_path)
    assert dataset.name == "set"
    assert dict(dataset.categories) == {7: "cup", 90: "brush"}
    assert list(dataset.categories) == [7, 90]
    assert dataset.annotated == {7, 90}
    assert dataset.repeat == 1
    assert [image.id for image in dataset.images] == [3, 12, 40]
    first, second, third = dataset.images
    assert first.picture == tmp_path / "images" / "a.png"
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


@pytest.mark.parametrize("nothing", [None, []])
def test_coco_no_segmentation_is_a_box_alone(tmp_path, nothing):
    content = coco()
    content["annotations"][0]["segmentation"] = nothing
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert dataset.images[0].annotations[0].segmentation is None


def test_coco_areas_are_the_datasets_or_counted(tmp_path):
    content = coco()
    content["annotations"][0]["area"] = 47.5
    for annotation in content["annotations"][1:]:
        del annotation["area"]
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    areas = [a.area for image in dataset.images for a in image.annotations]
    triangle = areas.pop() - 48
    assert areas == [47.5, 12, 120, 100, 5.25 * 6]
    assert triangle == pytest.approx(15, abs=5)


def test_images_and_names_in_any_order(tmp_path):
    content = coco()
    content["images"].reverse()
    dataset = open_dataset(write_coco(tmp_path, content), tmp_path)
    assert [image.id for image in dataset.images] == [3, 12, 40]


def test_name_and_repeat_are_the_configs(tmp_path):
    config = replace(write_coco(tmp_path), name="kitchen", repeat=4)
    dataset = open_dataset(config, tmp_path)
    assert (dataset.name, dataset.repeat) == ("kitchen", 4)


def test_annotated_names_become_ids(tmp_path):
    config = replace(write_coco(tmp_path), annotated=("brush",))
    dataset = open_dataset(config, tmp_path)
    assert dataset.annotated == {90}
    sample = load_sample(dataset, dataset.images[0], ("cup", "person", "brush"), 0)
    assert sample.targets.annotated.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cpu", "did you mean 'cup'?"), ("elephant", "there are cup, brush")],
)
def test_annotated_names_that_nothing_has_are_refused(tmp_path, name, hint):
    config = replace(write_coco(tmp_path), annotated=(name,))
    with pytest.raises(ConfigError) as refused:
        open_dataset(config, tmp_path)
    assert str(refused.value) == f"annotated: set has no category {name!r}; {hint}"


def test_stuff_is_no_category_to_be_annotated(tmp_path):
    config = replace(write_panoptic(tmp_path), annotated=("sky",))
    with pytest.raises(ConfigError, match="set has no category 'sky'; there are cup, brush"):
        open_dataset(config, tmp_path)


def test_a_dataset_with_problems_says_how_many_and_the_first(tmp_path):
    content = coco()
    content["annotations"][2]["category_id"] = 99
    content["annotations"][4]["bbox"] = [0, 0, 0, 5]
    config = write_coco(tmp_path, content)
    with pytest.raises(DataError) as refused:
        open_dataset(config, tmp_path)
    assert str(refused.value) == (
        "set: 2 problems, the first: image 3, annotation 102: category 99 isn't declared; "
        "list them with streamseg eval --check FILE, or leave them out with data.problems: skip"
    )
    assert refused.value.exit_code == 1
    content["annotations"][4]["bbox"] = [0, 0, 1, 5]
    with pytest.raises(DataError, match=r"^set: 1 problem, the first: image 3, annotation 102"):
        open_dataset(write_coco(tmp_path, content), tmp_path)


def test_what_has_problems_is_left_out_where_problems_are_skipped(tmp_path):
    content = coco()
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
    assert list(skipped_rows_summary("set", skipped)) == [
        "set: skipped 8 rows with problems (data.problems: skip):",
        "  7 x category isn't declared: "
        + "; ".join(f"image 3, annotation {number}" for number in range(5))
        + ", …",
        "  1 x images.width: Expected `int | null`, got `str`: image 40",
    ]


def test_what_only_opening_shows_can_be_left_out_too(tmp_path):
    content = make_panoptic_content()
    content["images"].append({"id": 4, "file_name": "b.png", "height": 16, "width": 20})
    content["annotations"].append(content["annotations"][0] | {"image_id": 4})
    content["annotations"][0] = content["annotations"][0] | {
        "segments_info": [
            *content["annotations"][0]["segments_info"],
            {"id": 9, "category_id": 7, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0},
        ]
    }
    write_picture(tmp_path / "images" / "b.png", (4, 4))
    dataset = open_dataset(write_panoptic(tmp_path, content), tmp_path)
    problems = inspect(dataset)
    assert [(each.image_id, each.annotation_id) for each in problems] == [(3, 9), (4, None)]
    (image,) = dataset.without(problems).images
    assert [a.id for a in image.annotations] == [5, 66049]


@pytest.mark.parametrize(
    ("text", "what"),
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
def test_files_that_are_no_annotations_are_refused_in_one_line(tmp_path, write, text, what):
    config = write(tmp_path)
    (tmp_path / "set.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as refused:
        open_dataset(config, tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'set.json'}: {what}")
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"set\.json: there is no such file$"):
        open_dataset(CocoData(images="images", annotations="set.json"), tmp_path)
    with pytest.raises(DataError, match="can't be read: Is a directory"):
        open_dataset(CocoData(images="images", annotations="."), tmp_path)
    write_picture(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match="masks: can't be read: No such file or directory"):
        open_dataset(InstancePngData(images="images", masks="masks"), tmp_path)


def test_nothing_to_learn_from_is_refused(tmp_path):
    config = write_coco(tmp_path, {"images": [], "annotations": [], "categories": []})
    with pytest.raises(DataError, match=r"^set: there are no images in it$"):
        open_dataset(config, tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none: there are no images in it"):
        open_dataset(InstancePngData(images="none", masks="none"), tmp_path)


def test_panoptic_things_are_the_instances(tmp_path):
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


def test_panoptic_stuff_is_a_map_of_the_model_s_classes(tmp_path):
    content = make_panoptic_content()
    content["categories"].append({"id": 201, "name": "sea", "isthing": 0})
    dataset = open_dataset(write_panoptic(tmp_path, content), tmp_path)
    assert dict(dataset.stuff) == {200: "sky", 201: "sea"}
    (image,) = dataset.images
    assert [(patch.id, patch.category_id, patch.area) for patch in image.stuff] == [(300, 200, 20)]
    values = make_segment_values()
    stuff = load_sample(dataset, image, ("cup",), 0, ("grass", "sky")).targets.stuff
    expected = np.full(SIZE, UNKNOWN)
    expected[values == 300] = 2
    expected[(values == 5) | (values == 66049)] = THING  # one that isn't the model's, and a crowd
    assert stuff.dtype == torch.uint8
    assert (stuff.numpy() == expected).all()
    other = load_sample(dataset, image, ("cup",), 0, ("grass", "sea")).targets.stuff
    assert (other.numpy() == np.where(values == 300, UNKNOWN, expected)).all()


def test_there_is_no_map_of_stuff_where_model_or_data_have_none(tmp_path):
    divided = open_dataset(write_panoptic(tmp_path / "p"), tmp_path / "p")
    assert load_sample(divided, divided.images[0], ("cup",), 0).targets.stuff is None
    content = coco()
    content["categories"][0]["isthing"] = 0
    plain = open_dataset(write_coco(tmp_path / "c", content), tmp_path / "c")
    assert (plain.stuff, plain.images[0].stuff) == ({}, ())
    assert load_sample(plain, plain.images[0], ("cup",), 0, ("brush",)).targets.stuff is None


def test_targets_keep_their_stuff_when_objects_are_chosen_or_moved(tmp_path):
    dataset = open_dataset(write_panoptic(tmp_path), tmp_path)
    targets = load_sample(dataset, dataset.images[0], ("cup", "brush"), 0, ("sky",)).targets
    chosen = targets[~targets.crowd].to(torch.device("meta"))
    assert chosen.labels.shape == (1,)
    assert chosen.stuff.device.type == "meta"
    assert chosen.stuff.shape == SIZE


def test_panoptic_areas_that_nobody_says_are_counted(tmp_path):
    content = make_panoptic_content()
    for segment in content["annotations"][0]["segments_info"]:
        del segment["area"]
    dataset = open_dataset(write_panoptic(tmp_path, content), tmp_path)
    assert [a.area for a in dataset.images[0].annotations] == [48, 30]


def test_instance_pngs_by_palette_colour_and_grey(tmp_path):
    config = write_instance_png(tmp_path)
    grey = np.zeros(SIZE, np.uint16)
    grey[4:6, 3:9] = 41000
    write_picture(tmp_path / "images" / "t.jpg")
    Image.fromarray(grey).save(tmp_path / "masks" / "t.png")
    dataset = open_dataset(config, tmp_path)
    assert dataset.name == "images"
    assert dict(dataset.categories) == {1: "pedestrian"}
    assert dataset.annotated == {1}
    assert [image.id for image in dataset.images] == [1, 2, 3, 4]
    names = [image.picture.name for image in dataset.images]
    assert names == ["q.jpg", "r.png", "s.png", "t.jpg"]
    found = [[(a.id, a.box, a.area) for a in image.annotations] for image in dataset.images]
    assert found == [
        [(1, (2, 2, 10, 8), 48), (2, (12, 10, 18, 15), 30)],  # though both are red in the palette
        [(70000, (1, 1, 5, 4), 12)],
        [],
        [(41000, (3, 4, 9, 6), 12)],
    ]
    targets = load_sample(dataset, dataset.images[0], ("pedestrian",), 0).targets
    assert (
        targets.masks.numpy() == [rectangle_mask(2, 2, 10, 8), rectangle_mask(12, 10, 18, 15)]
    ).all()
    assert load_sample(dataset, dataset.images[3], ("pedestrian",), 0).targets.masks.sum() == 12


def test_instance_pngs_of_pictures_with_odd_names(tmp_path):
    config = write_instance_png(tmp_path)
    for name, value in (("q_mask.v2", 3), ("r_mask", 4)):
        write_picture(tmp_path / "images" / f"{name}.jpg")
        write_values(
            tmp_path / "masks" / f"{name}.png", value * rectangle_mask(1, 1, 3, 3).astype(int)
        )
    (tmp_path / "images" / "._q.jpg").write_bytes(b"what another system leaves behind")
    images = open_dataset(config, tmp_path).images
    found = {image.picture.name: [a.id for a in image.annotations] for image in images}
    assert found == {
        "q.jpg": [1, 2],
        "q_mask.v2.jpg": [3],
        "r.png": [70000],
        "r_mask.jpg": [4],
        "s.png": [],
    }


def test_boxes_of_scattered_instances(tmp_path):
    rng = np.random.default_rng(3)
    values = rng.integers(0, 6, SIZE).astype(np.int32) * 1000
    config = write_instance_png(tmp_path)
    write_values(tmp_path / "masks" / "r.png", values)
    image = open_dataset(config, tmp_path).images[1]
    assert [a.id for a in image.annotations] == [1000, 2000, 3000, 4000, 5000]
    for annotation in image.annotations:
        y, x = np.nonzero(values == annotation.id)
        assert annotation.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert annotation.area == len(x)


def test_pattern_frames_are_the_patterns_own_truth():
    dataset = open_dataset(pattern(Path()), Path())
    assert dataset.name == "pattern"
    assert dict(dataset.categories) == {1: "disc", 2: "box"}
    assert [image.id for image in dataset.images] == [1, 2, 3]
    image = dataset.images[2]
    assert image.picture == PatternFrame("test:?size=48x32&frames=3&objects=4&seed=5", 2)
    sample = load_sample(dataset, image, ("box", "disc"), 0)
    assert sample.image.shape == (3, 32, 48)
    # Discs and boxes have colours of their own, on grey: each mask has one colour.
    picture = sample.image.permute(1, 2, 0)
    for mask, box in zip(sample.targets.masks, sample.targets.boxes, strict=True):
        colours = picture[mask].unique(dim=0)
        assert len(colours) == 1
        assert colours.amax() > colours.amin()
        y, x = torch.nonzero(mask, as_tuple=True)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_a_patterns_url_must_be_one():
    with pytest.raises(ConfigError, match=r"^clip\.mp4: a pattern's url begins with test:$"):
        open_dataset(PatternData(url="clip.mp4"), Path())
    with pytest.raises(ConfigError, match="'sice' is unknown"):
        open_dataset(PatternData(url="test:?sice=1x1"), Path())


def test_samples_are_in_the_models_classes(tmp_path):
    dataset = open_dataset(write_coco(tmp_path), tmp_path)
    sample = load_sample(dataset, dataset.images[1], ("person", "cup"), 17)
    targets = sample.targets
    assert sample.image.dtype == torch.uint8
    assert sample.image.is_contiguous()
    assert (sample.image.permute(1, 2, 0).numpy() == load_image(dataset.images[1])).all()
    assert (targets.image_id, targets.seed) == (12, 17)
    assert targets.labels.tolist() == [1, 1]  # the brush isn't among the classes
    assert targets.boxes.dtype == torch.float32
    assert targets.boxes.tolist() == [[0, 0, 20, 5], [3.5, 4.5, 8.75, 10.5]]
    assert targets.has_mask.tolist() == [True, False]
    assert targets.crowd.tolist() == [True, False]
    assert targets.masks.dtype == torch.bool
    assert (targets.masks.numpy() == [rectangle_mask(0, 0, 20, 5), np.zeros(SIZE)]).all()
    assert targets.annotated.tolist() == [False, True]


@pytest.mark.parametrize("classes", [ALL, ("unheard of",), ()])
@pytest.mark.parametrize("write", FORMATS)
def test_every_picture_of_every_format_has_the_right_shapes(tmp_path, write, classes):
    dataset = open_dataset(write(tmp_path), tmp_path)
    for image in dataset.images:
        sample = load_sample(dataset, image, classes, 0)
        targets, count = sample.targets, len(sample.targets)
        assert count == (len(image.annotations) if classes == ALL else 0)
        assert sample.image.shape == (3, *image.size)
        assert targets.boxes.shape == (count, 4)
        assert targets.masks.shape == (count, *image.size)
        assert targets.has_mask.shape == targets.crowd.shape == targets.labels.shape == (count,)
        assert targets.annotated.shape == (len(classes),)
        kinds = {targets.masks.dtype, targets.has_mask.dtype, targets.crowd.dtype}
        assert kinds | {targets.annotated.dtype} == {torch.bool}
        assert targets.labels.dtype == torch.int64


@pytest.mark.parametrize("write", FORMATS)
def test_a_dataset_goes_to_another_process_whole(tmp_path, write):
    dataset = open_dataset(write(tmp_path), tmp_path)
    copy: Dataset = pickle.loads(pickle.dumps(dataset))
    assert copy.images == dataset.images
    assert copy.categories == dataset.categories


@pytest.mark.parametrize("write", FORMATS)
def test_truth_in_cocos_format_says_the_same(tmp_path, write):
    dataset = open_dataset(write(tmp_path), tmp_path)
    truth = json.loads(json.dumps(coco_truth(dataset)))
    api = index(truth)
    assert sorted(api.getCatIds()) == list(dataset.categories)
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(api.anns) + 1))
    for image in dataset.images:
        targets = load_sample(dataset, image, ALL, 0).targets
        rows = api.loadAnns(api.getAnnIds(imgIds=[image.id]))
        assert len(rows) == len(image.annotations) == len(targets)
        for row, annotation, mask in zip(rows, image.annotations, targets.masks, strict=True):
            assert row["category_id"] == annotation.category_id
            assert row["area"] == annotation.area
            assert row["iscrowd"] == annotation.crowd
            x, y, width, height = row["bbox"]
            assert (x, y, x + width, y + height) == annotation.box
            assert ("segmentation" in row) == (annotation.segmentation is not None)
            if "segmentation" in row:
                assert (decode(api, row) == mask.numpy()).all()


@pytest.mark.parametrize("write", [write_coco, write_instance_png])
def test_a_dataset_goes_round_through_cocos_format(tmp_path, write):
    dataset = open_dataset(write(tmp_path), tmp_path)
    truth = coco_truth(dataset)
    for row, image in zip(truth["images"], dataset.images, strict=True):
        row["file_name"] = image.picture.name
    write_json(tmp_path / "again.json", truth)
    again = open_dataset(CocoData(images="images", annotations="again.json"), tmp_path)
    assert again.categories == dataset.categories
    for one, two in zip(again.images, dataset.images, strict=True):
        first, second = (load_sample(d, i, ALL, 0) for d, i in ((again, one), (dataset, two)))
        assert torch.equal(first.image, second.image)
        for name in ("boxes", "labels", "masks", "has_mask", "crowd", "annotated"):
            assert torch.equal(getattr(first.targets, name), getattr(second.targets, name)), name


def test_pictures_come_upright_and_of_the_size_that_is_annotated(tmp_path):
    config = write_coco(tmp_path)
    turned = tmp_path / "images" / "a.png"
    write_picture(turned, (20, 16), orientation=6)  # a camera on its side: upright it is 16 x 20
    dataset = open_dataset(config, tmp_path)
    picture = load_image(dataset.images[0])
    assert picture.shape == (*SIZE, 3)
    stored: Pixels = np.asarray(Image.open(turned))
    assert (picture == np.rot90(stored, -1)).all()
    assert (picture == read_image(turned, 10_000)).all()
    write_picture(turned, (4, 5))
    with pytest.raises(DataError, match=r"a\.png: it is 5 x 4, its annotations are for 20 x 16$"):
        load_sample(dataset, dataset.images[0], ALL, 0)
    turned.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"a\.png: its header is damaged$"):
        load_image(dataset.images[0])
    turned.unlink()
    with pytest.raises(DataError, match=r"a\.png: can't be read: No such file or directory$"):
        load_image(dataset.images[0])


def test_a_png_of_masks_that_changed_is_refused(tmp_path):
    dataset = open_dataset(write_panoptic(tmp_path), tmp_path)
    png = tmp_path / "segments" / "a.png"
    write_values(png, np.zeros((3, 4), np.int32))
    for use in (
        lambda: load_sample(dataset, dataset.images[0], ALL, 0),
        lambda: coco_truth(dataset),
    ):
        with pytest.raises(DataError, match=r"it is 4 x 3, its annotations are for 20 x 16$"):
            use()
    png.unlink()
    with pytest.raises(DataError, match=r"segments/a\.png: can't be read"):
        load_sample(dataset, dataset.images[0], ALL, 0)


def shared(path: str) -> Path:
    found = SHARED / "data" / path
    if not found.exists():
        pytest.skip(f"{found} isn't there")
    return SHARED / "data"


REAL: list[tuple[DatasetConfig, int, int]] = [
    (CocoData(images="coco80/train", annotations="coco80/train.json"), 318, 2651),
    (CocoData(images="coco80/val", annotations="coco80/val.json"), 100, 850),
    (CocoData(images="person/val", annotations="person/val.json"), 70, 70),
    (CocoData(images="person/boxes_only", annotations="person/boxes_only.json"), 800, 4900),
    (
        PanopticData(
            images="panoptic/train2017/images",
            annotations="panoptic/train2017/panoptic.json",
            segments="panoptic/train2017/panoptic",
        ),
        100,
        746,
    ),
]


@pytest.mark.parametrize(("config", "images", "annotations"), REAL)
def test_real_datasets_have_no_problems(config, images, annotations):
    root = shared(config.annotations)
    assert check(DataConfig(train=(config,)), root) == []
    dataset = open_dataset(config, root)
    assert len(dataset.images) == images
    assert sum(len(image.annotations) for image in dataset.images) == annotations


def test_real_masks_are_those_of_pycocotools():
    config = CocoData(images="coco80/val", annotations="coco80/val.json")
    root = shared(config.annotations)
    api = index(json.loads((root / config.annotations).read_bytes()))
    dataset = open_dataset(config, root)
    classes = tuple(reversed(dataset.categories.values()))
    for image in dataset.images[:40]:
        targets = load_sample(dataset, image, classes, 0).targets
        rows = api.loadAnns(api.getAnnIds(imgIds=[image.id]))
        for row, mask, label in zip(rows, targets.masks, targets.labels, strict=True):
            assert (decode(api, row) == mask.numpy()).all()
            assert classes[label] == dataset.categories[row["category_id"]]


def test_real_panoptic_boxes_hold_their_masks():
    config, _, _ = REAL[-1]
    root = shared(config.annotations)
    dataset = open_dataset(config, root)
    classes = tuple(dataset.categories.values())
    for image in dataset.images[:20]:
        targets = load_sample(dataset, image, classes, 0).targets
        for mask, box, annotation in zip(
            targets.masks, targets.boxes, image.annotations, strict=True
        ):
            y, x = torch.nonzero(mask, as_tuple=True)
            tight = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert (tight - box).abs().max() <= 2
            assert mask.sum() == annotation.area
