"""Plug-in trackers: refused options, and errors that name the plug-in."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from support.plugins import install_plugin

from streamseg.config import TrackerConfig
from streamseg.errors import ConfigError, PluginError
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.stages import find_tracker, track
from streamseg.structures.masks import Masks
from streamseg.structures.results import Frame, Instances, Result

MODULE = """
import numpy as np

class Numbering:
    def update(self, instances, pts):
        return instances.with_track_ids(np.arange(len(instances)))

class Raising:
    def update(self, instances, pts):
        raise KeyError("lost")

class NoInstances:
    def update(self, instances, pts):
        return None

class FewerRows:
    def update(self, instances, pts):
        return instances[:1]

class NotCreated:
    def __init__(self):
        raise ValueError("no weights")
"""
NAMES = ("Numbering", "Raising", "NoInstances", "FewerRows", "NotCreated")


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points = {name: f"demo_trackers:{name}" for name in NAMES}
    install_plugin(
        tmp_path, monkeypatch, {"streamseg.trackers": entry_points}, demo_trackers=MODULE
    )


def track_one(name: str) -> Instances:
    frame = Frame("gate", 0, 0, 0.0, time.time(), time.monotonic(), np.zeros((8, 10, 3), np.uint8))
    masks = Masks.from_boxes([[0, 0, 4, 4], [4, 4, 8, 8]], frame.size)
    instances = Instances(masks.boxes, np.ones(2), np.ones(2, np.int64), masks, {1: "object"})
    tracked = list(track([Result(frame, instances, "model")], TrackerConfig(type=name), Metrics()))
    return tracked[0].instances


def test_a_plugin_tracker_sets_the_track_ids() -> None:
    assert track_one("Numbering").track_ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Raising", "failed: KeyError: 'lost'"),
        ("NoInstances", "returned NoneType instead of Instances"),
        ("FewerRows", "returned 1 rows instead of 2"),
        ("NotCreated", "failed: ValueError: no weights"),
    ],
)
def test_errors_name_the_plugin_and_the_reason(name: str, reason: str) -> None:
    with pytest.raises(PluginError) as caught:
        track_one(name)
    assert str(caught.value).startswith(f"tracker '{name}' of demo-plugin 1.0")
    assert reason in str(caught.value)


def test_options_of_the_built_in_tracker_are_refused() -> None:
    find_tracker(TrackerConfig(type="Numbering", enabled=False))
    with pytest.raises(ConfigError, match=r"tracker\.min_hits: Numbering is a plug-in"):
        find_tracker(TrackerConfig(type="Numbering", min_hits=3))
