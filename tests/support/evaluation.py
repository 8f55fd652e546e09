"""Model and dataset for evaluation tests: many detections, and ground truth close to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from support.annotations import write_json

from streamseg.config import ModelConfig, SourceConfig, Thresholds
from streamseg.config.training import CocoData
from streamseg.models.base import Segmenter
from streamseg.models.categories import Categories
from streamseg.models.loading import start_model
from streamseg.models.weights import files as weights_files
from streamseg.sources.image_file import read_image
from streamseg.sources.pattern import CATEGORIES, TestPattern

INPUT_SIZE = 128
MIN_SCORE = 0.05
IDS = {"disc": 90, "box": 7}
"""The dataset's category ids, which differ from the model's."""
SIZES = ("160x120", "120x96")
"""Sizes of the images, alternating."""


def make_random_model() -> Segmenter:
    """Return a model with random weights that detects about fifty objects in each image."""
    model, _ = start_model(
        ModelConfig(weights="none", input_size=INPUT_SIZE), Categories(CATEGORIES), Thresholds()
    )
    with torch.no_grad():
        for level in model.network.head:  # type: ignore[union-attr]
            level.out.weight *= 30  # makes scores and boxes differ between positions
            level.out.bias[: len(CATEGORIES)] = -1.0
    return model


def write_weights(model: Segmenter, path: Path) -> Path:
    """Write a model's weights as safetensors."""
    weights = weights_files.Weights(model.network.state_dict(), model.name, model.all_categories)
    path.write_bytes(weights_files.to_safetensors(weights))
    return path


def write_pattern_images(folder: Path, count: int) -> list[Path]:
    """Write frames of the test pattern as JPEG and PNG files; one has an EXIF orientation."""
    folder.mkdir(parents=True, exist_ok=True)
    patterns = [
        TestPattern("p", SourceConfig(url=f"test:?size={size}&frames={count}&objects=5&seed=3"))
        for size in SIZES
    ]
    files = []
    for number in range(count):
        suffix = "jpg" if number % 3 else "png"
        # The order of names differs from that of the dataset.
        file = folder / f"{(number * 7) % count:02} é.{suffix}"
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        Image.fromarray(patterns[number % 2].render(number)).save(file, exif=exif)
        files.append(file)
    return files


def write_self_labeled_dataset(folder: Path, model: Segmenter, count: int = 20) -> CocoData:
    """Write a COCO dataset of a model's own predictions, without every third one.

    One annotation is a crowd, and one has a class that the model doesn't have.
    """
    files = write_pattern_images(folder / "images", count)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        image_id = 1000 - 3 * number
        pixels = read_image(file, 10**6)
        (instances,) = model.predict([pixels], Thresholds(score=MIN_SCORE))
        height, width = pixels.shape[:2]
        images.append({"id": image_id, "file_name": file.name, "height": height, "width": width})
        for index, row in enumerate(instances.to_coco(image_id)):
            if index % 3 != 1 and row["segmentation"]["counts"]:
                name = instances.names[index]
                annotations.append(_make_annotation(row, len(annotations) + 1, name))
    categories = [{"id": number, "name": name} for name, number in IDS.items()]
    categories.append({"id": 3, "name": "cup"})
    write_json(
        folder / "own.json",
        {"images": images, "annotations": annotations, "categories": categories},
    )
    return CocoData(images="images", annotations="own.json")


def _make_annotation(row: dict[str, Any], number: int, name: str) -> dict[str, Any]:
    x, y, width, height = row["bbox"]
    return {
        "id": number,
        "image_id": row["image_id"],
        "category_id": 3 if number == 2 else IDS[name],
        "bbox": [x, y, max(width, 1), max(height, 1)],
        "iscrowd": int(number == 5),
        "segmentation": row["segmentation"],
    }
