"""YOLACT gives what its authors' code gives, and mixes its masks inside their boxes alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.overfitting import overfit_pattern
from support.parity import NOISE, PIXELS, assert_same_tensor, fixture, picture
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


# The published files


@pytest.mark.parametrize("name", FILES)
def test_every_published_file_fits_its_network_exactly(name):
    network = meta_network(name)
    state = fixture("yolact", FILES[name]).empty()
    assert differences(network, YOLACT.convert_state_dict(network, state)) is None


def test_what_old_files_hold_besides_is_left_out():
    network = meta_network("yolact_r50")
    state = fixture("yolact", "yolact_resnet50").empty()
    for name in ("backbone.layer1.0.conv1.weight", "fpn.downsample_layers.2.weight"):
        state[name] = torch.zeros(1)
    assert differences(network, YOLACT.convert_state_dict(network, state)) is None


def test_the_project_s_own_names_stay():
    network = meta_network("yolact_plus_r50")
    state = network.state_dict()
    assert YOLACT.convert_state_dict(network, state).keys() == state.keys()


# The same numbers


@pytest.fixture(
    scope="module",
    params=["yolact_r50", pytest.param("yolact_plus_r50", marks=pytest.mark.slow)],
)
def published(request):
    return request.param, fixture("yolact", FILES[request.param])


@pytest.fixture(scope="module")
def model(published):
    """With the fixture's weights."""
    name, file = published
    made = load_model(name, weights="none", device="cpu", score=0)
    made.network.load_state_dict(YOLACT.convert_state_dict(made.network, file.state()))
    return made


@pytest.fixture(scope="module")
def on_the_way(model):
    """What comes out of trunk, pyramid and network in one forward."""
    parts = {
        "trunk": model.network.backbone,
        "pyramid": model.network.fpn,
        "outputs": model.network,
    }
    seen = {}
    hooks = [
        part.register_forward_hook(lambda *given, name=name: seen.update({name: given[2]}))
        for name, part in parts.items()
    ]
    with torch.inference_mode():
        (batch,) = model.prepare([picture()])
        model.network(batch.tensor)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.fixture(scope="module")
def outputs(on_the_way):
    return on_the_way["outputs"]


def test_every_tensor_on_the_way_is_the_published_one(model, published, on_the_way, outputs):
    file = published[1]
    (batch,) = model.prepare([picture()])
    assert_same_tensor("input", batch.tensor, file, 1e-6)
    for level, tensor in enumerate(on_the_way["trunk"]):
        assert_same_tensor(f"backbone.{level}", tensor, file, 1e-4)
    for level, tensor in enumerate(on_the_way["pyramid"]):
        assert_same_tensor(f"fpn.{level}", tensor, file, 1e-4)
    assert_same_tensor("proto", outputs.prototypes[0].permute(1, 2, 0), file, 1e-4)
    assert_same_tensor("all.priors", outputs.anchors, file, 1e-6)
    assert_same_tensor("all.loc", outputs.boxes, file, 1e-4)
    assert_same_tensor("all.conf", outputs.classes.softmax(dim=2), file, 1e-4)
    assert_same_tensor("all.mask", outputs.coefficients, file, 1e-4)


def test_instances_are_the_published_ones(model, published):
    file = published[1]
    final = {key[6:]: value for key, value in file.arrays.items() if key.startswith("final/")}
    noise = NOISE * file.meta["float_noise"]["score_maxdiff"]
    scores = final.get("mask_score", final["score"])
    order = np.argsort(-scores, kind="stable")  # YOLACT++'s are sorted by box score
    (found,) = model.predict([picture()])
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


def test_boxes_before_masks_are_the_published_ones(model, published, outputs):
    file = published[1]
    scores = outputs.classes[0].softmax(dim=1)[:, 1:]
    sure = scores.amax(dim=1) > 0.05
    boxes = decode(outputs.boxes[0][sure], outputs.anchors[sure])
    ways = {
        "det": fast_nms(boxes, scores[sure], 0.5, 200, 100),
        "cc": fast_nms_across_classes(boxes, scores[sure], 0.5, 200),
    }
    noise = NOISE * file.meta["float_noise"]["score_maxdiff"]
    for name, (which, classes, best) in ways.items():
        np.testing.assert_array_equal(classes, file.arrays[f"{name}/class"])
        np.testing.assert_allclose(best, file.arrays[f"{name}/score"], atol=noise)
        np.testing.assert_allclose(boxes[which], file.arrays[f"{name}/box_rel"], atol=1e-4)


