"""Plug-in models: loading, selection by thresholds, and errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.plugins import install_plugin

from streamseg.config import ModelConfig, Thresholds
from streamseg.errors import ConfigError, PluginError, UnknownModelError
from streamseg.models.model import PluginModel, find_model_plugin
from streamseg.models.registry import find
from streamseg.structures.masks import Masks
from streamseg.structures.results import Frame, Instances

MODULE = """
import numpy as np
from streamseg import Instances, Masks

class Rows:
    categories = {1: "low", 2: "high"}

    def predict(self, frames):
        return [self.find(frame) for frame in frames]

    def find(self, frame):
        masks = Masks.from_boxes([[0, 0, 4, 4], [4, 4, 8, 8]], frame.size)
        scores, labels = np.array([0.2, 0.9]), np.array([1, 2])
        return Instances(masks.boxes, scores, labels, masks, self.categories)

class Raising(Rows):
    def find(self, frame):
        raise RuntimeError("no memory")

class Nothing(Rows):
    def predict(self, frames):
        return []

class NoInstances(Rows):
    def find(self, frame):
        return [1]

class OtherSize(Rows):
    def find(self, frame):
        return Instances.empty((3, 3), self.categories)

class UnknownLabel(Rows):
    def find(self, frame):
        masks = Masks.from_boxes([[0, 0, 4, 4]], frame.size)
        return Instances(masks.boxes, np.ones(1), np.array([7]), masks, {7: "other"})

class NoCategories(Rows):
    categories = {}

class WrongCategories(Rows):
    categories = {"1": "low"}

class NotCreated(Rows):
    def __init__(self, path):
        pass
"""
NAMES = {
    "rows": "Rows",
    "raising": "Raising",
    "nothing": "Nothing",
    "no-instances": "NoInstances",
    "other-size": "OtherSize",
    "unknown-label": "UnknownLabel",
    "no-categories": "NoCategories",
    "wrong-categories": "WrongCategories",
    "not-created": "NotCreated",
    "missing": "Missing",
}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], PluginModel]:
    """Return a function that loads a plug-in model by name."""
    entry_points = {name: f"demo_models:{attribute}" for name, attribute in NAMES.items()}
    install_plugin(tmp_path, monkeypatch, {"streamseg.models": entry_points}, demo_models=MODULE)

    def load_model(name: str) -> PluginModel:
        model = find_model_plugin(ModelConfig(name=name))
        assert model is not None
        return model

    return load_model


def make_frame(index: int = 0) -> Frame:
    image = np.zeros((8, 10, 3), np.uint8)
    return Frame("yard", index, 0, index / 25, time.time(), time.monotonic(), image)


def predict(model: PluginModel, **thresholds: object) -> Instances:
    selection = Thresholds(class_agnostic_iou=None, **thresholds)  # type: ignore[arg-type]
    (prediction,) = model.infer([make_frame()], [selection]).predictions
    return prediction.instances


def test_predict_sorts_and_filters_instances(load) -> None:
    model = load("rows")
    assert predict(model, score=0.0).names == ["high", "low"]
    assert predict(model, score=0.5).names == ["high"]
    assert predict(model, score=0.0, classes=("low",)).names == ["low"]
    assert predict(model, score=0.0, max_instances=1).names == ["high"]
    assert predict(model, score=0.0, min_area=17).names == []


def test_predict_applies_thresholds_per_frame(load) -> None:
    thresholds = [Thresholds(score=0.5), Thresholds(score=0.1)]
    inference = load("rows").infer([make_frame(0), make_frame(1)], thresholds)
    assert [len(each.instances) for each in inference.predictions] == [1, 2]
    assert set(inference.seconds) == {"forward"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raising", "model 'raising' of demo-plugin 1.0 failed: RuntimeError: no memory"),
        ("nothing", "0 results for 1 frames"),
        ("no-instances", "returned list instead of Instances"),
        ("other-size", "instances of a (3, 3) image for a (8, 10) frame"),
        ("unknown-label", "label 7 is none of its categories"),
    ],
)
def test_invalid_result_error_names_the_package(load, name: str, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        predict(load(name))
    assert message in str(caught.value)
    assert "demo-plugin 1.0" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-categories", "has no categories"),
        ("wrong-categories", "can't be created (ValidationError: Expected `int`, got `str`"),
        ("not-created", "can't be created (TypeError"),
        ("missing", "can't be imported (AttributeError"),
    ],
)
def test_invalid_plugin_is_a_config_error(load, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(name)
    assert message in str(caught.value)
    assert "demo-plugin 1.0" in str(caught.value)


def test_built_in_options_are_rejected(load) -> None:
    load("rows")
    with pytest.raises(ConfigError, match=r"model\.input_size: rows is a plug-in"):
        find_model_plugin(ModelConfig(name="rows", input_size=320))


def test_plugin_with_the_name_of_a_built_in_model_is_refused(tmp_path, monkeypatch) -> None:
    entry_points = {"streamseg.models": {"nanomask": "demo_models:Rows"}}
    install_plugin(tmp_path, monkeypatch, entry_points, demo_models=MODULE)
    with pytest.raises(ConfigError, match=r"nanomask is a built-in model, and a plug-in of demo-"):
        find_model_plugin(ModelConfig(name="nanomask"))


def test_unregistered_name_is_not_a_plugin(load) -> None:
    assert find_model_plugin(ModelConfig(name="nanomask")) is None
    with pytest.raises(UnknownModelError, match=r"'rows' is a plug-in of demo-plugin 1\.0"):
        find("rows")
    with pytest.raises(UnknownModelError, match="did you mean"):
        find("raisin")


def test_plugin_masks_are_unchanged(load) -> None:
    instances = predict(load("rows"), score=0.5)
    expected = Masks.from_boxes(np.array([[4, 4, 8, 8]]), (8, 10))
    assert instances.masks == expected
