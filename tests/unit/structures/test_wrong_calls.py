"""Wrong calls of the Python interface: each gives one of the project's errors, in one line."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import streamseg
from streamseg import Frame, Instances, Mask, Masks, Tracker, connect, load_model
from streamseg.config import SourceConfig, Thresholds, load, override, validate
from streamseg.errors import ArgumentError, ConfigError, MissingExtraError, StreamsegError
from streamseg.sources import open_source

CROP = np.ones((2, 2), bool)
BOX = Masks.from_boxes([[1, 2, 3, 4]], (4, 5))
ADDRESS = "tcp://127.0.0.1:59999"


def model(*arguments, **options):
    return lambda: load_model(*arguments, **options)


def instances(**columns):
    right = {"boxes": [[1, 2, 3, 4]], "scores": [1], "labels": [1], "masks": BOX, "categories": {}}
    return lambda: Instances(**{**right, **columns})


def frame(**fields):
    right = {"source": "a", "index": 0, "epoch": 0, "pts": 0.0, "captured_at": 0.0}
    right |= {"monotonic": 0.0, "image": np.zeros((2, 2, 3), np.uint8)}
    return lambda: Frame(**{**right, **fields})


def subscriber(*arguments, **options):
    return lambda: connect(*arguments, **options).close()


def received(timeout):
    def receive():
        with connect(ADDRESS) as results:
            results.receive(timeout)

    return receive


def pickled():
    with connect(ADDRESS) as results:
        pickle.dumps(results)


CALLS = {
    "load_model(None)": model(None),
    "load_model, weights None": model("nanomask", None),
    "load_model, weights a state dict": model("nanomask", {}),
    "load_model, weights with NUL": model("nanomask", "a\0b"),
    "load_model, a long path": model("nanomask", "x" * 5000),
    "load_model, a folder": model("nanomask", "/"),
    "load_model, a device file": model("nanomask", "/dev/zero"),
    "load_model, device a number": model("nanomask", "none", device=5),
    "load_model, input_size a text": model("nanomask", "none", input_size="416"),
    "load_model, score a text": model("nanomask", "none", score="x"),
    "load_model, classes a text": model("nanomask", "none", classes="person"),
    "load_model, region of two": model("nanomask", "none", region=[(0, 0), (1, 1)]),
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
    "Frame, grey image": frame(image=np.zeros((2, 2), np.uint8)),
    "Frame, pts a text": frame(pts="0"),
    "connect(None)": subscriber(None),
    "connect, a path": subscriber(Path("/tmp")),
    "connect, no port": subscriber("tcp://127.0.0.1"),
    "connect, sources a text": subscriber(ADDRESS, "gate"),
    "connect, sources a number": subscriber(ADDRESS, 5),
    "connect, a source None": subscriber(ADDRESS, [None]),
    "connect, frames True": subscriber(ADDRESS, frames=True),
    "connect, timeout a text": subscriber(ADDRESS, timeout="5"),
    "connect, max_pixels a text": subscriber(ADDRESS, max_pixels="many"),
    "connect, frames_address a number": subscriber(ADDRESS, frames="plain", frames_address=5),
    "receive, a text": received("1"),
    "a subscriber, pickled": pickled,
    "receive, NaN": received(float("nan")),
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
def test_a_wrong_call_gives_an_error_of_the_project_in_one_line(call):
    with pytest.raises(StreamsegError) as refused:
        call()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 6000


def test_errors_are_what_python_calls_them_too():
    with pytest.raises(IndexError):
        BOX[5]
    with pytest.raises(ValueError, match="boxes"):
        instances(boxes="abcd")()
    with pytest.raises(ValueError, match="end"):
        SourceConfig(url="a", start=2.0, end=1.0)
    with pytest.raises(ConfigError, match=r"^here: sources\[0\]: end \(1\) must be after"):
        validate({"sources": [{"url": "a", "start": 2, "end": 1}]}, "here")


def test_numbers_of_numpy_and_devices_of_torch_are_taken_as_what_they_are():
    made = load_model(
        "nanomask",
        "none",
        device=torch.device("cpu"),
        input_size=np.int64(64),
        score=np.float32(0.25),
    )
    assert (made.input_size, made.thresholds.score) == (64, 0.25)
    assert (
        Tracker(
            np.float32(1), min_hits=np.int64(2), new_track_threshold=np.float64(0.7)
        ).settings.min_hits
        == 2
    )


def test_an_integer_picks_one_row_and_a_loop_goes_over_rows():
    three = instances(
        boxes=np.arange(12).reshape(3, 4), scores=[3, 2, 1], labels=[1, 2, 3], masks=BOX[[0, 0, 0]]
    )()
    assert three[1].labels.tolist() == [2]
    assert three[np.int64(-1)].labels.tolist() == [3]
    assert [row.labels.item() for row in three] == [1, 2, 3]


WITHOUT = """
import sys
for name in ("torch", "scipy", "av"):
    sys.modules[name] = None
import streamseg
from streamseg.errors import MissingExtraError
for use in (lambda: streamseg.load_model("nanomask"), lambda: streamseg.Tracker()):
    try:
        use()
    except MissingExtraError as error:
        print(error, error.name, isinstance(error, ModuleNotFoundError))
"""


def test_what_an_extra_has_is_named_where_it_is_missing():
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.splitlines() == [
        "torch isn't installed: pip install 'streamseg[server]' torch True",
        "scipy isn't installed: pip install 'streamseg[server]' scipy True",
    ]
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        streamseg.nope  # noqa: B018 - that is the test
    assert issubclass(MissingExtraError, StreamsegError)
    assert issubclass(ArgumentError, ValueError)


def test_a_message_that_quotes_what_a_peer_sent_is_one_printable_line():
    error = StreamsegError("rtsp://h: \x1b[2Jgone\n\udcff")
    assert str(error) == r"rtsp://h: \x1b[2Jgone\n\udcff"
