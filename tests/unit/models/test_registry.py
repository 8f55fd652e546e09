"""Model catalogue, thresholds, weights files and mask pasting within boxes."""

import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchvision.models.detection.roi_heads import paste_masks_in_image

from streamseg.config import Thresholds
from streamseg.errors import UnknownModelError, UsageError, WeightsError
from streamseg.models import REGISTRY, load_model
from streamseg.models.categories import Categories
from streamseg.models.layers.masks import paste_masks
from streamseg.models.loading import _family
from streamseg.models.nanomask.network import NanoMaskNet
from streamseg.models.registry import find
from streamseg.models.selection import Selection, suppress_overlaps
from streamseg.models.weights import files
from streamseg.pipeline.stages import SourceThresholds
from streamseg.structures.masks import Masks
from streamseg.structures.results import Instances

NAMES = {1: "person", 3: "car", 7: "train"}


pytestmark = pytest.mark.usefixtures("one_thread")


# Mask pasting


def random_boxes(size, count, rng):
    """Return boxes inside, across and outside the frame, some thinner than a pixel."""
    height, width = size
    kinds = rng.integers(0, 4, count)
    reach = np.array([width, height], np.float64)
    centres = rng.uniform(0, reach, (count, 2))
    extents = rng.uniform(0.2, 1.0, (count, 2)) * reach
    extents[kinds == 1] *= 2.5  # exceeds the frame on several sides
    extents[kinds == 2, rng.integers(0, 2)] = rng.uniform(0, 1)  # thinner than a pixel
    extents[kinds == 3] = rng.uniform(0.01, 4, (np.count_nonzero(kinds == 3), 2))
    boxes = np.concatenate([centres - extents / 2, centres + extents / 2], axis=1)
    return torch.tensor(boxes, dtype=torch.float32)


def paste_with_torchvision(probabilities, boxes, size, threshold):
    return (paste_masks_in_image(probabilities[:, None], boxes, size)[:, 0] > threshold).numpy()


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 90), (90, 1), (7, 5), (64, 64), (120, 213), (200, 90), (200, 356)]
)
def test_paste_masks_matches_torchvision(size):
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    torch.manual_seed(0)
    visible = 0
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.9):
        boxes = random_boxes(size, 25, rng)  # 8 sizes x 5 thresholds x 25 = 1,000
        probabilities = torch.rand(25, 28, 28)
        expected = paste_with_torchvision(probabilities, boxes, size, threshold)
        masks = paste_masks(probabilities, boxes, size, threshold)
        np.testing.assert_array_equal(masks.to_arrays(), expected)
        visible += np.count_nonzero(expected.any(axis=(1, 2)))
    assert visible > 10


def test_paste_masks_matches_torchvision_at_threshold():
    values = torch.tensor([0.0, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 1.0])
    torch.manual_seed(0)
    probabilities = values[torch.randint(0, 4, (12, 28, 28))]
    probabilities[0] = 0.5
    boxes = random_boxes((400, 600), 12, np.random.default_rng(1))
    expected = paste_with_torchvision(probabilities, boxes, (400, 600), 0.5)
    masks = paste_masks(probabilities, boxes, (400, 600), 0.5)
    np.testing.assert_array_equal(masks.to_arrays(), expected)


def test_paste_masks_returns_empty_masks_for_boxes_outside_frame():
    boxes = torch.tensor(
        [[-50.0, 5, -20, 30], [200, 5, 260, 30], [5, -40, 9, -20], [5, 99, 9, 120]]
    )
    masks = paste_masks(torch.ones(4, 28, 28), boxes, (60, 100), 0.5)
    assert masks.areas.tolist() == [0, 0, 0, 0]


def test_paste_masks_accepts_no_masks():
    assert len(paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (60, 100), 0.5)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("count", "limit_ms"), [(20, 15), (100, 60)])
