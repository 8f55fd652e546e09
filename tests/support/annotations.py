"""Small annotated datasets, right ones, that tests write and then spoil."""

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
from streamseg.datasets import Problem, check

SIZE = (16, 20)
"""Height and width of every picture here."""

RECTANGLE = [2.0, 2.0, 10.0, 2.0, 10.0, 8.0, 2.0, 8.0]
TRIANGLE = [12.0, 10.0, 18.0, 10.0, 15.0, 15.0]


def write_picture(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def bitmap(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": rle["counts"].decode("ascii")}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate([[0], mask.ravel(order="F")])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {"size": list(SIZE), "counts": counts.tolist()}


def coco() -> dict[str, Any]:
    """Two pictures, two categories far apart, and each kind of annotation."""
    pictures = [
        {"id": 3, "file_name": "a.png", "height": 16, "width": 20},
        {"id": 12, "file_name": "b.jpg", "height": 16, "width": 20},
        {"id": 40, "file_name": "empty.png", "height": 16, "width": 20},
    ]
    rows = [
        (3, 7, [2, 2, 8, 6], 0, [RECTANGLE]),
        (3, 90, [1, 1, 4, 3], 0, uncompressed(bitmap(1, 1, 5, 4))),
        (3, 90, [6, 3, 10, 12], 0, compressed(bitmap(6, 3, 16, 15))),
        (12, 7, [0, 0, 20, 5], 1, uncompressed(bitmap(0, 0, 20, 5))),
        (12, 7, [3.5, 4.5, 5.25, 6.0], 0, None),
        (12, 90, [2, 2, 16, 13], 0, [RECTANGLE, TRIANGLE]),
    ]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "iscrowd": crowd,
            "area": box[2] * box[3],
        }
        | ({"segmentation": segmentation} if segmentation else {})
        for number, (image, category, box, crowd, segmentation) in enumerate(rows, 100)
    ]
    categories = [{"id": 90, "name": "brush"}, {"id": 7, "name": "cup"}]
    return {"images": pictures, "annotations": annotations, "categories": categories}


def write_coco(folder: Path, content: Any = None) -> CocoData:
    for name in ("a.png", "b.jpg", "empty.png"):
        write_picture(folder / "images" / name)
    write_json(folder / "set.json", coco() if content is None else content)
    return CocoData(images="images", annotations="set.json")


def segment_values() -> np.ndarray:
    """Two things, one of them at 65536 + 513, and stuff; the rest is nothing."""
    values = np.zeros(SIZE, np.int32)
    values[2:8, 2:10] = 5
    values[10:15, 12:18] = 66049
    values[15, :] = 300
    return values


def panoptic() -> dict[str, Any]:
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


def write_values(path: Path, values: np.ndarray) -> None:
    """A PNG of R + 256 G + 65536 B."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.stack([values % 256, values // 256 % 256, values // 65536], axis=2)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def write_panoptic(folder: Path, content: Any = None) -> PanopticData:
    write_picture(folder / "images" / "a.png")
    write_values(folder / "segments" / "a.png", segment_values())
    write_json(folder / "set.json", panoptic() if content is None else content)
    return PanopticData(images="images", annotations="set.json", segments="segments")


def write_palette(path: Path, values: np.ndarray) -> None:
    """A PNG with a palette in which two indices have one colour, as PennFudan's nearly do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0, 255, 0, 0, 0, 0, 255])
    image.save(path)


def write_instance_png(folder: Path) -> InstancePngData:
    """Pictures q.jpg, r.png and s.png: two objects, one, none."""
    for name in ("q.jpg", "r.png", "s.png"):
        write_picture(folder / "images" / name)
    write_palette(folder / "masks" / "q_mask.png", bitmap(2, 2, 10, 8) + 2 * bitmap(12, 10, 18, 15))
    write_values(folder / "masks" / "r.png", 70000 * bitmap(1, 1, 5, 4).astype(np.int32))
    write_values(folder / "masks" / "s_mask.png", np.zeros(SIZE, np.int32))
    return InstancePngData(images="images", masks="masks", category="pedestrian")


def problems_of(config: DatasetConfig, folder: Path) -> list[Problem]:
    return check(DataConfig(train=(config,)), folder)


def located(config: DatasetConfig, folder: Path) -> list[str]:
    """All problems of a dataset in ``folder``, which is left out of their text."""
    return [p.description.replace(f"{folder}/", "") for p in problems_of(config, folder)]
