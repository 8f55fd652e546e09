"""Mask R-CNN gives what torchvision's own model gives, however its weights come."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.ops import FrozenBatchNorm2d

from streamseg.config import Thresholds
from streamseg.models import load_model

SIZE = 96
PROPOSALS, DETECTIONS = 60, 20
OPTIONS = {"device": "cpu", "input_size": SIZE, "score": 0}
OWN = {
    "mask_rcnn_r50_fpn": torchvision.models.detection.maskrcnn_resnet50_fpn,
    "mask_rcnn_r50_fpn_v2": torchvision.models.detection.maskrcnn_resnet50_fpn_v2,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(
    scope="module",
    params=["mask_rcnn_r50_fpn", pytest.param("mask_rcnn_r50_fpn_v2", marks=pytest.mark.slow)],
)
def pair(request, tmp_path_factory):
    """torchvision's model with random weights, and ours with the same from a file."""
    torch.manual_seed(1)
    own = OWN[request.param](
        weights=None,
        weights_backbone=None,
        min_size=SIZE,
        max_size=round(SIZE * 1333 / 800),
        rpn_post_nms_top_n_test=PROPOSALS,
        box_detections_per_img=DETECTIONS,
    ).eval()
    # Random class scores are all alike: sharper ones make detections worth comparing.
    own.roi_heads.box_predictor.cls_score.weight.data *= 8
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(own.state_dict(), path)
    return own, quick(load_model(request.param, weights=path, **OPTIONS))


def quick(model):
    """Fewer proposals and detections than published, to save the time of a test."""
    model.network.rpn._post_nms_top_n["testing"] = PROPOSALS
    model.network.roi_heads.detections_per_img = DETECTIONS
    return model


def picture(height, width, seed):
    """Blobs rather than noise, so that the network has something to look at."""
    rng = np.random.default_rng(seed)
    coarse = torch.tensor(rng.integers(0, 256, (1, 3, 6, 8)), dtype=torch.float32)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return smooth.clamp(0, 255).byte().permute(1, 2, 0).numpy().copy()


def of_torchvision(own, image):
    with torch.inference_mode():
        return own([torch.tensor(image).permute(2, 0, 1) / 255])[0]


@pytest.mark.parametrize("size", [(120, 160), (77, 201), (150, 31)])
def test_boxes_scores_labels_and_masks_are_torchvision_s(pair, size):
    own, ours = pair
    image = picture(*size, seed=3)
    expected = of_torchvision(own, image)
    found = ours.predict([image])[0]
    assert len(found) == len(expected["scores"]) > 10
    np.testing.assert_allclose(found.scores, expected["scores"], atol=2e-4)
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=0.02)
    np.testing.assert_array_equal(found.labels, expected["labels"])
    masks = (expected["masks"][:, 0] > 0.5).numpy()
    assert masks.any()
    assert np.count_nonzero(found.masks.to_arrays() != masks) <= 1e-4 * masks.size


def test_the_mask_head_sees_only_what_is_wanted_and_the_rest_is_unchanged(pair):
    _, ours = pair
    image = picture(120, 160, seed=3)
    everything = ours.predict([image])[0]
    least = float(np.median(everything.scores))
    seen = []
    hook = ours.network.roi_heads.mask_head.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    wanted = ours.predict([image], Thresholds(score=least))[0]
    hook.remove()
    kept = np.flatnonzero(everything.scores >= np.float32(least))
    assert seen == [len(kept)]
    assert 0 < len(kept) < len(everything)
    np.testing.assert_allclose(wanted.boxes, everything.boxes[kept], atol=1e-3)
    assert (wanted.masks.pairwise_iou(everything.masks[kept]).diagonal() > 0.99).all()


def test_nothing_that_is_wanted_is_an_empty_result(pair):
    _, ours = pair
    elsewhere = Thresholds(score=0, region=((-9, -9), (-8, -9), (-8, -8)))
    found = ours.predict([picture(60, 90, seed=1)], elsewhere)[0]
    assert len(found) == 0
    assert found.size == (60, 90)


