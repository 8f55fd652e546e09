"""Panoptic quality: panopticapi's numbers on generated maps, and invalid files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.paths import SHARED, TESTS

from streamseg.errors import DataError
from streamseg.evaluation import (
    PanopticScores,
    evaluate_panoptic,
)
from streamseg.evaluation.report import scores_to_dict
from streamseg.evaluation.tables import make_panoptic_class_table, make_panoptic_table

FIXTURE = TESTS / "fixtures" / "panoptic_quality"
SYNTHETIC = json.loads((FIXTURE / "synthetic.json").read_text())
EXPECTED = SYNTHETIC["expected"]


class PanopticFiles:
    """Ground truth and predictions in files; tests modify them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        maps = np.load(FIXTURE / "synthetic.npz")
        for kind in ("gt", "pred"):
            (folder / kind).mkdir()
            for number, ids in enumerate(maps[kind]):
                self.write_png(kind, number, ids)
        self.truth = self.entries("gt") | {"categories": SYNTHETIC["categories"]}
        self.results = self.entries("pred")

    def entries(self, kind: str) -> dict:
        return {
            "annotations": [
                {"image_id": 100 + number, "file_name": f"{number}.png", "segments_info": segments}
                for number, segments in enumerate(json.loads(json.dumps(SYNTHETIC[kind])))
            ]
        }

    def write_png(self, kind: str, number: int, ids: np.ndarray) -> None:
        ids = ids.astype(np.uint32)
        blue_first = np.stack([ids >> 16 & 255, ids >> 8 & 255, ids & 255], axis=-1)
        assert cv2.imwrite(str(self.folder / kind / f"{number}.png"), blue_first.astype(np.uint8))

    def score(self) -> PanopticScores:
        (self.folder / "gt.json").write_text(json.dumps(self.truth))
        (self.folder / "pred.json").write_text(json.dumps(self.results))
        return evaluate_panoptic(
            self.folder / "gt.json",
            self.folder / "gt",
            self.folder / "pred.json",
            self.folder / "pred",
        )


@pytest.fixture
def files(tmp_path: Path) -> PanopticFiles:
    return PanopticFiles(tmp_path)


def test_scores_match_panopticapi(files: PanopticFiles):
    scores = files.score()
    for name in ("All", "Things", "Stuff"):
        quality, expected = getattr(scores, name.lower()), EXPECTED["summary"][name]
        for number in ("pq", "sq", "rq"):
            assert getattr(quality, number) == pytest.approx(expected[number], abs=1e-12), name
    assert scores.images == 6
    assert len(scores.classes) == EXPECTED["summary"]["All"]["n"]
    for class_score in scores.classes:
        expected, counts = (
            EXPECTED[k][str(class_score.category_id)] for k in ("per_class", "counts")
        )
        for number in ("pq", "sq", "rq"):
            assert getattr(class_score.quality, number) == pytest.approx(
                expected[number], abs=1e-12
            )
        tally = class_score.tally
        assert (tally.matched, tally.wrong, tally.missed) == (
            counts["tp"],
            counts["fp"],
            counts["fn"],
        )
        assert tally.iou == pytest.approx(counts["iou"], abs=1e-12)
        assert class_score.thing is (class_score.category_id <= 5)


def test_ground_truth_as_prediction_is_perfect(files: PanopticFiles):
    files.results = files.truth
    maps = np.load(FIXTURE / "synthetic.npz")["gt"]
    for number, ids in enumerate(maps):
        files.write_png("pred", number, ids)
    scores = files.score()
    assert (scores.all.pq, scores.things.rq, scores.stuff.sq) == (1, 1, 1)


def test_ids_may_use_all_three_channels(files: PanopticFiles):
    """Scores do not change if all predicted ids are above 65535."""
    for number, ids in enumerate(np.load(FIXTURE / "synthetic.npz")["pred"]):
        files.write_png("pred", number, np.where(ids > 0, ids.astype(np.uint32) + 70000, 0))
        for segment in files.results["annotations"][number]["segments_info"]:
            segment["id"] += 70000
    assert files.score().all.pq == pytest.approx(EXPECTED["summary"]["All"]["pq"], abs=1e-12)


