"""Small valid datasets in each format, for tests that open them or make them invalid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from streamseg.config.training import (
    CocoData,
    DataConfig,
    DatasetConfig,
    InstancePngData,
    PanopticData,
)
from streamseg.datasets import Problem, find_problems

SIZE = (16, 20)
"""Height and width of all images here."""

RECTANGLE = [2.0, 2.0, 10.0, 2.0, 10.0, 8.0, 2.0, 8.0]
TRIANGLE = [12.0, 10.0, 18.0, 10.0, 15.0, 15.0]


def write_image(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    """Write an image of random pixels with an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def rectangle_mask(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    """Return a mask of ``SIZE``, uint8, that is 1 in a rectangle."""
    mask = np.zeros(SIZE, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def encode_compressed(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask as compressed COCO run lengths."""
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": rle["counts"].decode("ascii")}


def encode_uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask as uncompressed COCO run lengths."""
    flat = np.concatenate([[0], mask.ravel(order="F")])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {"size": list(SIZE), "counts": counts.tolist()}


def make_coco_content() -> dict[str, Any]:
    """Return a COCO instance JSON of three images, two categories and each kind of annotation."""
    images = [
        {"id": 3, "file_name": "a.png", "height": 16, "width": 20},
        {"id": 12, "file_name": "b.jpg", "height": 16, "width": 20},
        {"id": 40, "file_name": "empty.png", "height": 16, "width": 20},
    ]
    rows = [
        (3, 7, [2, 2, 8, 6], 0, [RECTANGLE]),
        (3, 90, [1, 1, 4, 3], 0, encode_uncompressed(rectangle_mask(1, 1, 5, 4))),
        (3, 90, [6, 3, 10, 12], 0, encode_compressed(rectangle_mask(6, 3, 16, 15))),
        (12, 7, [0, 0, 20, 5], 1, encode_uncompressed(rectangle_mask(0, 0, 20, 5))),
        (12, 7, [3.5, 4.5, 5.25, 6.0], 0, None),
        (12, 90, [2, 2, 16, 13], 0, [RECTANGLE, TRIANGLE]),
    ]
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "iscrowd": crowd,
            "area": box[2] * box[3],
        }
        | ({"segmentation": segmentation} if segmentation else {})
        for number, (image_id, category_id, box, crowd, segmentation) in enumerate(rows, 100)
    ]
    categories = [{"id": 90, "name": "brush"}, {"id": 7, "name": "cup"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(folder: Path, content: Any = None) -> CocoData:
    """Write the images and the JSON of a COCO instance dataset; return its config section."""
    for name in ("a.png", "b.jpg", "empty.png"):
        write_image(folder / "images" / name)
    write_json(folder / "set.json", make_coco_content() if content is None else content)
    return CocoData(images="images", annotations="set.json")


def make_segment_values() -> np.ndarray:
    """Return a label map, int32, with the things 5 and 65536 + 513 and the stuff 300."""
    values = np.zeros(SIZE, np.int32)
    values[2:8, 2:10] = 5
    values[10:15, 12:18] = 66049
    values[15, :] = 300
    return values


def make_panoptic_content() -> dict[str, Any]:
    """Return a COCO panoptic JSON for one image with :func:`make_segment_values`."""
    segments = [
        {"id": 5, "category_id": 7, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0},
        {"id": 66049, "category_id": 90, "bbox": [12, 10, 6, 5], "area": 30, "iscrowd": 1},
        {"id": 300, "category_id": 200, "bbox": [0, 15, 20, 1], "area": 20, "iscrowd": 0},
    ]
    return {
        "images": [{"id": 3, "file_name": "a.png", "height": 16, "width": 20}],
        "annotations": [{"image_id": 3, "file_name": "a.png", "segments_info": segments}],
        "categories": [
            {"id": 7, "name": "cup", "isthing": 1},
            {"id": 90, "name": "brush", "isthing": 1},
            {"id": 200, "name": "sky", "isthing": 0},
        ],
    }


def write_label_png(path: Path, values: np.ndarray) -> None:
    """Write a label map as an RGB PNG: R + 256 G + 65536 B."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.stack([values % 256, values // 256 % 256, values // 65536], axis=2)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def write_panoptic(folder: Path, content: Any = None) -> PanopticData:
    """Write image, PNG and JSON of a COCO panoptic dataset; return its config section."""
    write_image(folder / "images" / "a.png")
    write_label_png(folder / "segments" / "a.png", make_segment_values())
    write_json(folder / "set.json", make_panoptic_content() if content is None else content)
    return PanopticData(images="images", annotations="set.json", segments="segments")


def write_palette(path: Path, values: np.ndarray) -> None:
    """Write a label map as a PNG with a palette in which the indices 1 and 2 have one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0, 255, 0, 0, 0, 0, 255])
    image.save(path)


def write_instance_png(folder: Path) -> InstancePngData:
    """Write an instance PNG dataset; return its config section.

    The images q.jpg, r.png and s.png have two objects, one and none.
    """
    for name in ("q.jpg", "r.png", "s.png"):
        write_image(folder / "images" / name)
    two_objects = rectangle_mask(2, 2, 10, 8) + 2 * rectangle_mask(12, 10, 18, 15)
    write_palette(folder / "masks" / "q_mask.png", two_objects)
    one_object = 70000 * rectangle_mask(1, 1, 5, 4).astype(np.int32)
    write_label_png(folder / "masks" / "r.png", one_object)
    write_label_png(folder / "masks" / "s_mask.png", np.zeros(SIZE, np.int32))
    return InstancePngData(images="images", masks="masks", category="pedestrian")


def find_dataset_problems(config: DatasetConfig, folder: Path) -> list[Problem]:
    """Return all problems of a dataset."""
    return find_problems(DataConfig(train=(config,)), folder)


def describe_problems(config: DatasetConfig, folder: Path) -> list[str]:
    """Return locations and messages of all problems, with paths relative to ``folder``."""
    return [p.description.replace(f"{folder}/", "") for p in find_dataset_problems(config, folder)]
