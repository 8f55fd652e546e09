"""detectron2's Mask R-CNN: parity with detectron2, and mask pasting within boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from support.overfitting import overfit_pattern
from support.parity import NOISE, assert_same_instances, assert_same_tensor, fixture, make_image
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
    """Return a model with the reference weights."""
    model = load_model("mask_rcnn_r50_fpn_d2", weights="none", device="cpu", score=0)
    model.network.load_state_dict(MaskRCNND2.convert_state_dict(model.network, published.state()))
    return model


# Published weights


def test_convert_state_dict_fits_published_weights(published):
    with torch.device("meta"):
        network = MaskRCNND2.build("mask_rcnn_r50_fpn_d2", COCO_THINGS)
    state = published.empty() | {"pixel_mean": torch.zeros(3, 1, 1)}
    assert differences(network, MaskRCNND2.convert_state_dict(network, state)) is None
    assert (
        MaskRCNND2.convert_state_dict(network, network.state_dict()).keys()
        == network.state_dict().keys()
    )


def test_convert_state_dict_moves_background_first(published):
    state = published.state()
    converted = MaskRCNND2.convert_state_dict(torch.nn.Module(), dict(state))
    detectron2_bias = state["roi_heads.box_predictor.cls_score.bias"]
    own_bias = converted["roi_heads.box_predictor.cls_score.bias"]
    assert torch.equal(own_bias, torch.cat([detectron2_bias[80:], detectron2_bias[:80]]))
    boxes = converted["roi_heads.box_predictor.bbox_pred.bias"]
    assert torch.equal(boxes[4:], state["roi_heads.box_predictor.bbox_pred.bias"])
    assert not boxes[:4].any()
    assert not converted["roi_heads.mask_predictor.mask_fcn_logits.weight"][0].any()


# Parity with the published weights


@pytest.mark.slow
def test_intermediate_tensors_match_reference(model, published):
    (batch,) = model.prepare([make_image()])
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
def test_predict_matches_reference_instances(model, published):
    (found,) = model.predict([make_image()])
    assert_same_instances(found, published)
    noise = NOISE * published.meta["float_noise"]["box_maxdiff"]
    np.testing.assert_allclose(found.boxes, published.arrays["final/box"], atol=noise, rtol=0)


# Differences from torchvision


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((333, 437), (800, 1050)),
        ((480, 640), (800, 1067)),
        ((1080, 1920), (750, 1333)),
        ((1000, 100), (1333, 133)),
    ],
)
def test_resized_shape_limits_short_and_long_side(model, size, expected):
    assert model.resized_shape(size) == expected


def test_preprocess_matches_pillow_resize(model):
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    into = torch.zeros(3, 40, 70)
    model.preprocess(image, into)
    create_model = Pillow.fromarray(image).resize((70, 40), Pillow.Resampling.BILINEAR)
    expected = np.asarray(create_model)[:, :, ::-1] - np.array(
        [103.53, 116.28, 123.675], np.float32
    )
    np.testing.assert_allclose(into.permute(1, 2, 0), expected, atol=1e-4)


def test_anchors_lie_on_strides_and_are_not_rounded(model):
    maps = [torch.zeros(1, 256, 13, 17) for _ in STRIDES]
    (anchors,) = model.network.rpn.anchor_generator(ImageList(maps[0], [(800, 1050)]), maps)
    by_level = anchors.view(5, 13, 17, 3, 4)
    for level, stride in enumerate(STRIDES):
        x1, y1, x2, y2 = by_level[level, 2, 3, 0].tolist()  # aspect ratio 0.5 (height by width)
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((3 * stride, 2 * stride))
        assert (x2 - x1, y2 - y1) == pytest.approx((32 * 2**level * 2**0.5, 32 * 2**level / 2**0.5))


def test_proposals_are_sorted_by_logit_when_probabilities_saturate(model):
    rpn = model.network.rpn
    boxes = torch.tensor([[[x, 0.0, x + 5, 5.0] for x in range(0, 100, 10)]])
    logits = torch.arange(30.0, 40.0)[None, :, None]  # all probabilities are 1
    (_, *_), (found,) = rpn.filter_proposals(boxes, logits, [(50, 200)], [10])
    assert found.tolist() == list(range(39, 29, -1))


# Mask pasting


def paste_full_frame(probabilities, boxes, size):
    """Sample every mask over the whole frame (baseline)."""
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
def test_sampled_masks_match_full_frame_sampling(cells, size, threshold, seed):
    draws = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(4, cells, cells, generator=draws)
    corners = torch.rand(4, 2, generator=draws) * 140 - 10
    sides = torch.rand(4, 2, generator=draws) * 60 + 0.1
    boxes = torch.cat([corners, corners + sides], dim=1)
    found = SampledMasks(probabilities, boxes).masks(size, threshold)
    whole = paste_full_frame(probabilities, boxes, size)
    np.testing.assert_array_equal(found.to_arrays(), (whole >= threshold).numpy())


# Predictions, categories and training


def create_model(categories=COCO_THINGS, **thresholds):
    """Return a model whose random weights give confident detections."""
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


def create_noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.slow
def test_predict_is_independent_of_batch():
    model = create_model()
    image = create_noise(60, 80, 3)
    (expected,) = model.predict([image])
    found = model.predict([create_noise(60, 80, 5), create_noise(30, 90, 4), image])[-1]
    assert len(found) == len(expected) > 3
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_array_equal(found.labels, expected.labels)
    differing = found.masks.to_arrays() != expected.masks.to_arrays()
    assert np.count_nonzero(differing) <= 1e-3 * differing.size


def test_predict_does_not_change_the_image():
    image = create_noise(60, 80, 3)
    before = image.copy()
    image.setflags(write=False)
    create_model().predict([image])
    np.testing.assert_array_equal(image, before)


@pytest.mark.slow
def test_start_model_reuses_published_weights_by_class_name(tmp_path, published):
    path = tmp_path / "published.pth"
    state = published.state()
    torch.save({"model": state}, path)
    config = ModelConfig(name="mask_rcnn_r50_fpn_d2", weights=str(path), device="cpu")
    model, fresh = start_model(config, Categories({1: "zebra", 2: "unicorn"}), Thresholds())
    assert fresh == ["unicorn"]
    zebra = list(COCO.values()).index("zebra")
    detectron2_bias = state["roi_heads.box_predictor.cls_score.bias"]
    own_bias = model.network.roi_heads.box_predictor.cls_score.bias
    assert torch.equal(own_bias[:2], detectron2_bias[[80, zebra]])


def create_targets(boxes, labels, size, *, classes):
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
def test_losses_are_finite_and_reach_every_parameter():
    model = create_model(Categories({1: "disc", 2: "box"}))
    model.network.train()
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0)) * 50
    targets = [
        create_targets([[10, 10, 60, 70], [70, 20, 120, 60]], [0, 1], (96, 128), classes=2),
        create_targets([[5, 30, 50, 90]], [1], (96, 128), classes=2),
    ]
    torch.manual_seed(0)
    losses = model.criterion({})(images, targets)
    assert set(losses) == {"objectness", "proposal", "class", "box", "mask"}
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_box_loss_is_l1():
    criterion = create_model(Categories({1: "disc"})).criterion({})
    regressions = torch.zeros(3, 8)
    regressions[1, 4:] = torch.tensor([0.01, 0.0, 0.0, 0.0])
    regression_targets = [torch.zeros(3, 4)]
    _, box = criterion.box_losses(
        torch.zeros(3, 2), regressions, [torch.tensor([0, 1, 0])], regression_targets
    )
    assert float(box) == pytest.approx(0.01 / 3)


@pytest.mark.by_hand
@pytest.mark.timeout(900)
def test_mask_rcnn_d2_overfits_eight_images(tmp_path):
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
