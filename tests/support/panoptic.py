"""What tests of panoptic results share: data of three colours, and a small family that tells them.

The family is a real one: a network (one convolution), its criterion, its post-processing. Its
things are the connected patches of a thing's colour.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from support.annotations import write_values
from torch import nn
from torch.nn.functional import cross_entropy

from streamseg.config import Config, SourceConfig
from streamseg.config.training import PanopticData
from streamseg.models import load_model, loading
from streamseg.models.base import Detections, Segmenter
from streamseg.models.categories import Categories
from streamseg.models.layers.losses import Criterion
from streamseg.models.weights import files
from streamseg.recording.process import Processor
from streamseg.structures.masks import Masks
from streamseg.structures.results import Segment
from streamseg.structures.targets import THING, UNKNOWN

NAME = "panoptic_fpn_r50"
"""Of the catalogue; what stands in for it here is :class:`Colours`."""
SIZE = (48, 64)
COLOURS = {"disc": (220, 30, 30), "grass": (30, 220, 30), "sky": (30, 30, 220)}
KNOWN = Categories({1: "disc"}, {2: "sky", 3: "grass"})
"""The model's ids, which aren't the dataset's."""
IDS = {"disc": 40, "cup": 41, "grass": 90, "sky": 91, "water": 95}
THINGS = ("disc", "cup")


class Colours(Segmenter):
    """Tells what a pixel is by its colour."""

    trained_on = KNOWN
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
        return ColourCriterion(self.network, len(self.categories), weights)

    def resized_shape(self, size):
        return size

    def preprocess(self, image, into):
        height, width = into.shape[1:]
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        into.copy_(torch.from_numpy(resized).permute(2, 0, 1) / 255 - 0.5)

    def detect(self, batch, selections):
        maps = self.network(batch.tensor).argmax(1).numpy()
        return [
            self._divide(found[: shape[0], : shape[1]], selection)
            for found, shape, selection in zip(maps, batch.shapes, selections, strict=True)
        ]

    def _divide(self, found, selection):
        patches, labels = [], []
        for row, number in enumerate(self.categories):
            count, parts = cv2.connectedComponents((found == row).astype(np.uint8))
            patches += [parts == part for part in range(1, count)]
            labels += [number] * (count - 1)
        labels = np.array(labels, np.int64)
        scores = np.linspace(0.9, 0.6, len(labels), dtype=np.float32)
        rows = selection.rows(None, scores, labels)
        return Detections(
            size=found.shape,
            boxes=None,
            scores=torch.from_numpy(scores[rows]),
            labels=torch.from_numpy(labels[rows]),
            masks=Patches([patches[row] for row in rows]),
            selection=selection,
            panoptic=Parts(found - len(self.categories), self.stuff),
        )


@dataclass(frozen=True)
class Patches:
    arrays: list

    def masks(self, size, threshold):
        return Masks.from_arrays(np.array(self.arrays, bool).reshape(-1, *size), size)


@dataclass(frozen=True)
class Parts:
    found: np.ndarray
    stuff: dict

    def segments(self, instances):
        things = list(zip(instances.labels.tolist(), instances.names, instances.masks, strict=True))
        patches = Masks.from_arrays(
            np.array([self.found == row for row in range(len(self.stuff))]), instances.size
        )
        stuff = [
            (number, name, mask)
            for (number, name), mask in zip(self.stuff.items(), patches, strict=True)
            if mask.area
        ]
        return tuple(
            Segment(number, label, name, number <= len(things), mask)
            for number, (label, name, mask) in enumerate((*things, *stuff), 1)
        )


class ColourCriterion(Criterion):
    own_weights: ClassVar = {"pixels": 1.0}

    def __init__(self, network, things, weights):
        super().__init__(network, weights)
        self.things = things

    def losses(self, images, targets):
        wanted = torch.full((len(targets), *images.shape[2:]), UNKNOWN)
        for place, target in zip(wanted, targets, strict=True):
            height, width = target.masks.shape[1:]
            if target.stuff is not None:
                stuff = (target.stuff != THING) & (target.stuff != UNKNOWN)
                # Things come first in the network.
                place[stuff] = target.stuff[stuff].long() + self.things - 1
            for label, mask in zip(target.labels, target.masks, strict=True):
                place[:height, :width][mask] = label
        return {"pixels": cross_entropy(self.network(images), wanted, ignore_index=UNKNOWN)}


