"""Samples, ground truth and segment maps, loaded from datasets of every format."""

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
from PIL import Image
from pycocotools.coco import COCO
from support.annotations import (
    SIZE,
    make_coco_content,
    make_panoptic_content,
    make_segment_values,
    rectangle_mask,
    write_coco,
    write_image,
    write_instance_png,
    write_json,
    write_label_png,
    write_panoptic,
)
from support.paths import SHARED

from streamseg.config.training import (
    CocoData,
    DataConfig,
    DatasetConfig,
    PanopticData,
    PatternData,
)
from streamseg.datasets import (
    Dataset,
    PatternFrame,
    dataset_to_coco,
    find_problems,
    load_image,
    load_sample,
    open_dataset,
)
from streamseg.errors import DataError
from streamseg.sources.image_file import read_image
from streamseg.structures.results import Image as Pixels
from streamseg.structures.targets import THING, UNKNOWN

ALL_CLASSES = ("brush", "person", "cup", "disc", "box", "pedestrian")


def write_pattern(_: Path) -> PatternData:
    return PatternData(url="test:?size=48x32&frames=3&objects=4&seed=5")


WRITERS = [write_coco, write_panoptic, write_instance_png, write_pattern]


def create_coco(truth: dict[str, Any]) -> COCO:
    """Return pycocotools' API for a dataset, without its output to stdout."""
    api = COCO()
    api.dataset = truth
    with redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def decode(api: COCO, row: dict[str, Any]) -> np.ndarray:
    """Return pycocotools' mask of an annotation, (H, W)."""
    with warnings.catch_warnings():
        # pycocotools' decoder uses what NumPy 2 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        return api.annToMask(row)


def test_panoptic_stuff_map_has_the_models_class_indices(tmp_path):
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
    expected[(values == 5) | (values == 66049)] = THING  # a thing of no model class, and a crowd
    assert stuff.dtype == torch.uint8
    assert (stuff.numpy() == expected).all()
    other = load_sample(dataset, image, ("cup",), 0, ("grass", "sea")).targets.stuff
    assert (other.numpy() == np.where(values == 300, UNKNOWN, expected)).all()


def test_stuff_map_is_none_without_stuff_in_model_or_dataset(tmp_path):
    panoptic = open_dataset(write_panoptic(tmp_path / "p"), tmp_path / "p")
    assert load_sample(panoptic, panoptic.images[0], ("cup",), 0).targets.stuff is None
    content = make_coco_content()
    content["categories"][0]["isthing"] = 0
    instances = open_dataset(write_coco(tmp_path / "c", content), tmp_path / "c")
    assert (instances.stuff, instances.images[0].stuff) == ({}, ())
    assert (
        load_sample(instances, instances.images[0], ("cup",), 0, ("brush",)).targets.stuff is None
    )


def test_targets_keep_the_stuff_map_when_indexed_or_moved(tmp_path):
    dataset = open_dataset(write_panoptic(tmp_path), tmp_path)
    targets = load_sample(dataset, dataset.images[0], ("cup", "brush"), 0, ("sky",)).targets
    selected = targets[~targets.crowd].to(torch.device("meta"))
    assert selected.labels.shape == (1,)
    assert selected.stuff.device.type == "meta"
    assert selected.stuff.shape == SIZE


def test_pattern_annotations_match_the_pixels():
    dataset = open_dataset(write_pattern(Path()), Path())
    assert dataset.name == "pattern"
    assert dict(dataset.categories) == {1: "disc", 2: "box"}
    assert [image.id for image in dataset.images] == [1, 2, 3]
    image = dataset.images[2]
    assert image.file == PatternFrame("test:?size=48x32&frames=3&objects=4&seed=5", 2)
    sample = load_sample(dataset, image, ("box", "disc"), 0)
    assert sample.image.shape == (3, 32, 48)
    # Each disc and box has one color, on gray.
    pixels = sample.image.permute(1, 2, 0)
    for mask, box in zip(sample.targets.masks, sample.targets.boxes, strict=True):
        colors = pixels[mask].unique(dim=0)
        assert len(colors) == 1
        assert colors.amax() > colors.amin()
        y, x = torch.nonzero(mask, as_tuple=True)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_sample_has_the_models_class_indices(tmp_path):
    dataset = open_dataset(write_coco(tmp_path), tmp_path)
    sample = load_sample(dataset, dataset.images[1], ("person", "cup"), 17)
    targets = sample.targets
    assert sample.image.dtype == torch.uint8
    assert sample.image.is_contiguous()
    assert (sample.image.permute(1, 2, 0).numpy() == load_image(dataset.images[1])).all()
    assert (targets.image_id, targets.seed) == (12, 17)
    assert targets.labels.tolist() == [1, 1]  # the brush is not a model class
    assert targets.boxes.dtype == torch.float32
    assert targets.boxes.tolist() == [[0, 0, 20, 5], [3.5, 4.5, 8.75, 10.5]]
    assert targets.has_mask.tolist() == [True, False]
    assert targets.crowd.tolist() == [True, False]
    assert targets.masks.dtype == torch.bool
    assert (targets.masks.numpy() == [rectangle_mask(0, 0, 20, 5), np.zeros(SIZE)]).all()
    assert targets.annotated.tolist() == [False, True]