def test_paste_masks_is_fast_at_1080p(count, limit_ms):
    """The limits are ten times the durations on an idle machine."""
    rng = np.random.default_rng(0)
    corners = torch.tensor(rng.uniform(0, (1700, 800), (count, 2)), dtype=torch.float32)
    boxes = torch.cat([corners, corners + torch.tensor([110, 220])], dim=1)
    probabilities = torch.rand(count, 28, 28)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        paste_masks(probabilities, boxes, (1080, 1920), 0.5)
        times.append((time.perf_counter() - start) * 1000)
    assert min(times) < limit_ms


# Thresholds


def select_rows(thresholds, scores, labels, boxes=None):
    n = len(scores)
    boxes = np.tile([0.0, 0, 10, 10], (n, 1)) if boxes is None else boxes
    selection = Selection.from_thresholds(thresholds, NAMES)
    return selection.select_rows(
        np.asarray(boxes, np.float32), np.asarray(scores, np.float32), np.asarray(labels)
    ).tolist()


def test_score_threshold_is_inclusive():
    for threshold in (0.3, 0.5, 0.7, 0.9):
        scores = np.float32([threshold, np.nextafter(np.float32(threshold), np.float32(0))])
        assert select_rows(Thresholds(score=threshold), scores, [1, 1]) == [0]


def test_score_by_class_overrides_score():
    thresholds = Thresholds(score=0.5, score_by_class={"car": 0.8, "train": 0.1})
    assert select_rows(thresholds, [0.9, 0.7, 0.7, 0.2, 0.2], [3, 3, 1, 7, 1]) == [0, 2, 3]


def test_classes_select_rows():
    assert select_rows(Thresholds(score=0, classes=("car",)), [0.9, 0.8, 0.7], [1, 3, 7]) == [1]


def test_unnamed_label_is_kept_unless_classes_are_set():
    assert select_rows(Thresholds(score=0.1), [0.9, 0.8], [2, 1]) == [0, 1]
    assert select_rows(Thresholds(score=0.1, classes=("person",)), [0.9, 0.8], [2, 1]) == [1]


def test_region_keeps_boxes_with_centre_inside():
    notched = ((0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (50.0, 50.0), (0.0, 100.0))
    boxes = [[0, 0, 20, 20], [40, 70, 60, 90], [5, 70, 15, 90], [190, 0, 210, 20]]
    assert select_rows(Thresholds(score=0, region=notched), [0.9] * 4, [1] * 4, boxes) == [0, 2]


@given(
    st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=1, max_size=20),
    st.integers(0, 15),
    st.integers(0, 15),
)
def test_rectangular_region_matches_coordinate_comparison(centres, x, y):
    corners = ((x, y), (x + 6, y), (x + 6, y + 6), (x, y + 6))
    points = np.float32(centres)
    boxes = np.concatenate([points - 1, points + 1], axis=1)
    centres_of_boxes = (boxes[:, :2] + boxes[:, 2:]) / 2
    on_a_side = np.isin(centres_of_boxes, [x, x + 6, y, y + 6]).any(axis=1)
    inside = ((centres_of_boxes > (x, y)) & (centres_of_boxes < (x + 6, y + 6))).all(axis=1)
    kept = np.isin(
        np.arange(len(points)),
        select_rows(
            Thresholds(score=0, region=corners), [0.5] * len(points), [1] * len(points), boxes
        ),
    )
    assert (kept == inside)[~on_a_side].all()


def test_max_instances_applies_after_min_area():
    sides = [2, 8, 9, 3, 7]
    masks = Masks.from_crops([np.ones((s, s), bool) for s in sides], np.zeros((5, 2)), (20, 20))
    instances = Instances(np.zeros((5, 4)), np.linspace(0.9, 0.5, 5), np.ones(5), masks, NAMES)
    thresholds = Thresholds(score=0, min_area=10, max_instances=2)
    selection = Selection.from_thresholds(thresholds, NAMES)
    assert select_rows(thresholds, [0.9] * 5, [1] * 5) == [0, 1, 2, 3, 4]
    assert selection.apply_to_masks(instances).masks.areas.tolist() == [64, 81]
    assert select_rows(Thresholds(score=0, max_instances=2), [0.9] * 5, [1] * 5) == [0, 1]


