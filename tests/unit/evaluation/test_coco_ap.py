"""COCO average precision: agreement of the backends, and cases computed by hand."""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from typing import get_args

import numpy as np
import pytest
from support.paths import SHARED

from streamseg.errors import DataError, StreamsegError
from streamseg.evaluation import CocoScores, compute_confusion_matrix, evaluate_coco
from streamseg.evaluation import coco_backends as backends
from streamseg.evaluation.report import scores_to_dict
from streamseg.evaluation.tables import make_coco_class_table, make_coco_table
from streamseg.structures.masks import Masks

SIZE = (80, 120)
NAMES = {3: "car", 1: "person", 7: "kite"}
FAST_BACKENDS = [
    b for b in get_args(backends.Backend) if b != "pycocotools" and find_spec(backends.MODULES[b])
]
SCORE_NAMES = [
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
]


def rle(box, size=SIZE) -> dict:
    x, y, width, height = box
    return Masks.from_boxes([(x, y, x + width, y + height)], size).to_rle()[0]


def annotation(number, category, box, image=1, **changes) -> dict:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": rle(box),
        **changes,
    }


def result(category, box, score=0.9, image=1, **changes) -> dict:
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": rle(box),
        **changes,
    }


def coco(*annotations, images=(1, 2)) -> dict:
    return {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in images],
        "annotations": list(annotations),
        "categories": [{"id": key, "name": name} for key, name in NAMES.items()],
    }


