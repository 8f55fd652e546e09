"""What networks are trained to do: what is known teaches, and what isn't known doesn't."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from streamseg.errors import ConfigError
from streamseg.models import load_model
from streamseg.models.categories import Categories
from streamseg.models.nanomask.assignment import assign
from streamseg.models.nanomask.loss import NanoMaskCriterion
from streamseg.models.nanomask.network import NanoMaskNet, cell_grid, expand_boxes
from streamseg.structures.targets import Targets

SIZE = 96, 128
CLASSES = 3


pytestmark = pytest.mark.usefixtures("one_thread")


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


TWO = ([[10, 20, 60, 70], [64, 10, 120, 80]], [0, 2])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return NanoMaskNet(CLASSES)


def images(count=1):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def class_gradient(network, given, **weights):
    """How each class logit of each cell would be changed, (cells, C)."""
    criterion = NanoMaskCriterion(network, weights)
    held = []

    def keep(_module, _inputs, outputs):
        outputs.cells.retain_grad()
        held.append(outputs.cells)

    hook = network.register_forward_hook(keep)
    criterion(images(), [given])["quality"].backward()
    hook.remove()
    return held[0].grad[0, :, :CLASSES]


def grid():
    return torch.from_numpy(cell_grid(SIZE))


def test_every_object_has_cells_and_they_lie_inside_it():
    given = targets(*TWO)
    owners = assign(given.boxes, grid())
    assert set(owners.tolist()) == {-1, 0, 1}
    for row, box in enumerate(given.boxes):
        centres = grid()[owners == row, :2]
        assert ((centres > box[:2]) & (centres < box[2:])).all()


def test_the_smaller_of_two_objects_in_one_place_has_cells_too():
    given = targets([[0, 0, 128, 96], [50, 40, 70, 60]], [0, 0])
    owners = assign(given.boxes, grid())
    strides = [set(grid()[owners == row, 2].tolist()) for row in (0, 1)]
    assert max(strides[0]) > max(strides[1])


def test_without_objects_no_cell_answers_for_one():
    assert (assign(torch.zeros(0, 4), grid()) == -1).all()


def test_an_object_raises_its_class_where_it_is_and_lowers_the_rest(network):
    change = class_gradient(network, targets(*TWO))
    owners = assign(targets(*TWO).boxes, grid())
    assert (change[owners == 0, 0] < 0).any()  # gradients are taken off
    assert (change[owners == -1] > 0).all()
    assert (change[owners == 0, 1] > 0).all()


def test_a_class_that_is_not_annotated_is_left_alone(network):
    annotated = torch.tensor([True, False, True])
    change = class_gradient(network, targets(*TWO, annotated=annotated))
    assert (change[:, 1] == 0).all()
    assert (change[:, [0, 2]] != 0).all()


def test_an_object_of_a_class_that_is_not_annotated_everywhere_still_teaches(network):
    annotated = torch.zeros(CLASSES, dtype=torch.bool)
    change = class_gradient(network, targets(*TWO, annotated=annotated))
    owners = assign(targets(*TWO).boxes, grid())
    assert (change[owners == 0, 0] != 0).all()
    assert (change[owners != 0, 0] == 0).all()


def test_a_crowd_is_neither_object_nor_background(network):
    crowd = torch.tensor([False, True])
    change = class_gradient(network, targets(*TWO, crowd=crowd))
    x1, y1, x2, y2 = TWO[0][1]
    centres = grid()[:, :2]
    within = (centres > torch.tensor([x1, y1])).all(1) & (centres < torch.tensor([x2, y2])).all(1)
    assert (change[within, 2] == 0).all()
    assert (change[~within, 2] > 0).all()
    assert (change[within, 1] > 0).all()  # of its own class alone


def test_an_object_without_a_mask_teaches_boxes_only(network):
    boxes_only = targets(*TWO, has_mask=torch.zeros(2, dtype=torch.bool))
    losses = NanoMaskCriterion(network, {})(images(), [boxes_only])
    assert losses["mask"] == losses["dice"] == 0
    (losses["mask"] + losses["dice"]).backward(retain_graph=True)
    logits = network.mask.logits.weight
    assert logits.grad is None or not logits.grad.any()
    losses["box"].backward()
    assert network.head[0].out.weight.grad.any()


def test_an_image_without_objects_has_finite_losses_and_gradients(network):
    losses = NanoMaskCriterion(network, {"distil": 1.0})(images(), [targets([], [])])
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_an_image_s_objects_count_the_same_alone_and_beside_an_empty_image(network):
    criterion = NanoMaskCriterion(network, {})
    two = images(2)
    alone = criterion(two[:1], [targets(*TWO)])
    beside = criterion(two, [targets(*TWO), targets([], [])])
    for name in ("box", "distribution", "mask", "dice"):
        torch.testing.assert_close(alone[name], beside[name], atol=1e-5, rtol=1e-4)


def test_draws_follow_from_the_picture_alone(network):
    criterion = NanoMaskCriterion(network, {})
    torch.manual_seed(1)
    first = criterion(images(), [targets(*TWO)])["mask"]
    torch.manual_seed(2)
    assert criterion(images(), [targets(*TWO)])["mask"] == first
    assert criterion(images(), [targets(*TWO, seed=8)])["mask"] != first


def test_the_teacher_is_what_training_began_with_and_holds_what_is_not_annotated(network):
    criterion = NanoMaskCriterion(network, {"distil": 1.0})
    nothing = torch.zeros(CLASSES, dtype=torch.bool)
    given = [targets([], [], annotated=nothing)]
    assert criterion(images(), given)["distil"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        network.head[0].out.bias[:CLASSES] += 2
    told = criterion(images(), given)["distil"]
    assert told > 0.001
    told.backward()
    assert (network.head[0].out.bias.grad[:CLASSES] > 0).all()  # back down
    names = {name for name, _ in criterion.named_parameters()}
    assert all(name.startswith("network.") for name in names)


def test_a_frozen_detector_leaves_the_masks_to_be_trained(network):
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name.startswith("mask.")
    losses = NanoMaskCriterion(network, {"distil": 1.0})(images(), [targets(*TWO)])
    assert set(losses) == {"mask", "dice"}


def test_a_loss_that_is_unknown_is_refused(network):
    with pytest.raises(ConfigError, match=r"losses\.giou: no such loss"):
        NanoMaskCriterion(network, {"giou": 1.0})


def test_a_mask_covers_a_tenth_more_than_its_box():
    box = torch.tensor([[10.0, 20, 30, 60]])
    torch.testing.assert_close(expand_boxes(box), torch.tensor([[9.0, 18, 31, 62]]))


def test_nanomask_learns_one_picture(network):
    """Its masks come close to the truth within some steps."""
    criterion = NanoMaskCriterion(network, {})
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    first = last = None
    for _ in range(20):
        losses = criterion(images(), [targets(*TWO)])
        total = sum(losses.values())
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        first = first or {name: loss.item() for name, loss in losses.items()}
        last = {name: loss.item() for name, loss in losses.items()}
    assert last["mask"] < 0.7 * first["mask"]
    assert last["dice"] < 0.7 * first["dice"]


@pytest.fixture(scope="module")
def mask_rcnn():
    return load_model("mask_rcnn_r50_fpn", weights="none", device="cpu", input_size=96)


def test_mask_rcnn_has_torchvision_s_losses_and_gradients(mask_rcnn):
    criterion = mask_rcnn.criterion({"class": 0.5})
    network = mask_rcnn.network.train()
    annotated = torch.ones(80, dtype=torch.bool)
    torch.manual_seed(0)
    losses = criterion(images(), [targets(*TWO, annotated=annotated)])
    assert set(losses) == {"objectness", "proposal", "class", "box", "mask"}
    torch.stack(list(losses.values())).sum().backward()
    assert network.roi_heads.mask_predictor.mask_fcn_logits.weight.grad.any()
    network.zero_grad()
    boxes_only = targets(*TWO, annotated=annotated, has_mask=torch.zeros(2, dtype=torch.bool))
    for given in (boxes_only, targets([], [], annotated=annotated)):
        losses = criterion(images(), [given])
        assert losses["mask"] == 0
        assert torch.isfinite(torch.stack(list(losses.values()))).all()
    network.eval()


def test_mask_rcnn_does_not_take_what_is_not_annotated_for_background(mask_rcnn):
    assert not mask_rcnn.criterion({}).takes_partial_annotation
    assert NanoMaskCriterion.takes_partial_annotation


def test_mask_rcnn_s_outputs_are_the_categories_of_any_dataset():
    from streamseg.models.mask_rcnn.segmenter import MaskRCNN

    categories = Categories({7: "star", 900_000_001: "moon"})
    torch.manual_seed(0)
    network = MaskRCNN.build("mask_rcnn_r50_fpn", categories)
    assert network.roi_heads.box_predictor.cls_score.out_features == 3
    model = MaskRCNN(
        "mask_rcnn_r50_fpn", network, categories, input_size=64, device=torch.device("cpu")
    )
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.bias[:] = torch.tensor([0.0, 0.0, 9.0])
    (found,) = model.predict([np.full((64, 64, 3), 90, np.uint8)])
    assert len(found)
    assert set(found.labels.tolist()) == {900_000_001}
    assert set(found.names) == {"moon"}
