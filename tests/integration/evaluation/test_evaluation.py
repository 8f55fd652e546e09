"""``streamseg eval`` end to end: scores, output files, errors and signals."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from support.annotations import (
    make_coco_content,
    write_coco,
    write_image,
    write_json,
    write_panoptic,
)
from support.commands import CommandResult, Run, command, environment
from support.evaluation import (
    INPUT_SIZE,
    MIN_SCORE,
    make_random_model,
    write_self_labeled_dataset,
    write_weights,
)
from support.paths import ROOT

from streamseg.cli.terminal import ProgressReport
from streamseg.config import Thresholds
from streamseg.config.training import CocoData, load_evaluation_config
from streamseg.datasets import dataset_to_coco, open_dataset
from streamseg.evaluation import evaluate_coco
from streamseg.evaluation.predictions import predict_dataset
from streamseg.evaluation.report import scores_to_dict
from streamseg.models import load_model
from streamseg.models.nanomask.segmenter import NanoMask

EXAMPLES = ROOT / "configs" / "eval"
SCORE_NAMES = "ap ap50 ap75 ap_small ap_medium ap_large ar1 ar10 ar100 ar_small ar_medium ar_large"
pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with weights and a dataset of their own predictions."""
    path = tmp_path_factory.mktemp("eval")
    model = make_random_model()
    write_weights(model, path / "wild.safetensors")
    write_self_labeled_dataset(path, model, count=4)
    return path


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no plots, which take longer than the evaluations here."""
    for name in ("plot_precision_recall", "plot_confusion"):
        monkeypatch.setattr(f"streamseg.evaluation.report_files.{name}", lambda *_: None)


def write_config(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def write_own_config(folder: Path, path: Path, **more: object) -> Path:
    """Write a config that evaluates the weights in ``folder`` on the dataset there."""
    weights = str(folder / "wild.safetensors")
    dataset = {"format": "coco", "images": "images", "annotations": "own.json"}
    return write_config(
        path,
        model={"name": "nanomask", "weights": weights, "input_size": INPUT_SIZE},
        data={"root": str(folder), "val": [dataset]},
        batch=1,
        **more,
    )


def error_line(result: CommandResult, code: int = 1) -> str:
    """Return the error message of a failed command, which must be one line."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("streamseg: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0].removeprefix("streamseg: ")


# Scores


@pytest.mark.usefixtures("without_plots")
def test_scores_match_the_library(streamseg: Run, folder: Path, tmp_path: Path) -> None:
    config = write_own_config(folder, tmp_path / "eval.yaml")
    result = streamseg("eval", config, "--out", "out", "--json", "numbers.json")
    assert result.returncode == 0, result.stderr
    dataset = open_dataset(CocoData(images="images", annotations="own.json"), folder)
    model = load_model("nanomask", folder / "wild.safetensors", input_size=INPUT_SIZE)
    rows = predict_dataset(
        model, dataset, Thresholds(score=MIN_SCORE), batch=1, progress=lambda *_: None
    ).results
    report = json.loads((tmp_path / "numbers.json").read_text())
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["through_service"] is False
    (scores,) = report["datasets"]
    for on in ("boxes", "masks"):
        expected = scores_to_dict(evaluate_coco(dataset_to_coco(dataset), rows, on))
        assert scores[on] == expected
        assert 0.2 < scores[on]["ap"] < 0.95
        assert set(SCORE_NAMES.split()) < scores[on].keys()
    assert scores["images"] == 4
    assert scores["unknown"] == ["cup"]
    assert json.loads((tmp_path / "out" / "own" / "results.json").read_text()) == rows


def test_tables_contain_every_score_and_class(streamseg: Run, folder: Path, tmp_path: Path) -> None:
    config = write_own_config(folder, tmp_path / "eval.yaml")
    result = streamseg("eval", config, "--json", "numbers.json")
    (scores,) = json.loads((tmp_path / "numbers.json").read_text())["datasets"]
    text = " ".join(result.stdout.split())
    assert f"scored by {scores['boxes']['backend']}" in text
    lines = [line.strip() for line in result.stdout.splitlines()]
    rules = [number for number, line in enumerate(lines) if line.startswith("─")]
    bodies = [list(takewhile(bool, lines[number + 1 :])) for number in rules]
    cells = [re.split(r"  +", line) for body in bodies for line in body]
    (score_rows,) = [rows for rows in [cells[:12]] if rows[0][0] == "AP" and rows[11][0] == "ARl"]
    percents = [
        [
            "-" if scores[on][key] is None else f"{100 * scores[on][key]:.1f}"
            for on in ("boxes", "masks")
        ]
        for key in SCORE_NAMES.split()
    ]
    assert [row[1:] for row in score_rows] == percents
    assert [row[0] for row in cells[12:]] == ["cup", "box", "disc"] * 2  # ids ascending
    assert "own: classes that nanomask doesn't have: cup" in result.stderr


