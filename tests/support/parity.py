"""Parity fixtures: results of the reference implementations for one image and fixed weights.

``fixtures/fill.py`` makes the weights and the image; the JSON and NPZ files contain the
intermediate tensors and the detections. ``float_noise`` is the difference between two runs of the
reference implementation with different convolution libraries.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.paths import TESTS

from streamseg.models.base import Segmenter
from streamseg.models.categories import COCO
from streamseg.structures.masks import Masks
from streamseg.structures.results import Instances

FOLDER = TESTS / "fixtures"
NOISE = 20
"""Tolerance between two implementations, in units of ``float_noise``."""
PIXELS = 40
"""Pixels of a mask that may be so close to the threshold that rounding decides."""


def _fill():
    spec = importlib.util.spec_from_file_location("fill", FOLDER / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill = _fill()


@dataclass(frozen=True)
class Fixture:
    """One model's fixture."""

    path: Path

    @property
    def rows(self) -> list[tuple[str, list[int], str]]:
        """Name, shape and dtype of each tensor of the published file."""
        return json.loads(self.path.with_suffix(".keys.json").read_text())

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads(self.path.with_suffix(".json").read_text())

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path.with_suffix(".npz")) as file:
            return dict(file)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the published file, filled by ``fill.py``."""
        shapes = [(name, shape) for name, shape, _ in self.rows]
        filled = fill.fill_state(shapes, self.meta["fill_overrides"])
        return {name: torch.from_numpy(np.array(value)) for name, value in filled.items()}

    def empty(self, device: str = "meta") -> dict[str, torch.Tensor]:
        """Return uninitialized tensors with the shapes and dtypes of the published file."""
        return {
            name: torch.empty(shape, dtype=getattr(torch, kind), device=device)
            for name, shape, kind in self.rows
        }


def fixture(family: str, model: str) -> Fixture:
    return Fixture(FOLDER / family / model)


def make_image() -> np.ndarray:
    """Return the image of all fixtures, uint8 (333, 437, 3) RGB."""
    return np.ascontiguousarray(fill.synthetic_image(333, 437, 1)[:, :, ::-1])


def in_double_precision(model: Segmenter) -> Segmenter:
    """Return a copy of ``model`` whose network computes in float64.

    Float32 results differ between CPUs and between batch sizes. If a pixel is close to the mask
    threshold, or two cells have the same probability, such a difference changes scores visibly.
    """
    network = copy.deepcopy(model.network).double()
    network.register_forward_pre_hook(lambda _, inputs: tuple(each.double() for each in inputs))
    return model.with_network(network)


def assert_same_tensor(name: str, found: torch.Tensor, published: Fixture, noise: float) -> None:
    """Compare samples of an intermediate tensor; ``noise`` is relative to its std."""
    expected, samples = published.meta["intermediates"][name], published.arrays[f"inter/{name}"]
    statistics, own = fill.summary(found.detach().float().cpu().numpy(), len(samples))
    assert statistics["shape"] == expected["shape"], name
    np.testing.assert_allclose(own, samples, atol=noise * expected["std"], rtol=0, err_msg=name)


def assert_same_instances(found: Instances, published: Fixture) -> None:
    """Compare classes, order, scores and areas of all instances, and the pixels of the first 25.

    Instances whose scores differ by noise only may have changed places.
    """
    final = {key[6:]: value for key, value in published.arrays.items() if key.startswith("final/")}
    noise = NOISE * published.meta["float_noise"]["score_maxdiff"]
    assert len(found) == len(final["score"])
    np.testing.assert_allclose(found.scores, final["score"], atol=noise, rtol=0)
    ids = list(COCO)
    classes, areas = np.array([ids.index(n) for n in found.labels]), found.masks.areas
    row_of = _match_rows(classes, areas, found.scores, final, noise)
    np.testing.assert_array_equal(classes[row_of], final["class"])
    np.testing.assert_allclose(areas[row_of], final["mask_area"], atol=PIXELS, rtol=0)
    counts = published.meta["rle_counts"]
    for row, text in zip(row_of[: len(counts)], counts, strict=True):
        expected = Masks.from_rle([text], tuple(published.meta["rle_size"]))[0].to_array()
        assert np.count_nonzero(expected != found.masks[int(row)].to_array()) <= PIXELS


def _match_rows(classes, areas, scores, final, noise):
    """Return the row that corresponds to each row of the fixture; they differ if scores tie."""
    rows = list(range(len(scores)))
    for at in range(len(rows)):
        for other in range(at, len(rows)):
            row = rows[other]
            if abs(scores[row] - final["score"][at]) > noise:
                break
            is_same_class = classes[row] == final["class"][at]
            if is_same_class and abs(areas[row] - final["mask_area"][at]) <= PIXELS:
                rows.insert(at, rows.pop(other))
                break
    return np.array(rows)
