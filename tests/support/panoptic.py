"""Panoptic dataset of three colors, and a small model family that segments it by color.

The family is complete: a network (one convolution), a criterion and post-processing. Its things
are the connected regions of a thing's color.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from support.annotations import write_label_png
from torch import nn
from torch.nn.functional import cross_entropy

from streamseg.config import Config, SourceConfig
from streamseg.config.training import PanopticData
from streamseg.models import load_model, loading
from streamseg.models.base import Segmenter
from streamseg.models.categories import Categories
from streamseg.models.detections import Detections
from streamseg.models.layers.losses import Criterion
from streamseg.models.weights import files
from streamseg.recording.process import Processor
from streamseg.structures.masks import Masks
from streamseg.structures.results import Segment
from streamseg.structures.targets import THING, UNKNOWN

NAME = "panoptic_fpn_r50"
"""Name of a registered model that is replaced by :class:`ColorSegmenter`."""
SIZE = (48, 64)
COLORS = {"disc": (220, 30, 30), "grass": (30, 220, 30), "sky": (30, 30, 220)}
MODEL_CATEGORIES = Categories({1: "disc"}, {2: "sky", 3: "grass"})
"""The model's category ids, which differ from the dataset's (``DATASET_IDS``)."""
DATASET_IDS = {"disc": 40, "cup": 41, "grass": 90, "sky": 91, "water": 95}
THINGS = ("disc", "cup")


class ColorSegmenter(Segmenter):
    """Segments an image by the color of its pixels."""

    trained_on = MODEL_CATEGORIES
    multiple = 16

    @classmethod
    def build(cls, name, categories):
        return nn.Conv2d(3, len(categories.things) + len(categories.stuff), 1)

    @classmethod
    def class_rows(cls, network, categories):
        names = (*categories.things.values(), *categories.stuff.values())
        rows = {name: (row,) for row, name in enumerate(names)}
        return {"weight": rows, "bias": rows}

    def criterion(self, weights):
        return ColorCriterion(self.network, len(self.categories), weights)

    def resized_shape(self, size):
        return size

    def preprocess(self, image, into):
        height, width = into.shape[1:]
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        into.copy_(torch.from_numpy(resized).permute(2, 0, 1) / 255 - 0.5)

    def detect(self, batch, selections):
        class_maps = self.network(batch.tensor).argmax(1).numpy()
        return [
            self._detect_image(class_map[: shape[0], : shape[1]], selection)
            for class_map, shape, selection in zip(
                class_maps, batch.shapes, selections, strict=True
            )
        ]

    def _detect_image(self, class_map, selection):
        regions, labels = [], []
        for row, number in enumerate(self.categories):
            count, components = cv2.connectedComponents((class_map == row).astype(np.uint8))
            regions += [components == component for component in range(1, count)]
            labels += [number] * (count - 1)
        labels = np.array(labels, np.int64)
        scores = np.linspace(0.9, 0.6, len(labels), dtype=np.float32)
        rows = selection.select_rows(None, scores, labels)
        return Detections(
            size=class_map.shape,
            boxes=None,
            scores=torch.from_numpy(scores[rows]),
            labels=torch.from_numpy(labels[rows]),
            masks=FullFrameMasks([regions[row] for row in rows]),
            selection=selection,
            panoptic=StuffMap(class_map - len(self.categories), self.stuff),
        )


@dataclass(frozen=True)
class FullFrameMasks:
    """Masks that need no resizing."""

    arrays: list

    def masks(self, size, threshold):
        return Masks.from_arrays(np.array(self.arrays, bool).reshape(-1, *size), size)


@dataclass(frozen=True)
class StuffMap:
    """Stuff class of each pixel, negative for things."""

    class_map: np.ndarray
    stuff: dict

    def segments(self, instances):
        things = list(zip(instances.labels.tolist(), instances.names, instances.masks, strict=True))
        regions = Masks.from_arrays(
            np.array([self.class_map == row for row in range(len(self.stuff))]), instances.size
        )
        stuff = [
            (number, name, mask)
            for (number, name), mask in zip(self.stuff.items(), regions, strict=True)
            if mask.area
        ]
        return tuple(
            Segment(number, label, name, number <= len(things), mask)
            for number, (label, name, mask) in enumerate((*things, *stuff), 1)
        )


class ColorCriterion(Criterion):
    """Cross entropy of each pixel's class."""

    own_weights: ClassVar = {"pixels": 1.0}

    def __init__(self, network, things, weights):
        super().__init__(network, weights)
        self.things = things

    def losses(self, images, targets):
        classes = torch.full((len(targets), *images.shape[2:]), UNKNOWN)
        for class_map, target in zip(classes, targets, strict=True):
            height, width = target.masks.shape[1:]
            if target.stuff is not None:
                stuff = (target.stuff != THING) & (target.stuff != UNKNOWN)
                # Things come first in the network.
                class_map[stuff] = target.stuff[stuff].long() + self.things - 1
            for label, mask in zip(target.labels, target.masks, strict=True):
                class_map[:height, :width][mask] = label
        return {"pixels": cross_entropy(self.network(images), classes, ignore_index=UNKNOWN)}


