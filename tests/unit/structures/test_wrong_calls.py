"""Invalid calls of the Python API: each raises an error of the package, in one line."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import streamseg
from streamseg import (
    Frame,
    Instances,
    Mask,
    Masks,
    Tracker,
    annotate,
    connect,
    load_model,
    open_source,
)
from streamseg.config import SourceConfig, Thresholds, load, override, validate
from streamseg.errors import ArgumentError, ConfigError, MissingExtraError, StreamsegError

CROP = np.ones((2, 2), bool)
BOX = Masks.from_boxes([[1, 2, 3, 4]], (4, 5))
ADDRESS = "tcp://127.0.0.1:59999"


def loading(*arguments, **options):
    return lambda: load_model(*arguments, **options)


def instances(**columns):
    valid = {"boxes": [[1, 2, 3, 4]], "scores": [1], "labels": [1], "masks": BOX, "categories": {}}
    return lambda: Instances(**{**valid, **columns})


def frame(**fields):
    valid = {"source": "a", "index": 0, "epoch": 0, "pts": 0.0, "captured_at": 0.0}
    valid |= {"monotonic": 0.0, "image": np.zeros((2, 2, 3), np.uint8)}
    return lambda: Frame(**{**valid, **fields})


def connecting(*arguments, **options):
    return lambda: connect(*arguments, **options).close()


def receiving(timeout):
    def receive():
        with connect(ADDRESS) as subscriber:
            subscriber.receive(timeout)

    return receive


def pickle_subscriber():
    with connect(ADDRESS) as subscriber:
        pickle.dumps(subscriber)


CALLS = {
    "load_model(None)": loading(None),
    "load_model, weights None": loading("nanomask", None),
    "load_model, weights a state dict": loading("nanomask", {}),
    "load_model, weights with NUL": loading("nanomask", "a\0b"),
    "load_model, a long path": loading("nanomask", "x" * 5000),
    "load_model, a folder": loading("nanomask", "/"),
    "load_model, a device file": loading("nanomask", "/dev/zero"),
    "load_model, device a number": loading("nanomask", "none", device=5),
    "load_model, input_size a text": loading("nanomask", "none", input_size="416"),
    "load_model, score a text": loading("nanomask", "none", score="x"),
    "load_model, classes a text": loading("nanomask", "none", classes="person"),
    "load_model, region of two": loading("nanomask", "none", region=[(0, 0), (1, 1)]),
    "Tracker, a text": lambda: Tracker(lost_track_seconds="2"),
    "Tracker, None": lambda: Tracker(lost_track_seconds=None),
    "Tracker, new_track_threshold a text": lambda: Tracker(new_track_threshold="high"),
    "Tracker, half a hit": lambda: Tracker(min_hits=1.5),
    "Tracker, min_hits true": lambda: Tracker(min_hits=True),
    "Tracker, use_masks a text": lambda: Tracker(use_masks="no"),
    "update, a list": lambda: Tracker().update([], 0.0),
    "update, pts a text": lambda: Tracker().update(instances()(), "0"),
    "update, pts None": lambda: Tracker().update(instances()(), None),
    "Instances, boxes of three": instances(boxes=[[1, 2, 3]]),
    "Instances, boxes a text": instances(boxes="abcd"),
    "Instances, ragged boxes": instances(boxes=[[1, 2, 3, 4], [1]]),
    "Instances, half a label": instances(labels=[1.5]),
    "Instances, two scores": instances(scores=[1, 1]),
    "Instances, no masks": instances(masks=None),
    "Instances, categories a list": instances(categories=["a"]),
    "Instances, features of none": instances(features="abc"),
    "with_track_ids": lambda: instances()().with_track_ids("a"),
    "instances['a']": lambda: instances()()["a"],
    "instances[3]": lambda: instances()()[3],
    "instances[[3]]": lambda: instances()()[[3]],
    "instances[[0.5]]": lambda: instances()()[[0.5]],
    "masks[None]": lambda: BOX[None],
    "masks[-2]": lambda: BOX[-2],
    "from_crops, lists": lambda: Masks.from_crops([[[True]]], [[0, 0]], (4, 5)),
    "from_crops, half a pixel": lambda: Masks.from_crops([CROP], [[0, 0.5]], (4, 5)),
    "from_crops, no origin": lambda: Masks.from_crops([CROP], [None], (4, 5)),
    "from_arrays, a list": lambda: Masks.from_arrays([[True]]),
    "from_boxes, NaN": lambda: Masks.from_boxes([[1, 2, 3, np.nan]], (4, 5)),
    "from_boxes, texts": lambda: Masks.from_boxes([["a"] * 4], (4, 5)),
    "from_boxes, no size": lambda: Masks.from_boxes([[1, 2, 3, 4]], None),
    "from_rle, one text": lambda: Masks.from_rle("abc", (4, 5)),
    "from_rle, numbers": lambda: Masks.from_rle([1], (4, 5)),
    "from_rle, None": lambda: Masks.from_rle(None, (4, 5)),
    "concatenate, nothing": lambda: Masks.concatenate([]),
    "concatenate, a number": lambda: Masks.concatenate(3),
    "pairwise_iou": lambda: BOX.pairwise_iou(CROP),
    "Mask.from_array": lambda: Mask.from_array(3),
    "Mask.from_box": lambda: Mask.from_box(None, (4, 5)),
    "Frame, source a number": frame(source=5),
    "Frame, no image": frame(image=None),
    "Frame, gray image": frame(image=np.zeros((2, 2), np.uint8)),
    "Frame, pts a text": frame(pts="0"),
    "annotate, no image": lambda: annotate(None, instances()()),
    "annotate, float image": lambda: annotate(np.zeros((4, 5, 3)), instances()()),
    "annotate, gray image": lambda: annotate(np.zeros((4, 5), np.uint8), instances()()),
    "annotate, a list": lambda: annotate(np.zeros((4, 5, 3), np.uint8), []),
    "annotate, another size": lambda: annotate(np.zeros((9, 9, 3), np.uint8), instances()()),
    "connect(None)": connecting(None),
    "connect, a path": connecting(Path("/tmp")),
    "connect, no port": connecting("tcp://127.0.0.1"),
    "connect, sources a text": connecting(ADDRESS, "gate"),
    "connect, sources a number": connecting(ADDRESS, 5),
    "connect, a source None": connecting(ADDRESS, [None]),
    "connect, frames True": connecting(ADDRESS, frames=True),
    "connect, timeout a text": connecting(ADDRESS, timeout="5"),
    "connect, max_pixels a text": connecting(ADDRESS, max_pixels="many"),
    "connect, frames_address a number": connecting(ADDRESS, frames="plain", frames_address=5),
    "receive, a text": receiving("1"),
    "a subscriber, pickled": pickle_subscriber,
    "receive, NaN": receiving(float("nan")),
    "config.load, a missing text": lambda: load("missing.yaml"),
    "config.load, a number": lambda: load(5),
    "config.load, NUL": lambda: load("a\0b"),
    "override, None": lambda: override({}, None),
    "override, a text": lambda: override({}, "a=b"),
    "override, numbers": lambda: override({}, [5]),
    "validate, None": lambda: validate(None, "here"),
    "validate, a list": lambda: validate([], "here"),
    "validate, an object": lambda: validate({"sources": [{"url": object()}]}, "here"),
    "SourceConfig, no url": lambda: SourceConfig(url=""),
    "SourceConfig, end before start": lambda: SourceConfig(url="a", start=2.0, end=1.0),
    "Thresholds, region of one": lambda: Thresholds(region=((0, 0),)),
    "open_source, None": lambda: open_source(None),
    "open_source, a missing text": lambda: open_source("missing.mp4"),
    "open_source, a missing path": lambda: open_source(Path("missing.mp4")),
    "open_source, url a number": lambda: open_source(SourceConfig(url=5)),
    "open_source, stride a text": lambda: open_source(SourceConfig(url="a.mp4", stride="2")),
    "open_source, a long path": lambda: open_source(SourceConfig(url="a" * 5000)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_invalid_call_raises_a_package_error_in_one_line(call):
    with pytest.raises(StreamsegError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize("name", [name for name in streamseg.__all__ if name != "serve"])
def test_public_name_is_importable_and_documented(name):
    assert name in dir(streamseg)
    assert name == "__version__" or getattr(streamseg, name).__doc__


def test_errors_are_also_builtin_errors():
    with pytest.raises(IndexError):
        BOX[5]
    with pytest.raises(ValueError, match="boxes"):
        instances(boxes="abcd")()
    with pytest.raises(ValueError, match="end"):
        SourceConfig(url="a", start=2.0, end=1.0)
    with pytest.raises(ConfigError, match=r"^here: sources\[0\]: end \(1\) must be after"):
        validate({"sources": [{"url": "a", "start": 2, "end": 1}]}, "here")


def test_numpy_numbers_and_torch_devices_are_accepted():
    model = load_model(
        "nanomask",
        "none",
        device=torch.device("cpu"),
        input_size=np.int64(64),
        score=np.float32(0.25),
    )
    assert (model.input_size, model.thresholds.score) == (64, 0.25)
    tracker = Tracker(np.float32(1), min_hits=np.int64(2), new_track_threshold=np.float64(0.7))
    assert tracker.settings.min_hits == 2


def test_integer_index_and_iteration_give_single_rows():
    three = instances(
        boxes=np.arange(12).reshape(3, 4), scores=[3, 2, 1], labels=[1, 2, 3], masks=BOX[[0, 0, 0]]
    )()
    assert three[1].labels.tolist() == [2]
    assert three[np.int64(-1)].labels.tolist() == [3]
    assert [row.labels.item() for row in three] == [1, 2, 3]


WITHOUT_EXTRA = """
import sys
for name in ("torch", "scipy", "av"):
    sys.modules[name] = None
import streamseg
from streamseg.errors import MissingExtraError
for call in (lambda: streamseg.load_model("nanomask"), lambda: streamseg.Tracker()):
    try:
        call()
    except MissingExtraError as error:
        print(error, error.name, isinstance(error, ModuleNotFoundError))
"""


def test_missing_extra_is_named_with_its_installation():
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.splitlines() == [
        "torch isn't installed: pip install 'streamseg[server]' torch True",
        "scipy isn't installed: pip install 'streamseg[server]' scipy True",
    ]
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        streamseg.nope  # noqa: B018 - the access raises
    assert issubclass(MissingExtraError, StreamsegError)
    assert issubclass(ArgumentError, ValueError)


def test_control_characters_in_messages_are_escaped():
    error = StreamsegError("rtsp://h: \x1b[2Jgone\n\udcff")
    assert str(error) == r"rtsp://h: \x1b[2Jgone\n\udcff"
