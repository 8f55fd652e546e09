"""Panoptic quality: panopticapi's own numbers on generated maps, and every mistake in files."""

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


class Files:
    """Truth and results on disk, to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        maps = np.load(FIXTURE / "synthetic.npz")
        for kind in ("gt", "pred"):
            (folder / kind).mkdir()
            for number, ids in enumerate(maps[kind]):
                self.paint(kind, number, ids)
        self.truth = self.entries("gt") | {"categories": SYNTHETIC["categories"]}
        self.results = self.entries("pred")

    def entries(self, kind: str) -> dict:
        return {
            "annotations": [
                {"image_id": 100 + number, "file_name": f"{number}.png", "segments_info": segments}
                for number, segments in enumerate(json.loads(json.dumps(SYNTHETIC[kind])))
            ]
        }

    def paint(self, kind: str, number: int, ids: np.ndarray) -> None:
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
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_the_reference_numbers(files: Files):
    scores = files.score()
    for name in ("All", "Things", "Stuff"):
        quality, expected = getattr(scores, name.lower()), EXPECTED["summary"][name]
        for number in ("pq", "sq", "rq"):
            assert getattr(quality, number) == pytest.approx(expected[number], abs=1e-12), name
    assert scores.images == 6
    assert len(scores.classes) == EXPECTED["summary"]["All"]["n"]
    for each in scores.classes:
        expected, counts = (EXPECTED[k][str(each.category_id)] for k in ("per_class", "counts"))
        for number in ("pq", "sq", "rq"):
            assert getattr(each.quality, number) == pytest.approx(expected[number], abs=1e-12)
        tally = each.tally
        assert (tally.matched, tally.wrong, tally.missed) == (
            counts["tp"],
            counts["fp"],
            counts["fn"],
        )
        assert tally.iou == pytest.approx(counts["iou"], abs=1e-12)
        assert each.thing is (each.category_id <= 5)


def test_the_truth_against_itself(files: Files):
    files.results = files.truth
    maps = np.load(FIXTURE / "synthetic.npz")["gt"]
    for number, ids in enumerate(maps):
        files.paint("pred", number, ids)
    scores = files.score()
    assert (scores.all.pq, scores.things.rq, scores.stuff.sq) == (1, 1, 1)


def test_ids_of_three_bytes(files: Files):
    """The same numbers with every id in the results above 65535."""
    for number, ids in enumerate(np.load(FIXTURE / "synthetic.npz")["pred"]):
        files.paint("pred", number, np.where(ids > 0, ids.astype(np.uint32) + 70000, 0))
        for segment in files.results["annotations"][number]["segments_info"]:
            segment["id"] += 70000
    assert files.score().all.pq == pytest.approx(EXPECTED["summary"]["All"]["pq"], abs=1e-12)


def small(
    files: Files, truth: np.ndarray, there: list[dict], found: np.ndarray, others: list[dict]
) -> PanopticScores:
    files.paint("gt", 0, truth)
    files.paint("pred", 0, found)
    picture = {"image_id": 1, "file_name": "0.png"}
    files.truth["annotations"] = [picture | {"segments_info": there}]
    files.results["annotations"] = [picture | {"segments_info": others}]
    return files.score()


def test_half_is_not_more_than_half(files: Files):
    """IoU .5 exactly is no match: a miss and a mistake; a pixel more is one."""
    truth, found = np.zeros((1, 30), int), np.zeros((1, 30), int)
    truth[0, :20], truth[0, 20:] = 7, 8  # nothing is void
    found[0, :10] = 3
    there = [{"id": 7, "category_id": 1}, {"id": 8, "category_id": 2}]
    scores = small(files, truth, there, found, [{"id": 3, "category_id": 1}])
    tally = scores.classes[0].tally
    assert (tally.matched, tally.wrong, tally.missed) == (0, 1, 1)
    found[0, :11] = 3
    scores = small(files, truth, there, found, [{"id": 3, "category_id": 1}])
    assert scores.classes[0].tally.iou == 11 / 20
    assert (scores.things.pq, scores.stuff) == (11 / 20 / 2, None)


def test_most_of_it_in_void_or_in_a_crowd_of_its_own(files: Files):
    """Of ten pixels, 3 are void and 3 a crowd of its category: more than half, no mistake."""
    truth, found = np.zeros((2, 30), int), np.zeros((2, 30), int)
    truth[0] = [0] * 3 + [5] * 3 + [6] * 24
    truth[1] = 6
    found[0, :10] = 3
    there = [{"id": 5, "category_id": 1, "iscrowd": 1}, {"id": 6, "category_id": 2}]
    scores = small(files, truth, there, found, [{"id": 3, "category_id": 1}])
    assert scores.classes[0].quality is None
    of_another = small(files, truth, there, found, [{"id": 3, "category_id": 3}])
    assert of_another.classes[2].tally.wrong == 1


def test_nothing_to_score(files: Files):
    files.truth["annotations"] = []
    scores = files.score()
    assert (scores.all, scores.things, scores.stuff, scores.images) == (None, None, None, 0)
    assert make_panoptic_table("none", scores).rows[0] == ("all", "-", "-", "-")
    assert scores_to_dict(scores)["all"] is None


def test_results_of_other_images_are_left_out(files: Files):
    files.truth["annotations"] = files.truth["annotations"][:2]
    assert files.score().images == 2


@pytest.mark.parametrize("image_id", ["frankfurt_{}_gtFine", "{}", "{}.0", float, "00{}"])
def test_values_as_tools_write_them(files: Files, image_id: object):
    spell = image_id.format if isinstance(image_id, str) else image_id
    for content in (files.truth, files.results):
        for entry in content["annotations"]:
            entry["image_id"] = spell(entry["image_id"])
            entry["file_name"] = ".\\" + entry["file_name"].replace(".png", ".jpg")
            for segment in entry["segments_info"]:
                segment |= {"id": f"{segment['id']}", "category_id": float(segment["category_id"])}
                segment["iscrowd"] = segment.get("iscrowd") or None
                if "area" in segment:
                    segment["area"] = float(segment["area"])
    assert files.score().all.pq == pytest.approx(EXPECTED["summary"]["All"]["pq"], abs=1e-12)


def test_pngs_are_called_as_their_images_where_entries_do_not_say(files: Files):
    for content in (files.truth, files.results):
        content["images"] = [
            {"id": entry["image_id"], "file_name": entry.pop("file_name").replace("png", "jpg")}
            for entry in content["annotations"]
        ]
    assert files.score().all.pq == pytest.approx(EXPECTED["summary"]["All"]["pq"], abs=1e-12)
    files.results["images"][2]["id"] = 999
    with pytest.raises(DataError, match=r"pred\.json: image 102: its entry has no file_name"):
        files.score()


def _unlisted(files: Files) -> None:
    del files.results["annotations"][1]["segments_info"][0]


def _unpainted(files: Files) -> None:
    files.results["annotations"][1]["segments_info"].append({"id": 7777, "category_id": 1})


def _unknown(files: Files) -> None:
    files.results["annotations"][1]["segments_info"][0]["category_id"] = 88


def _unknown_in_truth(files: Files) -> None:
    files.truth["annotations"][0]["segments_info"][0]["category_id"] = 88


def _missing(files: Files) -> None:
    del files.results["annotations"][2]


def _twice(files: Files) -> None:
    segments = files.results["annotations"][1]["segments_info"]
    segments.append(segments[0])


def _no_png(files: Files) -> None:
    (files.folder / "pred" / "1.png").unlink()


def _broken_png(files: Files) -> None:
    png = files.folder / "pred" / "1.png"
    png.write_bytes(png.read_bytes()[:60])


def _other_size(files: Files) -> None:
    files.paint("pred", 1, np.load(FIXTURE / "synthetic.npz")["pred"][1][:-2])


def _no_segments(files: Files) -> None:
    del files.results["annotations"][1]["segments_info"]


def _other_area(files: Files) -> None:
    files.truth["annotations"][1]["segments_info"][0]["area"] += 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_unlisted, r"pred/1.png: segment \d+ isn't in segments_info"),
        (_unpainted, "pred/1.png: segment 7777 of segments_info has no pixels"),
        (
            _unknown,
            r"pred.json: image 101: segment \d+ has category 88, which isn't in the ground truth",
        ),
        (_unknown_in_truth, r"gt.json: image 100: segment \d+ has category 88"),
        (_missing, "pred.json: there is no result for image 102"),
        (_twice, r"pred/1.png: segment \d+ is in segments_info twice"),
        (_no_png, "pred/1.png"),
        (_broken_png, "pred/1.png"),
        (_other_size, r"pred/1.png: is \(94, 128\), but .*gt/1.png is \(96, 128\)"),
        (_no_segments, "pred.json: isn't a panoptic JSON: .*segments_info"),
        (_other_area, r"gt/1.png: segment \d+ has \d+ pixels, and \d+ in segments_info"),
    ],
)
def test_mistakes_in_files(files: Files, spoil: Callable[[Files], None], message: str):
    spoil(files)
    with pytest.raises(DataError, match=message) as error:
        files.score()
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_not_json(files: Files, tmp_path: Path):
    files.score()
    with pytest.raises(DataError, match=r"nowhere.json: there is no such file"):
        evaluate_panoptic(tmp_path / "nowhere.json", tmp_path, tmp_path / "pred.json", tmp_path)
    (tmp_path / "pred.json").write_text("[1, 2")
    with pytest.raises(DataError, match=r"pred.json: isn't a panoptic JSON"):
        evaluate_panoptic(tmp_path / "gt.json", tmp_path, tmp_path / "pred.json", tmp_path)


def test_tables_and_json(files: Files):
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
    plain = json.loads(json.dumps(scores_to_dict(scores), allow_nan=False))
    assert plain["things"]["pq"] == scores.things.pq
    assert plain["classes"][0]["tally"]["matched"] == 3


def test_real_truth_against_itself():
    folder = SHARED / "data" / "panoptic" / "train2017"
    if not folder.is_dir():
        pytest.skip(f"{folder} isn't there (not ours to ship)")
    scores = evaluate_panoptic(
        folder / "panoptic.json",
        folder / "panoptic",
        folder / "panoptic.json",
        folder / "panoptic",
    )
    assert (scores.all.pq, scores.things.pq, scores.stuff.pq, scores.images) == (1, 1, 1, 100)
