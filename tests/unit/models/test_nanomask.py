"""Bundled NanoMask model: detections, batching, thresholds, precision and conversion."""

import json
import re
import runpy
import sys

import av
import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.paths import ROOT

from streamseg.config import Thresholds
from streamseg.errors import UsageError
from streamseg.models import load_model
from streamseg.models.nanomask import NanoMask
from streamseg.models.nanomask.network import cell_grid, decode_boxes, expand_boxes
from streamseg.models.weights import files
from streamseg.structures.masks import box_iou

CLIP = ROOT / "streamseg" / "assets" / "street.mp4"
SHARED = ROOT.parent / "shared" / "data"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return load_model("nanomask", device="cpu", score=0.5)


@pytest.fixture(scope="module")
def frames():
    """Frames 20 and 30 of the clip, (H, W, 3) uint8 RGB."""
    with av.open(str(CLIP)) as clip:
        images = [
            frame.to_ndarray(format="rgb24")
            for index, frame in enumerate(clip.decode(video=0))
            if index in (20, 30)
        ]
    for image in images:
        image.flags.writeable = False  # like frames from a source
    return images


def assert_close_instances(found, expected):
    """Assert equality up to float noise; mask pixels on the threshold may differ."""
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.features, expected.features, atol=1e-3)
    different = found.masks.to_arrays() != expected.masks.to_arrays()
    assert np.count_nonzero(different) <= 3 * len(expected)


def test_predict_finds_people_with_fitting_masks(model, frames):
    found = model.predict(frames[:1])[0]
    people = found[found.labels == 1]
    assert len(people) >= 4
    assert set(people.names) == {"person"}
    widths, heights = (people.boxes[:, 2:] - people.boxes[:, :2]).T
    assert (heights > 1.5 * widths).all()
    filled = people.masks.areas / (widths * heights)
    assert ((filled > 0.3) & (filled < 0.9)).all()
    assert (box_iou(people.boxes, people.masks.boxes).diagonal() > 0.6).all()
    assert (np.diff(found.scores) <= 0).all()


def test_predict_accepts_any_memory_layout_without_changing_the_image(model, frames):
    image = frames[0].copy()
    expected = model.predict([image])[0]
    np.testing.assert_array_equal(image, frames[0])
    layouts = [
        np.asfortranarray(image),
        np.repeat(image, 2, axis=1)[:, ::2],
        image[:, ::-1].copy()[:, ::-1],
    ]
    for other in layouts:
        assert not other.flags.c_contiguous
        assert_close_instances(model.predict([other])[0], expected)


def test_predict_returns_input_image_coordinates(model, frames):
    whole = model.predict(frames[:1])[0]
    doubled = model.predict([cv2.resize(frames[0], None, fx=2, fy=2)])[0]
    assert doubled.size == (2 * whole.size[0], 2 * whole.size[1])
    top_boxes = whole.boxes[:3]
    assert (box_iou(2 * top_boxes, doubled.boxes).max(axis=1) > 0.85).all()
    best_match = box_iou(2 * top_boxes, doubled.boxes).argmax(axis=1)
    growth = doubled.masks.areas[best_match] / whole.masks.areas[:3]
    np.testing.assert_allclose(growth, 4, rtol=0.15)


def test_predict_is_independent_of_batch_and_keeps_order(model, frames):
    a, b = frames
    wide, small = a[100:400], a[::3, ::3]
    single_results = {id(image): model.predict([image])[0] for image in (a, b, wide, small)}
    for batch in ([a, b], [b, a, a], [wide, a, small, b], [small, wide, b]):
        for image, found in zip(batch, model.predict(batch), strict=True):
            assert found.size == image.shape[:2]
            assert_close_instances(found, single_results[id(image)])


def test_prepare_batches_images_of_equal_shape(model, frames):
    a, b = frames
    batches = model.prepare([a, a[:300], b])
    assert [batch.rows for batch in batches] == [(0, 2), (1,)]
    assert [tuple(batch.tensor.shape) for batch in batches] == [(2, 3, 320, 416), (1, 3, 192, 416)]
    assert [batch.shapes for batch in batches] == [((312, 416), (312, 416)), ((162, 416),)]
    assert not batches[1].tensor[:, :, 162:].any()  # padding is zero
    staged = model.postprocess(model.forward(batches))
    for found, expected in zip(staged, model.predict([a, a[:300], b]), strict=True):
        assert_close_instances(found.instances, expected)