def test_out_contains_plots_and_results(streamseg: Run, folder: Path, tmp_path: Path) -> None:
    assert (
        streamseg("eval", write_own_config(folder, tmp_path / "e.yaml"), "--out", "out").returncode
        == 0
    )
    names = ("precision-recall-boxes.png", "precision-recall-masks.png", "confusion.png")
    for name in names:
        with Image.open(tmp_path / "out" / "own" / name) as image:
            image.verify()
    assert sorted(p.name for p in (tmp_path / "out" / "own").iterdir()) == sorted(
        [*names, "results.json"]
    )


@pytest.mark.slow
def test_through_service_matches_direct_evaluation_with_same_settings(
    streamseg: Run, folder: Path, tmp_path: Path
) -> None:
    """Only a service uses class-agnostic suppression by default."""
    iou = NanoMask.class_agnostic_iou
    config = write_own_config(folder, tmp_path / "eval.yaml")

    def evaluate(*options: str) -> dict[str, Any]:
        assert streamseg("eval", config, "--json", "n.json", *options).returncode == 0
        return json.loads((tmp_path / "n.json").read_text())

    served = evaluate("--through-service")
    assert (served["through_service"], served["class_agnostic_iou"]) == (True, iou)
    published = evaluate()
    assert (published["through_service"], published["class_agnostic_iou"]) == (False, None)
    assert len(published["datasets"][0]["boxes"]["curves"]["recall"]) == 101
    same_settings = evaluate("--set", f"class_agnostic_iou={iou}")
    assert served["datasets"] == same_settings["datasets"] != published["datasets"]


def test_options_override_weights_and_model_of_the_config(
    streamseg: Run, folder: Path, tmp_path: Path
) -> None:
    config = write_own_config(folder, tmp_path / "eval.yaml")
    weights = folder / "wild.safetensors"
    result = streamseg(
        *("eval", config, "--weights", weights, "--json", "numbers.json"),
        *("--set", "model.weights=gone.pt", "--set", "most=7", "--set", "least_score=0.5"),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "numbers.json").read_text())
    assert report["model"]["weights"] == str(weights)
    assert (report["most"], report["least_score"]) == (7, 0.5)
    result_of_unknown_model = streamseg("eval", config, "--model", "nanomusk")
    assert "did you mean nanomask" in error_line(result_of_unknown_model, 2)


def test_only_classes_annotated_everywhere_are_evaluated(
    streamseg: Run, folder: Path, tmp_path: Path
) -> None:
    config = write_own_config(folder, tmp_path / "eval.yaml")
    result = streamseg("eval", config, "--json", "n.json", "--set", "data.val.0.annotated=[disc]")
    assert result.returncode == 0, result.stderr
    (scores,) = json.loads((tmp_path / "n.json").read_text())["datasets"]
    assert [each["name"] for each in scores["boxes"]["classes"]] == ["disc"]
    assert scores["boxes"]["ap"] == scores["boxes"]["classes"][0]["ap"]
    assert "own: classes of nanomask that aren't annotated: box" in result.stderr


def test_note_counts_many_unannotated_classes(streamseg: Run, folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "own.json").read_text())
    for row in content["categories"]:
        row["name"] = {"disc": "person", "box": "car"}.get(row["name"], row["name"])
    shutil.copytree(folder, tmp_path / "coco")
    write_json(tmp_path / "coco" / "own.json", content)
    config = write_own_config(tmp_path / "coco", tmp_path / "eval.yaml")
    result = streamseg("eval", config, "--weights", "none")
    assert result.returncode == 0, result.stderr
    assert "own: classes of nanomask that aren't annotated: 77 classes" in result.stderr


