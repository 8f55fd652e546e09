"""SOLO gives what its authors' code gives, and both families learn what is known and no more."""

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
    picture,
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


def of_wxinlong(key):
    """mmdetection's name of a tensor as WXinlong/SOLO has it."""
    for pattern, replacement in (
        (r"^mask_head\.mask_convs\.", "bbox_head.ins_convs."),
        (r"^mask_head\.cls_convs\.", "bbox_head.cate_convs."),
        (r"^mask_head\.conv_mask_list_(x|y)\.", r"bbox_head.dsolo_ins_list_\1."),
        (r"^mask_head\.conv_mask_list\.", "bbox_head.solo_ins_list."),
        (r"^mask_head\.conv_cls\.", "bbox_head.solo_cate."),
    ):
        key = re.sub(pattern, replacement, key)
    return key


def blobs(height, width, seed):
    rng = np.random.default_rng(seed)
    coarse = torch.tensor(rng.integers(0, 256, (1, 3, 6, 8)), dtype=torch.float32)
    smooth = interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0]
    return smooth.clamp(0, 255).byte().permute(1, 2, 0).numpy().copy()


# The published files and their numbers


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("renamed", [lambda key: key, of_wxinlong])
def test_every_published_file_fits_its_network_exactly(name, renamed):
    network = meta_network(name)
    state = {renamed(key): t for key, t in fixture("solo_v1", FILES[name]).empty().items()}
    adopted = SOLO.convert_state_dict(network, state)
    assert files.differences(network, adopted) is None
    assert SOLO.convert_state_dict(network, adopted).keys() == adopted.keys()  # our own names stay


def test_another_name_of_the_decoupled_category_layer_is_known():
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
    """With the fixture's weights."""
    made = load_model(WITH_OUTPUTS, weights="none", device="cpu", score=0)
    made.network.load_state_dict(SOLO.convert_state_dict(made.network, published.state()))
    return made


@pytest.mark.slow
def test_every_tensor_on_the_way_is_the_published_one(model, published):
    (batch,) = model.prepare([picture()])
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
        samples = published.arrays[f"inter/cls.{n}"]  # of the peaks alone; zeros elsewhere
        flat = found.flatten()
        at = torch.linspace(0, len(flat) - 1, len(samples), dtype=torch.float64).long()
        peaks = samples > 0
        assert peaks.any()
        np.testing.assert_allclose(flat[at].numpy()[peaks], samples[peaks], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_instances_are_the_published_ones(model, published):
    assert_same_instances(model.predict([picture()])[0], published)


def small(name, **options):
    """With random weights, and sure of something."""
    made = load_model(
        name, weights="none", **{"device": "cpu", "input_size": 64, "score": 0, **options}
    )
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        made.network.category.weight.normal_(std=0.06, generator=draws)
        layers = ["maps"] if name == "solo_r50" else ["columns", "rows"]
        for layer in layers:
            for level in made.network.get_submodule(layer):
                level.weight.normal_(std=0.1, generator=draws)
    return made


@pytest.fixture(
    scope="module",
    params=["decoupled_solo_light_r50", pytest.param("solo_r50", marks=pytest.mark.slow)],
)
def light(request):
    return small(request.param)


def test_maps_of_some_cells_are_those_among_the_maps_of_all(light):
    (batch,) = light.prepare([blobs(64, 96, seed=1)])
    with torch.inference_mode():
        outputs = light.network(batch.tensor)
        for level, grid in enumerate(GRIDS):
            every = light.network.masks(outputs, 0, level, torch.arange(grid**2), (16, 24))
            assert every.shape == (grid**2, 16, 24)
            cells = torch.tensor([grid + 1, 3, grid**2 - 1, 3])
            some = light.network.masks(outputs, 0, level, cells, (16, 24))
            torch.testing.assert_close(some, every[cells], atol=1e-5, rtol=1e-4)


def assert_alike(found, expected):
    assert len(found) == len(expected) > 3
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected.labels)
    differing = found.masks.to_arrays() != expected.masks.to_arrays()
    assert np.count_nonzero(differing) <= 1e-3 * differing.size


