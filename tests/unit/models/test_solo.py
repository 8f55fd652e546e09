"""SOLO: parity with the authors' code, and training of SOLO and SOLOv2."""

from __future__ import annotations

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from support.parity import (
    NOISE,
    assert_same_instances,
    assert_same_tensor,
    fixture,
    in_double_precision,
    make_image,
)
from torch.nn.functional import interpolate

from streamseg.config import Thresholds
from streamseg.models import load_model
from streamseg.models.categories import COCO_THINGS, Categories
from streamseg.models.solo import SOLO
from streamseg.models.solo.loss import SOLOCriterion, assign, dice_loss, downsample_masks
from streamseg.models.solo.network import GRIDS
from streamseg.models.weights import files
from streamseg.structures.targets import Targets

FILES = {
    "decoupled_solo_light_r50": "decoupled_solo_light_r50",
    "solo_r50": "solo_r50_small_input",
}
WITH_OUTPUTS = "decoupled_solo_light_r50"
SIZE = 96, 128
CLASSES = 3

pytestmark = pytest.mark.usefixtures("one_thread")


def meta_network(name):
    with torch.device("meta"):
        return SOLO.build(name, COCO_THINGS)


def rename_to_wxinlong(key):
    """Return WXinlong/SOLO's name of a tensor, given mmdetection's."""
    for pattern, replacement in (
        (r"^mask_head\.mask_convs\.", "bbox_head.ins_convs."),
        (r"^mask_head\.cls_convs\.", "bbox_head.cate_convs."),
        (r"^mask_head\.conv_mask_list_(x|y)\.", r"bbox_head.dsolo_ins_list_\1."),
        (r"^mask_head\.conv_mask_list\.", "bbox_head.solo_ins_list."),
        (r"^mask_head\.conv_cls\.", "bbox_head.solo_cate."),
    ):
        key = re.sub(pattern, replacement, key)
    return key


def create_blobs(height, width, seed):
    rng = np.random.default_rng(seed)
    coarse = torch.tensor(rng.integers(0, 256, (1, 3, 6, 8)), dtype=torch.float32)
    smooth = interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0]
    return smooth.clamp(0, 255).byte().permute(1, 2, 0).numpy().copy()


# Parity with the published weights


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rename", [lambda key: key, rename_to_wxinlong])
def test_convert_state_dict_fits_published_weights(name, rename):
    network = meta_network(name)
    state = {rename(key): t for key, t in fixture("solo_v1", FILES[name]).empty().items()}
    converted = SOLO.convert_state_dict(network, state)
    assert files.differences(network, converted) is None
    assert (
        SOLO.convert_state_dict(network, converted).keys() == converted.keys()
    )  # own names are kept


def test_convert_state_dict_accepts_dsolo_category_layer():
    state = {
        re.sub(r"^mask_head\.conv_cls", "bbox_head.dsolo_cate", key): tensor
        for key, tensor in fixture("solo_v1", FILES[WITH_OUTPUTS]).empty().items()
    }
    network = meta_network(WITH_OUTPUTS)
    assert files.differences(network, SOLO.convert_state_dict(network, state)) is None


@pytest.fixture(scope="module")
def published():
    return fixture("solo_v1", WITH_OUTPUTS)


@pytest.fixture(scope="module")
def model(published):
    """Return a model with the reference weights."""
    model = load_model(WITH_OUTPUTS, weights="none", device="cpu", score=0)
    model.network.load_state_dict(SOLO.convert_state_dict(model.network, published.state()))
    return model