def score_one_image(
    files: PanopticFiles,
    truth: np.ndarray,
    true_segments: list[dict],
    prediction: np.ndarray,
    predicted_segments: list[dict],
) -> PanopticScores:
    files.write_png("gt", 0, truth)
    files.write_png("pred", 0, prediction)
    image = {"image_id": 1, "file_name": "0.png"}
    files.truth["annotations"] = [image | {"segments_info": true_segments}]
    files.results["annotations"] = [image | {"segments_info": predicted_segments}]
    return files.score()


def test_match_needs_an_iou_above_one_half(files: PanopticFiles):
    """An IoU of exactly 0.5 is not a match; with one more pixel it is."""
    truth, prediction = np.zeros((1, 30), int), np.zeros((1, 30), int)
    truth[0, :20], truth[0, 20:] = 7, 8  # no void pixels
    prediction[0, :10] = 3
    true_segments = [{"id": 7, "category_id": 1}, {"id": 8, "category_id": 2}]
    scores = score_one_image(files, truth, true_segments, prediction, [{"id": 3, "category_id": 1}])
    tally = scores.classes[0].tally
    assert (tally.matched, tally.wrong, tally.missed) == (0, 1, 1)
    prediction[0, :11] = 3
    scores = score_one_image(files, truth, true_segments, prediction, [{"id": 3, "category_id": 1}])
    assert scores.classes[0].tally.iou == 11 / 20
    assert (scores.things.pq, scores.stuff) == (11 / 20 / 2, None)


def test_prediction_mostly_in_void_or_crowd_is_ignored(files: PanopticFiles):
    """Of ten pixels, 3 are void and 3 belong to a crowd of the category: more than half."""
    truth, prediction = np.zeros((2, 30), int), np.zeros((2, 30), int)
    truth[0] = [0] * 3 + [5] * 3 + [6] * 24
    truth[1] = 6
    prediction[0, :10] = 3
    true_segments = [{"id": 5, "category_id": 1, "iscrowd": 1}, {"id": 6, "category_id": 2}]
    scores = score_one_image(files, truth, true_segments, prediction, [{"id": 3, "category_id": 1}])
    assert scores.classes[0].quality is None
    other_category = score_one_image(
        files, truth, true_segments, prediction, [{"id": 3, "category_id": 3}]
    )
    assert other_category.classes[2].tally.wrong == 1


def test_scores_without_images_are_none(files: PanopticFiles):
    files.truth["annotations"] = []
    scores = files.score()
    assert (scores.all, scores.things, scores.stuff, scores.images) == (None, None, None, 0)
    assert make_panoptic_table("none", scores).rows[0] == ("all", "-", "-", "-")
    assert scores_to_dict(scores)["all"] is None


def test_results_of_other_images_are_ignored(files: PanopticFiles):
    files.truth["annotations"] = files.truth["annotations"][:2]
    assert files.score().images == 2


@pytest.mark.parametrize("image_id", ["frankfurt_{}_gtFine", "{}", "{}.0", float, "00{}"])
def test_values_are_normalized(files: PanopticFiles, image_id: object):
    convert = image_id.format if isinstance(image_id, str) else image_id
    for content in (files.truth, files.results):
        for entry in content["annotations"]:
            entry["image_id"] = convert(entry["image_id"])
            entry["file_name"] = ".\\" + entry["file_name"].replace(".png", ".jpg")
            for segment in entry["segments_info"]:
                segment |= {"id": f"{segment['id']}", "category_id": float(segment["category_id"])}
                segment["iscrowd"] = segment.get("iscrowd") or None
                if "area" in segment:
                    segment["area"] = float(segment["area"])
    assert files.score().all.pq == pytest.approx(EXPECTED["summary"]["All"]["pq"], abs=1e-12)


def test_png_name_defaults_to_image_name(files: PanopticFiles):
    for content in (files.truth, files.results):
        content["images"] = [
            {"id": entry["image_id"], "file_name": entry.pop("file_name").replace("png", "jpg")}
            for entry in content["annotations"]
        ]
    assert files.score().all.pq == pytest.approx(EXPECTED["summary"]["All"]["pq"], abs=1e-12)
    files.results["images"][2]["id"] = 999
    with pytest.raises(DataError, match=r"pred\.json: image 102: its entry has no file_name"):
        files.score()


def _unlisted_segment(files: PanopticFiles) -> None:
    del files.results["annotations"][1]["segments_info"][0]


def _segment_without_pixels(files: PanopticFiles) -> None:
    files.results["annotations"][1]["segments_info"].append({"id": 7777, "category_id": 1})