def test_losses_are_the_published_ones(model, published):
    losses = published[1].meta["loss"]
    truth = np.array(losses["gt"], np.float32)
    y, x = np.mgrid[:550, :550]
    masks = []
    for x1, y1, x2, y2 in truth[:, :4] * 550:
        across, down = (x - (x1 + x2) / 2) * 2 / (x2 - x1), (y - (y1 + y2) / 2) * 2 / (y2 - y1)
        masks.append(across**2 + down**2 <= 1)
    targets = targets_of(truth[:, :4] * 550, truth[:, 4], np.stack(masks), classes=80)
    (batch,) = model.prepare([picture()])
    with torch.no_grad():
        found = model.criterion({})(batch.tensor, [targets])
    names = {"box": "B", "class": "C", "mask": "M", "semantic": "S", "mask_iou": "I"}
    own = {names[name]: float(loss) for name, loss in found.items()}
    assert own == pytest.approx(losses["values"], rel=2e-5)


def targets_of(boxes, labels, masks, *, classes, crowd=None, has_mask=None):
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


# Anchors and what they learn


def test_the_first_family_s_anchors_are_squares_and_the_second_s_are_not():
    grids = ((2, 3),) * 5
    squares, rectangles = anchors(grids, 550, plus=False), anchors(grids, 550, plus=True)
    assert squares.shape == (5 * 6 * 3, 4)
    assert rectangles.shape == (5 * 6 * 9, 4)
    assert torch.equal(squares[:, 2], squares[:, 3])
    ratios = (rectangles[:3, 2] / rectangles[:3, 3]).tolist()
    assert ratios == pytest.approx([1, 0.5, 2])
    assert squares[0, :2].tolist() == pytest.approx([0.5 / 3, 0.5 / 2])


@given(st.lists(st.floats(0.05, 0.9), min_size=4, max_size=4))
def test_decoding_takes_back_encoding(numbers):
    x, y, width, height = numbers
    box = torch.tensor([[x, y, x + width, y + height]])
    own = torch.tensor([[0.4, 0.6, 0.2, 0.3]])
    assert decode(encode(box, own), own)[0].tolist() == pytest.approx(box[0].tolist(), abs=1e-5)


def test_every_object_has_an_anchor_and_crowds_are_not_background():
    own = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.3, 0.3], [0.8, 0.2, 0.1, 0.1]])
    boxes = torch.tensor([[0.0, 0.0, 0.9, 0.9], [0.7, 0.1, 0.9, 0.3]])
    targets = targets_of(boxes, [4, 2], np.zeros((2, 4, 4)), classes=9, crowd=[False, True])
    matches = match(boxes, targets, own)
    assert matches.classes.tolist() == [BACKGROUND, 5, IGNORED]  # the larger anchor fits best
    assert int(matches.objects[1]) == 0


@pytest.mark.parametrize(("name", "most"), [("yolact_r101", 100), ("yolact_im700", 300)])
def test_only_so_many_masks_of_an_image_are_learnt(name, most):
    assert meta_network(name).max_masks == most
    targets = targets_of(np.zeros((0, 4)), [], np.zeros((0, 4, 4)), classes=80)
    few, many = torch.arange(most), torch.arange(7, 507)
    assert torch.equal(sample_rows(few, most, targets), few)
    found = sample_rows(many, most, targets)
    assert len(set(found.tolist()) & set(many.tolist())) == len(found) == most


def test_an_object_without_a_mask_teaches_no_mask():
    criterion = small().criterion({})
    images, boxes = torch.zeros(1, 3, 96, 96), [[10.0, 10.0, 50.0, 50.0]]
    masks = np.zeros((1, 96, 96), np.bool_)
    masks[:, 10:50, 10:50] = True
    with torch.no_grad():
        known, unknown = (
            criterion(images, [targets_of(boxes, [3], masks, classes=80, has_mask=[has])])
            for has in (True, False)
        )
    assert known["mask"] > 0
    assert unknown["mask"] == 0
    assert unknown["box"] == known["box"] > 0
    assert unknown["class"] == known["class"] > 0


# Masks where they are