def test_dataset_without_masks_is_evaluated_on_boxes(
    streamseg: Run, folder: Path, tmp_path: Path
) -> None:
    content = json.loads((folder / "own.json").read_text())
    for row in content["annotations"]:
        del row["segmentation"]
    shutil.copytree(folder, tmp_path / "boxes")
    write_json(tmp_path / "boxes" / "own.json", content)
    config = write_own_config(tmp_path / "boxes", tmp_path / "eval.yaml")
    result = streamseg("eval", config, "--out", "out", "--json", "n.json")
    assert result.returncode == 0, result.stderr
    (scores,) = json.loads((tmp_path / "n.json").read_text())["datasets"]
    assert "masks" not in scores
    assert scores["confusion"]["on"] == "boxes"
    assert 0.2 < scores["boxes"]["ap"] < 0.95
    assert not (tmp_path / "out" / "own" / "precision-recall-masks.png").exists()


@pytest.mark.usefixtures("without_plots")
def test_several_datasets_are_evaluated_separately(
    streamseg: Run, folder: Path, tmp_path: Path
) -> None:
    config = write_own_config(folder, tmp_path / "eval.yaml")
    raw = yaml.safe_load(config.read_text())
    url = "test:?size=96x64&frames=4&objects=3&seed=2"
    raw["data"]["val"].append({"format": "pattern", "url": url, "name": "a/pattern"})
    write_config(config, **raw)
    result = streamseg("eval", config, "--out", "out", "--through-service")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [each["name"] for each in report["datasets"]] == ["own", "a/pattern"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["own", "pattern", "report.json"]


# Evaluations without a model


def test_tracking_example_runs_unchanged(
    streamseg: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamseg.evaluation.evaluator.load_model", None)
    result = streamseg("eval", EXAMPLES / "tracking.yaml", "--json", "n.json", "--out", "out")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "n.json").read_text())
    (task,) = report["tracking"]
    assert task["name"] == "pattern"
    assert set(task["classes"]) == {"disc", "box"}
    assert 0.8 < task["overall"]["hota"] < 1
    assert task["overall"]["switches"] == 0
    assert report["model"] is None
    assert "HOTA" in result.stdout
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.json"]


def test_class_without_tracks_is_in_the_json(streamseg: Run, tmp_path: Path) -> None:
    classes = "tracking.0.classes={disc: 1, bus: 8}"
    result = streamseg("eval", EXAMPLES / "tracking.yaml", "--json", "n.json", "--set", classes)
    assert result.returncode == 0, result.stderr
    (task,) = json.loads((tmp_path / "n.json").read_text())["tracking"]
    assert task["classes"]["bus"]["tracks"] == 0