def make_noisy_data(seed=0, images=12) -> tuple[dict, list[dict]]:
    """Return ground truth with crowds, polygons and boxes without masks, and noisy predictions."""
    random = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, images + 1):
        for _ in range(random.integers(0, 7)):
            x, y = random.integers(0, 80), random.integers(0, 50)
            width, height = random.integers(3, 40), random.integers(3, 30)
            box = tuple(float(n) for n in (x, y, width, height))
            category = int(random.choice([1, 3]))
            changes = [
                {},
                {"iscrowd": 1},
                {"segmentation": []},
                {"segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]]},
            ][random.choice(4, p=[0.7, 0.1, 0.1, 0.1])]
            annotations.append(annotation(len(annotations), category, box, image, **changes))
            for _ in range(random.integers(0, 3)):
                shift = random.normal(0, 2, 4)
                moved = np.array(box) + shift
                moved[2:] = np.maximum(moved[2:], 1)
                moved[:2] = np.maximum(moved[:2], 0)
                other = int(random.choice([category, 1, 3, 7], p=[0.7, 0.1, 0.1, 0.1]))
                score = round(float(random.random()), 1)  # with ties
                results.append(result(other, tuple(moved.tolist()), score, image))
    return coco(*annotations, images=range(1, images + 1)), results


@pytest.fixture(scope="module")
def coco_data() -> tuple[dict, list[dict]]:
    """Return real annotations of COCO, and predictions close to them."""
    file = SHARED / "data" / "coco80" / "val.json"
    if not file.is_file():
        pytest.skip(f"{file} is missing: it is not part of the project")
    truth = json.loads(file.read_text())
    random = np.random.default_rng(1)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    results = []
    for each in truth["annotations"]:
        if random.random() < 0.8:
            box = np.array(each["bbox"]) + random.normal(0, 3, 4)
            box = np.maximum(box, (0, 0, 1, 1))
            mask = rle(box.tolist(), sizes[each["image_id"]])
            results.append(
                result(each["category_id"], box.tolist(), random.random(), each["image_id"])
                | {"segmentation": mask}
            )
    return truth, results


def assert_same_scores(actual: CocoScores, expected: CocoScores) -> None:
    for name in SCORE_NAMES:
        a, b = getattr(actual, name), getattr(expected, name)
        assert a == (b if b is None else pytest.approx(b, abs=1e-6)), name
    for a, b in zip(actual.classes, expected.classes, strict=True):
        assert a.ap == (None if b.ap is None else pytest.approx(b.ap, abs=1e-6))
    for curve in ("at50", "at75", "mean"):
        assert np.allclose(
            getattr(actual.curves, curve), getattr(expected.curves, curve), atol=1e-6
        )


def test_fast_backends_are_installed():
    assert FAST_BACKENDS == ["hotcoco", "faster-coco-eval"]


@pytest.mark.parametrize("on", ["boxes", "masks"])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_backends_agree(on, backend, capfd):
    for seed in range(4):
        truth, results = make_noisy_data(seed)
        reference = evaluate_coco(truth, results, on, "pycocotools")
        assert_same_scores(evaluate_coco(truth, results, on, backend), reference)
        assert 0.1 < reference.ap < 0.9
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("on", ["boxes", "masks"])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_backends_agree_on_real_annotations(coco_data, on, backend):
    reference = evaluate_coco(*coco_data, on, "pycocotools")
    assert_same_scores(evaluate_coco(*coco_data, on, backend), reference)
    assert reference.backend == "pycocotools"
    assert 0.05 < reference.ap < 0.95


@pytest.mark.parametrize("on", ["boxes", "masks"])
def test_pycocotools_scores_match_its_own_summary(coco_data, on, capsys):
    """Compare with the twelve numbers of pycocotools' ``loadRes`` and ``summarize``."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = copy.deepcopy(coco_data)
    if on == "masks":
        for row in results:
            del row["bbox"]  # otherwise loadRes uses the areas of the boxes
    coco_truth = COCO()
    coco_truth.dataset = truth
    coco_truth.createIndex()
    predictions = coco_truth.loadRes(results)
    evaluation = COCOeval(coco_truth, predictions, "bbox" if on == "boxes" else "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    scores = evaluate_coco(*coco_data, on, "pycocotools")
    assert [getattr(scores, name) for name in SCORE_NAMES] == pytest.approx(
        evaluation.stats.tolist()
    )


@pytest.mark.parametrize("on", ["boxes", "masks"])
@pytest.mark.parametrize("backend", ["auto", *get_args(backends.Backend)])
def test_perfect_predictions_no_predictions_and_no_ground_truth(on, backend):
    truth = coco(annotation(1, 1, (10, 10, 20, 20)), annotation(2, 3, (50, 30, 40, 40), image=2))
    perfect = [result(1, (10, 10, 20, 20)), result(3, (50, 30, 40, 40), image=2)]
    scores = evaluate_coco(truth, perfect, on, backend)
    assert (scores.ap, scores.ap50, scores.ar1) == pytest.approx((1, 1, 1))
    assert (scores.ap_small, scores.ap_medium, scores.ap_large) == pytest.approx((1, 1, None))
    assert scores.curves.mean.mean() == pytest.approx(scores.ap)
    assert [(c.name, c.ap, c.truths) for c in scores.classes] == [
        ("person", pytest.approx(1), 1),
        ("car", pytest.approx(1), 1),
        ("kite", None, 0),
    ]
    no_predictions = evaluate_coco(truth, [], on, backend)
    assert (no_predictions.ap, no_predictions.ar100) == (0, 0)
    no_ground_truth = evaluate_coco(coco(), perfect, on, backend)
    assert (no_ground_truth.ap, no_ground_truth.curves) == (None, None)
    assert evaluate_coco(coco(images=()), [], on, backend).ap is None


def test_average_precision_matches_hand_computed_value():
    """Two objects; predictions: a match (.9), a false positive (.8), a match (.7).

    Precision is 1 up to recall .5, which is 51 of COCO's 101 recalls, and 2/3 up to 1.
    """
    truth = coco(annotation(1, 1, (10, 10, 20, 20)), annotation(2, 1, (50, 30, 20, 20)))
    results = [
        result(1, (10, 10, 20, 20), 0.9),
        result(1, (90, 60, 10, 10), 0.8),
        result(1, (50, 30, 20, 20), 0.7),
    ]
    scores = evaluate_coco(truth, results, "boxes")
    assert scores.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert scores.ar1 == 0.5
    assert scores.ar10 == 1
    assert np.allclose(scores.curves.at50, [1] * 51 + [2 / 3] * 50)


def test_annotation_with_id_zero_can_be_matched():
    """Pycocotools does not count a match with annotation id 0."""
    truth = coco(annotation(0, 1, (10, 10, 20, 20)))
    assert evaluate_coco(truth, [result(1, (10, 10, 20, 20))], "boxes", "pycocotools").ap > 0.999


def test_area_of_predicted_mask_is_its_pixel_count():
    """A thin mask in a large box is small; pycocotools' ``loadRes`` uses the box's area."""
    sliver = rle((10, 10, 100, 2))
    truth = coco(annotation(1, 1, (10, 10, 100, 60), segmentation=sliver, area=200))
    wrong = result(1, (10, 10, 100, 60)) | {"segmentation": rle((10, 50, 100, 2))}
    right = result(1, (10, 10, 100, 60), 0.5) | {"segmentation": sliver}
    assert evaluate_coco(truth, [wrong, right], "masks").ap_small == pytest.approx(0.5)


def test_annotation_with_only_a_box_is_a_crowd_region_for_masks():
    with_mask = annotation(1, 1, (10, 10, 20, 20))
    only_box = annotation(2, 1, (50, 30, 30, 30), segmentation=None)
    results = [result(1, (52, 32, 20, 20), 0.95), result(1, (10, 10, 20, 20), 0.9)]
    scores = evaluate_coco(coco(with_mask, only_box), results, "masks")
    assert scores.ap == pytest.approx(1)
    assert scores.classes[0].truths == 1
    assert evaluate_coco(coco(with_mask), results, "masks").ap == pytest.approx(0.5)
    assert evaluate_coco(coco(with_mask, only_box), results, "boxes").classes[0].truths == 2


def test_unlisted_categories_are_ignored():
    truth = coco(annotation(1, 1, (10, 10, 20, 20)), annotation(2, 9, (10, 10, 20, 20)))
    results = [result(1, (10, 10, 20, 20)), result(8, (10, 10, 20, 20))]
    assert evaluate_coco(truth, results, "boxes").ap > 0.999


def test_inputs_are_not_changed():
    truth, results = make_noisy_data()
    before = copy.deepcopy((truth, results))
    evaluate_coco(truth, results, "masks", "pycocotools")
    assert (truth, results) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "result 1: image 9 isn't in the ground truth"),
        ({"score": float("nan")}, "result 1 has a score that isn't finite"),
        ({"bbox": [1, 2, 3]}, "result 1 has no bbox of four finite numbers"),
        ({"segmentation": None}, "result 1 has no segmentation: only its box can be scored"),
        ({"segmentation": {"size": [80, 120], "counts": "0"}}, "result 1: run lengths of 0 pixels"),
        (
            {"segmentation": rle((1, 1, 5, 5), (81, 120))},
            r"result 1 has run lengths of size \[81, 120\]",
        ),
        ({"segmentation": [[1, 2, 3, 4]]}, "result 1 has a polygon that isn't three or more pairs"),
    ],
)
def test_invalid_prediction_is_named_in_the_error(change, message):
    truth = coco(annotation(1, 1, (10, 10, 20, 20)))
    results = [result(1, (10, 10, 20, 20)), result(1, (10, 10, 20, 20)) | change]
    on = "boxes" if "bbox" in change else "masks"
    with pytest.raises(DataError, match=message) as error:
        evaluate_coco(truth, results, on)
    assert "\n" not in str(error.value)


def test_invalid_ground_truth_is_named_in_the_error():
    annotation_without_category = annotation(17, 1, (10, 10, 20, 20))
    del annotation_without_category["category_id"]
    with pytest.raises(DataError, match="annotation 17 has no category_id"):
        evaluate_coco(coco(annotation_without_category), [], "boxes")
    truth_without_size = coco(annotation(1, 1, (10, 10, 20, 20)))
    del truth_without_size["images"][0]["height"]
    with pytest.raises(DataError, match="image 1 has no height and width"):
        evaluate_coco(truth_without_size, [], "masks")
    assert evaluate_coco(truth_without_size, [], "boxes").ap == 0


def test_missing_backend_is_an_error(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda module: module == "pycocotools" or None)
    truth = coco(annotation(1, 1, (10, 10, 20, 20)))
    assert evaluate_coco(truth, [], "boxes").backend == "pycocotools"
    with pytest.raises(StreamsegError, match="hotcoco isn't installed: pip install hotcoco"):
        evaluate_coco(truth, [], "boxes", "hotcoco")


@pytest.mark.parametrize("on", ["boxes", "masks"])
def test_confusion_matrix(on):
    truth = coco(
        annotation(1, 1, (10, 10, 20, 20)),
        annotation(2, 3, (50, 30, 20, 20)),
        annotation(3, 7, (90, 10, 20, 20)),
        annotation(4, 1, (0, 50, 40, 30), iscrowd=1),
        annotation(5, 7, (10, 10, 20, 20), image=2),
    )
    results = [
        result(1, (10, 10, 20, 20)),  # match
        result(1, (11, 10, 20, 20), 0.95),  # lower IoU, higher score: no object
        result(7, (50, 30, 20, 20)),  # a car predicted as a kite
        result(3, (5, 55, 10, 10)),  # in the crowd region
        result(3, (90, 60, 10, 10)),  # no object
        result(7, (90, 10, 20, 20), 0.4),  # below the minimum score
        result(1, (10, 10, 20, 20), 0.6, image=2),  # same IoU as the next, lower score
        result(7, (10, 10, 20, 20), 0.7, image=2),
    ]
    matrix = compute_confusion_matrix(truth, results, on)
    assert matrix.names == ("person", "car", "kite")
    expected = [
        # person car kite missed
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
        [2, 1, 0, 0],
    ]
    assert matrix.counts.tolist() == expected
    assert compute_confusion_matrix(truth, results, on, score=0.3).counts[2, 3] == 0


def test_confusion_matrix_matches_the_largest_ious_first():
    """The first prediction has a larger IoU with the person, so that the car is missed."""
    truth = coco(annotation(1, 1, (10, 10, 20, 20)), annotation(2, 3, (18, 10, 20, 20)))
    results = [result(1, (12, 10, 20, 20)), result(1, (5, 10, 20, 20))]
    matrix = compute_confusion_matrix(truth, results, "boxes")
    assert matrix.counts.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_confusion_matrix_of_empty_data():
    assert not compute_confusion_matrix(coco(), [], "masks").counts.any()


def test_coco_tables_and_json():
    truth, results = make_noisy_data()
    scores = [evaluate_coco(truth, results, on) for on in ("boxes", "masks")]
    table = make_coco_table("noise", scores)
    assert table.title == f"noise: 12 images, scored by {scores[0].backend}"
    assert {len(row) for row in table.rows} == {len(table.columns)} == {13}
    assert table.rows[1][:2] == ("masks", f"{100 * scores[1].ap:.1f}")
    classes = make_coco_class_table("noise", scores[0])
    assert [row[0] for row in classes.rows] == ["person", "car"]
    decoded = json.loads(json.dumps(scores_to_dict(scores[0]), allow_nan=False))
    assert decoded["ap"] == scores[0].ap
    assert decoded["classes"][2] == {
        "category_id": 7,
        "name": "kite",
        "ap": None,
        "ap50": None,
        "truths": 0,
    }
    assert len(decoded["curves"]["recall"]) == 101
    assert scores_to_dict(compute_confusion_matrix(truth, results, "boxes"))["names"] == [
        "person",
        "car",
        "kite",
    ]
