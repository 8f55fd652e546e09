"""Conversions of instances to plain Python values, pandas and supervision."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from streamseg import Instances
from streamseg.errors import MissingExtraError
from streamseg.structures.masks import Masks

SUPERVISION_STAND_IN = '''
"""Stand-in with the constructor and the checks of supervision.Detections."""
from dataclasses import dataclass, field

@dataclass
class Detections:
    xyxy: object
    mask: object = None
    confidence: object = None
    class_id: object = None
    tracker_id: object = None
    data: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)

    def __post_init__(self):
        count = len(self.xyxy)
        assert self.xyxy.shape == (count, 4)
        assert self.mask is None or (self.mask.ndim == 3 and len(self.mask) == count)
        for column in (self.confidence, self.class_id, self.tracker_id, *self.data.values()):
            assert column is None or column.shape == (count,)
'''
PANDAS_STAND_IN = """
class DataFrame(dict):
    def __init__(self, data):
        assert len({len(column) for column in data.values()}) == 1
        super().__init__(data)
"""


@pytest.fixture
def instances() -> Instances:
    boxes = [[0, 0, 5, 4], [3, 3, 9, 9]]
    masks = Masks.from_boxes(boxes, (20, 30))
    return Instances(boxes, [0.5, 0.75], [1, 2], masks, {1: "cat", 2: "dog"}, [4, -1])  # type: ignore[arg-type]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a module of the given source for the duration of the test."""

    def install(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)

    yield install
    for name in ("pandas", "supervision"):
        module = sys.modules.get(name)
        if module is not None and str(tmp_path) in (module.__file__ or ""):
            del sys.modules[name]


def assert_equal_columns(detections, instances: Instances) -> None:
    np.testing.assert_array_equal(detections.xyxy, instances.boxes)
    np.testing.assert_array_equal(detections.mask, instances.masks.to_arrays())
    np.testing.assert_array_equal(detections.confidence, instances.scores)
    np.testing.assert_array_equal(detections.class_id, instances.labels)
    assert detections.data["class_name"].tolist() == instances.names


def test_to_dict_gives_columns_that_json_can_represent(instances) -> None:
    columns = json.loads(json.dumps(instances.to_dict()))
    assert columns["track_id"] == [4, -1]
    assert columns["label"] == [1, 2]
    assert columns["name"] == ["cat", "dog"]
    assert columns["score"] == [0.5, 0.75]
    assert columns["box"] == [[0, 0, 5, 4], [3, 3, 9, 9]]
    assert columns["segmentation"] == instances.masks.to_rle()


def test_to_dict_of_no_instances_gives_empty_columns() -> None:
    assert set(map(len, Instances.empty((4, 4), {}).to_dict().values())) == {0}


def test_to_supervision_passes_every_column(instances, install) -> None:
    install("supervision", SUPERVISION_STAND_IN)
    detections = instances.to_supervision()
    assert_equal_columns(detections, instances)
    np.testing.assert_array_equal(detections.tracker_id, [4, -1])
    assert instances.with_track_ids([-1, -1]).to_supervision().tracker_id is None
    assert len(Instances.empty((4, 4), {}).to_supervision().xyxy) == 0


def test_to_supervision_copies_the_columns(instances, install) -> None:
    install("supervision", SUPERVISION_STAND_IN)
    detections = instances.to_supervision()
    detections.xyxy[:] = detections.confidence[:] = 0
    assert instances.boxes.max() == 9
    assert instances.scores.max() == 0.75


def test_to_supervision_works_with_the_real_package(instances) -> None:
    supervision = pytest.importorskip("supervision")
    detections = instances.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert_equal_columns(detections, instances)
    assert len(Instances.empty((4, 4), {}).to_supervision()) == 0


def test_to_pandas_passes_every_column(instances, install) -> None:
    install("pandas", PANDAS_STAND_IN)
    table = instances.to_pandas()
    assert list(table["track_id"]) == [4, -1]
    assert list(table["label"]) == [1, 2]
    assert table["name"] == ["cat", "dog"]
    assert list(table["score"]) == [0.5, 0.75]
    assert np.transpose([table[name] for name in ("x1", "y1", "x2", "y2")]).tolist() == (
        instances.boxes.tolist()
    )
    assert list(table["area"]) == [20, 36]
    assert table["rle"] == list(instances.masks.counts)


def test_to_pandas_works_with_the_real_package(instances) -> None:
    pandas = pytest.importorskip("pandas")
    table = instances.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table["name"].tolist() == ["cat", "dog"]
    assert table["area"].tolist() == [20, 36]
    assert table[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == instances.boxes.tolist()
    assert len(Instances.empty((4, 4), {}).to_pandas()) == 0


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_missing_package_is_named_with_its_installation(instances, monkeypatch, package) -> None:
    if find_spec(package) is not None:  # otherwise it is really absent
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"isn't installed: pip install {package}$") as e:
        getattr(instances, f"to_{package}")()
    assert isinstance(e.value, ModuleNotFoundError)
    assert e.value.name == package


def test_missing_dependency_of_an_installed_package_is_not_misreported(instances, install) -> None:
    install("supervision", "import a_package_that_does_not_exist")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_does_not_exist") as error:
        instances.to_supervision()
    assert not isinstance(error.value, MissingExtraError)
