"""Pickling and copying of results, trackers, configs and errors; queues and process pools."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from io import BytesIO
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


def make_instances(rows=3):
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


def make_result():
    instances = make_instances()
    image = np.arange(np.prod(SIZE) * 3, dtype=np.uint8).reshape(*SIZE, 3)
    frame = Frame("gate", 7, 1, 0.28, 1.5, 2.5, image, "a.jpg", Fraction(4, 3))
    segments = (Segment(1, 3, "cat", True, instances.masks[1]),)
    return Result(frame, instances, "nanomask", MappingProxyType({"forward": 1.5}), segments)


def assert_equal(copied, original):
    assert copied.to_coco(1) == original.to_coco(1)
    assert copied.names == original.names
    assert dict(copied.categories) == dict(original.categories)
    for column in ("boxes", "scores", "labels", "track_ids", "features"):
        np.testing.assert_array_equal(getattr(copied, column), getattr(original, column))
    assert copied.masks == original.masks
    np.testing.assert_array_equal(copied.masks.windows, original.masks.windows)
    np.testing.assert_array_equal(copied.masks.from_box, original.masks.from_box)


COPIERS = {
    f"pickle {n}": lambda value, n=n: pickle.loads(pickle.dumps(value, n)) for n in PROTOCOLS
}
COPIERS |= {"copy": copy.copy, "deepcopy": copy.deepcopy}
every_copier = pytest.mark.parametrize("make_copy", COPIERS.values(), ids=COPIERS)


@every_copier
def test_copied_result_equals_the_original(make_copy):
    original = make_result()
    copied = make_copy(original)
    assert_equal(copied.instances, original.instances)
    assert copied.frame.pixel_aspect == Fraction(4, 3)
    assert copied.frame.item == "a.jpg"
    np.testing.assert_array_equal(copied.frame.image, original.frame.image)
    assert not copied.frame.image.flags.writeable
    assert copied.timing == {"forward": 1.5}
    assert copied.segments[0].mask == original.segments[0].mask
    assert copied.segments[0].name == "cat"


@every_copier
def test_copied_arrays_keep_their_writeable_flags(make_copy):
    original = make_instances()
    original.boxes.flags.writeable = False
    copied = make_copy(original)
    assert not copied.boxes.flags.writeable
    assert copied.scores.flags.writeable


@every_copier
@pytest.mark.parametrize("form", ["crops", "run lengths", "both", "boxes", "none"])
def test_copied_masks_equal_the_original_in_every_form(make_copy, form):
    masks = make_instances().masks
    if form == "run lengths":
        masks = Masks.from_rle(masks.counts, SIZE)
    elif form == "both":
        assert masks.counts
    elif form == "boxes":
        masks = Masks.from_boxes(masks.boxes, SIZE)
    elif form == "none":
        masks = Masks.empty(SIZE)
    copied = make_copy(masks)
    assert copied == masks
    np.testing.assert_array_equal(copied.to_arrays(), masks.to_arrays())
    assert (copied.from_box == masks.from_box).all()


def test_pickled_mask_contains_only_its_own_row():
    masks = make_instances(50).masks
    assert len(pickle.dumps(masks[3])) < len(pickle.dumps(masks)) / 20
    assert pickle.loads(pickle.dumps(masks[3])) == masks[3]


def test_copied_received_result_has_its_image():
    result = make_result()
    recorded = protocol.recorded_message(result, 5)
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
    jpeg = BytesIO()
    Image.fromarray(result.frame.image).save(jpeg, "JPEG")
    received = Received(message, result.instances, None, jpeg.getvalue())
    for make_copy in COPIERS.values():
        copied = make_copy(received)
        assert copied.message == message
        assert_equal(copied.instances, result.instances)
        np.testing.assert_array_equal(copied.frame, received.frame)


@pytest.mark.parametrize("copier", ["pickle 5", "pickle 2", "deepcopy"])
def test_copied_tracker_continues_with_the_same_track_ids(copier):
    make_copy = COPIERS[copier]
    instances = make_instances()
    tracker = Tracker(lost_track_seconds=1.0)
    tracker.update(instances, 0.0)
    copied = make_copy(tracker)
    assert copied.settings == tracker.settings
    for pts in (0.1, 0.2):
        expected = copy.deepcopy(tracker).update(instances, pts).track_ids
        track_ids = make_copy(copied).update(instances, pts).track_ids
        np.testing.assert_array_equal(track_ids, expected)


@every_copier
def test_copied_config_equals_the_original(make_copy):
    raw = {
        "sources": [{"url": "a.mp4", "thresholds": {"score": 0.3}}],
        "model": {"class_names": {1: "bolt"}},
    }
    config = validate(raw, "here")
    assert make_copy(config) == config


@every_copier
def test_copied_stage_error_has_its_cause(make_copy):
    copied = make_copy(StageError("source:gate", SourceError("gate: closed")))
    assert str(copied) == "source:gate: gate: closed"
    assert isinstance(copied.__cause__, SourceError)


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_results_pass_through_queues_and_process_pools(method):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    queue.put(make_result())
    assert_equal(queue.get().instances, make_instances())
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        copied = pool.submit(copy.deepcopy, make_instances()).result(timeout=60)
    assert_equal(copied, make_instances())
