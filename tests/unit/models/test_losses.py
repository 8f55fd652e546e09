"""Training losses of NanoMask and Mask R-CNN."""

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


TWO_OBJECTS = ([[10, 20, 60, 70], [64, 10, 120, 80]], [0, 2])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return NanoMaskNet(CLASSES)


def create_images(count=1):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def compute_class_gradient(network, objects, **weights):
    """Return the gradient of the class loss by the class logits, (cells, C)."""
    criterion = NanoMaskCriterion(network, weights)
    outputs_of_cells = []

    def keep_outputs(_module, _inputs, outputs):
        outputs.cells.retain_grad()
        outputs_of_cells.append(outputs.cells)

    hook = network.register_forward_hook(keep_outputs)
    criterion(create_images(), [objects])["quality"].backward()
    hook.remove()
    return outputs_of_cells[0].grad[0, :, :CLASSES]


def create_grid():
    return torch.from_numpy(cell_grid(SIZE))


def test_assign_gives_every_object_cells_inside_its_box():
    objects = create_targets(*TWO_OBJECTS)
    owners = assign(objects.boxes, create_grid())
    assert set(owners.tolist()) == {-1, 0, 1}
    for row, box in enumerate(objects.boxes):
        centres = create_grid()[owners == row, :2]
        assert ((centres > box[:2]) & (centres < box[2:])).all()


def test_assign_gives_smaller_object_cells_of_finer_level():
    objects = create_targets([[0, 0, 128, 96], [50, 40, 70, 60]], [0, 0])
    owners = assign(objects.boxes, create_grid())
    strides = [set(create_grid()[owners == row, 2].tolist()) for row in (0, 1)]
    assert max(strides[0]) > max(strides[1])


def test_assign_returns_background_without_objects():
    assert (assign(torch.zeros(0, 4), create_grid()) == -1).all()


def test_class_loss_raises_own_class_and_lowers_others(network):
    gradient = compute_class_gradient(network, create_targets(*TWO_OBJECTS))
    owners = assign(create_targets(*TWO_OBJECTS).boxes, create_grid())
    assert (gradient[owners == 0, 0] < 0).any()  # a negative gradient raises the logit
    assert (gradient[owners == -1] > 0).all()
    assert (gradient[owners == 0, 1] > 0).all()


def test_class_loss_ignores_unannotated_class(network):
    annotated = torch.tensor([True, False, True])
    gradient = compute_class_gradient(network, create_targets(*TWO_OBJECTS, annotated=annotated))
    assert (gradient[:, 1] == 0).all()
    assert (gradient[:, [0, 2]] != 0).all()


def test_class_loss_uses_objects_of_partially_annotated_class(network):
    annotated = torch.zeros(CLASSES, dtype=torch.bool)
    gradient = compute_class_gradient(network, create_targets(*TWO_OBJECTS, annotated=annotated))
    owners = assign(create_targets(*TWO_OBJECTS).boxes, create_grid())
    assert (gradient[owners == 0, 0] != 0).all()
    assert (gradient[owners != 0, 0] == 0).all()


def test_class_loss_ignores_crowds(network):
    crowd = torch.tensor([False, True])
    gradient = compute_class_gradient(network, create_targets(*TWO_OBJECTS, crowd=crowd))
    x1, y1, x2, y2 = TWO_OBJECTS[0][1]
    centres = create_grid()[:, :2]
    inside = (centres > torch.tensor([x1, y1])).all(1) & (centres < torch.tensor([x2, y2])).all(1)
    assert (gradient[inside, 2] == 0).all()
    assert (gradient[~inside, 2] > 0).all()
    assert (gradient[inside, 1] > 0).all()  # the crowd's own class only is ignored


def test_mask_losses_ignore_objects_without_mask(network):
    boxes_only = create_targets(*TWO_OBJECTS, has_mask=torch.zeros(2, dtype=torch.bool))
    losses = NanoMaskCriterion(network, {})(create_images(), [boxes_only])
    assert losses["mask"] == losses["dice"] == 0
    (losses["mask"] + losses["dice"]).backward(retain_graph=True)
    logits = network.mask.logits.weight
    assert logits.grad is None or not logits.grad.any()
    losses["box"].backward()
    assert network.head[0].out.weight.grad.any()


