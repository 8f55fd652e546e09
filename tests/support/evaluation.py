"""What the tests of ``streamseg eval`` share: a model that finds a lot, and data it is good at."""

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
LEAST_SCORE = 0.05
IDS = {"disc": 90, "box": 7}
"""The dataset's, which aren't the model's."""
SIZES = ("160x120", "120x96")


def wild_model() -> Segmenter:
    """A model with random weights that finds some fifty objects in every picture."""
    made, _ = start_model(
        ModelConfig(weights="none", input_size=INPUT_SIZE), Categories(CATEGORIES), Thresholds()
    )
    with torch.no_grad():
        for level in made.network.head:  # type: ignore[union-attr]
            level.out.weight *= 30  # so that scores and boxes differ from place to place
            level.out.bias[: len(CATEGORIES)] = -1.0
    return made


def write_weights(model: Segmenter, path: Path) -> Path:
    weights = weights_files.Weights(model.network.state_dict(), model.name, model.all_categories)
    path.write_bytes(weights_files.to_safetensors(weights))
    return path


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Frames of the pattern, of two sizes, JPEGs and PNGs; one turned by its EXIF orientation."""
    folder.mkdir(parents=True, exist_ok=True)
    patterns = [
        TestPattern("p", SourceConfig(url=f"test:?size={size}&frames={count}&objects=5&seed=3"))
        for size in SIZES
    ]
    files = []
    for number in range(count):
        ending = "jpg" if number % 3 else "png"
        # Not in the order of their names, which isn't that of a dataset either.
        file = folder / f"{(number * 7) % count:02} é.{ending}"
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        Image.fromarray(patterns[number % 2].render(number)).save(file, exif=exif)
        files.append(file)
    return files


def write_own_truth(folder: Path, model: Segmenter, count: int = 20) -> CocoData:
    """A dataset whose truth is what ``model`` finds but for every third object, so that it is good.

    There is a crowd in it, and a class that no model knows.
    """
    files = write_pictures(folder / "images", count)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        image_id = 1000 - 3 * number
        picture = read_image(file, 10**6)
        (found,) = model.predict([picture], Thresholds(score=LEAST_SCORE))
        height, width = picture.shape[:2]
        images.append({"id": image_id, "file_name": file.name, "height": height, "width": width})
        for place, row in enumerate(found.to_coco(image_id)):
            if place % 3 != 1 and row["segmentation"]["counts"]:
                annotations.append(_annotation(row, len(annotations) + 1, found.names[place]))
    categories = [{"id": number, "name": name} for name, number in IDS.items()]
    categories.append({"id": 3, "name": "cup"})
    write_json(
        folder / "own.json",
        {"images": images, "annotations": annotations, "categories": categories},
    )
    return CocoData(images="images", annotations="own.json")


def _annotation(row: dict[str, Any], number: int, name: str) -> dict[str, Any]:
    x, y, width, height = row["bbox"]
    return {
        "id": number,
        "image_id": row["image_id"],
        "category_id": 3 if number == 2 else IDS[name],
        "bbox": [x, y, max(width, 1), max(height, 1)],
        "iscrowd": int(number == 5),
        "segmentation": row["segmentation"],
    }