def test_predict_applies_thresholds_per_image(model, frames):
    a = frames[0]
    thresholds = [
        Thresholds(score=0.5, classes=("person",), max_instances=2),
        Thresholds(score=0.99),
        Thresholds(score=0.3, mask=0.9),
        Thresholds(score=0.3, mask=0.1),
    ]
    people, nothing, thin, thick = model.predict([a] * 4, thresholds)
    assert people.names == ["person", "person"]
    assert len(nothing) == 0
    assert nothing.features.shape == (0, 128)
    assert (thin.masks.areas < thick.masks.areas).all()
    assert len(model.predict([a], Thresholds(score=0.05))[0]) > len(thin)


def test_predict_filters_by_min_area(model, frames):
    found = model.predict(frames[:1], Thresholds(score=0.3))[0]
    min_area = int(np.median(found.masks.areas))
    large = model.predict(frames[:1], Thresholds(score=0.3, min_area=min_area))[0]
    np.testing.assert_array_equal(large.boxes, found.boxes[found.masks.areas >= min_area])
    assert 0 < len(large) < len(found)


def test_predict_rejects_unknown_class_and_wrong_number_of_thresholds(model, frames):
    with pytest.raises(UsageError, match="did you mean 'person'"):
        model.predict(frames, Thresholds(classes=("persn",)))
    with pytest.raises(UsageError, match="1 thresholds for 2 images"):
        model.predict(frames, [Thresholds()])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5, 2), np.uint8),
        np.zeros((5, 5, 3), np.int32),
        np.zeros((0, 5, 3), np.uint8),
        [[0, 0, 0]],
    ],
)
def test_predict_rejects_invalid_images(model, image):
    with pytest.raises(UsageError, match="image 1 must be"):
        model.predict([np.zeros((5, 5, 3), np.uint8), image])


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (33, 31)])
def test_predict_accepts_tiny_and_thin_images(size, monkeypatch):
    monkeypatch.setattr(NanoMask, "min_score", 0.0)  # random weights score near 0
    model = load_model("nanomask", weights="none", device="cpu", input_size=64, score=0.001)
    found = model.predict([np.full((*size, 3), 90, np.uint8)])[0]
    assert len(found) > 0
    assert found.size == size
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (found.boxes[:, 2:] <= np.array(size)[::-1] + 1e-3).all()


def test_predict_returns_empty_list_for_no_images(model):
    assert model.predict([]) == []


def test_predict_returns_no_instances_for_uniform_image(model):
    found = model.predict([np.full((90, 120, 3), 114, np.uint8)])[0]
    assert len(found) == 0
    assert found.features.shape == (0, 128)


def test_predict_limits_number_of_instances(monkeypatch):
    monkeypatch.setattr(NanoMask, "min_score", 0.001)
    model = load_model("nanomask", weights="none", device="cpu", input_size=96, score=0)
    found = model.predict([np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)])[0]
    assert 0 < len(found) <= 100


def test_features_are_normalized_and_distinguish_objects(model, frames):
    first, second = model.predict(frames)
    np.testing.assert_allclose(np.linalg.norm(first.features, axis=1), 1, atol=1e-5)
    similarity = first.features @ second.features.T
    same = box_iou(first.boxes, second.boxes) > 0.7  # parked cars do not move
    assert same.any()
    assert similarity[same].mean() > similarity[~same].mean()


def test_decode_boxes_uses_distance_distributions_around_cell_centres():
    grid = cell_grid((32, 64))
    assert grid.shape == (4 * 8 + 2 * 4 + 1 * 2, 3)
    np.testing.assert_array_equal(
        grid[[0, 9, 32, 41]], [[4, 4, 8], [12, 12, 8], [8, 8, 16], [48, 16, 32]]
    )
    sides = torch.full((1, 4, 11), -50.0)
    for side, reach in enumerate((0, 3, 10, 5)):
        sides[0, side, reach] = 50
    box = decode_boxes(sides.flatten(1), torch.from_numpy(grid[[9]]))
    torch.testing.assert_close(box, torch.tensor([[12.0, 12 - 24, 12 + 80, 12 + 40]]))
    halves = torch.full((1, 4, 11), -50.0)
    halves[:, :, 2:4] = 50
    box = decode_boxes(halves.flatten(1), torch.from_numpy(grid[[9]]))
    torch.testing.assert_close(box, torch.tensor([[-8.0, -8, 32, 32]]))