# Class-agnostic suppression


def create_instances(crops, origins, size=(20, 20), labels=None):
    masks = Masks.from_crops(crops, origins, size)
    count = len(crops)
    labels = [1, 3, 7][:count] if labels is None else labels
    return Instances(masks.boxes, np.linspace(0.9, 0.5, count), labels, masks, NAMES)


def kept_scores_in_tenths(instances, **thresholds):
    """Return the scores of the selected rows, in tenths."""
    selection = Selection.from_thresholds(Thresholds(score=0, **thresholds), NAMES)
    kept = selection.apply_to_masks(instances)
    return np.round(kept.scores * 10).astype(int).tolist()


def test_class_agnostic_iou_suppresses_lower_score_across_classes():
    square = np.ones((10, 10), bool)
    instances = create_instances([square] * 3, [(0, 0), (0, 1), (0, 4)])  # IoU 0.82, 0.43; 0.54
    assert (
        kept_scores_in_tenths(instances, class_agnostic_iou=None)
        == kept_scores_in_tenths(instances)
        == [9, 7, 5]
    )  # "auto" disables it
    assert kept_scores_in_tenths(instances, class_agnostic_iou=0.8) == [9, 5]
    assert kept_scores_in_tenths(instances, class_agnostic_iou=0.5) == [
        9,
        5,
    ]  # a suppressed row suppresses no other
    assert kept_scores_in_tenths(instances, class_agnostic_iou=0.4) == [9]
    duplicates = create_instances([square] * 2, [(0, 0)] * 2, labels=[1, 1])
    assert kept_scores_in_tenths(duplicates, class_agnostic_iou=0.99) == [9]
    assert kept_scores_in_tenths(duplicates, class_agnostic_iou=1) == [9, 5]  # no IoU is above 1


def test_class_agnostic_iou_keeps_overlap_equal_to_threshold():
    halves = create_instances([np.ones((10, 10), bool), np.ones((5, 10), bool)], [(0, 0)] * 2)
    assert kept_scores_in_tenths(halves, class_agnostic_iou=0.5) == [9, 5]
    assert kept_scores_in_tenths(halves, class_agnostic_iou=0.49) == [9]


def test_suppression_runs_after_min_area_and_before_max_instances():
    square = np.ones((10, 10), bool)
    holed = square.copy()
    holed[0, 0] = False
    instances = create_instances(
        [holed, square, square, square], [(0, 0), (0, 0), (9, 9), (0, 10)], labels=[1] * 4
    )
    assert kept_scores_in_tenths(instances, class_agnostic_iou=0.9, max_instances=2) == [9, 6]
    assert kept_scores_in_tenths(instances, class_agnostic_iou=0.9, min_area=100) == [8, 6, 5]
    thresholds = Thresholds(score=0, class_agnostic_iou=0.9, max_instances=2)
    assert select_rows(thresholds, [0.9] * 5, [1] * 5) == [0, 1, 2, 3, 4]


def test_suppression_compares_boxes_of_instances_without_mask():
    box = [2.0, 2, 12, 12]
    thin = Masks.from_crops([np.eye(10, dtype=bool)], [(2, 2)], (20, 20))
    masks = Masks.concatenate([thin, Masks.from_boxes([box], (20, 20))])
    instances = Instances(np.array([box, box]), [0.9, 0.5], [1, 3], masks, NAMES)
    assert kept_scores_in_tenths(instances, class_agnostic_iou=0.9) == [9]