def ideal_weights(path: Path, categories: Categories = KNOWN) -> Path:
    """Weights that tell the colours; what is black is sky."""
    names = (*categories.things.values(), *categories.stuff.values())
    network = Colours.build(NAME, categories)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.fill_(-9.0)
        for row, name in enumerate(names):
            if name in COLOURS:
                network.weight[row, int(np.argmax(COLOURS[name]))] = 1.0
                network.bias[row] = 0.01 if name == "sky" else 0.0
    weights = files.Weights(network.state_dict(), NAME, categories)
    path.write_bytes(files.to_safetensors(weights))
    return path


def write_world(
    folder: Path, count: int = 4, *, water: bool = False, first: int = 0, scale: int = 1
) -> PanopticData:
    """Sky above grass, discs on it, and a strip that nobody knows, with their truth.

    Pictures are numbered as ``process`` numbers them. With ``water``, the lowest rows of each
    picture are something that no model here knows, and look like grass. With ``scale``, pictures
    are so many times as high and wide.
    """
    images, annotations = [], []
    for number in range(first, first + count):
        picture, values = (
            each.repeat(scale, axis=0).repeat(scale, axis=1) for each in _draw(number, water=water)
        )
        name = f"{number:02}.png"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / "images" / name), picture[..., ::-1])
        write_values(folder / "panoptic" / name, values)
        images.append(
            {"id": number, "file_name": name, "height": values.shape[0], "width": values.shape[1]}
        )
        segments = [_segment(values, value) for value in np.unique(values).tolist() if value]
        annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
    categories = [{"id": i, "name": n, "isthing": int(n in THINGS)} for n, i in IDS.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return PanopticData(images="images", annotations="panoptic.json", segments="panoptic")


VALUES = {"sky": 70000, "grass": 300, "water": 7}
"""What stuff is called in the PNGs; discs are numbered from 1000."""


def _draw(number: int, *, water: bool):
    random = np.random.default_rng(number)
    picture, values = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.int32)
    for name, rows in (("sky", slice(0, 20)), ("grass", slice(20, 48))):
        picture[rows], values[rows] = COLOURS[name], VALUES[name]
    if water:
        values[40:] = VALUES["water"]
    picture[:, :3], values[:, :3] = 0, 0
    for place in range(2):
        centre = (int(random.integers(16, 24)) + 28 * place, int(random.integers(14, 30)))
        disc = cv2.circle(np.zeros(SIZE, np.uint8), centre, int(random.integers(5, 9)), 1, -1)
        picture[disc > 0], values[disc > 0] = COLOURS["disc"], 1000 + place
    return picture, values


def _segment(values, value: int):
    name = next((name for name, number in VALUES.items() if number == value), "disc")
    rows, columns = np.nonzero(values == value)
    x, y = int(columns.min()), int(rows.min())
    box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
    return {"id": value, "category_id": IDS[name], "bbox": box, "area": len(rows), "iscrowd": 0}


CATALOGUES = loading._family


def stand_in(monkeypatch):
    """Put the small family in the place of the catalogue's large one."""
    monkeypatch.setattr(
        loading, "_family", lambda entry: Colours if entry.name == NAME else CATALOGUES(entry)
    )


def silent(*_):
    pass


def ideal(folder, categories=KNOWN, **options):
    folder.mkdir(exist_ok=True)
    path = ideal_weights(folder / "ideal.safetensors", categories)
    return load_model(NAME, path, device="cpu", input_size=64, **options)


def process(model, inputs, out, **options):
    """The folder of what ``process --panoptic`` writes for one input."""
    config = Config(
        sources=(SourceConfig(url=str(inputs), name=Path(str(inputs)).stem.partition(":")[0]),)
    )
    (outcome,) = Processor(config, model, out, silent, panoptic=True, **options).run()
    assert outcome.state == "complete", outcome.reason
    return out / outcome.source.name


def panoptic_json(folder):
    return json.loads((folder / "panoptic.json").read_text())