def test_result_of_an_image_does_not_depend_on_the_batch(light):
    exact = in_double_precision(light)
    image = blobs(64, 90, seed=3)
    (alone,) = exact.predict([image])
    others = [blobs(64, 90, seed=5), blobs(8, 400, seed=4)]  # the first one shares its forward
    assert_alike(exact.predict([*others, image])[-1], alone)


def test_masks_are_made_where_the_network_runs_in_bf16(light):
    (expected,) = light.predict([blobs(64, 90, seed=3)])
    quick = light.with_network(light.network)
    quick.precision = "bf16"
    (found,) = quick.predict([blobs(64, 90, seed=3)])
    assert len(expected) > 3
    assert abs(len(found) - len(expected)) <= 0.2 * len(expected)


def test_solov2_s_masks_are_made_where_group_norms_are_in_fp32_and_convolutions_in_bf16():
    """As autocast has it on a GPU."""
    network = load_model("solov2_light_r18", "none", device="cpu", input_size=64).network
    cells = torch.tensor([3, 5])
    with torch.inference_mode():
        outputs = network(torch.ones(1, 3, 64, 96))
        mixed = replace(outputs, kernels=tuple(each.bfloat16() for each in outputs.kernels))
        found, expected = (network.masks(each, 0, 1, cells) for each in (mixed, outputs))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_predicting_never_changes_the_image(light):
    image = blobs(64, 90, seed=3)
    before = image.copy()
    image.setflags(write=False)
    light.predict([image])
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", FILES)
def test_outputs_are_the_categories_of_any_dataset(name):
    categories = Categories({7: "star", 900_000_001: "moon"})
    network = SOLO.build(name, categories)
    model = SOLO(name, network, categories, input_size=64, device=torch.device("cpu"))
    with torch.no_grad():
        network.category.bias[:] = torch.tensor([-9.0, 9.0])
        for layer in network.children():
            if isinstance(layer, torch.nn.ModuleList):
                for level in layer:
                    level.bias.fill_(3)
    (found,) = model.predict([blobs(64, 64, seed=2)], Thresholds(score=0))
    assert len(found)
    assert set(found.labels.tolist()) == {900_000_001}
    assert set(found.names) == {"moon"}


# What both families learn


def targets(boxes, labels, **changes):
    """Objects that fill the lower half of their boxes."""
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


def claimed(given, grid=12, sizes=(1, 2048)):
    return assign(given, SIZE, grid, sizes)


def test_an_object_has_the_cells_around_its_centre_of_mass():
    """Of the lower half of its box, whose pixels are 24.5, 27 on average; a cell is 10.7 x 8."""
    one = claimed(targets([[20, 20, 30, 30]], [1]))
    assert one.cells.tolist() == [3 * 12 + 2]
    assert one.classes[3, 2] == 1
    assert (one.classes >= 0).sum() == 1


def test_a_large_object_has_nine_cells_and_no_more():
    one = claimed(targets([[0, 0, 128, 96]], [1]), grid=40)
    rows, columns = one.cells // 40, one.cells % 40
    assert len(one.cells) == 9
    assert (rows.max() - rows.min(), columns.max() - columns.min()) == (2, 2)
    assert one.objects.tolist() == [0] * 9


def test_an_object_belongs_to_the_levels_for_its_size():
    given = targets(*TWO)  # square roots of width times height: 40 and 62.6
    assert set(claimed(given, sizes=(1, 56)).objects.tolist()) == {0}
    assert set(claimed(given, sizes=(40, 63)).objects.tolist()) == {0, 1}
    assert set(claimed(given, sizes=(56, 224)).objects.tolist()) == {1}
    assert len(claimed(given, sizes=(63, 224)).objects) == 0


