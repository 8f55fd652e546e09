"""Mask R-CNN: parity with torchvision's implementation."""

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
CONSTRUCTORS = {
    "mask_rcnn_r50_fpn": torchvision.models.detection.maskrcnn_resnet50_fpn,
    "mask_rcnn_r50_fpn_v2": torchvision.models.detection.maskrcnn_resnet50_fpn_v2,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(
    scope="module",
    params=["mask_rcnn_r50_fpn", pytest.param("mask_rcnn_r50_fpn_v2", marks=pytest.mark.slow)],
)
def models(request, tmp_path_factory):
    """Return torchvision's model with random weights, and our model with the same weights."""
    torch.manual_seed(1)
    theirs = CONSTRUCTORS[request.param](
        weights=None,
        weights_backbone=None,
        min_size=SIZE,
        max_size=round(SIZE * 1333 / 800),
        rpn_post_nms_top_n_test=PROPOSALS,
        box_detections_per_img=DETECTIONS,
    ).eval()
    # Random class scores are nearly equal: scale them, so that detections differ.
    theirs.roi_heads.box_predictor.cls_score.weight.data *= 8
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(theirs.state_dict(), path)
    return theirs, limit_proposals(load_model(request.param, weights=path, **OPTIONS))


def limit_proposals(model):
    """Reduce the numbers of proposals and detections, to shorten the tests."""
    model.network.rpn._post_nms_top_n["testing"] = PROPOSALS
    model.network.roi_heads.detections_per_img = DETECTIONS
    return model


def create_image(height, width, seed):
    """Return an image of smooth blobs, on which the network finds more than on noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.tensor(rng.integers(0, 256, (1, 3, 6, 8)), dtype=torch.float32)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return smooth.clamp(0, 255).byte().permute(1, 2, 0).numpy().copy()


def predict_with_torchvision(theirs, image):
    with torch.inference_mode():
        return theirs([torch.tensor(image).permute(2, 0, 1) / 255])[0]


@pytest.mark.parametrize("size", [(120, 160), (77, 201), (150, 31)])
def test_predict_matches_torchvision(models, size):
    theirs, ours = models
    image = create_image(*size, seed=3)
    expected = predict_with_torchvision(theirs, image)
    found = ours.predict([image])[0]
    assert len(found) == len(expected["scores"]) > 10
    np.testing.assert_allclose(found.scores, expected["scores"], atol=2e-4)
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=0.02)
    np.testing.assert_array_equal(found.labels, expected["labels"])
    masks = (expected["masks"][:, 0] > 0.5).numpy()
    assert masks.any()
    assert np.count_nonzero(found.masks.to_arrays() != masks) <= 1e-4 * masks.size


def test_mask_head_runs_on_selected_detections_only(models):
    _, ours = models
    image = create_image(120, 160, seed=3)
    unfiltered = ours.predict([image])[0]
    min_score = float(np.median(unfiltered.scores))
    mask_counts = []
    hook = ours.network.roi_heads.mask_head.register_forward_hook(
        lambda module, inputs, output: mask_counts.append(len(output))
    )
    filtered = ours.predict([image], Thresholds(score=min_score))[0]
    hook.remove()
    kept = np.flatnonzero(unfiltered.scores >= np.float32(min_score))
    assert mask_counts == [len(kept)]
    assert 0 < len(kept) < len(unfiltered)
    np.testing.assert_allclose(filtered.boxes, unfiltered.boxes[kept], atol=1e-3)
    assert (filtered.masks.pairwise_iou(unfiltered.masks[kept]).diagonal() > 0.99).all()


def test_predict_returns_no_instances_for_region_outside_image(models):
    _, ours = models
    outside = Thresholds(score=0, region=((-9, -9), (-8, -9), (-8, -8)))
    found = ours.predict([create_image(60, 90, seed=1)], outside)[0]
    assert len(found) == 0
    assert found.size == (60, 90)


def test_predict_is_independent_of_batch(models):
    _, ours = models
    image, thin = create_image(120, 160, seed=3), create_image(8, 400, seed=4)
    expected = ours.predict([image])[0]
    for others in ([create_image(120, 160, seed=5)], [create_image(97, 160, seed=6), thin]):
        found = ours.predict([*others, image])[-1]
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.02)
        np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.slow
def test_roi_align_scales_do_not_depend_on_first_image(models, tmp_path):
    _, ours = models
    image = create_image(120, 160, seed=3)
    expected = ours.predict([image])[0]
    torch.save(ours.network.state_dict(), tmp_path / "w.pth")
    second_model = limit_proposals(load_model(ours.name, tmp_path / "w.pth", **OPTIONS))
    for module in second_model.network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 1e-5  # as in the first model, whose file has batch counters
    second_model.predict([create_image(3, 300, seed=4)])
    np.testing.assert_allclose(second_model.predict([image])[0].scores, expected.scores, atol=1e-4)


def rename_to_first_version(key):
    """Return the name of a tensor in torchvision's first weights files."""
    key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)