@pytest.mark.parametrize("classes", [ALL_CLASSES, ("unknown",), ()])
@pytest.mark.parametrize("write", WRITERS)
def test_sample_shapes_and_dtypes(tmp_path, write, classes):
    dataset = open_dataset(write(tmp_path), tmp_path)
    for image in dataset.images:
        sample = load_sample(dataset, image, classes, 0)
        targets, count = sample.targets, len(sample.targets)
        assert count == (len(image.annotations) if classes == ALL_CLASSES else 0)
        assert sample.image.shape == (3, *image.size)
        assert targets.boxes.shape == (count, 4)
        assert targets.masks.shape == (count, *image.size)
        assert targets.has_mask.shape == targets.crowd.shape == targets.labels.shape == (count,)
        assert targets.annotated.shape == (len(classes),)
        dtypes = {targets.masks.dtype, targets.has_mask.dtype, targets.crowd.dtype}
        assert dtypes | {targets.annotated.dtype} == {torch.bool}
        assert targets.labels.dtype == torch.int64


@pytest.mark.parametrize("write", WRITERS)
def test_coco_ground_truth_equals_the_samples(tmp_path, write):
    dataset = open_dataset(write(tmp_path), tmp_path)
    truth = json.loads(json.dumps(dataset_to_coco(dataset)))
    api = create_coco(truth)
    assert sorted(api.getCatIds()) == list(dataset.categories)
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(api.anns) + 1))
    for image in dataset.images:
        targets = load_sample(dataset, image, ALL_CLASSES, 0).targets
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
def test_coco_ground_truth_can_be_opened_again(tmp_path, write):
    dataset = open_dataset(write(tmp_path), tmp_path)
    truth = dataset_to_coco(dataset)
    for row, image in zip(truth["images"], dataset.images, strict=True):
        row["file_name"] = image.file.name
    write_json(tmp_path / "converted.json", truth)
    config = CocoData(images="images", annotations="converted.json")
    converted = open_dataset(config, tmp_path)
    assert converted.categories == dataset.categories
    for image, original in zip(converted.images, dataset.images, strict=True):
        first = load_sample(converted, image, ALL_CLASSES, 0)
        second = load_sample(dataset, original, ALL_CLASSES, 0)
        assert torch.equal(first.image, second.image)
        for name in ("boxes", "labels", "masks", "has_mask", "crowd", "annotated"):
            assert torch.equal(getattr(first.targets, name), getattr(second.targets, name)), name


def test_image_is_upright_and_has_the_annotated_size(tmp_path):
    config = write_coco(tmp_path)
    path = tmp_path / "images" / "a.png"
    write_image(path, (20, 16), orientation=6)  # upright it is 16 x 20
    dataset = open_dataset(config, tmp_path)
    pixels = load_image(dataset.images[0])
    assert pixels.shape == (*SIZE, 3)
    stored: Pixels = np.asarray(Image.open(path))
    assert (pixels == np.rot90(stored, -1)).all()
    assert (pixels == read_image(path, 10_000)).all()
    write_image(path, (4, 5))
    with pytest.raises(DataError, match=r"a\.png: it is 5 x 4, its annotations are for 20 x 16$"):
        load_sample(dataset, dataset.images[0], ALL_CLASSES, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"a\.png: its header is damaged$"):
        load_image(dataset.images[0])
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png: can't be read: No such file or directory$"):
        load_image(dataset.images[0])


@pytest.mark.parametrize("write", WRITERS)
def test_dataset_can_be_pickled(tmp_path, write):
    dataset = open_dataset(write(tmp_path), tmp_path)
    copy: Dataset = pickle.loads(pickle.dumps(dataset))
    assert copy.images == dataset.images
    assert copy.categories == dataset.categories


def test_png_that_changed_after_opening_raises(tmp_path):
    dataset = open_dataset(write_panoptic(tmp_path), tmp_path)
    png = tmp_path / "segments" / "a.png"
    write_label_png(png, np.zeros((3, 4), np.int32))
    for load in (
        lambda: load_sample(dataset, dataset.images[0], ALL_CLASSES, 0),
        lambda: dataset_to_coco(dataset),
    ):
        with pytest.raises(DataError, match=r"it is 4 x 3, its annotations are for 20 x 16$"):
            load()
    png.unlink()
    with pytest.raises(DataError, match=r"segments/a\.png: can't be read"):
        load_sample(dataset, dataset.images[0], ALL_CLASSES, 0)


def require_shared_data(path: str) -> Path:
    """Return the root of the shared datasets; skip the test if ``path`` is not there."""
    file = SHARED / "data" / path
    if not file.exists():
        pytest.skip(f"{file} does not exist")
    return SHARED / "data"


SHARED_DATASETS: list[tuple[DatasetConfig, int, int]] = [
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


@pytest.mark.parametrize(("config", "images", "annotations"), SHARED_DATASETS)
def test_shared_datasets_have_no_problems(config, images, annotations):
    root = require_shared_data(config.annotations)
    assert find_problems(DataConfig(train=(config,)), root) == []
    dataset = open_dataset(config, root)
    assert len(dataset.images) == images
    assert sum(len(image.annotations) for image in dataset.images) == annotations


def test_shared_masks_equal_those_of_pycocotools():
    config = CocoData(images="coco80/val", annotations="coco80/val.json")
    root = require_shared_data(config.annotations)
    api = create_coco(json.loads((root / config.annotations).read_bytes()))
    dataset = open_dataset(config, root)
    classes = tuple(reversed(dataset.categories.values()))
    for image in dataset.images[:40]:
        targets = load_sample(dataset, image, classes, 0).targets
        rows = api.loadAnns(api.getAnnIds(imgIds=[image.id]))
        for row, mask, label in zip(rows, targets.masks, targets.labels, strict=True):
            assert (decode(api, row) == mask.numpy()).all()
            assert classes[label] == dataset.categories[row["category_id"]]


def test_shared_panoptic_boxes_fit_their_masks():
    config, _, _ = SHARED_DATASETS[-1]
    root = require_shared_data(config.annotations)
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
