"""Panoptic FPN: parity with detectron2, merging of things and stuff, and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.overfitting import overfit_dataset
from support.panoptic import write_panoptic_dataset
from support.parity import PIXELS, assert_same_instances, assert_same_tensor, fixture, make_image
from torch.nn.functional import interpolate

from streamseg.config import ModelConfig, Thresholds
from streamseg.errors import UsageError
from streamseg.models.categories import COCO, COCO_PANOPTIC, Categories
from streamseg.models.layers.panoptic import MIN_STUFF_AREA, StuffLogits
from streamseg.models.loading import load_model, start_model
from streamseg.models.panoptic_fpn.segmenter import PanopticFPN
from streamseg.models.weights.files import differences
from streamseg.structures.masks import Masks
from streamseg.structures.results import Instances

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published():
    return fixture("panoptic_fpn", "panoptic_fpn_R_50_3x")


@pytest.fixture(scope="module")
def model(published):
    """Return a model with the reference weights."""
    model = load_model("panoptic_fpn_r50", weights="none", device="cpu", score=0)
    model.network.load_state_dict(PanopticFPN.convert_state_dict(model.network, published.state()))
    return model


@pytest.fixture(scope="module")
def detections(model):
    return model.forward(model.prepare([make_image()]))


def test_convert_state_dict_fits_published_weights(published):
    with torch.device("meta"):
        network = PanopticFPN.build("panoptic_fpn_r50", COCO_PANOPTIC)
    assert differences(network, PanopticFPN.convert_state_dict(network, published.empty())) is None


@pytest.mark.slow
def test_stuff_logits_match_reference(detections, published):
    stuff = detections[0].panoptic
    assert_same_tensor("sem_logits_stride4", stuff.logits[None], published, 1e-4)
    differing = stuff.classes() != published.arrays["sem_argmax"]
    assert np.count_nonzero(differing) <= PIXELS


@pytest.mark.slow
def test_postprocess_matches_reference_segments(model, detections, published):
    (found,) = model.postprocess(detections)
    assert_same_instances(found.instances, published)
    expected = published.meta["segments_info"]
    things, stuff = list(COCO), list(model.stuff)
    assert [(each.id, each.thing, each.label) for each in found.segments] == [
        (
            each["id"],
            each["isthing"],
            things[each["category_id"]] if each["isthing"] else stuff[each["category_id"] - 1],
        )
        for each in expected
    ]
    segment_map = np.zeros(found.instances.size, np.int64)
    for each in found.segments:
        segment_map[each.mask.to_array()] = each.id
    differing = segment_map != published.arrays["panoptic_seg"]
    assert np.count_nonzero(differing) <= PIXELS


@pytest.mark.slow
def test_predict_panoptic_applies_score_threshold_to_things(model, detections):
    (unfiltered,) = model.postprocess(detections)
    things = [each for each in unfiltered.segments if each.thing]
    (found,) = model.predict_panoptic([make_image()], Thresholds(score=0.85))
    kept_things = [each for each in found if each.thing]
    assert 0 < len(kept_things) < len(things)
    assert any(not each.thing for each in found)


def test_predict_panoptic_rejects_model_without_stuff():
    model = load_model("nanomask", input_size=64)
    with pytest.raises(UsageError, match="nanomask has no panoptic results"):
        model.predict_panoptic([np.zeros((32, 32, 3), np.uint8)])


# Merging


def create_instances(masks, scores):
    masks = np.asarray(masks, np.bool_)
    crops, origins = list(masks), np.zeros((len(masks), 2), np.int64)
    boxes = np.zeros((len(masks), 4), np.float32)
    labels = np.arange(1, len(masks) + 1)
    created_masks = Masks.from_crops(crops, origins, masks.shape[1:])
    return Instances(boxes, np.float32(scores), labels, created_masks, {1: "a", 2: "b", 3: "c"})


def create_stuff(classes, size=None):
    """Return logits with the given classes (h, w), each for 4 x 4 pixels."""
    classes = np.asarray(classes)
    logits = torch.nn.functional.one_hot(torch.tensor(classes), 3).permute(2, 0, 1).float()
    shape = 4 * classes.shape[0], 4 * classes.shape[1]
    return StuffLogits(logits, shape, size or shape, {92: "banner", 200: "rug"})


def test_segments_order_things_by_score_and_fill_with_stuff():
    whole, left = np.ones((100, 200), np.bool_), np.zeros((100, 200), np.bool_)
    left[:, :60] = True
    hidden = left.copy()
    hidden[:, :25] = False  # the first one covers more than half of it
    hidden[:, 60:80] = True
    classes = np.ones((25, 50), np.int64)
    classes[:, 45:] = 2  # 20 of 200 columns: below the minimum area
    segments = create_stuff(classes).segments(
        create_instances([left, hidden, whole], [0.9, 0.8, 0.4])
    )
    assert [(each.id, each.label, each.thing) for each in segments] == [
        (1, 1, True),
        (2, 92, False),
    ]
    assert segments[0].mask.area == 6000
    assert segments[1].mask.area >= MIN_STUFF_AREA
    assert not (segments[0].mask.to_array() & segments[1].mask.to_array()).any()


def test_segments_keep_visible_part_of_occluded_thing():
    first, second = np.zeros((2, 10, 100), np.bool_)
    first[:, :50], second[:, 30:90] = True, True
    segments = create_stuff(np.zeros((3, 25), np.int64), (10, 100)).segments(
        create_instances([first, second], [0.9, 0.7])
    )
    assert [each.mask.area for each in segments] == [500, 400]


def test_segments_are_empty_without_things_and_stuff():
    assert (
        create_stuff(np.zeros((3, 25), np.int64)).segments(
            create_instances(np.zeros((0, 12, 100)), [])
        )
        == ()
    )


@given(
    maps=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    shape_fraction=st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)),
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_stuff_classes_match_full_frame_resize(maps, shape_fraction, size, seed):
    logits = torch.randn(3, *maps, generator=torch.Generator().manual_seed(seed))
    shape = tuple(
        max(int(4 * side * part), 1) for side, part in zip(maps, shape_fraction, strict=True)
    )
    large = interpolate(
        logits[None], (4 * maps[0], 4 * maps[1]), mode="bilinear", align_corners=False
    )[:, :, : shape[0], : shape[1]]
    expected = interpolate(large, size, mode="bilinear", align_corners=False)[0]
    first, second = expected.topk(2, dim=0).values
    decided = (first - second).numpy() > 1e-5
    found = StuffLogits(logits, shape, size, {1: "a", 2: "b"}).classes()
    assert np.array_equal(found[decided], expected.argmax(dim=0).numpy()[decided])


# Training and batches


@pytest.mark.slow
def test_start_model_reuses_published_stuff_weights_by_name(tmp_path, published):
    path = tmp_path / "published.pth"
    state = published.state()
    torch.save({"model": state}, path)
    config = ModelConfig(name="panoptic_fpn_r50", weights=str(path), device="cpu")
    categories = Categories({1: "person"}, {7: "moon", 8: "river"})
    model, fresh = start_model(config, categories, Thresholds())
    assert fresh == ["moon"]
    river = list(COCO_PANOPTIC.stuff.values()).index("river") + 1
    own = model.network.sem_seg_head.predictor.bias
    theirs = state["sem_seg_head.predictor.bias"]
    assert torch.equal(own[[0, 2]], theirs[[0, river]])


@pytest.mark.slow
def test_predict_panoptic_is_independent_of_batch(model):
    small = load_model("panoptic_fpn_r50", weights="none", device="cpu", input_size=96, score=0)
    small.network.load_state_dict(model.network.state_dict())
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((60, 80), (30, 90), (60, 80))]
    before = images[2].copy()
    (expected_segments,) = small.predict_panoptic(images[2:])
    found = small.predict_panoptic(images)[2]
    assert len(found) == len(expected_segments) > 1
    for own, expected in zip(found, expected_segments, strict=True):
        assert (own.id, own.label, own.thing) == (expected.id, expected.label, expected.thing)
        assert np.count_nonzero(own.mask.to_array() != expected.mask.to_array()) <= PIXELS
    np.testing.assert_array_equal(images[2], before)


@pytest.mark.by_hand
@pytest.mark.timeout(900)
def test_panoptic_fpn_overfits_eight_images(tmp_path):
    """Use images of 128 x 96 pixels, large enough for the minimum stuff area."""
    write_panoptic_dataset(tmp_path, 8, first=14, scale=2)
    data = {
        "format": "panoptic",
        "images": "images",
        "annotations": "panoptic.json",
        "segments": "panoptic",
        "name": "overfit",
    }
    metrics = overfit_dataset(
        tmp_path,
        "panoptic_fpn_r50",
        data,
        96,
        regions=32,
        epochs=6,
        optimiser={"rate": 3e-4, "weight_decay": 0, "clip": 10},
        schedule={"warmup": 16},
    )
    assert metrics["overfit, panoptic"]["pq"] >= 0.9