def test_panoptic_example_runs(streamseg: Run, tmp_path: Path) -> None:
    write_panoptic(tmp_path / "data")
    settings = {
        "root": tmp_path / "data",
        "panoptic.0.truth": "set.json",
        "panoptic.0.truth_segments": "segments",
        "panoptic.0.results": "set.json",
        "panoptic.0.result_segments": "segments",
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    result = streamseg("eval", EXAMPLES / "panoptic.yaml", "--json", "n.json", *sets)
    assert result.returncode == 0, result.stderr
    (task,) = json.loads((tmp_path / "n.json").read_text())["panoptic"]
    assert (task["name"], task["images"]) == ("panoptic", 1)
    assert task["all"]["pq"] == 1
    assert "PQ" in result.stdout


def test_coco_example_runs(streamseg: Run, folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    shutil.copytree(folder / "images", root / "val2017")
    (root / "annotations").mkdir()
    shutil.copy(folder / "own.json", root / "annotations" / "instances_val2017.json")
    result = streamseg(
        *("eval", EXAMPLES / "coco.yaml", "--weights", folder / "wild.safetensors"),
        *("--set", f"data.root={root}", "--set", f"model.input_size={INPUT_SIZE}"),
        *("--json", "n.json"),
    )
    assert result.returncode == 0, result.stderr
    (scores,) = json.loads((tmp_path / "n.json").read_text())["datasets"]
    assert scores["name"] == "instances_val2017"
    assert 0.2 < scores["masks"]["ap"] < 0.95


def test_own_data_example_runs(streamseg: Run, folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "own"
    shutil.copytree(folder / "images", root / "val")
    shutil.copy(folder / "own.json", root / "val.json")
    result = streamseg(
        *("eval", EXAMPLES / "own-data.yaml", "--weights", folder / "wild.safetensors"),
        *("--set", f"data.root={root}", "--set", f"model.input_size={INPUT_SIZE}"),
        *("--json", "n.json"),
    )
    assert result.returncode == 0, result.stderr
    (scores,) = json.loads((tmp_path / "n.json").read_text())["datasets"]
    assert 0.2 < scores["masks"]["ap"] < 0.95


def test_every_example_is_valid_and_run_by_a_test() -> None:
    files = sorted(EXAMPLES.glob("*.yaml"))
    names = [
        "coco",
        "nanomask",
        "own-data",
        "panoptic-model",
        "panoptic",
        "tracking",
    ]
    assert [file.stem for file in files] == names
    for file in files:
        load_evaluation_config(file, [])


# --check


def test_check_counts_images_and_annotations(streamseg: Run, tmp_path: Path) -> None:
    write_coco(tmp_path / "data")
    dataset = {"format": "coco", "images": "images", "annotations": "set.json"}
    bare = write_config(tmp_path / "bare.yaml", root="data", train=[dataset], val=[dataset])
    result = streamseg("eval", "--check", bare)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "3 images, 6 annotations: no problems\n"


def test_check_lists_every_problem_of_a_training_config(streamseg: Run, tmp_path: Path) -> None:
    content = make_coco_content()
    content["annotations"][1]["category_id"] = 55
    content["annotations"][3]["bbox"] = [0, 0, -3, 5]
    write_coco(tmp_path / "data", content)
    (tmp_path / "data" / "images" / "empty.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = {"format": "coco", "images": "images", "annotations": "set.json"}
    config = write_config(
        tmp_path / "train.yaml",
        model={"name": "nanomask"},
        epochs=3,
        data={"root": "data", "train": [dataset]},
    )
    result = streamseg("eval", "--check", config)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("set: image 3, annotation 101: ")
    assert "55" in lines[0]
    assert lines[1].startswith("set: image 12, annotation 103: ")
    assert lines[2].startswith("set: image 40: ")
    assert "empty.png" in lines[2]
    assert result.stderr == f"streamseg: {config}: 3 problems\n"


@pytest.mark.parametrize(
    "option", [("--weights", "none"), ("--through-service",), ("--out", "o"), ("--json", "n.json")]
)
def test_check_rejects_options_that_it_would_ignore(
    streamseg: Run, tmp_path: Path, option: tuple[str, ...]
) -> None:
    config = write_config(tmp_path / "x.yaml", val=[{"format": "pattern", "url": "test:?frames=1"}])
    message = error_line(streamseg("eval", "--check", config, *option), 2)
    assert message == "--check can't be combined with other options: remove them"


# Errors


def test_missing_config_is_an_error(streamseg: Run) -> None:
    assert error_line(streamseg("eval", "gone.yaml"), 2) == "gone.yaml: there is no such file"


def test_unknown_key_is_named_with_its_path(streamseg: Run, folder: Path, tmp_path: Path) -> None:
    config = write_own_config(folder, tmp_path / "eval.yaml")
    message = error_line(streamseg("eval", config, "--set", "data.val.0.imges=x"), 2)
    assert message == f"{config}: data.val[0].imges: unknown key; did you mean 'images'?"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "nothing to measure: name data, panoptic or tracking"),
        ({"data": {"train": [{"format": "pattern", "url": "test:"}]}}, "data.val is empty"),
        ({"data": {}}, "name at least one dataset"),
        ({"most": 0}, "most: "),
    ],
)
def test_config_without_anything_to_evaluate_is_an_error(
    streamseg: Run, tmp_path: Path, content: dict, expected: str
) -> None:
    config = write_config(tmp_path / "eval.yaml", **content)
    message = error_line(streamseg("eval", config), 2)
    assert message.startswith(f"{config}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (("--through-service",), "--through-service needs data, and the config has none"),
        (
            ("--weights", "none"),
            "--model, --weights and --class-names need data, and the config has none",
        ),
        (
            ("--model", "nanomask"),
            "--model, --weights and --class-names need data, and the config has none",
        ),
    ],
)
def test_options_that_need_data_are_rejected_without_data(
    streamseg: Run, option: tuple[str, ...], expected: str
) -> None:
    assert error_line(streamseg("eval", EXAMPLES / "tracking.yaml", *option), 2) == expected


