"""A contact sheet of what a recipe's augmentation does to its own training pictures, as a PNG.

    python tools/augment_sheet.py RECIPE.yaml OUT.png [--set a.b=c]… [--rows N] [--columns N]

A row has one picture: first as it is, then as the model would see it, pixel by pixel. Objects with
a mask have it painted, all have their box; crowds, which are neither object nor background, are
hatched in grey.
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
GREY = np.array((150, 150, 150), np.uint8)
HATCH = 8


@dataclass(frozen=True)
class Pictures:
    """All pictures of a recipe's training data, and the classes of all their objects."""

    entries: tuple[tuple[Dataset, AnnotatedImage], ...]
    classes: tuple[str, ...]

    def load(self, index: int, seed: int) -> Sample:
        """The picture at ``index``, with ``seed`` for the draws."""
        return load_sample(*self.entries[index], self.classes, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="sets")
    parser.add_argument("--rows", type=int, default=6, help="pictures")
    parser.add_argument("--columns", type=int, default=5, help="the picture and its views")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        recipe = load_training_config(given.recipe, given.sets)
        pictures = open_pictures(recipe, given.recipe.parent)
        image = sheet(recipe, pictures, given.rows, given.columns, given.seed)
    except StreamsegError as error:
        sys.exit(str(error))
    if not cv2.imwrite(str(given.out), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        sys.exit(f"{given.out} can't be written")
    print(f"{given.out}: {image.shape[1]} x {image.shape[0]}")


def open_pictures(recipe: TrainingConfig, folder: Path) -> Pictures:
    """The training data of a recipe that lies in ``folder``."""
    datasets = [open_dataset(part, folder / recipe.data.root) for part in recipe.data.train]
    names = {name: None for dataset in datasets for name in dataset.categories.values()}
    return Pictures(
        tuple((dataset, image) for dataset in datasets for image in dataset.images), tuple(names)
    )


def sheet(recipe: TrainingConfig, pictures: Pictures, rows: int, columns: int, seed: int) -> Image:
    """At most ``rows`` random pictures, each with ``columns`` - 1 views of it, RGB."""
    side = recipe.model.input_size or find(recipe.model.name).default_size
    vary = Augmentation(recipe.augment, side)
    draws = np.random.default_rng(seed)
    chosen = draws.permutation(len(pictures.entries))[:rows].tolist()
    grid = np.full(
        (len(chosen) * (side + HEADLINE + GAP) + GAP, columns * (side + GAP) + GAP, 3), PAPER
    )
    grid = grid.astype(np.uint8)
    for row, index in enumerate(chosen):
        top = GAP + row * (side + HEADLINE + GAP)
        for column, (headline, tile) in enumerate(views(pictures, index, columns, vary, draws)):
            place(
                grid,
                (GAP + column * (side + GAP), top),
                downsample_masks(tile, side),
                headline,
                side,
            )
    return grid


def views(
    pictures: Pictures, index: int, columns: int, vary: Augmentation, draws: np.random.Generator
) -> Iterator[tuple[str, Image]]:
    """Headlines and painted pictures: the picture as it is, then views of it."""
    dataset, image = pictures.entries[index]
    sample = pictures.load(index, 0)
    yield f"{dataset.name} {image.id}  {described(sample)}", painted(sample, pictures.classes)
    for _ in range(columns - 1):
        seed, other = draws.integers(2**31), draws.integers(len(pictures.entries))
        varied = vary(pictures.load(index, int(seed)), partial(pictures.load, int(other), 0))
        yield described(varied), painted(varied, pictures.classes)


def described(sample: Sample) -> str:
    """The picture's size, and how many objects and crowds there are."""
    height, width = sample.image.shape[1:]
    crowds = int(sample.targets.crowd.sum())
    objects = len(sample.targets) - crowds
    return f"{width} x {height}, objects: {objects}" + (f", crowds: {crowds}" if crowds else "")


def painted(sample: Sample, classes: Sequence[str]) -> Image:
    """The picture with its masks, boxes, names and crowds; each object has a colour of its own."""
    canvas = sample.image.permute(1, 2, 0).contiguous().numpy().copy()
    targets = sample.targets
    hatch(canvas, targets[targets.crowd])
    objects = instances(targets[~targets.crowd], classes)
    fill_masks(canvas, objects, FILL_ALPHA)
    # Names last: no box should cross them.
    boxes = objects.boxes.round().astype(int).tolist()
    for (x1, y1, x2, y2), colour in zip(boxes, instance_colors(objects), strict=True):
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, 1)
    for box, colour, name in zip(boxes, instance_colors(objects), objects.names, strict=True):
        tag(canvas, box, name, colour)
    return canvas


def instances(targets: Targets, classes: Sequence[str]) -> Instances:
    """``targets`` as results; what has no mask gets an empty one, so that only its box is seen."""
    return Instances(
        targets.boxes.numpy(),
        np.ones(len(targets), np.float32),
        targets.labels.numpy(),
        Masks.from_arrays(targets.masks.numpy()),
        dict(enumerate(classes)),
        track_ids=np.arange(len(targets)),
    )


def tag(canvas: Image, box: Sequence[int], name: str, colour: Color) -> None:
    """``name`` above ``box``, or in it where there is no room; what is too small has none."""
    x1, y1, x2, y2 = box
    (width, height), _ = cv2.getTextSize(name, FONT, 0.36, 1)
    width, height = width + 4, height + 5
    if (x2 - x1) * (y2 - y1) < 2 * width * height:
        return
    top = y1 - height if y1 >= height else y1
    light = tuple((part + 255) // 2 for part in colour)
    cv2.rectangle(canvas, (x1, top), (x1 + width, top + height), light, cv2.FILLED)
    cv2.putText(canvas, name, (x1 + 2, top + height - 3), FONT, 0.36, PAPER, 1, cv2.LINE_AA)


def hatch(canvas: Image, crowds: Targets) -> None:
    """Grey stripes over the mask of each crowd, or over its box where it has none."""
    height, width = canvas.shape[:2]
    stripes = np.add.outer(np.arange(height), np.arange(width)) % HATCH < HATCH // 2
    for row in range(len(crowds)):
        x1, y1, x2, y2 = crowds.boxes[row].round().int().tolist()
        area = torch.zeros_like(crowds.masks[row])
        area[y1:y2, x1:x2] = True
        if crowds.has_mask[row]:
            area = crowds.masks[row]
        canvas[area.numpy() & stripes] = GREY
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), GREY.tolist(), 1)


def downsample_masks(image: Image, side: int) -> Image:
    """``image`` so small that it fits a square of ``side``; never larger than it was."""
    factor = min(1.0, side / max(image.shape[:2]))
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def place(grid: Image, corner: tuple[int, int], tile: Image, headline: str, side: int) -> None:
    """Put ``tile`` into its cell of ``grid``, below its headline."""
    x, y = corner
    cv2.putText(grid, headline, (x, y + HEADLINE - 8), FONT, 0.42, INK, 1, cv2.LINE_AA)
    height, width = tile.shape[:2]
    left, top = x + (side - width) // 2, y + HEADLINE + (side - height) // 2
    grid[top : top + height, left : left + width] = tile


if __name__ == "__main__":
    main()