def _unknown_category(files: PanopticFiles) -> None:
    files.results["annotations"][1]["segments_info"][0]["category_id"] = 88


def _unknown_category_in_ground_truth(files: PanopticFiles) -> None:
    files.truth["annotations"][0]["segments_info"][0]["category_id"] = 88


def _missing_result(files: PanopticFiles) -> None:
    del files.results["annotations"][2]


def _repeated_segment(files: PanopticFiles) -> None:
    segments = files.results["annotations"][1]["segments_info"]
    segments.append(segments[0])


def _missing_png(files: PanopticFiles) -> None:
    (files.folder / "pred" / "1.png").unlink()


def _damaged_png(files: PanopticFiles) -> None:
    png = files.folder / "pred" / "1.png"
    png.write_bytes(png.read_bytes()[:60])


def _other_size(files: PanopticFiles) -> None:
    files.write_png("pred", 1, np.load(FIXTURE / "synthetic.npz")["pred"][1][:-2])


def _missing_segments_info(files: PanopticFiles) -> None:
    del files.results["annotations"][1]["segments_info"]


def _other_area(files: PanopticFiles) -> None:
    files.truth["annotations"][1]["segments_info"][0]["area"] += 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_unlisted_segment, r"pred/1.png: segment \d+ isn't in segments_info"),
        (_segment_without_pixels, "pred/1.png: segment 7777 of segments_info has no pixels"),
        (
            _unknown_category,
            r"pred.json: image 101: segment \d+ has category 88, which isn't in the ground truth",
        ),
        (_unknown_category_in_ground_truth, r"gt.json: image 100: segment \d+ has category 88"),
        (_missing_result, "pred.json: there is no result for image 102"),
        (_repeated_segment, r"pred/1.png: segment \d+ is in segments_info twice"),
        (_missing_png, "pred/1.png"),
        (_damaged_png, "pred/1.png"),
        (_other_size, r"pred/1.png: is \(94, 128\), but .*gt/1.png is \(96, 128\)"),
        (_missing_segments_info, "pred.json: isn't a panoptic JSON: .*segments_info"),
        (_other_area, r"gt/1.png: segment \d+ has \d+ pixels, and \d+ in segments_info"),
    ],
)
def test_invalid_file_is_an_error(
    files: PanopticFiles, damage: Callable[[PanopticFiles], None], message: str
):
    damage(files)
    with pytest.raises(DataError, match=message) as caught:
        files.score()
    assert "\n" not in str(caught.value)


def test_missing_or_malformed_json_is_an_error(files: PanopticFiles, tmp_path: Path):
    files.score()
    with pytest.raises(DataError, match=r"nowhere.json: there is no such file"):
        evaluate_panoptic(tmp_path / "nowhere.json", tmp_path, tmp_path / "pred.json", tmp_path)
    (tmp_path / "pred.json").write_text("[1, 2")
    with pytest.raises(DataError, match=r"pred.json: isn't a panoptic JSON"):
        evaluate_panoptic(tmp_path / "gt.json", tmp_path, tmp_path / "pred.json", tmp_path)


def test_panoptic_tables_and_json(files: PanopticFiles):
    scores = files.score()
    summary, classes = (
        make_panoptic_table("maps", scores),
        make_panoptic_class_table("maps", scores),
    )
    assert summary.rows[0] == ("all", "55.4", "72.4", "74.8")
    assert summary.rows[1] == ("things", "38.8", "67.6", "56.9")
    assert summary.rows[2] == ("stuff", "76.0", "78.4", "97.2")
    assert classes.rows[0] == ("c1", "thing", "40.5", "67.5", "60.0", "3", "2", "2")
    assert {len(row) for row in classes.rows} == {len(classes.columns)}
    decoded = json.loads(json.dumps(scores_to_dict(scores), allow_nan=False))
    assert decoded["things"]["pq"] == scores.things.pq
    assert decoded["classes"][0]["tally"]["matched"] == 3


def test_real_ground_truth_as_prediction_is_perfect():
    folder = SHARED / "data" / "panoptic" / "train2017"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: it is not part of the project")
    scores = evaluate_panoptic(
        folder / "panoptic.json",
        folder / "panoptic",
        folder / "panoptic.json",
        folder / "panoptic",
    )
    assert (scores.all.pq, scores.things.pq, scores.stuff.pq, scores.images) == (1, 1, 1, 100)
