"""detectron2's Mask R-CNN gives what detectron2 gives, and pastes its masks inside their boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from support.overfitting import overfit_pattern
from support.parity import NOISE, assert_same_instances, assert_same_tensor, fixture, picture
from torch.nn.functional import grid_sample
from torchvision.models.detection.image_list import ImageList

from streamseg.config import ModelConfig, Thresholds
from streamseg.models.categories import COCO, COCO_THINGS, Categories
from streamseg.models.layers.grid_paste import SampledMasks
from streamseg.models.loading import load_model, start_model
from streamseg.models.mask_rcnn_d2.segmenter import STRIDES, MaskRCNND2
from streamseg.models.weights.files import differences
from streamseg.structures.targets import Targets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published():
    return fixture("mask_rcnn_d2", "mask_rcnn_R_50_FPN_3x")


@pytest.fixture(scope="module")
def model(published):
    """With the fixture's weights."""
    made = load_model("mask_rcnn_r50_fpn_d2", weights="none", device="cpu", score=0)
    made.network.load_state_dict(MaskRCNND2.convert_state_dict(made.network, published.state()))
    return made


# The published file


def test_the_published_file_fits_exactly(published):
    with torch.device("meta"):
        network = MaskRCNND2.build("mask_rcnn_r50_fpn_d2", COCO_THINGS)
    state = published.empty() | {"pixel_mean": torch.zeros(3, 1, 1)}
    assert differences(network, MaskRCNND2.convert_state_dict(network, state)) is None
    assert (
        MaskRCNND2.convert_state_dict(network, network.state_dict()).keys()
        == network.state_dict().keys()
    )


def test_background_comes_first_and_has_neither_box_nor_mask(published):
    state = published.state()
    adopted = MaskRCNND2.convert_state_dict(torch.nn.Module(), dict(state))
    theirs = state["roi_heads.box_predictor.cls_score.bias"]
    own = adopted["roi_heads.box_predictor.cls_score.bias"]
    assert torch.equal(own, torch.cat([theirs[80:], theirs[:80]]))
    boxes = adopted["roi_heads.box_predictor.bbox_pred.bias"]
    assert torch.equal(boxes[4:], state["roi_heads.box_predictor.bbox_pred.bias"])
    assert not boxes[:4].any()
    assert not adopted["roi_heads.mask_predictor.mask_fcn_logits.weight"][0].any()


# The same numbers


@pytest.mark.slow
def test_every_tensor_on_the_way_is_the_published_one(model, published):
    (batch,) = model.prepare([picture()])
    assert_same_tensor("input", batch.tensor, published, 1e-6)
    with torch.inference_mode():
        features = model.network.backbone(batch.tensor)
        objectness, deltas = model.network.rpn.head(list(features.values()))
        images = ImageList(batch.tensor, list(batch.shapes))
        (proposals,), _ = model.network.rpn(images, features)
    for level, tensor in enumerate(features.values()):
        assert_same_tensor(f"fpn.p{level + 2}", tensor, published, 1e-4)
        assert_same_tensor(f"rpn.objectness.{level}", objectness[level], published, 1e-4)
        assert_same_tensor(f"rpn.deltas.{level}", deltas[level], published, 1e-4)
    boxes = published.arrays["proposals/boxes"]
    np.testing.assert_allclose(proposals[: len(boxes)], boxes, atol=2e-3)


@pytest.mark.slow
def test_instances_are_the_published_ones(model, published):
    (found,) = model.predict([picture()])
    assert_same_instances(found, published)
    noise = NOISE * published.meta["float_noise"]["box_maxdiff"]
    np.testing.assert_allclose(found.boxes, published.arrays["final/box"], atol=noise, rtol=0)


# What differs from torchvision


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((333, 437), (800, 1050)),
        ((480, 640), (800, 1067)),
        ((1080, 1920), (750, 1333)),
        ((1000, 100), (1333, 133)),
    ],
)
def test_images_are_fitted_between_a_short_and_a_long_side(model, size, expected):
    assert model.resized_shape(size) == expected


def test_images_are_resized_as_pillow_does_it(model):
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    into = torch.zeros(3, 40, 70)
    model.preprocess(image, into)
    small = Pillow.fromarray(image).resize((70, 40), Pillow.Resampling.BILINEAR)
    expected = np.asarray(small)[:, :, ::-1] - np.array([103.53, 116.28, 123.675], np.float32)
    np.testing.assert_allclose(into.permute(1, 2, 0), expected, atol=1e-4)


def test_anchors_lie_on_the_strides_and_are_not_rounded(model):
    maps = [torch.zeros(1, 256, 13, 17) for _ in STRIDES]
    (every,) = model.network.rpn.anchor_generator(ImageList(maps[0], [(800, 1050)]), maps)
    by_level = every.view(5, 13, 17, 3, 4)
    for level, stride in enumerate(STRIDES):
        x1, y1, x2, y2 = by_level[level, 2, 3, 0].tolist()  # half as high as wide
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((3 * stride, 2 * stride))
        assert (x2 - x1, y2 - y1) == pytest.approx((32 * 2**level * 2**0.5, 32 * 2**level / 2**0.5))


