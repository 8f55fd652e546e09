"""Results, trackers and configs pickle, copy, and go through queues and process pools."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from types import MappingProxyType

import msgspec
import numpy as np
import pytest
from PIL import Image

from streamseg import Frame, Instances, Masks, Result, Tracker, protocol
from streamseg.client.received import Received
from streamseg.config import validate
from streamseg.errors import SourceError, StageError
from streamseg.structures.results import Segment

SIZE = (40, 60)
PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def instances(rows=3):
    rng = np.random.default_rng(rows)
    bitmaps = rng.random((rows, *SIZE)) > 0.7
    masks = Masks.from_arrays(bitmaps)
    return Instances(
        masks.boxes,
        np.linspace(0.9, 0.5, rows),
        np.arange(rows),
        masks,
        MappingProxyType({0: "cat", 1: "dog"}),
        np.arange(rows) - 1,
        rng.random((rows, 4), np.float32),
    )


def result():
    found = instances()
    image = np.arange(np.prod(SIZE) * 3, dtype=np.uint8).reshape(*SIZE, 3)
    frame = Frame("gate", 7, 1, 0.28, 1.5, 2.5, image, "a.jpg", Fraction(4, 3))
    parts = (Segment(1, 3, "cat", True, found.masks[1]),)
    return Result(frame, found, "nanomask", MappingProxyType({"forward": 1.5}), parts)


def assert_same(there, here):
    assert there.to_coco(1) == here.to_coco(1)
    assert there.names == here.names
    assert dict(there.categories) == dict(here.categories)
    for column in ("boxes", "scores", "labels", "track_ids", "features"):
        np.testing.assert_array_equal(getattr(there, column), getattr(here, column))
    assert there.masks == here.masks
    np.testing.assert_array_equal(there.masks.windows, here.masks.windows)
    np.testing.assert_array_equal(there.masks.from_box, here.masks.from_box)


WAYS = {f"pickle {n}": lambda value, n=n: pickle.loads(pickle.dumps(value, n)) for n in PROTOCOLS}
WAYS |= {"copy": copy.copy, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_result_comes_back_the_same(way):
    here = result()
    there = way(here)
    assert_same(there.instances, here.instances)
    assert there.frame.pixel_aspect == Fraction(4, 3)
    assert there.frame.item == "a.jpg"
    np.testing.assert_array_equal(there.frame.image, here.frame.image)
    assert not there.frame.image.flags.writeable
    assert there.timing == {"forward": 1.5}
    assert there.segments[0].mask == here.segments[0].mask
    assert there.segments[0].name == "cat"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_arrays_that_are_read_only_stay_so_and_the_others_too(way):
    here = instances()
    here.boxes.flags.writeable = False
    there = way(here)
    assert not there.boxes.flags.writeable
    assert there.scores.flags.writeable


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", ["crops", "run lengths", "both", "boxes", "none"])
def test_masks_come_back_whatever_they_were_made_from(way, kind):
    masks = instances().masks
    if kind == "run lengths":
        masks = Masks.from_rle(masks.counts, SIZE)
    elif kind == "both":
        assert masks.counts
    elif kind == "boxes":
        masks = Masks.from_boxes(masks.boxes, SIZE)
    elif kind == "none":
        masks = Masks.empty(SIZE)
    there = way(masks)
    assert there == masks
    np.testing.assert_array_equal(there.to_arrays(), masks.to_arrays())
    assert (there.from_box == masks.from_box).all()


def test_one_mask_takes_none_of_the_others_along():
    masks = instances(50).masks
    assert len(pickle.dumps(masks[3])) < len(pickle.dumps(masks)) / 20
    assert pickle.loads(pickle.dumps(masks[3])) == masks[3]


def test_what_a_subscriber_received_comes_back_with_its_image():
    here = result()
    recorded = protocol.recorded_message(here, 5)
    message = msgspec.convert(
        {
            **msgspec.to_builtins(recorded),
            "service": "s",
            "captured_at": 1.0,
            "published_at": 2.0,
            "age_ms": 3.0,
            "timing": {},
            "dropped": {},
        },
        protocol.MasksMessage,
    )
    from io import BytesIO

    jpeg = BytesIO()
    Image.fromarray(here.frame.image).save(jpeg, "JPEG")
    received = Received(message, here.instances, None, jpeg.getvalue())
    for way in WAYS.values():
        there = way(received)
        assert there.message == message
        assert_same(there.instances, here.instances)
        np.testing.assert_array_equal(there.frame, received.frame)


def test_a_copied_tracker_goes_on_with_the_same_identities():
    found = instances()
    tracker = Tracker(lost_track_seconds=1.0)
    tracker.update(found, 0.0)
    for way in (WAYS["pickle 5"], WAYS["pickle 2"], copy.deepcopy):
        there = way(tracker)
        assert there.settings == tracker.settings
        for pts in (0.1, 0.2):
            expected = copy.deepcopy(tracker).update(found, pts).track_ids
            np.testing.assert_array_equal(way(there).update(found, pts).track_ids, expected)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_config_comes_back_the_same(way):
    raw = {
        "sources": [{"url": "a.mp4", "thresholds": {"score": 0.3}}],
        "model": {"class_names": {1: "bolt"}},
    }
    config = validate(raw, "here")
    assert way(config) == config


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_error_of_a_stage_comes_back_with_its_cause(way):
    there = way(StageError("source:gate", SourceError("gate: gone")))
    assert str(there) == "source:gate: gate: gone"
    assert isinstance(there.__cause__, SourceError)


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_results_go_through_queues_and_process_pools(method):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    queue.put(result())
    assert_same(queue.get().instances, instances())
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        there = pool.submit(copy.deepcopy, instances()).result(timeout=60)
    assert_same(there, instances())