def write_ideal_weights(path: Path, categories: Categories = MODEL_CATEGORIES) -> Path:
    """Write weights that classify each color correctly, and black as sky."""
    names = (*categories.things.values(), *categories.stuff.values())
    network = ColorSegmenter.build(NAME, categories)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.fill_(-9.0)
        for row, name in enumerate(names):
            if name in COLORS:
                network.weight[row, int(np.argmax(COLORS[name]))] = 1.0
                network.bias[row] = 0.01 if name == "sky" else 0.0
    weights = files.Weights(network.state_dict(), NAME, categories)
    path.write_bytes(files.to_safetensors(weights))
    return path


def write_panoptic_dataset(
    folder: Path, count: int = 4, *, water: bool = False, first: int = 0, scale: int = 1
) -> PanopticData:
    """Write a panoptic dataset: discs on sky above grass, and a strip that isn't annotated.

    Args:
        folder: folder of the dataset.
        count: number of images.
        water: annotate the lowest rows as water: a class that the model doesn't have and that
            looks like grass.
        first: number of the first image; images are numbered as ``process`` numbers them.
        scale: factor by which images are enlarged.
    """
    images, annotations = [], []
    for number in range(first, first + count):
        pixels, values = (
            array.repeat(scale, axis=0).repeat(scale, axis=1)
            for array in _draw_image(number, water=water)
        )
        name = f"{number:02}.png"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / "images" / name), pixels[..., ::-1])
        write_label_png(folder / "panoptic" / name, values)
        images.append(
            {"id": number, "file_name": name, "height": values.shape[0], "width": values.shape[1]}
        )
        segments = [_make_segment(values, value) for value in np.unique(values).tolist() if value]
        annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
    categories = [{"id": i, "name": n, "isthing": int(n in THINGS)} for n, i in DATASET_IDS.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return PanopticData(images="images", annotations="panoptic.json", segments="panoptic")


VALUES = {"sky": 70000, "grass": 300, "water": 7}
"""Segment ids of stuff in the PNGs; ids of discs begin with 1000."""


def _draw_image(number: int, *, water: bool):
    """Return the pixels and the segment ids of an image."""
    random = np.random.default_rng(number)
    pixels, values = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.int32)
    for name, rows in (("sky", slice(0, 20)), ("grass", slice(20, 48))):
        pixels[rows], values[rows] = COLORS[name], VALUES[name]
    if water:
        values[40:] = VALUES["water"]
    pixels[:, :3], values[:, :3] = 0, 0
    for index in range(2):
        center = (int(random.integers(16, 24)) + 28 * index, int(random.integers(14, 30)))
        disc = cv2.circle(np.zeros(SIZE, np.uint8), center, int(random.integers(5, 9)), 1, -1)
        pixels[disc > 0], values[disc > 0] = COLORS["disc"], 1000 + index
    return pixels, values


def _make_segment(values, value: int):
    name = next((name for name, number in VALUES.items() if number == value), "disc")
    rows, columns = np.nonzero(values == value)
    x, y = int(columns.min()), int(rows.min())
    box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
    return {
        "id": value,
        "category_id": DATASET_IDS[name],
        "bbox": box,
        "area": len(rows),
        "iscrowd": 0,
    }


find_family = loading._family


def use_color_model(monkeypatch):
    """Replace the family of ``NAME`` by :class:`ColorSegmenter`."""
    monkeypatch.setattr(
        loading,
        "_family",
        lambda entry: ColorSegmenter if entry.name == NAME else find_family(entry),
    )


def ignore_progress(*_):
    """Ignore progress."""


def load_ideal_model(folder, categories=MODEL_CATEGORIES, **options):
    """Return a model that segments every color correctly."""
    folder.mkdir(exist_ok=True)
    path = write_ideal_weights(folder / "ideal.safetensors", categories)
    return load_model(NAME, path, device="cpu", input_size=64, **options)


def process_panoptic(model, inputs, out, **options):
    """Run ``process --panoptic`` on one input and return its output folder."""
    config = Config(
        sources=(SourceConfig(url=str(inputs), name=Path(str(inputs)).stem.partition(":")[0]),)
    )
    (outcome,) = Processor(config, model, out, ignore_progress, panoptic=True, **options).run()
    assert outcome.state == "complete", outcome.reason
    return out / outcome.source.name


def read_panoptic_json(folder):
    """Return the content of an output folder's ``panoptic.json``."""
    return json.loads((folder / "panoptic.json").read_text())
