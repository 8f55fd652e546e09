"""Custom class checkpoints: loading, class names and class selection."""

import json
import logging

import numpy as np
import pytest
import torch
import torchvision
from support.parity import fixture
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

from streamseg.config import ModelConfig, Thresholds
from streamseg.config.class_names import parse_class_names
from streamseg.config.training import load_evaluation_config
from streamseg.errors import ConfigError, UsageError, WeightsError
from streamseg.evaluation.evaluator import override_model
from streamseg.models import load_model
from streamseg.models.categories import Categories
from streamseg.models.loading import _build, _family, start_model
from streamseg.models.registry import find
from streamseg.models.weights import files

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["bolt", "nut", "pin"]
SIZE = 96
IMAGE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
IMAGE = IMAGE.repeat(10, axis=0).repeat(10, axis=1)
CONSTRUCTORS = {
    "mask_rcnn_r50_fpn": torchvision.models.detection.maskrcnn_resnet50_fpn,
    "mask_rcnn_r50_fpn_v2": torchvision.models.detection.maskrcnn_resnet50_fpn_v2,
}


def create_fine_tuned(name, classes, hidden):
    """Return a model whose heads were replaced as in torchvision's fine-tuning tutorial."""
    network = CONSTRUCTORS[name](
        weights=None,
        weights_backbone=None,
        min_size=SIZE,
        max_size=round(SIZE * 1333 / 800),
        rpn_post_nms_top_n_test=60,
        box_detections_per_img=20,
    )
    features = network.roi_heads.box_predictor.cls_score.in_features
    network.roi_heads.box_predictor = FastRCNNPredictor(features, classes + 1)
    masks = network.roi_heads.mask_predictor.conv5_mask.in_channels
    network.roi_heads.mask_predictor = MaskRCNNPredictor(masks, hidden, classes + 1)
    scores = network.eval().roi_heads.box_predictor.cls_score
    scores.weight.data *= 8
    outputs = []
    hook = scores.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.inference_mode():
        network([torch.tensor(IMAGE).permute(2, 0, 1) / 255])
    hook.remove()
    scores.bias.data -= outputs[0].mean(dim=0)  # makes the model detect more than one class
    return network


def create_state_dict(name, categories=None):
    """Return the state dict of a network of three classes, with this project's tensor names."""
    things = dict(enumerate(NAMES, 1))
    return _build(find(name), _family(find(name)), categories or Categories(things)).state_dict()


@pytest.fixture
def nanomask_file(tmp_path):
    state = create_state_dict("nanomask")
    for level in range(3):
        state[f"head.{level}.out.bias"][:3] = torch.tensor([0.0, 1, 2])  # many detections
    torch.save({"model": state, "epoch": 3}, tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


@pytest.mark.parametrize(
    ("name", "classes", "hidden"),
    [
        pytest.param("mask_rcnn_r50_fpn", 3, 256),
        pytest.param("mask_rcnn_r50_fpn", 1, 17, marks=pytest.mark.slow),
        pytest.param("mask_rcnn_r50_fpn_v2", 3, 64, marks=pytest.mark.slow),
        pytest.param("mask_rcnn_r50_fpn_v2", 95, 256, marks=pytest.mark.slow),
    ],
)
def test_fine_tuned_mask_rcnn_matches_torchvision(tmp_path, name, classes, hidden):
    network = create_fine_tuned(name, classes, hidden)
    # Outputs are in ascending order of id; an id may be 0.
    names = {10 * (n - 1): f"kind {n}" for n in range(classes, 0, -1)}
    torch.save({"model": network.state_dict(), "epoch": 3}, tmp_path / "mine.pth")
    model = load_model(
        name,
        tmp_path / "mine.pth",
        class_names=names,
        device="cpu",
        input_size=SIZE,
        score=0,
    )
    model.network.rpn._post_nms_top_n["testing"] = 60
    model.network.roi_heads.detections_per_img = 20
    assert dict(model.categories) == names
    with torch.inference_mode():
        expected = network([torch.tensor(IMAGE).permute(2, 0, 1) / 255])[0]
    found = model.predict(IMAGE)
    assert len(found) == len(expected["scores"]) > 10
    assert 0 in found.labels or classes == 95
    np.testing.assert_allclose(found.scores, expected["scores"], atol=2e-4)
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=0.02)
    np.testing.assert_array_equal(found.labels, 10 * (expected["labels"] - 1))
    assert found.names == [f"kind {n}" for n in expected["labels"].tolist()]
    masks = (expected["masks"][:, 0] > 0.5).numpy()
    assert np.count_nonzero(found.masks.to_arrays() != masks) <= 1e-4 * masks.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("mask_rcnn_r50_fpn", torch.float16), ("mask_rcnn_r50_fpn_v2", torch.bfloat16)],
)
def test_load_model_reads_half_precision_without_batch_counters(tmp_path, name, kind):
    state = {
        key: tensor.to(kind) if tensor.is_floating_point() else tensor
        for key, tensor in create_fine_tuned(name, 2, 256).state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "mine.pth")
    network = load_model(name, tmp_path / "mine.pth", class_names=["a", "b"], device="cpu").network
    weight = network.roi_heads.box_predictor.cls_score.weight
    assert torch.equal(weight, state["roi_heads.box_predictor.cls_score.weight"].float())