def test_a_cell_of_two_objects_has_the_later_class_and_both_masks():
    both = claimed(targets([[20, 20, 30, 30], [20, 20, 30, 30]], [2, 1]))
    assert both.objects.tolist() == [0, 1]
    assert both.cells.tolist() == [38, 38]
    assert both.classes.flatten()[38] == 1


@pytest.mark.parametrize("hidden", ["crowd", "has_mask"])
def test_what_has_no_mask_of_its_own_is_neither_learnt_nor_background(hidden):
    flag = torch.tensor([False, hidden == "crowd"])
    changes = {hidden: flag if hidden == "crowd" else ~torch.tensor([False, True])}
    found = claimed(targets(*TWO, **changes))
    assert set(found.objects.tolist()) == {0}
    assert found.unknown[:, :, 2].any()
    assert not found.unknown[:, :, [0, 1]].any()
    middle = found.unknown[int(45 / SIZE[0] * 12), int(92 / SIZE[1] * 12)]
    assert middle.tolist() == [False, False, True]


@pytest.mark.parametrize("factor", [4, 8, 16])
def test_masks_are_shrunk_as_opencv_does_it(factor):
    rng = np.random.default_rng(factor)
    coarse = rng.random((3, 16, 24)) > 0.5
    masks = coarse.repeat(6, axis=1).repeat(5, axis=2)  # 96 x 120
    padded = np.pad(masks, ((0, 0), (0, 0), (0, 8))).astype(np.uint8)
    size = 96 // factor, 128 // factor
    expected = [cv2.resize(each, size[::-1], interpolation=cv2.INTER_LINEAR) for each in padded]
    found = downsample_masks(torch.from_numpy(masks), factor, size)
    np.testing.assert_array_equal(found, np.array(expected, bool))


def test_the_mask_loss_is_none_for_the_mask_itself_and_one_for_its_contrary():
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
def learner(request):
    made = load_model(request.param, weights="none", device="cpu", input_size=96)
    network = type(made).build(made.name, Categories({1: "a", 2: "b", 3: "c"}))
    return made.criterion({}), SOLOCriterion(network, {}, ((1, 56),) + ((28, 112),) * 4)


def test_losses_are_finite_and_their_gradients_reach_what_they_teach(learner):
    _, criterion = learner
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    losses = criterion(images, [targets(*TWO)])
    assert set(losses) == {"mask", "class"}
    torch.stack(list(losses.values())).sum().backward()
    network = criterion.network
    for part in network.children():
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())
    network.zero_grad()
    losses = criterion(images, [targets([], [])])
    assert losses["mask"] == 0
    torch.stack(list(losses.values())).sum().backward()
    assert torch.isfinite(network.category.bias.grad).all()
    assert (network.category.bias.grad > 0).all()  # all of it is background
    network.zero_grad()


def test_a_class_that_is_not_annotated_is_learnt_where_it_is_and_left_alone_elsewhere(learner):
    _, criterion = learner
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    bias = criterion.network.category.bias
    for annotated, signs in (
        ([True, False, True], [-1, 0, -1]),
        ([True, True, False], [-1, 1, -1]),
    ):
        given = targets(*TWO, annotated=torch.tensor(annotated))
        criterion(images, [given])["class"].backward()
        assert bias.grad.sign().tolist() == signs
        criterion.network.zero_grad()
    assert criterion.takes_partial_annotation


def test_pictures_without_objects_leave_no_parameter_without_a_gradient(learner):
    """Others that train with it would wait for it."""
    _, criterion = learner
    criterion.network.zero_grad()
    losses = criterion(torch.zeros(1, 3, *SIZE), [targets([], [])])
    torch.stack(list(losses.values())).sum().backward()
    missing = [name for name, p in criterion.network.named_parameters() if p.grad is None]
    assert missing == []
