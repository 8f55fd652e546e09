"""SOLOv2: parity with the authors' code, and mask resizing within bounds."""

from __future__ import annotations

import copy
import re
import statistics
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.overfitting import find_batch_norms, overfit_pattern
from support.parity import (
    NOISE,
    assert_same_instances,
    assert_same_tensor,
    fixture,
    in_double_precision,
    make_image,
)
from torch.nn.functional import interpolate

from streamseg.config import ModelConfig, Thresholds
from streamseg.errors import WeightsError
from streamseg.models import load_model
from streamseg.models.categories import COCO, COCO_THINGS, Categories
from streamseg.models.layers.backbones import DeformableConv2d
from streamseg.models.layers.matrix_nms import matrix_nms
from streamseg.models.loading import start_model
from streamseg.models.solo import SOLOv2
from streamseg.models.solo.segmenter import SoftMasks, _local_maxima
from streamseg.models.weights import files
from streamseg.structures.targets import Targets

VARIANTS = [
    "solov2_r50",
    "solov2_light_r18",
    "solov2_light_r34",
    "solov2_light_r50",
    "solov2_light_r50_dcn",
]
WITH_OUTPUTS = "solov2_light_r50"
SMALL = {"device": "cpu", "input_size": 96, "score": 0}

pytestmark = pytest.mark.usefixtures("one_thread")


def meta_network(name):
    with torch.device("meta"):
        return SOLOv2.build(name, COCO_THINGS)


def rename_to_wxinlong(key):
    """Return WXinlong/SOLO's name of a tensor, given mmdetection's."""
    for pattern, replacement in (
        (r"^mask_head\.mask_feature_head\.conv_pred\.", "mask_feat_head.conv_pred.0."),
        (r"^mask_head\.mask_feature_head\.", "mask_feat_head."),
        (r"^mask_head\.cls_convs\.", "bbox_head.cate_convs."),
        (r"^mask_head\.conv_cls\.", "bbox_head.solo_cate."),
        (r"^mask_head\.conv_kernel\.", "bbox_head.solo_kernel."),
        (r"^mask_head\.", "bbox_head."),
    ):
        key = re.sub(pattern, replacement, key)
    return key


# Published weights


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("rename", [lambda key: key, rename_to_wxinlong])
def test_convert_state_dict_fits_published_weights(name, rename):
    network = meta_network(name)
    state = {rename(key): tensor for key, tensor in fixture("solov2", name).empty().items()}
    converted = SOLOv2.convert_state_dict(network, state)
    assert files.differences(network, converted) is None
    assert (
        SOLOv2.convert_state_dict(network, converted).keys() == converted.keys()
    )  # own names are kept


@pytest.mark.parametrize("with_bias", [True, False])
def test_convert_state_dict_accepts_dcn_v1_offsets(with_bias):
    network = SOLOv2.build("solov2_light_r50_dcn", COCO_THINGS)
    state = {}
    for key, tensor in fixture("solov2", "solov2_light_r50_dcn").empty("cpu").items():
        if "conv_offset" not in key:
            state[rename_to_wxinlong(key)] = tensor
        elif with_bias or key.endswith("weight"):
            state[rename_to_wxinlong(key)] = torch.zeros(18, *tensor.shape[1:])
    converted = SOLOv2.convert_state_dict(network, state)
    assert files.differences(network, converted) is None
    network.load_state_dict(converted)
    convs = [network.backbone.layer2[0].conv2, network.category_tower[2].conv]
    for conv in convs:  # with zero offsets it equals a plain convolution
        torch.nn.init.normal_(conv.weight)
        features = torch.randn(1, conv.in_channels, 9, 9)
        expected = torch.nn.functional.conv2d(features, conv.weight, stride=conv.stride, padding=1)
        torch.testing.assert_close(conv(features), expected, atol=1e-3, rtol=1e-3)


def test_convert_state_dict_rejects_adelaidet_weights():
    state = {
        "backbone.bottom_up.res2.0.conv1.weight": torch.zeros(1),
        "ins_head.cate_pred.weight": torch.zeros(1),
    }
    with pytest.raises(WeightsError, match="AdelaiDet") as caught:
        SOLOv2.convert_state_dict(meta_network("solov2_r50"), state)
    assert "\n" not in str(caught.value)