@pytest.mark.slow
def test_load_model_rejects_heads_with_different_class_counts(tmp_path):
    state = create_state_dict("mask_rcnn_r50_fpn")
    for part in ("weight", "bias"):
        key = f"roi_heads.mask_predictor.mask_fcn_logits.{part}"
        state[key] = torch.zeros(91, *state[key].shape[1:])
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"mask_fcn_logits.weight is \(91, .* instead of \(4, "):
        load_model("mask_rcnn_r50_fpn", tmp_path / "mine.pth", class_names=NAMES)


LAST_IS_BACKGROUND = {
    "roi_heads.box_predictor.cls_score": (1, True),
    "roi_heads.box_predictor.bbox_pred": (4, False),
    "roi_heads.mask_head.predictor": (1, False),
}
PUBLISHED = {
    "mask_rcnn_r50_fpn_d2": ("mask_rcnn_d2", "mask_rcnn_R_50_FPN_3x"),
    "panoptic_fpn_r50": ("panoptic_fpn", "panoptic_fpn_R_50_3x"),
    "solov2_light_r18": ("solov2", "solov2_light_r18"),
    "decoupled_solo_light_r50": ("solo_v1", "decoupled_solo_light_r50"),
    "yolact_r50": ("yolact", "yolact_resnet50"),
    "yolact_plus_r50": ("yolact", "yolact_plus_resnet50"),
}
KEPT_THINGS = [5, 70, 2]
"""Indices of the kept classes among COCO's 80 things."""
KEPT_STUFF = [7, 30]
"""Indices of the kept classes among COCO's 53 stuff classes."""


def select_class_rows(name, key):
    """Return the rows of a published tensor that are kept; None if they are not per class."""
    layer = key.rpartition(".")[0]
    if name in ("mask_rcnn_r50_fpn_d2", "panoptic_fpn_r50") and layer in LAST_IS_BACKGROUND:
        width, background = LAST_IS_BACKGROUND[layer]
        rows = [width * k + n for k in KEPT_THINGS for n in range(width)]
        return rows + [80] * background
    if layer == "sem_seg_head.predictor":
        return [0, *(1 + n for n in KEPT_STUFF)]
    if layer == "prediction_layers.0.conf_layer":
        anchors = 9 if "plus" in name else 3
        return [81 * n + row for n in range(anchors) for row in (0, *(1 + k for k in KEPT_THINGS))]
    classes = ("semantic_seg_conv", "mask_head.conv_cls", "bbox_head.solo_cate")
    if layer in classes or layer in ("bbox_head.cate_pred", "maskiou_net.maskiou_net.10"):
        return KEPT_THINGS
    return None


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "solov2_light_r18" else pytest.mark.slow)
        for name in PUBLISHED
    ],
)
def test_class_rows_of_converted_checkpoint_match_published_rows(tmp_path, name):
    """Cut a published file to three classes; each class must get its own rows."""
    published = fixture(*PUBLISHED[name]).empty("cpu")
    whole, part, changed = {}, {}, 0
    for key, tensor in published.items():
        values = torch.arange(tensor.numel(), dtype=torch.float32).reshape(tensor.shape) / 1e6
        whole[key] = values if tensor.is_floating_point() else torch.zeros_like(tensor)
        rows = select_class_rows(name, key)
        part[key] = whole[key] if rows is None else whole[key][rows]
        changed += rows is not None
    assert changed >= 2
    torch.save(whole, tmp_path / "whole.pth")
    torch.save({"state_dict": part, "meta": {"epoch": 3}}, tmp_path / "part.pth")
    stuff = ["sky", "road"] if name == "panoptic_fpn_r50" else []
    model = load_model(name, tmp_path / "part.pth", class_names=[*NAMES, *stuff], device="cpu")
    assert dict(model.categories) == {1: "bolt", 2: "nut", 3: "pin"}
    assert list(model.stuff.values()) == stuff
    coco = load_model(name, tmp_path / "whole.pth", device="cpu")
    coco_rows = type(model).class_rows(coco.network, coco.all_categories)
    own_rows = type(model).class_rows(model.network, model.all_categories)
    coco_names = list(coco.categories.values()), list(coco.stuff.values())
    coco_name_of = {**dict(zip(NAMES, (coco_names[0][k] for k in KEPT_THINGS), strict=True))}
    coco_name_of |= dict(zip(stuff, (coco_names[1][k] for k in KEPT_STUFF if stuff), strict=True))
    state, coco_state = model.network.state_dict(), coco.network.state_dict()
    for key, rows in own_rows.items():
        for own_name, row_indices in rows.items():
            expected = coco_state[key][list(coco_rows[key][coco_name_of[own_name]])]
            assert torch.equal(state[key][list(row_indices)], expected), (key, own_name)


