"""The bundled model on the bundled clip, and what every model promises of ``predict``."""

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
    """Two frames of the clip, ten apart."""
    with av.open(str(CLIP)) as clip:
        images = [
            frame.to_ndarray(format="rgb24")
            for index, frame in enumerate(clip.decode(video=0))
            if index in (20, 30)
        ]
    for image in images:
        image.flags.writeable = False  # as the sources give them
    return images


def assert_alike(found, expected):
    """Equal to float noise: a mask may differ in a pixel that lies on the threshold."""
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.features, expected.features, atol=1e-3)
    different = found.masks.to_arrays() != expected.masks.to_arrays()
    assert np.count_nonzero(different) <= 3 * len(expected)


def test_it_finds_the_people_in_the_clip_and_masks_that_fit_them(model, frames):
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


def test_the_image_is_not_changed_and_any_layout_of_it_gives_the_same(model, frames):
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
        assert_alike(model.predict([other])[0], expected)


def test_results_are_in_the_pixels_of_the_image_given(model, frames):
    whole = model.predict(frames[:1])[0]
    doubled = model.predict([cv2.resize(frames[0], None, fx=2, fy=2)])[0]
    assert doubled.size == (2 * whole.size[0], 2 * whole.size[1])
    surest = whole.boxes[:3]
    assert (box_iou(2 * surest, doubled.boxes).max(axis=1) > 0.85).all()
    nearest = box_iou(2 * surest, doubled.boxes).argmax(axis=1)
    growth = doubled.masks.areas[nearest] / whole.masks.areas[:3]
    np.testing.assert_allclose(growth, 4, rtol=0.15)


def test_an_image_s_result_does_not_depend_on_its_neighbours_and_order_is_kept(model, frames):
    a, b = frames
    wide, small = a[100:400], a[::3, ::3]
    alone = {id(image): model.predict([image])[0] for image in (a, b, wide, small)}
    for batch in ([a, b], [b, a, a], [wide, a, small, b], [small, wide, b]):
        for image, found in zip(batch, model.predict(batch), strict=True):
            assert found.size == image.shape[:2]
            assert_alike(found, alone[id(image)])


def test_images_share_a_forward_only_if_their_prepared_shapes_are_equal(model, frames):
    a, b = frames
    batches = model.prepare([a, a[:300], b])
    assert [batch.rows for batch in batches] == [(0, 2), (1,)]
    assert [tuple(batch.tensor.shape) for batch in batches] == [(2, 3, 320, 416), (1, 3, 192, 416)]
    assert [batch.shapes for batch in batches] == [((312, 416), (312, 416)), ((162, 416),)]
    assert not batches[1].tensor[:, :, 162:].any()  # padding is zero
    staged = model.postprocess(model.forward(batches))
    for found, expected in zip(staged, model.predict([a, a[:300], b]), strict=True):
        assert_alike(found.instances, expected)


def test_each_frame_has_its_own_thresholds(model, frames):
    a = frames[0]
    chosen = [
        Thresholds(score=0.5, classes=("person",), max_instances=2),
        Thresholds(score=0.99),
        Thresholds(score=0.3, mask=0.9),
        Thresholds(score=0.3, mask=0.1),
    ]
    people, nothing, thin, thick = model.predict([a] * 4, chosen)
    assert people.names == ["person", "person"]
    assert len(nothing) == 0
    assert nothing.features.shape == (0, 128)
    assert (thin.masks.areas < thick.masks.areas).all()
    assert len(model.predict([a], Thresholds(score=0.05))[0]) > len(thin)


def test_what_is_too_small_is_left_out(model, frames):
    found = model.predict(frames[:1], Thresholds(score=0.3))[0]
    least = int(np.median(found.masks.areas))
    large = model.predict(frames[:1], Thresholds(score=0.3, min_area=least))[0]
    np.testing.assert_array_equal(large.boxes, found.boxes[found.masks.areas >= least])
    assert 0 < len(large) < len(found)


def test_an_unknown_class_and_a_wrong_number_of_thresholds_are_refused(model, frames):
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
def test_what_is_no_image_is_refused(model, image):
    with pytest.raises(UsageError, match="image 1 must be"):
        model.predict([np.zeros((5, 5, 3), np.uint8), image])


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (33, 31)])
def test_tiny_and_thin_images_are_predicted(size, monkeypatch):
    monkeypatch.setattr(NanoMask, "min_score", 0.0)  # random weights are sure of nothing
    model = load_model("nanomask", weights="none", device="cpu", input_size=64, score=0.001)
    found = model.predict([np.full((*size, 3), 90, np.uint8)])[0]
    assert len(found) > 0
    assert found.size == size
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (found.boxes[:, 2:] <= np.array(size)[::-1] + 1e-3).all()