def test_proposals_near_certainty_keep_the_order_of_their_logits(model):
    rpn = model.network.rpn
    boxes = torch.tensor([[[x, 0.0, x + 5, 5.0] for x in range(0, 100, 10)]])
    logits = torch.arange(30.0, 40.0)[None, :, None]  # all probabilities are 1
    (_, *_), (found,) = rpn.filter_proposals(boxes, logits, [(50, 200)], [10])
    assert found.tolist() == list(range(39, 29, -1))


# Masks where they are


def pasted(probabilities, boxes, size):
    """Sample every mask for the whole frame (the baseline)."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(dim=1)
    x = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
    shape = len(boxes), *size
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return grid_sample(probabilities[:, None], grid, align_corners=False)[:, 0]


@given(
    cells=st.integers(1, 28),
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    threshold=st.sampled_from([0.05, 0.5, 0.9]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=100, deadline=None)
def test_masks_have_the_pixels_of_full_frames(cells, size, threshold, seed):
    draws = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(4, cells, cells, generator=draws)
    corners = torch.rand(4, 2, generator=draws) * 140 - 10
    sides = torch.rand(4, 2, generator=draws) * 60 + 0.1
    boxes = torch.cat([corners, corners + sides], dim=1)
    found = SampledMasks(probabilities, boxes).masks(size, threshold)
    whole = pasted(probabilities, boxes, size)
    np.testing.assert_array_equal(found.to_arrays(), (whole >= threshold).numpy())


# A model as any other


def small(categories=COCO_THINGS, **thresholds):
    """With random weights that are sure of something."""
    network = MaskRCNND2.build("mask_rcnn_r50_fpn_d2", categories)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.weight.normal_(std=0.5, generator=draws)
    return MaskRCNND2(
        "mask_rcnn_r50_fpn_d2",
        network,
        categories,
        input_size=96,
        device=torch.device("cpu"),
        thresholds=Thresholds(**{"score": 0.05, **thresholds}),
    )


def noise_image(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.slow
def test_an_image_s_result_does_not_depend_on_what_is_in_the_batch():
    model = small()
    image = noise_image(60, 80, 3)
    (alone,) = model.predict([image])
    found = model.predict([noise_image(60, 80, 5), noise_image(30, 90, 4), image])[-1]
    assert len(found) == len(alone) > 3
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)
    np.testing.assert_array_equal(found.labels, alone.labels)
    differing = found.masks.to_arrays() != alone.masks.to_arrays()
    assert np.count_nonzero(differing) <= 1e-3 * differing.size


def test_predicting_never_changes_the_image():
    image = noise_image(60, 80, 3)
    before = image.copy()
    image.setflags(write=False)
    small().predict([image])
    np.testing.assert_array_equal(image, before)


@pytest.mark.slow
def test_a_class_takes_over_what_a_published_file_knows_of_its_name(tmp_path, published):
    path = tmp_path / "published.pth"
    state = published.state()
    torch.save({"model": state}, path)
    config = ModelConfig(name="mask_rcnn_r50_fpn_d2", weights=str(path), device="cpu")
    model, fresh = start_model(config, Categories({1: "zebra", 2: "unicorn"}), Thresholds())
    assert fresh == ["unicorn"]
    zebra = list(COCO.values()).index("zebra")
    theirs = state["roi_heads.box_predictor.cls_score.bias"]
    own = model.network.roi_heads.box_predictor.cls_score.bias
    assert torch.equal(own[:2], theirs[[80, zebra]])


def targets_of(boxes, labels, size, *, classes):
    masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return Targets(
        image_id=1,
        seed=0,
        boxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.tensor(labels),
        masks=masks,
        has_mask=torch.ones(len(labels), dtype=torch.bool),
        crowd=torch.zeros(len(labels), dtype=torch.bool),
        annotated=torch.ones(classes, dtype=torch.bool),
    )


@pytest.mark.slow
def test_losses_are_finite_and_their_gradients_reach_every_part():
    model = small(Categories({1: "disc", 2: "box"}))
    model.network.train()
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0)) * 50
    targets = [
        targets_of([[10, 10, 60, 70], [70, 20, 120, 60]], [0, 1], (96, 128), classes=2),
        targets_of([[5, 30, 50, 90]], [1], (96, 128), classes=2),
    ]
    torch.manual_seed(0)
    losses = model.criterion({})(images, targets)
    assert set(losses) == {"objectness", "proposal", "class", "box", "mask"}
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_box_losses_are_l1():
    criterion = small(Categories({1: "disc"})).criterion({})
    regressions = torch.zeros(3, 8)
    regressions[1, 4:] = torch.tensor([0.01, 0.0, 0.0, 0.0])
    wanted = [torch.zeros(3, 4)]
    _, box = criterion.box_losses(torch.zeros(3, 2), regressions, [torch.tensor([0, 1, 0])], wanted)
    assert float(box) == pytest.approx(0.01 / 3)


@pytest.mark.by_hand
@pytest.mark.timeout(900)
def test_it_learns_eight_pictures_by_heart(tmp_path):
    ap = overfit_pattern(
        tmp_path,
        "mask_rcnn_r50_fpn_d2",
        "test:?size=64x64&frames=8&fps=4&objects=2&seed=14",
        128,
        regions=32,
        epochs=6,
        optimiser={"rate": 3e-4, "weight_decay": 0, "clip": 10},
        schedule={"warmup": 16},
    )
    assert ap >= 0.9