def test_class_names_accepts_sequence_or_mapping_of_matching_length(nanomask_file):
    def load_categories(names):
        return dict(load_model("nanomask", nanomask_file, class_names=names).categories)

    assert (
        load_categories(NAMES)
        == load_categories(tuple(NAMES))
        == load_categories(iter(NAMES))
        == dict(enumerate(NAMES, 1))
    )
    assert load_categories({9: "c", 0: "a", 4: "b"}) == {0: "a", 4: "b", 9: "c"}
    for names in (NAMES[:2], [*NAMES, "background"], {1: "a"}):
        with pytest.raises(UsageError, match=rf"3 classes, and class_names has {len(names)}$"):
            load_categories(names)
    for names in ([], ["a", "a", "b"], ["a", " ", "b"], "abc", 5, {"x": "a"}, {-1: "a"}, [1, 2, 3]):
        with pytest.raises(UsageError):
            load_categories(names)


def test_load_model_numbers_unnamed_classes_and_warns_once(nanomask_file, caplog):
    for _ in range(2):
        model = load_model("nanomask", nanomask_file)
    assert list(model.categories.values()) == ["class_1", "class_2", "class_3"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for hint in (str(nanomask_file), "class_names=", "--class-names", "model.class_names"):
        assert hint in record.getMessage()


@pytest.mark.slow
def test_load_model_rejects_mismatched_file_without_warning(tmp_path, caplog):
    state = create_state_dict("nanomask") | {"extra": torch.zeros(2)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="1 unexpected"):
        load_model("nanomask", tmp_path / "a.pth")
    assert not caplog.records


@pytest.mark.parametrize("classes", [1_000_000, pytest.param(90_000, marks=pytest.mark.slow)])
def test_load_model_rejects_inconsistent_class_count(tmp_path, classes):
    state = create_state_dict("solov2_light_r18")
    state["category.bias"] = torch.zeros(classes)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"over the limit|of another shape"):
        load_model("solov2_light_r18", tmp_path / "a.pth")


def test_class_names_rename_categories_of_own_checkpoint(tmp_path):
    weights = files.Weights(
        create_state_dict("nanomask"), "nanomask", Categories({4: "a", 6: "b", 9: "c"})
    )
    torch.save(files.to_checkpoint(weights), tmp_path / "best.pt")
    assert dict(load_model("nanomask", tmp_path / "best.pt").categories) == {4: "a", 6: "b", 9: "c"}
    renamed = load_model("nanomask", tmp_path / "best.pt", class_names=NAMES)
    assert dict(renamed.categories) == {1: "bolt", 2: "nut", 3: "pin"}
    with pytest.raises(UsageError, match="has 3 classes, and class_names has 2"):
        load_model("nanomask", tmp_path / "best.pt", class_names=["a", "b"])