@given(
    grid=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    threshold=st.sampled_from([0.3, 0.5, 0.8]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=100, deadline=None)
def test_masks_have_the_pixels_of_full_frames(grid, size, threshold, seed):
    draws = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(32, *grid, generator=draws)
    coefficients = torch.rand(4, 32, generator=draws) * 2 - 1
    boxes = torch.rand(4, 4, generator=draws) * 1.4 - 0.2  # corners in any order, also outside
    found = PrototypeMasks(prototypes, coefficients, boxes).masks(size, threshold).to_arrays()
    cut = crop_masks(prototypes, coefficients, boxes)
    whole = interpolate(cut[None], size, mode="bilinear", align_corners=False)[0]
    sure = (whole - threshold).abs().numpy() > 1e-6
    assert np.array_equal(found[sure], (whole > threshold).numpy()[sure])


# A model as any other


def small(name="yolact_r50", categories=COCO_THINGS, **options):
    """With random weights that are sure of something."""
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


def noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    "name",
    [
        "yolact_r50",
        pytest.param("yolact_darknet53", marks=pytest.mark.slow),
        pytest.param("yolact_plus_r50", marks=pytest.mark.slow),
    ],
)
def test_an_image_s_result_does_not_depend_on_what_is_in_the_batch(name):
    model = small(name, thresholds=Thresholds(score=0.0))
    image = noise(60, 80, 3)
    (alone,) = model.predict([image])
    found = model.predict([noise(60, 80, 5), noise(30, 90, 4), image])[-1]
    assert len(found) == len(alone) > 3
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
    np.testing.assert_array_equal(found.labels, alone.labels)
    differing = found.masks.to_arrays() != alone.masks.to_arrays()
    assert np.count_nonzero(differing) <= 1e-3 * differing.size


def test_predicting_never_changes_the_image():
    image = noise(60, 80, 3)
    before = image.copy()
    image.setflags(write=False)
    small().predict([image])
    np.testing.assert_array_equal(image, before)


def test_an_input_that_is_too_small_to_score_masks_is_refused():
    assert load_model("yolact_plus_r50", weights="none", device="cpu", input_size=249)
    with pytest.raises(UsageError, match="yolact_plus_r50: input_size must be at least 249"):
        load_model("yolact_plus_r50", weights="none", device="cpu", input_size=248)


def test_outputs_are_the_categories_of_any_dataset():
    categories = Categories({7: "star", 900_000_001: "moon"})
    model = small(categories=categories)
    with torch.no_grad():
        model.network.head.classes.weight.zero_()
        bias = model.network.head.classes.bias.view(3, 3)
        bias[:] = torch.tensor([-9.0, -9.0, 9.0])
    (found,) = model.predict([noise(64, 64, 2)], Thresholds(score=0.5))
    assert len(found)
    assert set(found.labels.tolist()) == {900_000_001}


@pytest.mark.parametrize(
    "name", ["yolact_r50", pytest.param("yolact_plus_r50", marks=pytest.mark.slow)]
)
def test_a_class_takes_over_what_a_published_file_knows_of_its_name(tmp_path, name):
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
    anchors_at_a_place = 9 if "plus" in name else 3
    theirs = state["prediction_layers.0.conf_layer.bias"].view(anchors_at_a_place, 81)
    own = model.network.head.classes.bias.view(anchors_at_a_place, 4)
    zebra = list(COCO.values()).index("zebra") + 1
    assert torch.equal(own[:, [0, 1, 3]], theirs[:, [0, zebra, 1]])
    assert not torch.equal(own[:, 2], theirs[:, 2])


def test_a_published_file_is_recognised_where_another_model_is_asked_for(tmp_path):
    path = tmp_path / "published.pth"
    state = fixture("yolact", "yolact_resnet50").empty("cpu")
    torch.save({key: tensor.zero_() for key, tensor in state.items()}, path)
    with pytest.raises(WeightsError, match=r"it looks like yolact_r50"):
        load_model("solov2_light_r18", path, device="cpu")


def test_training_brings_pictures_to_the_square_that_is_predicted_on():
    assert small().training_shape((40, 96)) == (96, 96)


@pytest.mark.by_hand
@pytest.mark.timeout(900)
def test_the_lightest_learns_eight_pictures_by_heart(tmp_path):
    """Of 32 pixels enlarged four times: then a pixel of a prototype is one of theirs."""
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
