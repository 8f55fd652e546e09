"""Contact sheet of augmented training images, as a PNG.

    python tools/augment_sheet.py CONFIG.yaml OUT.png [--set a.b=c]… [--rows N] [--columns N]

Each row shows one image: first the original, then augmented versions at the size that the model
receives. Objects are drawn with boxes and, if annotated, masks. Crowds, which are neither object
nor background, are hatched in gray.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from streamseg.config.training import TrainingConfig, load_training_config
from streamseg.datasets import AnnotatedImage, Augmentation, Dataset, load_sample, open_dataset
from streamseg.errors import StreamsegError
from streamseg.models.registry import find
from streamseg.structures.masks import Masks
from streamseg.structures.results import Image, Instances
from streamseg.structures.targets import Sample, Targets
from streamseg.visualization import FILL_ALPHA, Color, fill_masks, instance_colors

FONT = cv2.FONT_HERSHEY_DUPLEX
GAP = 8
HEADLINE = 22
PAPER = (32, 32, 32)
INK = (220, 220, 220)
GRAY = np.array((150, 150, 150), np.uint8)
HATCH = 8


@dataclass(frozen=True)
class TrainingImages:
    """All images of the training datasets, and the classes of their objects."""

    entries: tuple[tuple[Dataset, AnnotatedImage], ...]
    classes: tuple[str, ...]

    def load(self, index: int, seed: int) -> Sample:
        """Load the image at ``index``; ``seed`` is the seed of its augmentation."""
        return load_sample(*self.entries[index], self.classes, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="sets")
    parser.add_argument("--rows", type=int, default=6, help="number of images")
    parser.add_argument(
        "--columns", type=int, default=5, help="images per row, the original included"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        config = load_training_config(options.config, options.sets)
        images = open_images(config, options.config.parent)
        image = draw_sheet(config, images, options.rows, options.columns, options.seed)
    except StreamsegError as error:
        sys.exit(str(error))
    if not cv2.imwrite(str(options.out), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        sys.exit(f"{options.out} can't be written")
    print(f"{options.out}: {image.shape[1]} x {image.shape[0]}")


def open_images(config: TrainingConfig, folder: Path) -> TrainingImages:
    """Open the training datasets of a config in ``folder``."""
    datasets = [open_dataset(part, folder / config.data.root) for part in config.data.train]
    names = {name: None for dataset in datasets for name in dataset.categories.values()}
    return TrainingImages(
        tuple((dataset, image) for dataset in datasets for image in dataset.images), tuple(names)
    )


def draw_sheet(
    config: TrainingConfig, images: TrainingImages, rows: int, columns: int, seed: int
) -> Image:
    """Draw at most ``rows`` random images, each with ``columns`` - 1 augmented versions, RGB."""
    side = config.model.input_size or find(config.model.name).default_size
    augment = Augmentation(config.augment, side)
    draws = np.random.default_rng(seed)
    chosen = draws.permutation(len(images.entries))[:rows].tolist()
    grid = np.full(
        (len(chosen) * (side + HEADLINE + GAP) + GAP, columns * (side + GAP) + GAP, 3), PAPER
    )
    grid = grid.astype(np.uint8)
    for row, index in enumerate(chosen):
        top = GAP + row * (side + HEADLINE + GAP)
        for column, (headline, tile) in enumerate(
            iterate_tiles(images, index, columns, augment, draws)
        ):
            draw_tile(
                grid,
                (GAP + column * (side + GAP), top),
                shrink(tile, side),
                headline,
                side,
            )
    return grid


def iterate_tiles(
    images: TrainingImages,
    index: int,
    columns: int,
    augment: Augmentation,
    draws: np.random.Generator,
) -> Iterator[tuple[str, Image]]:
    """Yield headlines and drawn images: the original, then augmented versions."""
    dataset, image = images.entries[index]
    sample = images.load(index, 0)
    yield f"{dataset.name} {image.id}  {describe(sample)}", draw_targets(sample, images.classes)
    for _ in range(columns - 1):
        seed, other = draws.integers(2**31), draws.integers(len(images.entries))
        augmented = augment(images.load(index, int(seed)), partial(images.load, int(other), 0))
        yield describe(augmented), draw_targets(augmented, images.classes)


def describe(sample: Sample) -> str:
    """Return the size of the image and the numbers of objects and crowds."""
    height, width = sample.image.shape[1:]
    crowds = int(sample.targets.crowd.sum())
    objects = len(sample.targets) - crowds
    return f"{width} x {height}, objects: {objects}" + (f", crowds: {crowds}" if crowds else "")


def draw_targets(sample: Sample, classes: Sequence[str]) -> Image:
    """Draw masks, boxes, class names and crowds; each object has its own color."""
    canvas = sample.image.permute(1, 2, 0).contiguous().numpy().copy()
    targets = sample.targets
    draw_crowds(canvas, targets[targets.crowd])
    objects = make_instances(targets[~targets.crowd], classes)
    fill_masks(canvas, objects, FILL_ALPHA)
    # Names are drawn last, so that no box crosses them.
    boxes = objects.boxes.round().astype(int).tolist()
    for (x1, y1, x2, y2), color in zip(boxes, instance_colors(objects), strict=True):
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), color, 1)
    for box, color, name in zip(boxes, instance_colors(objects), objects.names, strict=True):
        draw_name(canvas, box, name, color)
    return canvas


def make_instances(targets: Targets, classes: Sequence[str]) -> Instances:
    """Convert targets to instances; an object without a mask gets an empty one."""
    return Instances(
        targets.boxes.numpy(),
        np.ones(len(targets), np.float32),
        targets.labels.numpy(),
        Masks.from_arrays(targets.masks.numpy()),
        dict(enumerate(classes)),
        track_ids=np.arange(len(targets)),
    )


def draw_name(canvas: Image, box: Sequence[int], name: str, color: Color) -> None:
    """Draw ``name`` above ``box``, or inside if there is no room; skip boxes that are too small."""
    x1, y1, x2, y2 = box
    (width, height), _ = cv2.getTextSize(name, FONT, 0.36, 1)
    width, height = width + 4, height + 5
    if (x2 - x1) * (y2 - y1) < 2 * width * height:
        return
    top = y1 - height if y1 >= height else y1
    light = tuple((part + 255) // 2 for part in color)
    cv2.rectangle(canvas, (x1, top), (x1 + width, top + height), light, cv2.FILLED)
    cv2.putText(canvas, name, (x1 + 2, top + height - 3), FONT, 0.36, PAPER, 1, cv2.LINE_AA)


def draw_crowds(canvas: Image, crowds: Targets) -> None:
    """Draw gray stripes over the mask of each crowd, or over its box if it has no mask."""
    height, width = canvas.shape[:2]
    stripes = np.add.outer(np.arange(height), np.arange(width)) % HATCH < HATCH // 2
    for row in range(len(crowds)):
        x1, y1, x2, y2 = crowds.boxes[row].round().int().tolist()
        area = torch.zeros_like(crowds.masks[row])
        area[y1:y2, x1:x2] = True
        if crowds.has_mask[row]:
            area = crowds.masks[row]
        canvas[area.numpy() & stripes] = GRAY
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), GRAY.tolist(), 1)


def shrink(image: Image, side: int) -> Image:
    """Shrink ``image`` to fit a square of ``side``; smaller images stay as they are."""
    factor = min(1.0, side / max(image.shape[:2]))
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def draw_tile(grid: Image, corner: tuple[int, int], tile: Image, headline: str, side: int) -> None:
    """Draw ``tile`` and its headline into a cell of ``grid``."""
    x, y = corner
    cv2.putText(grid, headline, (x, y + HEADLINE - 8), FONT, 0.42, INK, 1, cv2.LINE_AA)
    height, width = tile.shape[:2]
    left, top = x + (side - width) // 2, y + HEADLINE + (side - height) // 2
    grid[top : top + height, left : left + width] = tile


if __name__ == "__main__":
    main()