def test_class_names_apply_to_random_and_bundled_weights():
    assert list(load_model("nanomask", "none", class_names=["a"]).categories) == [1]
    names = [f"thing {n}" for n in range(80)]
    assert list(load_model("nanomask", class_names=names).categories.values()) == names
    with pytest.raises(UsageError, match="default: has 80 classes, and class_names has 1"):
        load_model("nanomask", class_names=["a"])


def test_thresholds_use_class_names(nanomask_file):
    model = load_model("nanomask", nanomask_file, class_names=NAMES, classes=["pin"], score=0.0)
    assert set(model.predict(IMAGE).names) == {"pin"}
    with pytest.raises(UsageError, match=r"has no class 'nuts'; did you mean 'nut'"):
        model.predict(IMAGE, Thresholds(classes=("nuts",)))


def test_start_model_reuses_weights_by_class_name(nanomask_file):
    config = ModelConfig(name="nanomask", weights=str(nanomask_file), class_names=tuple(NAMES))
    categories = Categories({1: "pin", 2: "washer"})
    model, fresh = start_model(config, categories, Thresholds())
    assert fresh == ["washer"]
    weight = torch.load(nanomask_file, weights_only=True)["model"]["head.0.out.weight"]
    assert torch.equal(model.network.state_dict()["head.0.out.weight"][0], weight[2])
    with pytest.raises(UsageError, match="weights is none"):
        start_model(ModelConfig(weights="none", class_names=("a",)), categories, Thresholds())


def test_parse_class_names_reads_list_or_file(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffbolt \r\nnut\n\n  Müller, A\n", encoding="utf-8")
    assert parse_class_names(str(tmp_path / "names.txt")) == ["bolt", "nut", "Müller, A"]
    assert parse_class_names("bolt, nut") == ["bolt", "nut"]
    assert parse_class_names("bolt") == ["bolt"]
    (tmp_path / "other.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "longest.txt").write_bytes(b"a" * (1 << 20))
    assert parse_class_names(str(tmp_path / "longest.txt")) == ["a" * (1 << 20)]
    (tmp_path / "large.txt").write_bytes(b"a" * ((1 << 20) + 1))
    for argument in (
        "missing.txt",
        "folder/names",
        str(tmp_path / "other.txt"),
        "large.txt",
        "a\0,b",
    ):
        path = str(tmp_path / argument) if argument == "large.txt" else argument
        with pytest.raises(ConfigError, match="--class-names"):
            parse_class_names(path) if "\0" not in path else parse_class_names("missing.names")


def test_override_model_sets_class_names(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "data: {val: [{format: coco, images: images, annotations: a.json}]}"
    )
    evaluation = load_evaluation_config(tmp_path / "a.yaml", [])
    overridden = override_model(evaluation, None, "mine.pth", "bolt,nut")
    assert overridden.model == ModelConfig(weights="mine.pth", class_names=("bolt", "nut"))
    with pytest.raises(ConfigError, match="'bolt' twice"):
        override_model(evaluation, None, None, "bolt,bolt")


def test_process_command_writes_given_class_names(streamseg, nanomask_file):
    options = ["--weights", nanomask_file, "--set", "model.input_size=64"]
    options += ["--set", "thresholds.score=0.0", "--set", "thresholds.max_instances=3"]
    source = "test:?size=64x48&frames=2&objects=2"
    process = streamseg(
        "process", source, "--out", "out", *options, "--class-names", "bolt,nut,pin"
    )
    assert process.returncode == 0, process.stderr
    lines = next(nanomask_file.parent.glob("out/*/results.jsonl")).read_text().splitlines()
    names = {row["name"] for line in lines for row in json.loads(line)["instances"]}
    assert names
    assert names <= set(NAMES)
    process = streamseg("process", source, "--out", "two", *options, "--class-names", "bolt,nut")
    assert process.returncode == 2
    assert "has 3 classes, and class_names has 2" in process.stderr
    assert process.stderr.count("\n") == 1
    config = nanomask_file.parent / "config.yaml"
    config.write_text("model: {class_names: {1: bolt, 2: bolt, 3: pin}}\n")
    process = streamseg("process", source, "--out", "three", "--config", config, *options)
    assert process.returncode == 2
    assert "class_names has 'bolt' twice" in process.stderr
