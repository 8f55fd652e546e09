"""Training and evaluation of panoptic models: classes, batches, scores, example configs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import cv2
import msgspec
import numpy as np
import pytest
import torch
import yaml
from support.annotations import write_coco, write_label_png
from support.commands import Run
from support.panoptic import (
    DATASET_IDS,
    MODEL_CATEGORIES,
    NAME,
    ColorSegmenter,
    find_family,
    ignore_progress,
    load_ideal_model,
    process_panoptic,
    read_panoptic_json,
    use_color_model,
    write_ideal_weights,
    write_panoptic_dataset,
)
from support.paths import ROOT
from support.training import read_csv

from streamseg.config import Thresholds, convert
from streamseg.config.training import AugmentConfig, PanopticData, TrainingConfig
from streamseg.datasets import Augmentation, Dataset, open_dataset
from streamseg.datasets.label_maps import load_label_map
from streamseg.errors import ConfigError, DataError, WeightsError
from streamseg.evaluation import evaluate_panoptic
from streamseg.evaluation.predictions import predict_dataset
from streamseg.models import load_model, loading
from streamseg.models.categories import Categories
from streamseg.models.weights import files
from streamseg.structures.targets import UNKNOWN
from streamseg.training import Trainer, checkpoint
from streamseg.training.batches import BatchLoader
from streamseg.training.classes import merge_categories
from streamseg.training.distributed import ProcessGroup

pytestmark = pytest.mark.usefixtures("one_thread")
DATASET_CATEGORIES = Categories(
    {DATASET_IDS["disc"]: "disc"},
    {DATASET_IDS["grass"]: "grass", DATASET_IDS["sky"]: "sky", DATASET_IDS["water"]: "water"},
)
"""Categories of a model with the ids of the dataset."""
PANOPTIC_DATA = PanopticData(images="images", annotations="panoptic.json", segments="panoptic")
"""The dataset that ``write_panoptic_dataset`` writes."""


@pytest.fixture(autouse=True)
def color_family(monkeypatch):
    use_color_model(monkeypatch)


def to_config_section(config):
    """Return a dataset as the section of a config."""
    return {"format": "panoptic", **msgspec.to_builtins(config)}


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(write_panoptic_dataset(tmp_path / "world"), tmp_path / "world")


# Training


def make_config(tmp_path, **changes):
    data = {
        "root": str(tmp_path / "world"),
        "train": [to_config_section(write_panoptic_dataset(tmp_path / "world"))],
    }
    data["val"] = [{**data["train"][0], "name": "held out"}]
    base_config = {
        "model": {"name": NAME, "weights": "none", "device": "cpu", "input_size": 64},
        "data": data,
        "epochs": 12,
        "batch": 2,
        "workers": 0,
        "ema": 0,
        "evaluate_every": 12,
        "augment": {"copy_paste": 0.5},
        "optimiser": {"rate": 0.3, "weight_decay": 0},
        "schedule": {"warmup": 0},
    }
    return convert({**base_config, **changes}, TrainingConfig, "panoptic.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a trainer that has finished, its report and its folder."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        use_color_model(patch)
        run = Trainer(make_config(out), out, out / "run", ignore_progress)
        return run, run.run(), out


def test_panoptic_model_learns_things_and_stuff(trained):
    run, report, out = trained
    assert run.model.stuff == {90: "grass", 91: "sky", 95: "water"}
    assert "2 classes and 3 of stuff; new: everything" in run.summary
    assert report.columns() == ("measured", "AP", "AP50", "PQ", "SQ", "RQ")
    rows = {row[0]: dict(zip(report.columns(), row, strict=True)) for row in report.rows()}
    assert list(rows) == ["held out, boxes", "held out, masks", "held out, panoptic"]
    assert float(rows["held out, panoptic"]["PQ"]) >= 90
    assert (rows["held out, panoptic"]["AP"], rows["held out, masks"]["PQ"]) == ("-", "-")
    lines = read_csv(out / "run" / "panoptic.csv")
    assert [(line["dataset"], line["of"]) for line in lines] == [
        ("held out", of) for of in ("all", "things", "stuff")
    ]
    assert float(lines[0]["pq"]) == pytest.approx(report.position.best, abs=1e-5)


def test_checkpoints_contain_the_stuff_classes(trained):
    run, _, out = trained
    stuff_in_checkpoint = json.loads(
        torch.load(out / "run" / "best.pt", weights_only=True)["stuff"]
    )
    assert stuff_in_checkpoint == {"90": "grass", "91": "sky", "95": "water"}
    for name in ("best.pt", "model.safetensors"):
        model = load_model(NAME, out / "run" / name, device="cpu", input_size=64)
        assert (model.categories, model.stuff) == (run.model.categories, run.model.stuff)


def test_resume_with_other_stuff_is_rejected(trained):
    _, _, out = trained
    shutil.copytree(out / "world", out / "more")
    content = json.loads((out / "more" / "panoptic.json").read_text())
    content["categories"].append({"id": 96, "name": "sand", "isthing": 0})
    (out / "more" / "panoptic.json").write_text(json.dumps(content))
    changed = make_config(
        out, data={"root": str(out / "more"), "train": [to_config_section(PANOPTIC_DATA)]}
    )
    with pytest.raises(WeightsError, match="it has 3 stuff classes, not 4, without sand"):
        Trainer(changed, out, out / "run", ignore_progress, resume=True)


def test_resume_is_rejected_if_stuff_became_a_thing(trained):
    _, _, out = trained
    weights = files.read(out / "run" / "last.pt")
    changed_categories = Categories(
        {**weights.categories.things, 90: "grass"}, {91: "sky", 95: "water"}
    )
    with pytest.raises(
        WeightsError, match=r"without grass; .* stuff classes, not 2, and also grass"
    ):
        checkpoint.load_checkpoint(
            out / "run" / "last.pt", make_config(out), NAME, changed_categories
        )


def test_model_without_stuff_learns_only_things(tmp_path):
    model = {"name": "nanomask", "weights": "none", "device": "cpu", "input_size": 64}
    run = Trainer(make_config(tmp_path, model=model), tmp_path, tmp_path / "run", ignore_progress)
    assert (run.model.categories, run.model.stuff) == ({40: "disc", 41: "cup"}, {})
    batch = next(run._batches.load_epoch(0))
    assert [target.stuff for target in batch.targets] == [None, None]


def test_dataset_without_stuff_trains_the_things_of_a_panoptic_model(tmp_path):
    config = make_config(tmp_path)
    pattern = {"format": "pattern", "url": "test:?size=64x48&frames=2&objects=2", "name": "p"}
    raw = json.loads(json.dumps({"train": [to_config_section(config.data.train[0]), pattern]}))
    data = {**raw, "root": str(tmp_path / "world")}
    run = Trainer(
        make_config(tmp_path, data=data, batch=6, epochs=1),
        tmp_path,
        tmp_path / "o",
        ignore_progress,
    )
    stuff = {
        n.split()[0]: t.stuff
        for b in run._batches.load_epoch(0)
        for n, t in zip(b.names, b.targets, strict=True)
    }
    assert stuff["p"] is None
    assert stuff["panoptic"] is not None
    assert run.run().interrupted is False


def test_panoptic_model_is_rejected_without_stuff_in_data(tmp_path):
    data = {"train": [{"format": "pattern", "url": "test:?size=64x48&frames=2"}]}
    with pytest.raises(
        ConfigError, match=f"{NAME} learns things and stuff, and data.train has no stuff"
    ) as error:
        Trainer(make_config(tmp_path, data=data), tmp_path, tmp_path / "run", ignore_progress)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def make_empty_dataset(things, stuff, name="a"):
    return Dataset(name, (), things, frozenset(things), stuff=stuff)


def test_things_and_stuff_are_merged_by_name():
    first = make_empty_dataset({1: "disc"}, {9: "sky", 5: "grass"})
    second = make_empty_dataset({3: "disc", 2: "cup"}, {7: "sky", 8: "sea"})
    merged = merge_categories([first, second], NAME)
    assert list(merged.things.items()) == [(1, "disc"), (2, "cup")]
    assert list(merged.stuff.items()) == [(5, "grass"), (8, "sea"), (9, "sky")]
    assert merge_categories([first, second], "nanomask") == Categories(merged.things)


@pytest.mark.parametrize(
    ("things", "stuff", "message"),
    [
        ({2: "sky"}, {}, "a: 'sky' is stuff here and a thing in the training data"),
        ({}, {1: "sea"}, "b: category 1 is 'sea' here and 'disc' in another dataset"),
        ({}, {9: "sea"}, "b: category 9 is 'sea' here and 'sky' in another dataset"),
        (
            {},
            {n: str(n) for n in range(100, 400)},
            "301 stuff classes, more than the maximum of 254",
        ),
    ],
)
def test_conflicting_categories_are_rejected(things, stuff, message):
    datasets = [make_empty_dataset({1: "disc"}, {9: "sky"}), make_empty_dataset(things, stuff, "b")]
    with pytest.raises(ConfigError, match=message):
        merge_categories(datasets, NAME)


def test_maximum_number_of_stuff_classes_is_accepted():
    stuff = {number: f"s{number}" for number in range(1000, 1254)}
    assert len(merge_categories([make_empty_dataset({1: "disc"}, stuff)], NAME).stuff) == 254


# Batches


class SquareSegmenter(ColorSegmenter):
    """Model that is trained on images resized to a square."""

    def training_shape(self, shape):
        return 64, 64


def load_batch(dataset, family, **augment):
    model = family(
        NAME,
        family.build(NAME, MODEL_CATEGORIES),
        MODEL_CATEGORIES,
        input_size=64,
        device=torch.device("cpu"),
    )
    steps = Augmentation(AugmentConfig(photometric=0, flip=0, **augment), 64)
    options = {"size": 4, "seed": 1, "workers": 0, "group": ProcessGroup()}
    return next(BatchLoader([dataset], steps, model, **options).load_epoch(0)), model


def test_stuff_is_unknown_in_the_padding_of_a_batch(dataset):
    batch, _ = load_batch(dataset, ColorSegmenter, scale=(0.5, 1.0))
    shapes = {target.masks.shape[1:] for target in batch.targets}
    assert len(shapes) > 1
    for target in batch.targets:
        height, width = target.masks.shape[1:]
        assert target.stuff.dtype == torch.uint8
        assert target.stuff.shape == batch.images.shape[2:]
        assert (target.stuff[height:] == UNKNOWN).all()
        assert (target.stuff[:, width:] == UNKNOWN).all()
        inside = target.stuff[:height, :width]
        assert (inside[target.masks.any(0)] == 0).all()
        assert set(inside.unique().tolist()) == {0, 1, 2, UNKNOWN}


def test_images_and_targets_are_resized_to_the_training_shape(dataset):
    plain, _ = load_batch(dataset, ColorSegmenter, scale=(1.0, 1.0))
    square, _ = load_batch(dataset, SquareSegmenter, scale=(1.0, 1.0))
    assert square.images.shape[2:] == (64, 64)
    assert plain.names == square.names
    for image, target, plain_target in zip(
        square.images, square.targets, plain.targets, strict=True
    ):
        assert target.masks.shape[1:] == (64, 64)
        factors = torch.tensor([1, 64 / 48, 1, 64 / 48])
        assert torch.allclose(target.boxes, plain_target.boxes * factors)
        rows = ((torch.arange(64) + 0.5) * 48 / 64).long()  # nearest neighbor by pixel centers
        assert torch.equal(target.masks, plain_target.masks[:, rows])
        assert torch.equal(target.stuff, plain_target.stuff[rows])
        thing = target.masks.any(0)
        edges = cv2.dilate(thing.numpy().astype(np.uint8), np.ones((5, 5))) != cv2.erode(
            thing.numpy().astype(np.uint8), np.ones((5, 5))
        )
        red = (image.argmax(0) == 0) & (image[0] > 0)
        assert torch.equal(red[~torch.from_numpy(edges)], thing[~torch.from_numpy(edges)])


# Evaluation


def test_panoptic_quality_of_model_matches_its_files(dataset, tmp_path):
    """Predictions are matched by class name; ``process`` writes the files."""
    model = load_ideal_model(tmp_path / "weights")
    predictions = predict_dataset(model, dataset, Thresholds(), batch=3, progress=ignore_progress)
    assert predictions.panoptic.all.pq == predictions.panoptic.all.sq == 1.0
    own = load_ideal_model(tmp_path / "weights", DATASET_CATEGORIES)
    process_panoptic(own, tmp_path / "world" / "images", tmp_path / "out")
    scores = evaluate_panoptic(
        tmp_path / "world" / "panoptic.json",
        tmp_path / "world" / "panoptic",
        tmp_path / "out" / "images" / "panoptic.json",
        tmp_path / "out" / "images" / "panoptic",
    )
    assert scores == predictions.panoptic


def test_classes_missing_in_model_count_as_missed(tmp_path):
    config = write_panoptic_dataset(tmp_path / "world", water=True)
    data = open_dataset(config, tmp_path / "world")
    predictions = predict_dataset(
        load_ideal_model(tmp_path), data, Thresholds(), batch=4, progress=ignore_progress
    )
    by_name = {each.name: each for each in predictions.panoptic.classes}
    assert (by_name["water"].tally.missed, by_name["water"].tally.matched) == (4, 0)
    assert by_name["cup"].quality is None
    assert by_name["sky"].quality.pq == 1.0
    # The model predicts grass also on the water.
    assert 0.6 < by_name["grass"].quality.sq < 1
    assert predictions.panoptic.stuff.pq < predictions.panoptic.things.pq == 1.0


def test_segments_of_classes_missing_in_dataset_are_ignored(tmp_path, dataset):
    categories = Categories({1: "disc"}, {2: "sky", 3: "lawn"})
    weights = files.read(write_ideal_weights(tmp_path / "w.safetensors"))
    (tmp_path / "w.safetensors").write_bytes(
        files.to_safetensors(replace(weights, categories=categories))
    )
    model = load_model(NAME, tmp_path / "w.safetensors", device="cpu", input_size=64)
    predictions = predict_dataset(model, dataset, Thresholds(), batch=4, progress=ignore_progress)
    by_name = {each.name: each for each in predictions.panoptic.classes}
    assert (by_name["grass"].tally.missed, by_name["sky"].quality.pq) == (4, 1.0)
    assert sum(each.tally.wrong for each in predictions.panoptic.classes) == 0


def test_panoptic_quality_needs_stuff_in_model_and_dataset(tmp_path, dataset, nanomask):
    coco = open_dataset(write_coco(tmp_path / "coco"), tmp_path / "coco")
    both = Categories({1: "cup", 2: "brush"}, {3: "sky"})
    model = ColorSegmenter(
        NAME, ColorSegmenter.build(NAME, both), both, input_size=64, device=torch.device("cpu")
    )
    assert (
        predict_dataset(model, coco, Thresholds(), batch=4, progress=ignore_progress).panoptic
        is None
    )
    things = nanomask.categories
    named = replace(dataset, categories=dict(zip((40, 41), things.values(), strict=False)))
    predictions = predict_dataset(nanomask, named, Thresholds(), batch=4, progress=ignore_progress)
    assert predictions.panoptic is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda values: values[:-1], "it is 64 x 47, its annotations are for 64 x 48"),
        (lambda values: values * (values != 300), "segment 300 of segments_info has no pixels"),
        (lambda values: values + (values == 0) * 5, "segment 5 isn't in segments_info"),
    ],
)
def test_png_inconsistent_with_json_is_rejected(tmp_path, dataset, damage, message):
    png = tmp_path / "world" / "panoptic" / "01.png"
    write_label_png(png, damage(load_label_map(png)))
    with pytest.raises(DataError, match=message):
        predict_dataset(
            load_ideal_model(tmp_path), dataset, Thresholds(), batch=4, progress=ignore_progress
        )


def write_eval_config(tmp_path, config, **more):
    raw = yaml.safe_load((ROOT / "configs" / "eval" / "panoptic-model.yaml").read_text())
    raw["data"] = {"root": str(tmp_path / "world"), "val": [to_config_section(config)]}
    raw["model"] |= {
        "weights": str(write_ideal_weights(tmp_path / "w.safetensors")),
        "input_size": 64,
    }
    file = tmp_path / "eval.yaml"
    file.write_text(yaml.safe_dump(raw | more))
    return file


@pytest.mark.parametrize("options", [(), ("--through-service",)])
def test_eval_reports_panoptic_quality_of_a_model_and_of_a_service(
    streamseg: Run, tmp_path, options
):
    config = write_panoptic_dataset(tmp_path / "world", water=True)
    process_result = streamseg(
        "eval", write_eval_config(tmp_path, config), *options, "--json", "n.json"
    )
    assert process_result.returncode == 0, process_result.stderr
    assert f"panoptic: stuff that {NAME} doesn't have: water" in process_result.stderr
    (scores,) = json.loads((tmp_path / "n.json").read_text())["datasets"]
    data = open_dataset(config, tmp_path / "world")
    predictions = predict_dataset(
        load_ideal_model(tmp_path), data, Thresholds(score=0.05), batch=4, progress=ignore_progress
    )
    for of in ("all", "things", "stuff"):
        quality = getattr(predictions.panoptic, of)
        numbers = {"pq": quality.pq, "sq": quality.sq, "rq": quality.rq}
        assert scores["panoptic"][of] == numbers
    words = process_result.stdout.split()
    assert f"{100 * predictions.panoptic.stuff.pq:.1f}" in words
    assert {"PQ", "SQ", "RQ", "things", "stuff", "water"} <= set(words)


def test_example_eval_config_runs(streamseg: Run, tmp_path):
    write_coco_layout(tmp_path)
    weights = write_ideal_weights(tmp_path / "w.safetensors")
    process_result = streamseg(
        *("eval", ROOT / "configs" / "eval" / "panoptic-model.yaml", "--json", "n.json"),
        *("--weights", weights, "--set", f"data.root={tmp_path / 'coco'}"),
    )
    assert process_result.returncode == 0, process_result.stderr
    (scores,) = json.loads((tmp_path / "n.json").read_text())["datasets"]
    assert scores["panoptic"]["all"]["pq"] == 1.0


def test_example_training_config_runs(streamseg: Run, tmp_path):
    write_coco_layout(tmp_path)
    weights = write_ideal_weights(tmp_path / "w.safetensors")
    example = ROOT / "configs" / "train" / "panoptic.yaml"
    root_option = ("--set", f"data.root={tmp_path / 'coco'}")
    checked = streamseg("eval", "--check", example, *root_option)
    assert checked.returncode == 0, checked.stderr
    small = (f"model.weights={weights}", "epochs=1", "batch=2", "model.input_size=64", "workers=0")
    sets = [argument for text in small for argument in ("--set", text)]
    process_result = streamseg("train", example, *root_option, *sets, "--out", "run")
    assert process_result.returncode == 0, process_result.stderr
    assert "new: cup, water" in process_result.stderr
    assert "PQ" in process_result.stdout
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_panoptic_fpn_trains_and_evaluates_with_the_example_configs(
    streamseg: Run, tmp_path, monkeypatch
):
    monkeypatch.setattr(loading, "_family", find_family)
    write_coco_layout(tmp_path)
    root_option = ("--set", f"data.root={tmp_path / 'coco'}", "--set", "model.input_size=64")
    small = ("model.weights=none", "epochs=1", "batch=2", "workers=0")
    sets = [argument for text in small for argument in ("--set", text)]
    train, evaluate = (ROOT / "configs" / part for part in ("train", "eval"))
    process_result = streamseg(
        "train", train / "panoptic.yaml", *root_option, *sets, "--out", "run"
    )
    assert process_result.returncode == 0, process_result.stderr
    assert "semantic" in read_csv(tmp_path / "run" / "steps.csv")[0]
    weights = ("--weights", tmp_path / "run" / "model.safetensors")
    process_result = streamseg(
        "eval", evaluate / "panoptic-model.yaml", *root_option, *weights, "--json", "n.json"
    )
    assert process_result.returncode == 0, process_result.stderr
    (scores,) = json.loads((tmp_path / "n.json").read_text())["datasets"]
    assert set(scores["panoptic"]) >= {"all", "things", "stuff", "classes"}
    model = ("--model", NAME, *weights, "--set", "model.input_size=64")
    process_result = streamseg(
        "process", tmp_path / "coco" / "val2017", "--out", "o", "--panoptic", *model
    )
    assert process_result.returncode == 0, process_result.stderr
    assert len(read_panoptic_json(tmp_path / "o" / "val2017")["annotations"]) == 2


def write_coco_layout(tmp_path):
    """Write the dataset into folders with the names of COCO's."""
    for part in ("train2017", "val2017"):
        write_panoptic_dataset(tmp_path / part, count=2)
        (tmp_path / "coco" / "annotations").mkdir(parents=True, exist_ok=True)
        (tmp_path / part / "images").rename(tmp_path / "coco" / part)
        target_folder = tmp_path / "coco" / "annotations" / f"panoptic_{part}"
        (tmp_path / part / "panoptic").rename(target_folder)
        (tmp_path / part / "panoptic.json").rename(target_folder.with_suffix(".json"))