def test_license_notice_is_set_for_non_commercial_weights():
    state = fixture("solov2", "solov2_r50").empty()
    assert SOLOv2.license_notice(state) is None
    assert (
        SOLOv2.license_notice({rename_to_wxinlong(key): t for key, t in state.items()}) is not None
    )


def test_load_model_reads_published_file(tmp_path):
    state = fixture("solov2", "solov2_light_r18").empty("cpu")
    for tensor in state.values():
        tensor.fill_(7)
    torch.save({"meta": {"epoch": 36}, "state_dict": state}, tmp_path / "published.pth")
    model = load_model("solov2_light_r18", tmp_path / "published.pth", device="cpu")
    assert all((tensor == 7).all() for tensor in model.network.state_dict().values())


# Parity with the published weights


@pytest.fixture(scope="module")
def published():
    return fixture("solov2", WITH_OUTPUTS)


@pytest.fixture(scope="module")
def model(published):
    """Return a model with the reference weights."""
    model = load_model(WITH_OUTPUTS, weights="none", device="cpu", score=0)
    model.network.load_state_dict(SOLOv2.convert_state_dict(model.network, published.state()))
    return model


def test_prepare_matches_reference_input(model, published):
    (batch,) = model.prepare([make_image()])
    assert batch.shapes == (tuple(published.meta["resized"]),)
    assert tuple(batch.tensor.shape[2:]) == tuple(published.meta["padded"])
    assert_same_tensor("input", batch.tensor, published, 1e-6)


@pytest.mark.slow
def test_intermediate_tensors_match_reference(model, published):
    (batch,) = model.prepare([make_image()])
    with torch.inference_mode():
        maps = model.network.backbone(batch.tensor)
        pyramid = model.network.pyramid(batch.tensor)
        outputs = model.network(batch.tensor)
    tensors = {f"backbone.{n}": each for n, each in enumerate(maps)}
    tensors |= {f"neck.{n}": each for n, each in enumerate(pyramid)}
    tensors |= {f"cls.{n}": each for n, each in enumerate(outputs.categories)}
    tensors |= {f"kernel.{n}": each for n, each in enumerate(outputs.kernels)}
    tensors["mask_feats"] = outputs.features
    assert len(tensors) == 20
    noise = NOISE * published.meta["float_noise"]["cls_logit_maxdiff"]
    for name, tensor in tensors.items():
        assert_same_tensor(name, tensor, published, noise)


@pytest.mark.slow
def test_predict_matches_reference_instances(model, published):
    (found,) = in_double_precision(model).predict([make_image()])
    assert_same_instances(found, published)


def test_losses_match_reference(model, published):
    (batch,) = model.prepare([make_image()])
    loss = published.meta["loss"]
    boxes = torch.tensor(loss["gt_boxes_resized_pixels"])
    height, width = batch.shapes[0]
    y, x = torch.arange(height)[:, None], torch.arange(width)
    centres, halves = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    masks = torch.stack(
        [
            ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
            for (cx, cy), (rx, ry) in zip(centres, halves, strict=True)
        ]
    )
    targets = Targets(
        image_id=1,
        seed=0,
        boxes=boxes,
        labels=torch.tensor(loss["gt_labels"]),
        masks=masks,
        has_mask=torch.ones(3, dtype=torch.bool),
        crowd=torch.zeros(3, dtype=torch.bool),
        annotated=torch.ones(80, dtype=torch.bool),
    )
    with torch.inference_mode():
        found = model.criterion({})(batch.tensor, [targets])
    assert found["mask"].item() == pytest.approx(loss["values"]["loss_mask"], abs=1e-4)
    assert found["class"].item() == pytest.approx(loss["values"]["loss_cls"], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("solov2_r50", (480, 640), (800, 1067)),
        ("solov2_r50", (333, 1000), (444, 1333)),
        ("solov2_light_r18", (1080, 1920), (432, 768)),
        ("solov2_light_r50_dcn", (1080, 1920), (479, 852)),
        ("solov2_light_r50_dcn", (4000, 3), (852, 1)),
    ],
)
def test_resized_shape_limits_short_and_long_side(name, size, expected):
    sizes = {"solov2_r50": 800, "solov2_light_r18": 448, "solov2_light_r50_dcn": 512}
    with torch.device("meta"):
        network = SOLOv2.build(name, COCO_THINGS)
    model = SOLOv2(name, network, COCO_THINGS, input_size=sizes[name], device=torch.device("meta"))
    assert model.resized_shape(size) == expected