def test_an_image_s_result_does_not_depend_on_what_is_in_the_batch(pair):
    _, ours = pair
    image, thin = picture(120, 160, seed=3), picture(8, 400, seed=4)
    alone = ours.predict([image])[0]
    for others in ([picture(120, 160, seed=5)], [picture(97, 160, seed=6), thin]):
        found = ours.predict([*others, image])[-1]
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.02)
        np.testing.assert_array_equal(found.labels, alone.labels)


@pytest.mark.slow
def test_the_first_image_does_not_decide_how_later_ones_are_pooled(pair, tmp_path):
    _, ours = pair
    image = picture(120, 160, seed=3)
    expected = ours.predict([image])[0]
    torch.save(ours.network.state_dict(), tmp_path / "w.pth")
    fresh = quick(load_model(ours.name, tmp_path / "w.pth", **OPTIONS))
    for module in fresh.network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 1e-5  # as in ours, whose file counts batches
    fresh.predict([picture(3, 300, seed=4)])
    np.testing.assert_allclose(fresh.predict([image])[0].scores, expected.scores, atol=1e-4)


def then(key):
    """A key as torchvision's first files had it."""
    key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)


def test_boxes_are_worked_out_in_fp32_where_the_network_runs_in_bf16(pair, tmp_path):
    _, ours = pair
    state = {key: tensor.contiguous() for key, tensor in ours.network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    model = quick(load_model(ours.name, tmp_path / "w.safetensors", precision="bf16", **OPTIONS))
    proposed, pooled = [], []
    model.network.rpn.register_forward_hook(lambda *call: proposed.extend(call[2][0]))
    model.network.roi_heads.box_head.register_forward_hook(lambda *call: pooled.append(call[2]))
    anchors = []
    model.network.rpn.anchor_generator.register_forward_hook(lambda *call: anchors.append(call[2]))
    found = model.predict([picture(120, 160, seed=3)])[0]
    assert pooled[0].dtype == torch.bfloat16
    assert anchors[0][0].dtype == torch.float32
    for boxes in (proposed[0], torch.from_numpy(found.boxes)):
        assert boxes.dtype == torch.float32
        assert (boxes != boxes.bfloat16()).float().mean() > 0.3


@pytest.mark.slow
def test_the_published_names_of_the_first_version_load(tmp_path):
    name = "mask_rcnn_r50_fpn"
    reference = load_model(name, weights="none", device="cpu").network.state_dict()
    old = {then(key): torch.randn(tensor.shape) for key, tensor in reference.items()}
    assert old.keys() != reference.keys()
    save_file(old, tmp_path / "old.safetensors")
    torch.save(old, tmp_path / "old.pth")
    own = OWN[name](weights=None, weights_backbone=None)
    own.load_state_dict(old, strict=False)  # this one counts batches, the published doesn't
    expected = own.state_dict()
    for path in sorted(tmp_path.iterdir()):
        network = load_model(name, weights=path, device="cpu").network
        assert network.state_dict().keys() == reference.keys()
        assert all(torch.equal(t, expected[k]) for k, t in network.state_dict().items())


@pytest.mark.slow
def test_frozen_batch_norms_have_the_epsilon_of_the_weights_they_come_with(tmp_path):
    """0 for the published weights (torchvision sets it so), 1e-5 where batches were counted."""
    published = load_model("mask_rcnn_r50_fpn", weights="none", device="cpu").network.state_dict()
    counted = OWN["mask_rcnn_r50_fpn"](weights=None, weights_backbone=None).state_dict()
    for state, epsilon in ((published, 0.0), (counted, 1e-5)):
        torch.save(state, tmp_path / "w.pth")
        network = load_model("mask_rcnn_r50_fpn", tmp_path / "w.pth", device="cpu").network
        norms = [m for m in network.modules() if isinstance(m, FrozenBatchNorm2d)]
        assert len(norms) == 53
        assert {norm.eps for norm in norms} == {epsilon}


@pytest.mark.slow
def test_weights_that_can_not_be_downloaded_are_one_line_that_says_what_to_do(tmp_path):
    code = (
        "from streamseg.models import load_model\n"
        "from streamseg.errors import WeightsError\n"
        "try: load_model('mask_rcnn_r50_fpn_v2')\n"
        "except WeightsError as error: print(error)\n"
    )
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"TORCH_HOME": str(tmp_path), "no_proxy": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert ran.stdout.count("\n") == 1
    assert "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth" in ran.stdout
    assert "give its path" in ran.stdout