def test_dataset_with_problems_is_an_error(streamseg: Run, folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "own.json").read_text())
    content["annotations"][0]["image_id"] = 4321
    shutil.copytree(folder, tmp_path / "bad")
    write_json(tmp_path / "bad" / "own.json", content)
    config = write_own_config(tmp_path / "bad", tmp_path / "eval.yaml")
    message = error_line(streamseg("eval", config))
    assert message.startswith("own: 1 problem, the first: ")
    assert "4321" in message
    assert "--check" in message


def test_rows_with_problems_are_skipped_on_request(
    streamseg: Run, folder: Path, tmp_path: Path
) -> None:
    content = json.loads((folder / "own.json").read_text())
    content["annotations"][0]["image_id"] = 4321
    shutil.copytree(folder, tmp_path / "bad")
    image_file = sorted((tmp_path / "bad" / "images").iterdir())[3]
    image_file.write_bytes(b"not an image")
    write_json(tmp_path / "bad" / "own.json", content)
    config = write_own_config(tmp_path / "bad", tmp_path / "eval.yaml")
    sets = ("--set", "data.problems=skip", "--set", "model.device=cpu")
    result = streamseg("eval", config, *sets, "--json", "numbers.json")
    assert result.returncode == 0, result.stderr
    assert "own: skipped 2 rows with problems (data.problems: skip):" in result.stderr
    (dataset,) = json.loads((tmp_path / "numbers.json").read_text())["datasets"]
    assert dataset["images"] == len(content["images"]) - 1
    first = content["annotations"][0]["id"]
    assert dataset["skipped"][0] == {
        "reason": "there is no such image",
        "count": 1,
        "first": [f"image 4321, annotation {first}"],
    }
    assert dataset["skipped"][1]["reason"] == "image can't be used"


def test_dataset_of_only_crowds_is_an_error(streamseg: Run, folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "own.json").read_text())
    for row in content["annotations"]:
        row["iscrowd"] = 1
    shutil.copytree(folder, tmp_path / "bad")
    write_json(tmp_path / "bad" / "own.json", content)
    message = error_line(
        streamseg("eval", write_own_config(tmp_path / "bad", tmp_path / "eval.yaml"))
    )
    count = len(content["annotations"])
    assert message.startswith(
        f"own: there is nothing to measure with: all of its {count} annotations"
    )


@pytest.mark.usefixtures("without_plots")
def test_text_image_ids_are_kept_in_the_results(
    streamseg: Run, folder: Path, tmp_path: Path
) -> None:
    content = json.loads((folder / "own.json").read_text())
    names = {row["id"]: f"frankfurt_{row['id']:06}" for row in content["images"]}
    for row in content["images"]:
        row["id"] = names[row["id"]]
    for row in content["annotations"]:
        row["image_id"] = names[row["image_id"]]
    shutil.copytree(folder, tmp_path / "text")
    write_json(tmp_path / "text" / "own.json", content)
    scores = {}
    for name, root in (("plain", folder), ("text", tmp_path / "text")):
        config = write_own_config(root, tmp_path / f"{name}.yaml")
        result = streamseg("eval", config, "--json", f"{name}.json", "--out", name)
        assert result.returncode == 0, result.stderr
        (scores[name],) = json.loads((tmp_path / f"{name}.json").read_text())["datasets"]
        rows = json.loads((tmp_path / name / "own" / "results.json").read_text())
        assert {type(row["image_id"]) for row in rows} == {str if name == "text" else int}
    assert scores["text"] == scores["plain"]


def test_two_datasets_of_one_name_are_an_error(
    streamseg: Run, folder: Path, tmp_path: Path
) -> None:
    config = write_own_config(folder, tmp_path / "eval.yaml")
    raw = yaml.safe_load(config.read_text())
    raw["data"]["val"] *= 2
    write_config(config, **raw)
    message = error_line(streamseg("eval", config), 2)
    assert message == "data.val: two datasets are named 'own': give each a name"


def test_weights_of_another_architecture_are_an_error(
    streamseg: Run, folder: Path, tmp_path: Path
) -> None:
    config = write_own_config(folder, tmp_path / "eval.yaml")
    message = error_line(streamseg("eval", config, "--model", "mask_rcnn_r50_fpn"))
    assert "wild.safetensors" in message
    assert "nanomask" in message
    message = error_line(streamseg("eval", config, "--weights", "gone.pt"))
    assert "gone.pt" in message