# Local maxima and matrix NMS


def test_local_maxima_keeps_points_not_below_preceding_neighbours():
    rng = np.random.default_rng(3)
    values = torch.tensor(rng.integers(0, 5, (2, 3, 9, 9)) / 8, dtype=torch.float32)  # with ties
    peaks = _local_maxima(values)
    for index in np.ndindex(*values.shape):
        image, category, y, x = index
        before = values[image, category, max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1]
        expected = values[index] if values[index] >= before.max() else 0
        assert peaks[index] == expected


def decay_scores(masks, scores, labels, sigma):
    """Return the scores after matrix NMS, computed pair by pair."""

    def overlap(a, b):
        return (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum() * (labels[a] == labels[b])

    max_overlaps = [max([overlap(i, j) for i in range(j)], default=0.0) for j in range(len(scores))]
    return [
        score
        * min(
            np.exp(-sigma * (overlap(i, j) if i < j else 0.0) ** 2)
            / np.exp(-sigma * max_overlaps[i] ** 2)
            for i in range(len(scores))
        )
        for j, score in enumerate(scores)
    ]


@given(st.integers(1, 9), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_matrix_nms_matches_pairwise_decay(count, seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((count, 6, 7)) > 0.5
    masks[:, 0, 0] = True
    scores = np.sort(rng.random(count))[::-1].astype(np.float32)
    labels = rng.integers(0, 2, count)
    found = matrix_nms(
        torch.from_numpy(masks),
        torch.from_numpy(scores.copy()),
        torch.from_numpy(labels),
        sigma=2.0,
    )
    np.testing.assert_allclose(found, decay_scores(masks, scores, labels, 2.0), rtol=1e-5)


def test_postprocess_runs_in_fp32_with_bf16_network(small_model, monkeypatch):
    image = create_blobs(96, 128, seed=1)
    (batch,) = small_model.prepare([image])
    with torch.inference_mode():
        outputs = small_model.network(batch.tensor)
    monkeypatch.setattr(small_model.network, "forward", lambda _images: outputs)
    expected = small_model.predict([image])[0]
    assert len(expected) > 3
    monkeypatch.setattr(small_model, "precision", "bf16")
    np.testing.assert_array_equal(small_model.predict([image])[0].scores, expected.scores)


# Mask resizing


def resize_full_masks(probabilities, shape, size, threshold):
    """Resize every map to the frame size and apply the threshold (the baseline)."""
    height, width = probabilities.shape[1:]
    large = interpolate(
        probabilities[None], (4 * height, 4 * width), mode="bilinear", align_corners=False
    )
    cropped = large[:, :, : shape[0], : shape[1]]
    whole = interpolate(cropped, size, mode="bilinear", align_corners=False)
    return (whole[0] > threshold).numpy()


def create_soft_maps(count, size, seed):
    """Return soft-edged blobs: large ones, ones of a pixel, and ones with all values below 0.5."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    maps = []
    for _ in range(count):
        cy, cx = rng.uniform(-1, height + 1), rng.uniform(-1, width + 1)
        ry, rx = rng.uniform(0.3, max(height, 2)), rng.uniform(0.3, max(width, 2))
        distance = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
        noise = rng.normal(0, 0.3, size)
        steepness = rng.uniform(1, 8)
        maps.append((1 - np.tanh(steepness * (distance - 1) + noise)) / 2)
    return torch.tensor(np.stack(maps), dtype=torch.float32)


@given(
    maps=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    shape_fraction=st.tuples(st.floats(0.2, 1), st.floats(0.2, 1)),
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    threshold=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.95]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_soft_masks_match_full_frame_resize(maps, shape_fraction, size, threshold, seed):
    shape = tuple(
        max(int(4 * side * part), 1) for side, part in zip(maps, shape_fraction, strict=True)
    )
    probabilities = create_soft_maps(3, maps, seed)
    found = SoftMasks(probabilities, shape).masks(size, threshold)
    expected = resize_full_masks(probabilities, shape, size, threshold)
    np.testing.assert_array_equal(found.to_arrays(), expected)


def test_soft_masks_match_full_frame_resize_at_threshold():
    """Use constant maps whose values differ from the threshold by rounding errors."""
    steps = torch.arange(-3, 4, dtype=torch.float32)[:, None, None]
    probabilities = (0.5 + steps * 6e-8).expand(7, 9, 11).contiguous()
    found = SoftMasks(probabilities, (33, 41)).masks((71, 83), 0.5)
    expected = resize_full_masks(probabilities, (33, 41), (71, 83), 0.5)
    np.testing.assert_array_equal(found.to_arrays(), expected)


@pytest.mark.alone
def test_soft_masks_are_five_times_faster_than_full_frame_resize():
    """Resize twenty masks, the largest of which cover a fifth of the frame."""
    shape, size = (432, 768), (1080, 1920)
    y, x = np.mgrid[:112, :192]
    rng = np.random.default_rng(1)
    circles = zip(
        rng.uniform(0, 112, 20), rng.uniform(0, 192, 20), np.linspace(3, 36, 20), strict=True
    )
    distances = [np.hypot((y - cy) / radius, (x - cx) / radius) for cy, cx, radius in circles]
    maps = (1 - np.tanh(6 * (np.stack(distances) - 1))) / 2
    probabilities = torch.tensor(maps, dtype=torch.float32)
    masks = SoftMasks(probabilities, shape)
    functions = (
        lambda: masks.masks(size, 0.5),
        lambda: resize_full_masks(probabilities, shape, size, 0.5),
    )
    durations_by_function = [[], []]
    for _ in range(7):
        for function, durations in zip(functions, durations_by_function, strict=True):
            start = time.perf_counter()
            function()
            durations.append(time.perf_counter() - start)
    ours, baseline = (statistics.median(durations) for durations in durations_by_function)
    assert ours <= baseline / 5


def test_soft_masks_accept_no_instances():
    assert len(SoftMasks(torch.zeros(0, 5, 5), (20, 20)).masks((30, 40), 0.5)) == 0


# Predictions, categories and training


def create_blobs(height, width, seed):
    rng = np.random.default_rng(seed)
    coarse = torch.tensor(rng.integers(0, 256, (1, 3, 6, 8)), dtype=torch.float32)
    smooth = interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0]
    return smooth.clamp(0, 255).byte().permute(1, 2, 0).numpy().copy()


def create_model(name="solov2_light_r18", categories=None, **options):
    """Return a light model whose random weights give confident detections."""
    model = load_model(name, weights="none", **{**SMALL, **options})
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer, std in ((model.network.category, 0.06), (model.network.kernel, 0.08)):
            layer.weight.normal_(std=std, generator=draws)
    return model


@pytest.fixture(scope="module")
def small_model():
    return create_model()


def assert_close_instances(found, expected):
    assert len(found) == len(expected) > 3
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected.labels)
    differing = found.masks.to_arrays() != expected.masks.to_arrays()
    assert np.count_nonzero(differing) <= 1e-3 * differing.size


@pytest.mark.parametrize(
    "name",
    ["solov2_light_r18", pytest.param("solov2_light_r50_dcn", marks=pytest.mark.slow)],
)
def test_predict_is_independent_of_batch(name):
    model = create_model(name)
    image = create_blobs(120, 160, seed=3)
    (expected,) = model.predict([image])
    others = [
        create_blobs(120, 160, seed=5),
        create_blobs(8, 400, seed=4),
    ]  # the first is in the same forward pass
    assert_close_instances(model.predict([*others, image])[-1], expected)


def test_predict_does_not_change_the_image(small_model):
    image = create_blobs(96, 128, seed=3)
    before = image.copy()
    image.setflags(write=False)
    small_model.predict([image])
    np.testing.assert_array_equal(image, before)


def test_boxes_are_mask_bounds(small_model):
    found = small_model.predict([create_blobs(120, 160, seed=3)])[0]
    np.testing.assert_array_equal(found.boxes, found.masks.boxes)


def test_score_threshold_only_removes_instances(small_model):
    image = create_blobs(120, 160, seed=3)
    unfiltered = small_model.predict([image])[0]
    min_score = float(np.median(unfiltered.scores))
    filtered = small_model.predict([image], Thresholds(score=min_score))[0]
    kept = np.flatnonzero(unfiltered.scores >= np.float32(min_score))
    assert 0 < len(kept) < len(unfiltered)
    assert_close_instances(filtered, unfiltered[kept])


def test_region_keeps_instances_with_box_centre_inside(small_model):
    image = create_blobs(120, 160, seed=3)
    unfiltered = small_model.predict([image])[0]
    centres = (unfiltered.boxes[:, 0] + unfiltered.boxes[:, 2]) / 2
    middle = (float(centres.min()) + float(centres.max())) / 2 + 0.1
    region = ((0.0, 0.0), (middle, 0.0), (middle, 120.0), (0.0, 120.0))
    inside_rows = np.flatnonzero(centres < middle)
    assert 1 < len(inside_rows) < len(unfiltered)
    kept = small_model.predict([image], Thresholds(score=0, region=region))[0]
    np.testing.assert_array_equal(kept.boxes, unfiltered.boxes[inside_rows])
    best = small_model.predict([image], Thresholds(score=0, region=region, max_instances=1))[0]
    np.testing.assert_array_equal(best.boxes, unfiltered.boxes[inside_rows[:1]])


def test_predict_returns_no_instances_for_low_scores(small_model):
    model = replace_category_bias(small_model, -50.0)
    found = model.predict([create_blobs(120, 160, seed=3)])[0]
    assert len(found) == 0
    assert found.size == (120, 160)


def replace_category_bias(model, bias):
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.category.bias.fill_(bias)
    return model.with_network(network)


def test_predict_returns_category_ids_of_dataset():
    categories = Categories({7: "star", 900_000_001: "moon"})
    network = SOLOv2.build("solov2_light_r18", categories)
    model = SOLOv2(
        "solov2_light_r18", network, categories, input_size=64, device=torch.device("cpu")
    )
    with torch.no_grad():
        network.category.bias[:] = torch.tensor([-9.0, 9.0])
        torch.nn.init.normal_(network.kernel.weight, std=0.1)
    (found,) = model.predict([create_blobs(64, 64, seed=2)], Thresholds(score=0))
    assert len(found)
    assert set(found.labels.tolist()) == {900_000_001}
    assert set(found.names) == {"moon"}


@pytest.mark.parametrize("offsets", [18, pytest.param(27, marks=pytest.mark.slow)])
def test_start_model_reuses_published_weights_by_class_name(tmp_path, offsets):
    state = {
        key: torch.zeros(offsets, *tensor.shape[1:]) if "conv_offset" in key else tensor.zero_()
        for key, tensor in fixture("solov2", "solov2_light_r50_dcn").empty("cpu").items()
    }
    dog = list(COCO.values()).index("dog")
    state["mask_head.conv_cls.weight"][dog] = 5
    state["mask_head.conv_cls.bias"][dog] = 6
    torch.save(state, tmp_path / "published.pth")
    config = ModelConfig(
        name="solov2_light_r50_dcn", weights=str(tmp_path / "published.pth"), device="cpu"
    )
    model, fresh = start_model(config, Categories({3: "star", 7: "dog"}), Thresholds())
    assert fresh == ["star"]
    layer = model.network.category
    assert (layer.weight[1] == 5).all()
    assert layer.bias[1] == 6
    assert layer.weight[0].any()
    assert model.network.kernel.weight.count_nonzero() == 0


def test_deformable_convolution_runs_in_bf16():
    torch.manual_seed(0)
    conv = DeformableConv2d(4, 5)
    torch.nn.init.normal_(conv.offset.weight)
    features = torch.randn(1, 4, 6, 7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        found = conv(features)
    assert found.shape == (1, 5, 6, 7)
    assert torch.isfinite(found).all()


@pytest.mark.by_hand
@pytest.mark.timeout(600)
def test_lightest_model_overfits_eight_images(tmp_path):
    """Enlarge 32-pixel images four times, so that a mask cell (stride 4) is one original pixel."""
    ap = overfit_pattern(
        tmp_path,
        "solov2_light_r18",
        "test:?size=32x32&frames=8&fps=4&objects=2&seed=14",
        128,
        epochs=3,
        optimiser={
            "rate": 4e-4,
            "rates": {"kernel.": 0.05},  # it sums thousands of non-negative inputs
            "weight_decay": 0,
            "clip": 10,
            "frozen": find_batch_norms("solov2_light_r18"),
        },
        schedule={"warmup": 20},
    )
    assert ap >= 0.9