def test_losses_are_finite_without_objects(network):
    losses = NanoMaskCriterion(network, {"distil": 1.0})(create_images(), [create_targets([], [])])
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_losses_do_not_change_with_empty_image_in_batch(network):
    criterion = NanoMaskCriterion(network, {})
    two_images = create_images(2)
    single = criterion(two_images[:1], [create_targets(*TWO_OBJECTS)])
    batched = criterion(two_images, [create_targets(*TWO_OBJECTS), create_targets([], [])])
    for name in ("box", "distribution", "mask", "dice"):
        torch.testing.assert_close(single[name], batched[name], atol=1e-5, rtol=1e-4)


def test_random_sampling_depends_on_image_seed_only(network):
    criterion = NanoMaskCriterion(network, {})
    torch.manual_seed(1)
    first = criterion(create_images(), [create_targets(*TWO_OBJECTS)])["mask"]
    torch.manual_seed(2)
    assert criterion(create_images(), [create_targets(*TWO_OBJECTS)])["mask"] == first
    assert criterion(create_images(), [create_targets(*TWO_OBJECTS, seed=8)])["mask"] != first


def test_distillation_keeps_initial_scores_of_unannotated_classes(network):
    criterion = NanoMaskCriterion(network, {"distil": 1.0})
    none_annotated = torch.zeros(CLASSES, dtype=torch.bool)
    objects = [create_targets([], [], annotated=none_annotated)]
    assert criterion(create_images(), objects)["distil"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        network.head[0].out.bias[:CLASSES] += 2
    loss = criterion(create_images(), objects)["distil"]
    assert loss > 0.001
    loss.backward()
    assert (network.head[0].out.bias.grad[:CLASSES] > 0).all()  # the loss lowers the logits again
    names = {name for name, _ in criterion.named_parameters()}
    assert all(name.startswith("network.") for name in names)


def test_frozen_detector_has_mask_losses_only(network):
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name.startswith("mask.")
    losses = NanoMaskCriterion(network, {"distil": 1.0})(
        create_images(), [create_targets(*TWO_OBJECTS)]
    )
    assert set(losses) == {"mask", "dice"}


def test_criterion_rejects_unknown_loss(network):
    with pytest.raises(ConfigError, match=r"losses\.giou: no such loss"):
        NanoMaskCriterion(network, {"giou": 1.0})


def test_expand_boxes_adds_ten_percent():
    box = torch.tensor([[10.0, 20, 30, 60]])
    torch.testing.assert_close(expand_boxes(box), torch.tensor([[9.0, 18, 31, 62]]))


def test_nanomask_losses_decrease_on_one_image(network):
    """The mask losses fall by 30 % within 20 steps."""
    criterion = NanoMaskCriterion(network, {})
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    first = last = None
    for _ in range(20):
        losses = criterion(create_images(), [create_targets(*TWO_OBJECTS)])
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


def test_mask_rcnn_losses_are_finite_and_have_gradients(mask_rcnn):
    criterion = mask_rcnn.criterion({"class": 0.5})
    network = mask_rcnn.network.train()
    annotated = torch.ones(80, dtype=torch.bool)
    torch.manual_seed(0)
    losses = criterion(create_images(), [create_targets(*TWO_OBJECTS, annotated=annotated)])
    assert set(losses) == {"objectness", "proposal", "class", "box", "mask"}
    torch.stack(list(losses.values())).sum().backward()
    assert network.roi_heads.mask_predictor.mask_fcn_logits.weight.grad.any()
    network.zero_grad()
    boxes_only = create_targets(
        *TWO_OBJECTS, annotated=annotated, has_mask=torch.zeros(2, dtype=torch.bool)
    )
    for objects in (boxes_only, create_targets([], [], annotated=annotated)):
        losses = criterion(create_images(), [objects])
        assert losses["mask"] == 0
        assert torch.isfinite(torch.stack(list(losses.values()))).all()
    network.eval()


def test_takes_partial_annotation_is_false_for_mask_rcnn(mask_rcnn):
    assert not mask_rcnn.criterion({}).takes_partial_annotation
    assert NanoMaskCriterion.takes_partial_annotation


def test_mask_rcnn_returns_category_ids_of_dataset():
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
