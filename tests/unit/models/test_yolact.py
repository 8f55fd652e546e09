"""YOLACT: parity with the authors' code, and mask assembly within boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.overfitting import overfit_pattern
from support.parity import NOISE, PIXELS, assert_same_tensor, fixture, make_image
from torch.nn.functional import interpolate

from streamseg.config import ModelConfig, Thresholds
from streamseg.errors import UsageError, WeightsError
from streamseg.models import load_model
from streamseg.models.categories import COCO, COCO_THINGS, Categories
from streamseg.models.layers.fast_nms import fast_nms, fast_nms_across_classes
from streamseg.models.loading import start_model
from streamseg.models.weights.files import differences
from streamseg.models.yolact import YOLACT
from streamseg.models.yolact.loss import BACKGROUND, IGNORED, match, sample_rows
from streamseg.models.yolact.network import anchors, decode, encode
from streamseg.models.yolact.segmenter import PrototypeMasks, crop_masks
from streamseg.structures.masks import Masks
from streamseg.structures.targets import Targets

FILES = {
    "yolact_r50": "yolact_resnet50",
    "yolact_r101": "yolact_base",
    "yolact_darknet53": "yolact_darknet53",
    "yolact_im700": "yolact_im700",
    "yolact_plus_r50": "yolact_plus_resnet50",
    "yolact_plus_r101": "yolact_plus_base",
}

pytestmark = pytest.mark.usefixtures("one_thread")


def meta_network(name):
    with torch.device("meta"):
        return YOLACT.build(name, COCO_THINGS)


# Published weights


@pytest.mark.parametrize("name", FILES)
def test_convert_state_dict_fits_published_weights(name):
    network = meta_network(name)
    state = fixture("yolact", FILES[name]).empty()
    assert differences(network, YOLACT.convert_state_dict(network, state)) is None


def test_convert_state_dict_drops_unused_tensors():
    network = meta_network("yolact_r50")
    state = fixture("yolact", "yolact_resnet50").empty()
    for name in ("backbone.layer1.0.conv1.weight", "fpn.downsample_layers.2.weight"):
        state[name] = torch.zeros(1)
    assert differences(network, YOLACT.convert_state_dict(network, state)) is None


def test_convert_state_dict_keeps_own_names():
    network = meta_network("yolact_plus_r50")
    state = network.state_dict()
    assert YOLACT.convert_state_dict(network, state).keys() == state.keys()


# Parity with the published weights


@pytest.fixture(
    scope="module",
    params=["yolact_r50", pytest.param("yolact_plus_r50", marks=pytest.mark.slow)],
)
def published(request):
    return request.param, fixture("yolact", FILES[request.param])


@pytest.fixture(scope="module")
def model(published):
    """Return a model with the reference weights."""
    name, file = published
    model = load_model(name, weights="none", device="cpu", score=0)
    model.network.load_state_dict(YOLACT.convert_state_dict(model.network, file.state()))
    return model


@pytest.fixture(scope="module")
def intermediate_outputs(model):
    """Return the outputs of backbone, pyramid and network in one forward pass."""
    parts = {
        "backbone": model.network.backbone,
        "pyramid": model.network.fpn,
        "outputs": model.network,
    }
    outputs = {}
    hooks = [
        part.register_forward_hook(
            lambda *arguments, name=name: outputs.update({name: arguments[2]})
        )
        for name, part in parts.items()
    ]
    with torch.inference_mode():
        (batch,) = model.prepare([make_image()])
        model.network(batch.tensor)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.fixture(scope="module")
def outputs(intermediate_outputs):
    return intermediate_outputs["outputs"]


def test_intermediate_tensors_match_reference(model, published, intermediate_outputs, outputs):
    file = published[1]
    (batch,) = model.prepare([make_image()])
    assert_same_tensor("input", batch.tensor, file, 1e-6)
    for level, tensor in enumerate(intermediate_outputs["backbone"]):
        assert_same_tensor(f"backbone.{level}", tensor, file, 1e-4)
    for level, tensor in enumerate(intermediate_outputs["pyramid"]):
        assert_same_tensor(f"fpn.{level}", tensor, file, 1e-4)
    assert_same_tensor("proto", outputs.prototypes[0].permute(1, 2, 0), file, 1e-4)
    assert_same_tensor("all.priors", outputs.anchors, file, 1e-6)
    assert_same_tensor("all.loc", outputs.boxes, file, 1e-4)
    assert_same_tensor("all.conf", outputs.classes.softmax(dim=2), file, 1e-4)
    assert_same_tensor("all.mask", outputs.coefficients, file, 1e-4)


def test_predict_matches_reference_instances(model, published):
    file = published[1]
    final = {key[6:]: value for key, value in file.arrays.items() if key.startswith("final/")}
    noise = NOISE * file.meta["float_noise"]["score_maxdiff"]
    scores = final.get("mask_score", final["score"])
    order = np.argsort(-scores, kind="stable")  # the reference of YOLACT++ is sorted by box score
    (found,) = model.predict([make_image()])
    ids = list(COCO)
    np.testing.assert_allclose(found.scores, scores[order], atol=noise, rtol=0)
    np.testing.assert_array_equal([ids.index(n) for n in found.labels], final["class"][order])
    np.testing.assert_array_equal(found.boxes, final["box"][order])
    areas = final["mask_area"][order]
    np.testing.assert_allclose(found.masks.areas, areas, atol=PIXELS, rtol=0)
    row_of = np.argsort(order)
    for row, text in enumerate(file.meta["rle_counts"]):
        expected = Masks.from_rle([text], tuple(file.meta["rle_size"]))[0].to_array()
        own = found.masks[int(row_of[row])].to_array()
        assert np.count_nonzero(expected != own) <= PIXELS


def test_fast_nms_matches_reference(model, published, outputs):
    file = published[1]
    scores = outputs.classes[0].softmax(dim=1)[:, 1:]
    confident = scores.amax(dim=1) > 0.05
    boxes = decode(outputs.boxes[0][confident], outputs.anchors[confident])
    results = {
        "det": fast_nms(boxes, scores[confident], 0.5, 200, 100),
        "cc": fast_nms_across_classes(boxes, scores[confident], 0.5, 200),
    }
    noise = NOISE * file.meta["float_noise"]["score_maxdiff"]
    for name, (kept_rows, classes, scores_kept) in results.items():
        np.testing.assert_array_equal(classes, file.arrays[f"{name}/class"])
        np.testing.assert_allclose(scores_kept, file.arrays[f"{name}/score"], atol=noise)
        np.testing.assert_allclose(boxes[kept_rows], file.arrays[f"{name}/box_rel"], atol=1e-4)


def test_losses_match_reference(model, published):
    losses = published[1].meta["loss"]
    ground_truth = np.array(losses["gt"], np.float32)
    y, x = np.mgrid[:550, :550]
    masks = []
    for x1, y1, x2, y2 in ground_truth[:, :4] * 550:
        across, down = (x - (x1 + x2) / 2) * 2 / (x2 - x1), (y - (y1 + y2) / 2) * 2 / (y2 - y1)
        masks.append(across**2 + down**2 <= 1)
    targets = create_targets(
        ground_truth[:, :4] * 550, ground_truth[:, 4], np.stack(masks), classes=80
    )
    (batch,) = model.prepare([make_image()])
    with torch.no_grad():
        found = model.criterion({})(batch.tensor, [targets])
    names = {"box": "B", "class": "C", "mask": "M", "semantic": "S", "mask_iou": "I"}
    actual = {names[name]: float(loss) for name, loss in found.items()}
    assert actual == pytest.approx(losses["values"], rel=2e-5)


def create_targets(boxes, labels, masks, *, classes, crowd=None, has_mask=None):
    count = len(labels)
    return Targets(
        image_id=1,
        seed=0,
        boxes=torch.tensor(np.asarray(boxes), dtype=torch.float32).view(-1, 4),
        labels=torch.tensor(np.asarray(labels)).long(),
        masks=torch.tensor(np.asarray(masks, np.bool_)),
        has_mask=torch.ones(count, dtype=torch.bool)
        if has_mask is None
        else torch.tensor(has_mask),
        crowd=torch.zeros(count, dtype=torch.bool) if crowd is None else torch.tensor(crowd),
        annotated=torch.ones(classes, dtype=torch.bool),
    )


# Anchors and loss


def test_anchors_are_square_for_yolact_and_rectangular_for_yolact_plus():
    grids = ((2, 3),) * 5
    squares, rectangles = anchors(grids, 550, plus=False), anchors(grids, 550, plus=True)
    assert squares.shape == (5 * 6 * 3, 4)
    assert rectangles.shape == (5 * 6 * 9, 4)
    assert torch.equal(squares[:, 2], squares[:, 3])
    ratios = (rectangles[:3, 2] / rectangles[:3, 3]).tolist()
    assert ratios == pytest.approx([1, 0.5, 2])
    assert squares[0, :2].tolist() == pytest.approx([0.5 / 3, 0.5 / 2])


@given(st.lists(st.floats(0.05, 0.9), min_size=4, max_size=4))
def test_decode_inverts_encode(numbers):
    x, y, width, height = numbers
    box = torch.tensor([[x, y, x + width, y + height]])
    prior = torch.tensor([[0.4, 0.6, 0.2, 0.3]])
    assert decode(encode(box, prior), prior)[0].tolist() == pytest.approx(box[0].tolist(), abs=1e-5)


def test_match_gives_every_object_an_anchor_and_ignores_crowds():
    priors = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.3, 0.3], [0.8, 0.2, 0.1, 0.1]])
    boxes = torch.tensor([[0.0, 0.0, 0.9, 0.9], [0.7, 0.1, 0.9, 0.3]])
    targets = create_targets(boxes, [4, 2], np.zeros((2, 4, 4)), classes=9, crowd=[False, True])
    matches = match(boxes, targets, priors)
    assert matches.classes.tolist() == [
        BACKGROUND,
        5,
        IGNORED,
    ]  # the larger anchor has the highest IoU
    assert int(matches.objects[1]) == 0


@pytest.mark.parametrize(("name", "max_masks"), [("yolact_r101", 100), ("yolact_im700", 300)])
def test_sample_rows_limits_masks_per_image(name, max_masks):
    assert meta_network(name).max_masks == max_masks
    targets = create_targets(np.zeros((0, 4)), [], np.zeros((0, 4, 4)), classes=80)
    few_rows, many_rows = torch.arange(max_masks), torch.arange(7, 507)
    assert torch.equal(sample_rows(few_rows, max_masks, targets), few_rows)
    found = sample_rows(many_rows, max_masks, targets)
    assert len(set(found.tolist()) & set(many_rows.tolist())) == len(found) == max_masks


def test_mask_loss_ignores_objects_without_mask():
    criterion = create_model().criterion({})
    images, boxes = torch.zeros(1, 3, 96, 96), [[10.0, 10.0, 50.0, 50.0]]
    masks = np.zeros((1, 96, 96), np.bool_)
    masks[:, 10:50, 10:50] = True
    with torch.no_grad():
        with_mask, without_mask = (
            criterion(images, [create_targets(boxes, [3], masks, classes=80, has_mask=[has])])
            for has in (True, False)
        )
    assert with_mask["mask"] > 0
    assert without_mask["mask"] == 0
    assert without_mask["box"] == with_mask["box"] > 0
    assert without_mask["class"] == with_mask["class"] > 0


# Mask assembly


@given(
    grid=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    threshold=st.sampled_from([0.3, 0.5, 0.8]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=100, deadline=None)
def test_prototype_masks_match_full_frame_resize(grid, size, threshold, seed):
    draws = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(32, *grid, generator=draws)
    coefficients = torch.rand(4, 32, generator=draws) * 2 - 1
    boxes = torch.rand(4, 4, generator=draws) * 1.4 - 0.2  # corners in any order, also outside
    found = PrototypeMasks(prototypes, coefficients, boxes).masks(size, threshold).to_arrays()
    cropped = crop_masks(prototypes, coefficients, boxes)
    whole = interpolate(cropped[None], size, mode="bilinear", align_corners=False)[0]
    decided = (whole - threshold).abs().numpy() > 1e-6
    assert np.array_equal(found[decided], (whole > threshold).numpy()[decided])


# Predictions, categories and training


def create_model(name="yolact_r50", categories=COCO_THINGS, **options):
    """Return a model whose random weights give confident detections."""
    network = YOLACT.build(name, categories)
    size = 256 if "plus" in name else 96
    model = YOLACT(
        name, network, categories, input_size=size, device=torch.device("cpu"), **options
    )
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        network.head.classes.weight.normal_(std=0.1, generator=draws)
        network.head.classes.bias.normal_(std=2, generator=draws)
    return model


def create_noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    "name",
    [
        "yolact_r50",
        pytest.param("yolact_darknet53", marks=pytest.mark.slow),
        pytest.param("yolact_plus_r50", marks=pytest.mark.slow),
    ],
)
def test_predict_is_independent_of_batch(name):
    model = create_model(name, thresholds=Thresholds(score=0.0))
    image = create_noise(60, 80, 3)
    (expected,) = model.predict([image])
    found = model.predict([create_noise(60, 80, 5), create_noise(30, 90, 4), image])[-1]
    assert len(found) == len(expected) > 3
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_array_equal(found.labels, expected.labels)
    differing = found.masks.to_arrays() != expected.masks.to_arrays()
    assert np.count_nonzero(differing) <= 1e-3 * differing.size


def test_predict_does_not_change_the_image():
    image = create_noise(60, 80, 3)
    before = image.copy()
    image.setflags(write=False)
    create_model().predict([image])
    np.testing.assert_array_equal(image, before)


def test_load_model_rejects_input_size_too_small_for_mask_scoring():
    assert load_model("yolact_plus_r50", weights="none", device="cpu", input_size=249)
    with pytest.raises(UsageError, match="yolact_plus_r50: input_size must be at least 249"):
        load_model("yolact_plus_r50", weights="none", device="cpu", input_size=248)


def test_predict_returns_category_ids_of_dataset():
    categories = Categories({7: "star", 900_000_001: "moon"})
    model = create_model(categories=categories)
    with torch.no_grad():
        model.network.head.classes.weight.zero_()
        bias = model.network.head.classes.bias.view(3, 3)
        bias[:] = torch.tensor([-9.0, -9.0, 9.0])
    (found,) = model.predict([create_noise(64, 64, 2)], Thresholds(score=0.5))
    assert len(found)
    assert set(found.labels.tolist()) == {900_000_001}


@pytest.mark.parametrize(
    "name", ["yolact_r50", pytest.param("yolact_plus_r50", marks=pytest.mark.slow)]
)
def test_start_model_reuses_published_weights_by_class_name(tmp_path, name):
    state = {
        key: torch.arange(len(tensor.flatten()), dtype=torch.float32).view(tensor.shape)
        for key, tensor in fixture("yolact", FILES[name]).empty("cpu").items()
        if not key.endswith("num_batches_tracked")
    } | {
        key: tensor.zero_()
        for key, tensor in fixture("yolact", FILES[name]).empty("cpu").items()
        if key.endswith("num_batches_tracked")
    }
    path = tmp_path / "published.pth"
    torch.save(state, path)
    categories = Categories({1: "zebra", 2: "unicorn", 3: "person"})
    model, fresh = start_model(
        ModelConfig(name=name, weights=str(path), device="cpu"), categories, Thresholds()
    )
    assert fresh == ["unicorn"]
    anchors_per_cell = 9 if "plus" in name else 3
    theirs = state["prediction_layers.0.conf_layer.bias"].view(anchors_per_cell, 81)
    own = model.network.head.classes.bias.view(anchors_per_cell, 4)
    zebra = list(COCO.values()).index("zebra") + 1
    assert torch.equal(own[:, [0, 1, 3]], theirs[:, [0, zebra, 1]])
    assert not torch.equal(own[:, 2], theirs[:, 2])


def test_load_model_names_family_of_mismatched_weights(tmp_path):
    path = tmp_path / "published.pth"
    state = fixture("yolact", "yolact_resnet50").empty("cpu")
    torch.save({key: tensor.zero_() for key, tensor in state.items()}, path)
    with pytest.raises(WeightsError, match=r"it looks like yolact_r50"):
        load_model("solov2_light_r18", path, device="cpu")


def test_training_shape_is_input_size():
    assert create_model().training_shape((40, 96)) == (96, 96)


@pytest.mark.by_hand
@pytest.mark.timeout(900)
def test_lightest_model_overfits_eight_images(tmp_path):
    """Enlarge 32-pixel images four times, so that a prototype pixel is one original pixel."""
    ap = overfit_pattern(
        tmp_path,
        "yolact_r50",
        "test:?size=32x32&frames=8&fps=4&objects=3&seed=1",
        128,
        batch=8,
        epochs=15,
        optimiser={"rate": 5e-4, "weight_decay": 0, "clip": 10},
        schedule={"warmup": 10},
    )
    assert ap >= 0.9