@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.sampled_from([0.1, 0.5, 0.8]))
def test_suppress_overlaps_matches_bitmap_iou(seed, count, iou):
    rng = np.random.default_rng(seed)
    bitmaps = np.zeros((count, 16, 20), bool)
    for bitmap in bitmaps:
        (y, x), (h, w) = rng.integers(0, 12, 2), rng.integers(0, 9, 2)
        bitmap[y : y + h, x : x + w] = rng.random((16, 20))[y : y + h, x : x + w] < 0.9
    masks = Masks.from_arrays(bitmaps, (16, 20))
    instances = Instances(masks.boxes, np.linspace(0.9, 0.5, count), np.ones(count), masks, NAMES)
    kept = []
    for row in range(count):
        shared = [(bitmaps[row] & bitmaps[better]).sum() for better in kept]
        union = [(bitmaps[row] | bitmaps[better]).sum() for better in kept]
        if not any(s > iou * u for s, u in zip(shared, union, strict=True)):
            kept.append(row)
    assert suppress_overlaps(instances, iou).tolist() == kept


@pytest.mark.parametrize("value", [0, -0.1, 1.01, "on", float("nan")])
def test_load_model_rejects_invalid_class_agnostic_iou(value):
    with pytest.raises(UsageError, match="class_agnostic_iou") as caught:
        load_model("nanomask", "none", class_agnostic_iou=value)
    assert "\n" not in str(caught.value)


def test_source_thresholds_default_to_model_class_agnostic_iou(nanomask):
    thresholds = SourceThresholds(Thresholds(score=0.3), nanomask)
    default = type(nanomask).class_agnostic_iou
    assert default is not None
    assert thresholds["yard"] == Thresholds(score=0.3, class_agnostic_iou=default)
    for chosen in (None, 0.5):
        thresholds.set("yard", Thresholds(class_agnostic_iou=chosen))
        assert thresholds["yard"].class_agnostic_iou == chosen
    assert load_model("yolact_r50", "none").class_agnostic_iou is None


@pytest.mark.parametrize("field", ["classes", "score_by_class"])
def test_selection_suggests_similar_class_names(field):
    value = ("persn",) if field == "classes" else {"persn": 0.5}
    with pytest.raises(UsageError, match=rf"{field}: .*'persn'; did you mean 'person'"):
        Selection.from_thresholds(Thresholds(**{field: value}), NAMES)
    value = ("zzz",) if field == "classes" else {"zzz": 0.5}
    with pytest.raises(UsageError, match="its classes are person, car, train"):
        Selection.from_thresholds(Thresholds(**{field: value}), NAMES)


# Registry


def test_load_model_suggests_similar_model_names():
    with pytest.raises(UnknownModelError, match="'nanomsk'; did you mean nanomask"):
        load_model("nanomsk")
    with pytest.raises(UnknownModelError, match="known are nanomask, mask_rcnn_r50_fpn"):
        load_model("zzz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scor": 0.3}, "no argument 'scor'; did you mean 'score'"),
        ({"score": 1.5}, "<= 1"),
        ({"precision": "int8"}, "int8"),
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:63"}, "cuda:63.*CUDA devices"),
        ({"input_size": 5}, ">= 32"),
        ({"classes": ["persn"]}, "did you mean 'person'"),
    ],
)
def test_load_model_rejects_invalid_arguments(options, message):
    with pytest.raises(UsageError, match=message):
        load_model("nanomask", weights="none", **options)


def test_registry_does_not_import_torch():
    code = "import sys, streamseg.models as m; assert m.REGISTRY; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("entry", REGISTRY, ids=lambda entry: entry.name)
def test_registry_parameter_counts_match_networks(entry):
    family = _family(entry)
    with torch.device("meta"):
        network = family.build(entry.name, family.trained_on)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    frozen = sum(b.numel() for n, b in network.named_buffers() if n.endswith((".weight", ".bias")))
    assert entry.parameters in (round(millions, 2), round(millions + frozen / 1e6, 2))
    assert find(entry.name) is entry