def test_boxes_are_computed_in_fp32_with_bf16_network(models, tmp_path):
    _, ours = models
    state = {key: tensor.contiguous() for key, tensor in ours.network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    model = limit_proposals(
        load_model(ours.name, tmp_path / "w.safetensors", precision="bf16", **OPTIONS)
    )
    proposed, pooled = [], []
    model.network.rpn.register_forward_hook(lambda *call: proposed.extend(call[2][0]))
    model.network.roi_heads.box_head.register_forward_hook(lambda *call: pooled.append(call[2]))
    anchors = []
    model.network.rpn.anchor_generator.register_forward_hook(lambda *call: anchors.append(call[2]))
    found = model.predict([create_image(120, 160, seed=3)])[0]
    assert pooled[0].dtype == torch.bfloat16
    assert anchors[0][0].dtype == torch.float32
    for boxes in (proposed[0], torch.from_numpy(found.boxes)):
        assert boxes.dtype == torch.float32
        assert (boxes != boxes.bfloat16()).float().mean() > 0.3


@pytest.mark.slow
def test_load_model_accepts_tensor_names_of_first_torchvision_version(tmp_path):
    name = "mask_rcnn_r50_fpn"
    reference = load_model(name, weights="none", device="cpu").network.state_dict()
    old_state = {
        rename_to_first_version(key): torch.randn(tensor.shape) for key, tensor in reference.items()
    }
    assert old_state.keys() != reference.keys()
    save_file(old_state, tmp_path / "old.safetensors")
    torch.save(old_state, tmp_path / "old.pth")
    theirs = CONSTRUCTORS[name](weights=None, weights_backbone=None)
    theirs.load_state_dict(
        old_state, strict=False
    )  # this network has batch counters, the published file has none
    expected = theirs.state_dict()
    for path in sorted(tmp_path.iterdir()):
        network = load_model(name, weights=path, device="cpu").network
        assert network.state_dict().keys() == reference.keys()
        assert all(torch.equal(t, expected[k]) for k, t in network.state_dict().items())


@pytest.mark.slow
def test_frozen_batch_norm_epsilon_depends_on_weights(tmp_path):
    """It is 0 for the published weights, as in torchvision, and 1e-5 with batch counters."""
    published = load_model("mask_rcnn_r50_fpn", weights="none", device="cpu").network.state_dict()
    with_counters = CONSTRUCTORS["mask_rcnn_r50_fpn"](
        weights=None, weights_backbone=None
    ).state_dict()
    for state, epsilon in ((published, 0.0), (with_counters, 1e-5)):
        torch.save(state, tmp_path / "w.pth")
        network = load_model("mask_rcnn_r50_fpn", tmp_path / "w.pth", device="cpu").network
        norms = [m for m in network.modules() if isinstance(m, FrozenBatchNorm2d)]
        assert len(norms) == 53
        assert {norm.eps for norm in norms} == {epsilon}


@pytest.mark.slow
def test_load_model_reports_failed_download_in_one_line(tmp_path):
    code = (
        "from streamseg.models import load_model\n"
        "from streamseg.errors import WeightsError\n"
        "try: load_model('mask_rcnn_r50_fpn_v2')\n"
        "except WeightsError as error: print(error)\n"
    )
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = os.environ | proxies | {"TORCH_HOME": str(tmp_path), "no_proxy": ""}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert process.stdout.count("\n") == 1
    assert "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth" in process.stdout
    assert "give its path" in process.stdout