def test_no_images_no_results(model):
    assert model.predict([]) == []


def test_an_empty_scene_has_no_instances(model):
    found = model.predict([np.full((90, 120, 3), 114, np.uint8)])[0]
    assert len(found) == 0
    assert found.features.shape == (0, 128)


def test_random_weights_flood_no_one_with_detections(monkeypatch):
    monkeypatch.setattr(NanoMask, "min_score", 0.001)
    model = load_model("nanomask", weights="none", device="cpu", input_size=96, score=0)
    found = model.predict([np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)])[0]
    assert 0 < len(found) <= 100


def test_features_are_of_length_one_and_tell_objects_apart(model, frames):
    first, second = model.predict(frames)
    np.testing.assert_allclose(np.linalg.norm(first.features, axis=1), 1, atol=1e-5)
    likeness = first.features @ second.features.T
    same = box_iou(first.boxes, second.boxes) > 0.7  # the parked cars at least stand still
    assert same.any()
    assert likeness[same].mean() > likeness[~same].mean()


def test_boxes_are_decoded_from_distributions_around_cell_centres():
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


def test_the_map_around_boxes_is_the_whole_map_where_boxes_are_cut(model, frames):
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


def test_bf16_finds_the_same_objects(model, frames):
    found = load_model("nanomask", device="cpu", precision="bf16", score=0.5).predict(frames[:1])[0]
    expected = model.predict(frames[:1])[0]
    sure = expected[expected.scores > 0.55]
    overlap = box_iou(sure.boxes, found.boxes)
    assert (overlap.max(axis=1) > 0.9).all()
    matched = found[overlap.argmax(axis=1)]
    np.testing.assert_array_equal(matched.labels, sure.labels)
    np.testing.assert_allclose(matched.scores, sure.scores, atol=0.03)
    assert (matched.masks.pairwise_iou(sure.masks).diagonal() > 0.9).all()


def converted(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "tools" / "convert.py"), run_name="__main__")


def test_a_detector_s_arrays_become_what_training_starts_from(tmp_path, monkeypatch):
    random = load_model("nanomask", weights="none", device="cpu").network.state_dict()
    given = {
        name: np.full(tensor.shape, 0.5, np.float16)
        for name, tensor in random.items()
        if not name.startswith("mask.")
    }
    np.savez(tmp_path / "detector.npz", **given)
    converted(monkeypatch, "detector", tmp_path / "detector.npz", tmp_path / "start.safetensors")
    made = load_model("nanomask", weights=tmp_path / "start.safetensors", device="cpu")
    for name, tensor in made.network.state_dict().items():
        assert (tensor == 0.5).all() if name in given else torch.equal(tensor, random[name])
    np.savez(tmp_path / "other.npz", stem=np.zeros(3))
    with pytest.raises(SystemExit, match=r"other\.npz: isn't NanoDet-g"):
        converted(monkeypatch, "detector", tmp_path / "other.npz", tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_the_package_carries_half_precision_with_names_of_classes(tmp_path, monkeypatch):
    bundled = ROOT / "streamseg" / "assets" / "nanomask.safetensors"
    again = tmp_path / "again.safetensors"
    converted(monkeypatch, "bundle", bundled, again)
    made, shipped = load_file(again), load_file(bundled)
    assert made.keys() == shipped.keys()
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in made.items())
    assert {tensor.dtype for tensor in shipped.values()} == {torch.float16}
    assert files.read(bundled).categories == load_model("nanomask").all_categories
    assert bundled.stat().st_size < 15_000_000


@pytest.mark.by_hand
@pytest.mark.timeout(600)
def test_the_average_precision_is_that_of_the_model_card(streamseg, tmp_path):
    if not SHARED.exists():
        pytest.skip("needs ../shared/data, which isn't part of the project")
    config = ROOT / "configs" / "eval" / "nanomask.yaml"
    root = ("--set", f"data.root={SHARED.resolve()}")
    ended = streamseg("eval", config, *root, "--json", tmp_path / "report.json")
    assert ended.returncode == 0, ended.stderr
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


def test_the_people_in_the_clip_are_found(monkeypatch, capsys):
    """By the labels that were made by eye; the figures are the model card's."""
    monkeypatch.setattr(sys, "argv", ["street_check.py"])
    runpy.run_path(str(ROOT / "tools" / "street_check.py"), run_name="__main__")
    found, false = re.search(r"(\d+) of 155 people, (\d+) false", capsys.readouterr().out).groups()
    assert abs(int(found) - 139) <= 2  # an overlap may lie on the threshold
    assert int(false) <= 5