def test_map_around_equals_full_map_inside_boxes(model, frames):
    batch = model.prepare(frames)[0]
    height, width = batch.tensor.shape[2:]
    branch = model.network.mask
    torch.manual_seed(0)
    with torch.inference_mode():
        outputs = model.network(batch.tensor)
        whole = branch.map(outputs.features)
        for extent in (3.0, 40.0, 400.0):
            corners = torch.rand(2, 5, 2) * torch.tensor([width, height])
            boxes = torch.cat([corners, corners + extent], dim=2)
            boxes = [expand_boxes(b) for b in boxes.minimum(torch.tensor([width, height] * 2))]
            around = branch.map_around(outputs.features, boxes)
            torch.testing.assert_close(
                branch.roi_features(around, boxes),
                branch.roi_features(whole, boxes),
                atol=1e-4,
                rtol=1e-4,
            )
            assert around.eq(0).float().mean() > whole.eq(0).float().mean() or extent == 400.0


def test_predict_in_bf16_finds_same_objects_as_fp32(model, frames):
    found = load_model("nanomask", device="cpu", precision="bf16", score=0.5).predict(frames[:1])[0]
    expected = model.predict(frames[:1])[0]
    confident_rows = expected[expected.scores > 0.55]
    overlap = box_iou(confident_rows.boxes, found.boxes)
    assert (overlap.max(axis=1) > 0.9).all()
    matched = found[overlap.argmax(axis=1)]
    np.testing.assert_array_equal(matched.labels, confident_rows.labels)
    np.testing.assert_allclose(matched.scores, confident_rows.scores, atol=0.03)
    assert (matched.masks.pairwise_iou(confident_rows.masks).diagonal() > 0.9).all()


def run_convert(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "tools" / "convert.py"), run_name="__main__")


def test_convert_detector_writes_initial_weights_for_training(tmp_path, monkeypatch):
    random = load_model("nanomask", weights="none", device="cpu").network.state_dict()
    detector = {
        name: np.full(tensor.shape, 0.5, np.float16)
        for name, tensor in random.items()
        if not name.startswith("mask.")
    }
    np.savez(tmp_path / "detector.npz", **detector)
    run_convert(monkeypatch, "detector", tmp_path / "detector.npz", tmp_path / "start.safetensors")
    loaded = load_model("nanomask", weights=tmp_path / "start.safetensors", device="cpu")
    for name, tensor in loaded.network.state_dict().items():
        assert (tensor == 0.5).all() if name in detector else torch.equal(tensor, random[name])
    np.savez(tmp_path / "other.npz", stem=np.zeros(3))
    with pytest.raises(SystemExit, match=r"other\.npz: isn't NanoDet-g"):
        run_convert(monkeypatch, "detector", tmp_path / "other.npz", tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_convert_bundle_reproduces_bundled_fp16_weights(tmp_path, monkeypatch):
    bundled = ROOT / "streamseg" / "assets" / "nanomask.safetensors"
    output = tmp_path / "output.safetensors"
    run_convert(monkeypatch, "bundle", bundled, output)
    bundled_again, shipped = load_file(output), load_file(bundled)
    assert bundled_again.keys() == shipped.keys()
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in bundled_again.items())
    assert {tensor.dtype for tensor in shipped.values()} == {torch.float16}
    assert files.read(bundled).categories == load_model("nanomask").all_categories
    assert bundled.stat().st_size < 15_000_000


@pytest.mark.by_hand
@pytest.mark.timeout(600)
def test_eval_reproduces_model_card_ap(streamseg, tmp_path):
    if not SHARED.exists():
        pytest.skip("needs ../shared/data, which isn't part of the project")
    config = ROOT / "configs" / "eval" / "nanomask.yaml"
    root = ("--set", f"data.root={SHARED.resolve()}")
    process = streamseg("eval", config, *root, "--json", tmp_path / "report.json")
    assert process.returncode == 0, process.stderr
    datasets = json.loads((tmp_path / "report.json").read_text())["datasets"]
    precision = {
        (dataset["name"], on): dataset[on]["ap"]
        for dataset in datasets
        for on in ("boxes", "masks")
    }
    assert precision == pytest.approx(
        {
            ("coco80", "boxes"): 0.269,
            ("coco80", "masks"): 0.223,
            ("person", "boxes"): 0.624,
            ("person", "masks"): 0.461,
        },
        abs=0.004,
    )


def test_street_check_reproduces_model_card_counts(monkeypatch, capsys):
    """Compare with the hand-made labels; the numbers are those of the model card."""
    monkeypatch.setattr(sys, "argv", ["street_check.py"])
    runpy.run_path(str(ROOT / "tools" / "street_check.py"), run_name="__main__")
    found, false = re.search(r"(\d+) of 155 people, (\d+) false", capsys.readouterr().out).groups()
    assert abs(int(found) - 139) <= 2  # an overlap may lie on the threshold
    assert int(false) <= 5