def test_random_weights_are_reproducible_and_preserve_rng_state():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = (load_model("nanomask", weights="none").network for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


# Weights files


@pytest.fixture(scope="module")
def state():
    return NanoMaskNet(80).state_dict()


def get_weights_error(path, model="nanomask"):
    """Return the error message; it must be one line that contains the path."""
    with pytest.raises(WeightsError) as caught:
        load_model(model, weights=path, device="cpu")
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_load_model_reads_safetensors_and_torch_files(tmp_path, state):
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save({"state_dict": state}, tmp_path / "renamed.bin")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "half.safetensors")
    for path in tmp_path.iterdir():
        network = load_model("nanomask", weights=str(path), device="cpu").network
        tolerance = 1e-3 if path.stem == "half" else 0
        for name, tensor in network.state_dict().items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, state[name], rtol=tolerance, atol=tolerance)


class Malicious:
    """Object whose unpickling creates a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["zip", "old", "bare"])
def test_load_model_never_runs_pickled_code(tmp_path, kind):
    target, path = tmp_path / "ran", tmp_path / "weights.pth"
    content = {"model": Malicious(target)}
    if kind == "bare":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    message = get_weights_error(path)
    assert "more than tensors" in message or "no weights file" in message
    assert not target.exists()


def test_load_model_rejects_missing_empty_and_text_files_and_folders(tmp_path):
    assert "doesn't exist" in get_weights_error(tmp_path / "missing.pth")
    assert "folder" in get_weights_error(tmp_path)
    (tmp_path / "empty.pth").touch()
    assert "empty" in get_weights_error(tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("conv1.weight: 0.5\n")
    assert "no weights file" in get_weights_error(tmp_path / "text.pth")
    (tmp_path / "tiny").write_bytes(b"P")
    assert "no weights file" in get_weights_error(tmp_path / "tiny")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9999])
def test_load_model_rejects_truncated_file(tmp_path, state, kind, share):
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(int(len(whole) * share), 20)])
    message = get_weights_error(path)
    assert "cut off" in message or "no weights file" in message


def test_load_model_rejects_compressed_archive_without_unpacking(tmp_path, state):
    torch.save({"x": torch.zeros(50_000_000)}, tmp_path / "large.pth")
    path = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(tmp_path / "large.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert path.stat().st_size < 1_000_000
    start = time.perf_counter()
    assert "compressed" in get_weights_error(path)
    assert time.perf_counter() - start < 5


def test_load_model_rejects_file_over_size_limit(tmp_path):
    path = tmp_path / "huge.pth"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(files.MAX_BYTES + 1)  # sparse: uses no disk space
    assert "over the limit" in get_weights_error(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_load_model_rejects_non_finite_values(tmp_path, state, value):
    broken = dict(state)
    broken["mask.logits.bias"] = torch.tensor([value])
    save_file(broken, tmp_path / "w.safetensors")
    assert "mask.logits.bias" in get_weights_error(tmp_path / "w.safetensors")


def test_load_model_rejects_file_without_state_dict(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "no state dict but a Tensor" in get_weights_error(tmp_path / "tensor.pth")
    torch.save({"a": 1.5}, tmp_path / "number.pth")
    assert "'a' is no tensor" in get_weights_error(tmp_path / "number.pth")
    torch.save({}, tmp_path / "nothing.pth")
    assert "no state dict" in get_weights_error(tmp_path / "nothing.pth")
    save_file({}, tmp_path / "nothing.safetensors")
    assert "no tensors" in get_weights_error(tmp_path / "nothing.safetensors")


def test_load_model_lists_missing_unexpected_and_mismatched_tensors(tmp_path, state):
    other = dict(state)
    for name in list(other)[:5]:
        del other[name]
    other["extra"] = torch.zeros(2)
    other["mask.logits.weight"] = torch.zeros(80, 96, 1, 1)
    other["mask.logits.bias"] = torch.zeros(1, dtype=torch.int64)
    save_file(other, tmp_path / "w.safetensors")
    message = get_weights_error(tmp_path / "w.safetensors")
    assert "5 missing (backbone.stem.conv.weight, " in message
    assert ", …)" in message
    assert "1 unexpected (extra)" in message
    assert "2 of another shape" in message
    assert "mask.logits.weight is (80, 96, 1, 1) instead of (1, 96, 1, 1)" in message
    assert "mask.logits.bias is (1,) int64 instead of (1,)" in message


@pytest.mark.parametrize(
    "name", ["solov2_light_r18", pytest.param("mask_rcnn_r50_fpn_v2", marks=pytest.mark.slow)]
)
def test_load_model_names_family_of_mismatched_weights(tmp_path, state, name):
    save_file(state, tmp_path / "w.safetensors")
    message = get_weights_error(tmp_path / "w.safetensors", name)
    assert message.endswith("it looks like nanomask")
    other = load_model(name, weights="none", device="cpu").network.state_dict()
    torch.save(other, tmp_path / "other.pth")
    assert get_weights_error(tmp_path / "other.pth").endswith(f"it looks like {name}")
    torch.save({"resnet.conv1.weight": torch.zeros(2)}, tmp_path / "unknown.pth")
    assert "looks like" not in get_weights_error(tmp_path / "unknown.pth")


def test_weights_file_keeps_model_and_categories(tmp_path):
    state = {"a": torch.ones(2)}
    weights = files.Weights(state, "nanomask", Categories({3: "cat", 900_000_000: "dog"}))
    (tmp_path / "a.safetensors").write_bytes(files.to_safetensors(weights))
    torch.save(files.to_checkpoint(weights), tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        read = files.read(tmp_path / name)
        assert (read.model, read.categories) == (
            "nanomask",
            Categories({3: "cat", 900_000_000: "dog"}),
        )
        assert torch.equal(read.state["a"], state["a"])


@pytest.mark.parametrize("categories", ["[1]", "{", '{"one": "cat"}', "7"])
def test_read_rejects_invalid_categories(tmp_path, categories):
    path = tmp_path / "a.pt"
    checkpoint = files.to_checkpoint(files.Weights({"a": torch.ones(2)}, "nanomask"))
    torch.save(checkpoint | {"categories": categories}, path)
    with pytest.raises(WeightsError, match=r"a\.pt: its list of categories is damaged"):
        files.read(path)


def test_selection_accepts_any_category_ids():
    from streamseg.config import Thresholds
    from streamseg.models.selection import Selection

    categories = {7: "cat", 2_000_000_000: "dog"}
    thresholds = Thresholds(score=0.5, score_by_class={"dog": 0.9})
    selection = Selection.from_thresholds(thresholds, categories)
    assert selection.min_score == 0.5
    labels = np.array([7, 2_000_000_000, 7, 2_000_000_000])
    scores = np.array([0.95, 0.95, 0.6, 0.6], np.float32)
    selected = selection.select_rows(np.zeros((4, 4), np.float32), scores, labels)
    assert selected.tolist() == [0, 1, 2]
    dogs_only = Selection.from_thresholds(Thresholds(score=0.5, classes=("dog",)), categories)
    assert dogs_only.select_rows(np.zeros((4, 4), np.float32), scores, labels).tolist() == [1, 3]


def test_load_model_warns_once_of_academic_license(tmp_path, caplog):
    network = load_model("solov2_light_r18", weights="none", device="cpu").network
    state = dict(network.state_dict())
    state["bbox_head.solo_cate.weight"] = state.pop("category.weight")  # WXinlong/SOLO's name
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    for _ in range(2):
        load_model("solov2_light_r18", tmp_path / "theirs.pth", device="cpu")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "solov2_light_r18" in messages[0]
    assert "academic use only" in messages[0]


@pytest.mark.parametrize("entry", REGISTRY, ids=lambda entry: entry.name)
def test_registry_has_url_and_license_of_published_weights(entry):
    for file in entry.published:
        assert file.license
        assert file.file
        assert file.url.startswith("https://") or entry.weights == "bundled"