def test_dataset_without_known_classes_is_an_error(
    streamseg: Run, folder: Path, tmp_path: Path
) -> None:
    data = {"format": "coco", "images": "images", "annotations": "set.json"}
    content = make_coco_content()
    content["categories"] = [{"id": 90, "name": "brush"}, {"id": 7, "name": "mug"}]
    write_coco(tmp_path / "data", content)
    config = write_config(
        tmp_path / "eval.yaml",
        model={"weights": str(folder / "wild.safetensors")},
        data={"root": "data", "val": [data]},
    )
    message = error_line(streamseg("eval", config))
    assert message.startswith("set: the model has none of its classes: ")
    assert "disc" in message


@pytest.mark.parametrize(
    ("damage", "options"),
    [
        ("truncated", ()),
        ("truncated", ("--through-service",)),
        ("missing", ()),
        ("another size", ()),
    ],
)
def test_unusable_image_is_an_error(
    streamseg: Run, folder: Path, tmp_path: Path, damage: str, options: tuple[str, ...]
) -> None:
    shutil.copytree(folder, tmp_path / "bad")
    image_file = sorted((tmp_path / "bad" / "images").iterdir())[3]
    if damage == "truncated":
        image_file.write_bytes(image_file.read_bytes()[:-600])
    elif damage == "missing":
        image_file.unlink()
    else:
        write_image(image_file, (10, 10))
    config = write_own_config(tmp_path / "bad", tmp_path / "eval.yaml")
    message = error_line(streamseg("eval", config, *options, "--out", "out"))
    assert f"{image_file}: " in message
    assert list((tmp_path / "out").iterdir()) == []


def test_unwritable_output_is_an_error_before_the_evaluation(
    streamseg: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamseg.evaluation.evaluator.load_model", None)
    config = write_own_config(folder, tmp_path / "eval.yaml")
    message = error_line(streamseg("eval", config, "--json", "gone/numbers.json"))
    assert message == "gone/numbers.json: must be a file in an existing folder"
    (tmp_path / "file").touch()
    assert "file" in error_line(streamseg("eval", config, "--out", "file"))


def test_out_without_matplotlib_is_an_error(
    streamseg: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamseg.evaluation.report_files.find_spec", lambda name: None)
    message = error_line(
        streamseg("eval", write_own_config(folder, tmp_path / "e.yaml"), "--out", "out")
    )
    assert message == "--out needs matplotlib: pip install 'streamseg[train]'"


def test_missing_track_file_is_an_error(streamseg: Run) -> None:
    message = error_line(
        streamseg("eval", EXAMPLES / "tracking.yaml", "--set", "tracking.0.results=gone.jsonl")
    )
    assert "gone.jsonl" in message


# Separate processes and progress


def test_progress_is_printed_in_plain_lines(capsys) -> None:
    with ProgressReport("images") as progress:
        for done in (*range(7, 210, 7), 210):
            progress("val", done, 210)
        progress("other", 100, None)
    assert capsys.readouterr().err.splitlines() == [
        "val: 105 of 210 images",
        "val: 203 of 210 images",
        "other: 100 images",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "evaluates"), [(None, True), ("0", True), ("1", False)])
def test_tool_runs_the_command_in_the_first_process(
    tmp_path: Path, rank: str | None, evaluates: bool
) -> None:
    result = subprocess.run(
        [
            sys.executable,
            ROOT / "tools" / "eval.py",
            EXAMPLES / "tracking.yaml",
            "--json",
            "n.json",
        ],
        cwd=tmp_path,
        env=environment() | ({} if rank is None else {"RANK": rank}),
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "n.json").exists() == evaluates
    assert ("HOTA" in result.stdout) == evaluates


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--through-service",)])
def test_interrupt_ends_the_evaluation_and_removes_temporary_files(
    folder: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    config = write_config(
        tmp_path / "eval.yaml",
        model={"weights": str(folder / "wild.safetensors"), "input_size": 64},
        data={"val": [{"format": "pattern", "url": "test:?size=48x32&objects=1&frames=3000"}]},
    )
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        ["env", "--default-signal=INT", *command("eval", config, *options, "--json", "n.json")],
        cwd=tmp_path,
        env=environment() | {"TMPDIR": str(tmp_path / "tmp")},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "100 of 3000 images" in next(iter(process.stderr))
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.wait(60) == 130
        assert time.monotonic() - start < 20
        assert "Traceback" not in process.stderr.read()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "n.json").exists()
