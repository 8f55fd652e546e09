"""Conversions of instances to plain Python values, pandas and supervision."""

import json
import sys
import types
from dataclasses import dataclass, field

import numpy as np
import pytest

from streamseg import Instances
from streamseg.structures.masks import Masks


@pytest.fixture
def instances() -> Instances:
    boxes = [[0, 0, 5, 4], [3, 3, 9, 9]]
    masks = Masks.from_boxes(boxes, (20, 30))
    return Instances(boxes, [0.5, 0.75], [1, 2], masks, {1: "cat", 2: "dog"}, [4, -1])  # type: ignore[arg-type]


@dataclass
class Detections:
    """Stand-in with the constructor of ``supervision.Detections``."""

    xyxy: object
    mask: object = None
    confidence: object = None
    class_id: object = None
    tracker_id: object = None
    data: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)


def test_to_dict_gives_columns_that_json_can_represent(instances):
    columns = json.loads(json.dumps(instances.to_dict()))
    assert columns["track_id"] == [4, -1]
    assert columns["label"] == [1, 2]
    assert columns["name"] == ["cat", "dog"]
    assert columns["score"] == [0.5, 0.75]
    assert columns["box"] == [[0, 0, 5, 4], [3, 3, 9, 9]]
    assert columns["segmentation"] == instances.masks.to_rle()


def test_to_supervision_passes_every_column(instances, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=Detections))
    detections = instances.to_supervision()
    np.testing.assert_array_equal(detections.xyxy, instances.boxes)
    np.testing.assert_array_equal(detections.mask, instances.masks.to_arrays())
    np.testing.assert_array_equal(detections.confidence, instances.scores)
    np.testing.assert_array_equal(detections.class_id, [1, 2])
    np.testing.assert_array_equal(detections.tracker_id, [4, -1])
    assert detections.data["class_name"].tolist() == ["cat", "dog"]
    untracked = instances.with_track_ids([-1, -1]).to_supervision()
    assert untracked.tracker_id is None


def test_to_supervision_of_the_real_package(instances):
    supervision = pytest.importorskip("supervision")
    detections = instances.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert len(detections) == 2
    assert len(Instances.empty((4, 4), {}).to_supervision()) == 0


def test_to_pandas_gives_one_row_per_instance(instances):
    pytest.importorskip("pandas")
    table = instances.to_pandas()
    assert table["track_id"].tolist() == [4, -1]
    assert table["name"].tolist() == ["cat", "dog"]
    assert table["area"].tolist() == [20, 36]
    assert table[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == instances.boxes.tolist()
    assert table["rle"].tolist() == list(instances.masks.counts)


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_missing_package_is_named_with_its_installation(instances, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install {package}$"):
        getattr(instances, f"to_{package}")()