@pytest.mark.slow
def test_intermediate_tensors_match_reference(model, published):
    (batch,) = model.prepare([make_image()])
    assert batch.shapes == (tuple(published.meta["resized"]),)
    height, width = batch.tensor.shape[2:]
    with torch.inference_mode():
        maps = model.network.backbone(batch.tensor)
        pyramid = model.network.pyramid(batch.tensor)
        outputs = model.network(batch.tensor)
        columns, rows = (
            [
                interpolate(layer(tower).sigmoid(), (height // 4, width // 4), mode="bilinear")
                for layer, tower in zip(layers, outputs.towers, strict=True)
            ]
            for layers in (model.network.columns, model.network.rows)
        )
    tensors = {"input": batch.tensor}
    tensors |= {f"backbone.{n}": each for n, each in enumerate(maps)}
    tensors |= {f"neck.{n}": each for n, each in enumerate(pyramid)}
    tensors |= {f"mask_x.{n}": each for n, each in enumerate(columns)}
    tensors |= {f"mask_y.{n}": each for n, each in enumerate(rows)}
    for name, tensor in tensors.items():
        assert_same_tensor(name, tensor, published, 2e-5 * NOISE)
    for n, logits in enumerate(outputs.categories):
        found = logits.sigmoid()
        samples = published.arrays[f"inter/cls.{n}"]  # peak values only; zero elsewhere
        flat = found.flatten()
        at = torch.linspace(0, len(flat) - 1, len(samples), dtype=torch.float64).long()
        peaks = samples > 0
        assert peaks.any()
        np.testing.assert_allclose(flat[at].numpy()[peaks], samples[peaks], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_predict_matches_reference_instances(model, published):
    assert_same_instances(model.predict([make_image()])[0], published)


def create_model(name, **options):
    """Return a small model whose random weights give confident detections."""
    model = load_model(
        name, weights="none", **{"device": "cpu", "input_size": 64, "score": 0, **options}
    )
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.network.category.weight.normal_(std=0.06, generator=draws)
        layers = ["maps"] if name == "solo_r50" else ["columns", "rows"]
        for layer in layers:
            for level in model.network.get_submodule(layer):
                level.weight.normal_(std=0.1, generator=draws)
    return model


@pytest.fixture(
    scope="module",
    params=["decoupled_solo_light_r50", pytest.param("solo_r50", marks=pytest.mark.slow)],
)
def small_model(request):
    return create_model(request.param)


def test_masks_of_selected_cells_match_masks_of_all_cells(small_model):
    (batch,) = small_model.prepare([create_blobs(64, 96, seed=1)])
    with torch.inference_mode():
        outputs = small_model.network(batch.tensor)
        for level, grid in enumerate(GRIDS):
            all_masks = small_model.network.masks(
                outputs, 0, level, torch.arange(grid**2), (16, 24)
            )
            assert all_masks.shape == (grid**2, 16, 24)
            cells = torch.tensor([grid + 1, 3, grid**2 - 1, 3])
            selected_masks = small_model.network.masks(outputs, 0, level, cells, (16, 24))
            torch.testing.assert_close(selected_masks, all_masks[cells], atol=1e-5, rtol=1e-4)


def assert_close_instances(found, expected):
    assert len(found) == len(expected) > 3
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected.labels)
    differing = found.masks.to_arrays() != expected.masks.to_arrays()
    assert np.count_nonzero(differing) <= 1e-3 * differing.size


def test_predict_is_independent_of_batch(small_model):
    exact = in_double_precision(small_model)
    image = create_blobs(64, 90, seed=3)
    (expected,) = exact.predict([image])
    others = [
        create_blobs(64, 90, seed=5),
        create_blobs(8, 400, seed=4),
    ]  # the first is in the same forward pass
    assert_close_instances(exact.predict([*others, image])[-1], expected)


def test_predict_in_bf16_finds_similar_number_of_instances(small_model):
    (expected,) = small_model.predict([create_blobs(64, 90, seed=3)])
    bf16_model = small_model.with_network(small_model.network)
    bf16_model.precision = "bf16"
    (found,) = bf16_model.predict([create_blobs(64, 90, seed=3)])
    assert len(expected) > 3
    assert abs(len(found) - len(expected)) <= 0.2 * len(expected)


def test_solov2_masks_accept_fp32_features_and_bf16_kernels():
    """Mix dtypes like autocast on a GPU."""
    network = load_model("solov2_light_r18", "none", device="cpu", input_size=64).network
    cells = torch.tensor([3, 5])
    with torch.inference_mode():
        outputs = network(torch.ones(1, 3, 64, 96))
        mixed_outputs = replace(outputs, kernels=tuple(each.bfloat16() for each in outputs.kernels))
        found, expected = (network.masks(each, 0, 1, cells) for each in (mixed_outputs, outputs))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_predict_does_not_change_the_image(small_model):
    image = create_blobs(64, 90, seed=3)
    before = image.copy()
    image.setflags(write=False)
    small_model.predict([image])
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", FILES)
def test_predict_returns_category_ids_of_dataset(name):
    categories = Categories({7: "star", 900_000_001: "moon"})
    network = SOLO.build(name, categories)
    model = SOLO(name, network, categories, input_size=64, device=torch.device("cpu"))
    with torch.no_grad():
        network.category.bias[:] = torch.tensor([-9.0, 9.0])
        for layer in network.children():
            if isinstance(layer, torch.nn.ModuleList):
                for level in layer:
                    level.bias.fill_(3)
    (found,) = model.predict([create_blobs(64, 64, seed=2)], Thresholds(score=0))
    assert len(found)
    assert set(found.labels.tolist()) == {900_000_001}
    assert set(found.names) == {"moon"}


# Loss of both families


def create_targets(boxes, labels, **changes):
    """Return objects that fill the lower half of their boxes."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(corners), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, corners.int().tolist(), strict=True):
        mask[(y1 + y2) // 2 : y2, x1:x2] = True
    count = len(corners)
    plain = Targets(
        image_id=1,
        seed=7,
        boxes=corners,
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=masks,
        has_mask=torch.ones(count, dtype=torch.bool),
        crowd=torch.zeros(count, dtype=torch.bool),
        annotated=torch.ones(CLASSES, dtype=torch.bool),
    )
    return replace(plain, **changes)


TWO = ([[10, 20, 50, 60], [64, 10, 120, 80]], [0, 2])


def assign_to_level(objects, grid=12, sizes=(1, 2048)):
    return assign(objects, SIZE, grid, sizes)


def test_assign_selects_cells_around_centre_of_mass():
    """The centre of mass of the lower half of the box is (24.5, 27); a cell is 10.7 x 8 pixels."""
    assignment = assign_to_level(create_targets([[20, 20, 30, 30]], [1]))
    assert assignment.cells.tolist() == [3 * 12 + 2]
    assert assignment.classes[3, 2] == 1
    assert (assignment.classes >= 0).sum() == 1


def test_assign_limits_object_to_nine_cells():
    assignment = assign_to_level(create_targets([[0, 0, 128, 96]], [1]), grid=40)
    rows, columns = assignment.cells // 40, assignment.cells % 40
    assert len(assignment.cells) == 9
    assert (rows.max() - rows.min(), columns.max() - columns.min()) == (2, 2)
    assert assignment.objects.tolist() == [0] * 9


def test_assign_selects_levels_by_object_size():
    objects = create_targets(*TWO)  # square roots of width times height: 40 and 62.6
    assert set(assign_to_level(objects, sizes=(1, 56)).objects.tolist()) == {0}
    assert set(assign_to_level(objects, sizes=(40, 63)).objects.tolist()) == {0, 1}
    assert set(assign_to_level(objects, sizes=(56, 224)).objects.tolist()) == {1}
    assert len(assign_to_level(objects, sizes=(63, 224)).objects) == 0


def test_assign_keeps_later_class_and_both_masks_of_shared_cell():
    assignment = assign_to_level(create_targets([[20, 20, 30, 30], [20, 20, 30, 30]], [2, 1]))
    assert assignment.objects.tolist() == [0, 1]
    assert assignment.cells.tolist() == [38, 38]
    assert assignment.classes.flatten()[38] == 1


@pytest.mark.parametrize("flag_name", ["crowd", "has_mask"])
def test_assign_ignores_objects_without_own_mask(flag_name):
    flag = torch.tensor([False, flag_name == "crowd"])
    changes = {flag_name: flag if flag_name == "crowd" else ~torch.tensor([False, True])}
    found = assign_to_level(create_targets(*TWO, **changes))
    assert set(found.objects.tolist()) == {0}
    assert found.unknown[:, :, 2].any()
    assert not found.unknown[:, :, [0, 1]].any()
    middle = found.unknown[int(45 / SIZE[0] * 12), int(92 / SIZE[1] * 12)]
    assert middle.tolist() == [False, False, True]


@pytest.mark.parametrize("factor", [4, 8, 16])
def test_downsample_masks_matches_opencv(factor):
    rng = np.random.default_rng(factor)
    coarse = rng.random((3, 16, 24)) > 0.5
    masks = coarse.repeat(6, axis=1).repeat(5, axis=2)  # 96 x 120
    padded = np.pad(masks, ((0, 0), (0, 0), (0, 8))).astype(np.uint8)
    size = 96 // factor, 128 // factor
    expected = [cv2.resize(each, size[::-1], interpolation=cv2.INTER_LINEAR) for each in padded]
    found = downsample_masks(torch.from_numpy(masks), factor, size)
    np.testing.assert_array_equal(found, np.array(expected, bool))


def test_dice_loss_is_zero_for_same_mask_and_one_for_inverse():
    mask = torch.zeros(1, 6, 6)
    mask[0, 1:4, 2:5] = 1
    assert dice_loss(mask, mask).item() == pytest.approx(0, abs=1e-3)
    assert dice_loss(1 - mask, mask).item() == pytest.approx(1, abs=1e-3)


@pytest.fixture(
    scope="module",
    params=[
        "solov2_light_r18",
        pytest.param("decoupled_solo_light_r50", marks=pytest.mark.slow),
        pytest.param("solo_r50", marks=pytest.mark.slow),
    ],
)
def criteria(request):
    model = load_model(request.param, weights="none", device="cpu", input_size=96)
    network = type(model).build(model.name, Categories({1: "a", 2: "b", 3: "c"}))
    return model.criterion({}), SOLOCriterion(network, {}, ((1, 56),) + ((28, 112),) * 4)


def test_losses_are_finite_and_reach_all_parts_of_network(criteria):
    _, criterion = criteria
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    losses = criterion(images, [create_targets(*TWO)])
    assert set(losses) == {"mask", "class"}
    torch.stack(list(losses.values())).sum().backward()
    network = criterion.network
    for part in network.children():
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())
    network.zero_grad()
    losses = criterion(images, [create_targets([], [])])
    assert losses["mask"] == 0
    torch.stack(list(losses.values())).sum().backward()
    assert torch.isfinite(network.category.bias.grad).all()
    assert (network.category.bias.grad > 0).all()  # every cell is background
    network.zero_grad()


def test_class_loss_ignores_background_of_unannotated_class(criteria):
    _, criterion = criteria
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    bias = criterion.network.category.bias
    for annotated, signs in (
        ([True, False, True], [-1, 0, -1]),
        ([True, True, False], [-1, 1, -1]),
    ):
        objects = create_targets(*TWO, annotated=torch.tensor(annotated))
        criterion(images, [objects])["class"].backward()
        assert bias.grad.sign().tolist() == signs
        criterion.network.zero_grad()
    assert criterion.takes_partial_annotation


def test_images_without_objects_give_every_parameter_a_gradient(criteria):
    """DistributedDataParallel waits for the gradient of every parameter."""
    _, criterion = criteria
    criterion.network.zero_grad()
    losses = criterion(torch.zeros(1, 3, *SIZE), [create_targets([], [])])
    torch.stack(list(losses.values())).sum().backward()
    missing = [name for name, p in criterion.network.named_parameters() if p.grad is None]
    assert missing == []
