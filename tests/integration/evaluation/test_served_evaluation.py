"""Evaluation through a service: same results as direct evaluation, and lost messages."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.evaluation import (
    INPUT_SIZE,
    MIN_SCORE,
    make_random_model,
    write_pattern_images,
    write_self_labeled_dataset,
    write_weights,
)
from support.paths import SHARED

from streamseg import protocol
from streamseg.config import ModelConfig, Thresholds
from streamseg.config.training import CocoData, DataConfig, EvaluationConfig, PatternData
from streamseg.datasets import Dataset, dataset_to_coco, open_dataset
from streamseg.errors import DataError, OutputError, ReceiveTimeout, StageError, StreamsegError
from streamseg.evaluation import evaluate_coco, service_predictions
from streamseg.evaluation.evaluator import Evaluator
from streamseg.evaluation.predictions import predict_dataset
from streamseg.evaluation.report import scores_to_dict
from streamseg.evaluation.service_predictions import predict_through_service
from streamseg.models.base import Segmenter
from streamseg.sinks.zmq.endpoints import MASKS_QUEUED
from streamseg.sinks.zmq.publisher import RESULTS_WAITING, Publisher
from streamseg.structures.results import Result

pytestmark = pytest.mark.timeout(90)
THRESHOLDS = Thresholds(score=MIN_SCORE, max_instances=100)


@pytest.fixture(scope="module")
def wild_model() -> Segmenter:
    return make_random_model()


@pytest.fixture(scope="module")
def folder(wild_model: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own")
    write_self_labeled_dataset(path, wild_model, count=5)
    return path


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return open_dataset(CocoData(images="images", annotations="own.json"), folder)


def take_first(dataset: Dataset, count: int) -> Dataset:
    """Return a dataset of the first images."""
    return Dataset(dataset.name, dataset.images[:count], dataset.categories, dataset.annotated)


def open_pattern(frames: int) -> Dataset:
    url = f"test:?size=96x64&frames={frames}&objects=4&seed=5"
    return open_dataset(PatternData(url=url), Path())


def ignore_progress(*_: object) -> None:
    pass


def predict_served(model: Segmenter, dataset: Dataset, batch: int = 1) -> list[dict]:
    return predict_through_service(
        model, dataset, THRESHOLDS, batch=batch, progress=ignore_progress
    ).results


def predict_directly(model: Segmenter, dataset: Dataset, batch: int = 1) -> list[dict]:
    return predict_dataset(
        model, dataset, THRESHOLDS, batch=batch, progress=ignore_progress
    ).results


def score_boxes_and_masks(dataset: Dataset, rows: list[dict]) -> list[dict]:
    return [
        scores_to_dict(evaluate_coco(dataset_to_coco(dataset), rows, on))
        for on in ("boxes", "masks")
    ]


@pytest.fixture
def replace_publish(monkeypatch: pytest.MonkeyPatch):
    """Return a function that replaces the publishing of a result."""
    original = Publisher._publish_result

    def replace_publish(function) -> None:
        monkeypatch.setattr(
            Publisher,
            "_publish_result",
            lambda self, result: function(self, result, lambda r=result: original(self, r)),
        )

    return replace_publish


@pytest.mark.slow
def test_service_predictions_equal_direct_predictions(
    wild_model: Segmenter, tmp_path: Path
) -> None:
    dataset = open_dataset(write_self_labeled_dataset(tmp_path, wild_model, count=20), tmp_path)
    assert len(dataset.images) > service_predictions.IMAGES_PER_SERVICE, (
        "needs more than one service"
    )
    reports = []
    rows = predict_through_service(
        wild_model, dataset, THRESHOLDS, batch=1, progress=lambda *report: reports.append(report)
    ).results
    expected = predict_directly(wild_model, dataset)
    assert len(rows) > 500
    assert rows == expected
    boxes, masks = score_boxes_and_masks(dataset, rows)
    assert [boxes, masks] == score_boxes_and_masks(dataset, expected)
    assert 0.3 < boxes["ap"] < 0.95
    assert 0.3 < masks["ap"] < 0.95
    assert reports == [("own", done, 20) for done in range(1, 21)]


def test_batch_size_changes_scores_only_by_noise(wild_model: Segmenter, dataset: Dataset) -> None:
    single = predict_directly(wild_model, dataset)
    batched = predict_served(wild_model, dataset, batch=4)
    before, after = score_boxes_and_masks(dataset, single), score_boxes_and_masks(dataset, batched)
    assert [row["image_id"] for row in batched] == [row["image_id"] for row in single]
    for on in (0, 1):
        assert after[on]["ap"] == pytest.approx(before[on]["ap"], abs=0.01)


def test_generated_images_are_served_losslessly(wild_model: Segmenter) -> None:
    dataset = open_pattern(5)
    assert predict_served(wild_model, dataset) == predict_directly(wild_model, dataset) != []


@pytest.mark.slow
def test_coco_images_have_the_same_predictions_through_a_service(nanomask: Segmenter) -> None:
    if not (SHARED / "data" / "coco80" / "val").exists():
        pytest.skip("shared/data/coco80/val is missing")
    full_dataset = open_dataset(
        CocoData(images="coco80/val", annotations="coco80/val.json"), SHARED / "data"
    )
    dataset = take_first(full_dataset, 20)
    rows, expected = predict_served(nanomask, dataset), predict_directly(nanomask, dataset)
    assert rows == expected
    scores = score_boxes_and_masks(dataset, rows)
    assert scores == score_boxes_and_masks(dataset, expected)
    assert scores[0]["ap"] > 0.2


@pytest.mark.slow
def test_evaluation_through_service_uses_model_class_agnostic_iou(
    wild_model: Segmenter, tmp_path: Path
) -> None:
    """Without a service, ``auto`` means no class-agnostic suppression."""
    write_weights(wild_model, tmp_path / "wild.safetensors")
    evaluation = EvaluationConfig(
        model=ModelConfig(weights=str(tmp_path / "wild.safetensors"), input_size=INPUT_SIZE),
        data=DataConfig(val=(PatternData(url="test:?size=96x64&frames=2&objects=4&seed=5"),)),
        batch=1,
    )
    model_iou = type(wild_model).class_agnostic_iou
    for configured_iou, through_service, iou in (
        ("auto", False, None), ("auto", True, model_iou), (None, True, None), (0.3, False, 0.3),
        (0.3, True, 0.3),
    ):  # fmt: skip
        thresholds = replace(THRESHOLDS, class_agnostic_iou=iou)
        rows = predict_dataset(
            wild_model, open_pattern(2), thresholds, batch=1, progress=ignore_progress
        ).results
        evaluator = Evaluator(
            replace(evaluation, class_agnostic_iou=configured_iou),
            tmp_path,
            ignore_progress,
            through_service=through_service,
        )
        report = evaluator.run()
        assert report.datasets[0].results == rows
        assert report.evaluation.class_agnostic_iou == iou
    assert len(rows) < len(predict_directly(wild_model, open_pattern(2)))


def test_scores_depend_on_the_published_messages(
    wild_model: Segmenter, dataset: Dataset, monkeypatch
) -> None:
    encode = protocol.encode

    def encode_half(message: protocol.Message) -> bytes:
        if isinstance(message, protocol.MasksMessage):
            message = replace(message, instances=message.instances[::2])
        return encode(message)

    expected = predict_directly(wild_model, dataset)
    monkeypatch.setattr(protocol, "encode", encode_half)
    rows = predict_served(wild_model, dataset)
    (before, _) = score_boxes_and_masks(dataset, expected)
    (after, _) = score_boxes_and_masks(dataset, rows)
    assert 0 < len(rows) < 0.6 * len(expected)
    assert after["ap"] < before["ap"] - 0.1


def publish_slowly(_: Publisher, __: Result, publish) -> None:
    time.sleep(0.1)
    publish()


@pytest.mark.slow
def test_slow_network_thread_drops_no_result(wild_model: Segmenter, replace_publish) -> None:
    replace_publish(publish_slowly)
    reports = []
    predict_through_service(
        wild_model,
        open_pattern(20),
        THRESHOLDS,
        batch=4,
        progress=lambda *report: reports.append(report),
    )
    assert reports[-1] == ("pattern", 20, 20)
    assert RESULTS_WAITING <= MASKS_QUEUED, "sockets must hold what the publisher queues"


@pytest.mark.slow
def test_results_dropped_by_one_large_service_are_an_error(
    wild_model: Segmenter, replace_publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish_late(self: Publisher, result: Result, publish) -> None:
        """Wait until a result was dropped."""
        end = time.monotonic() + 60
        while not self._metrics.account(result.source).snapshot().dropped:
            assert time.monotonic() < end
            time.sleep(0.01)
        publish()

    replace_publish(publish_late)
    monkeypatch.setattr(service_predictions, "IMAGES_PER_SERVICE", 1000)
    lost = r"no message was received for \d+ of 30 images \(publisher_late: \d+\)"
    with pytest.raises(StreamsegError, match=lost):
        predict_served(wild_model, open_pattern(30), batch=4)


def test_lost_message_is_an_error(wild_model: Segmenter, replace_publish) -> None:
    def lose_two(self: Publisher, result: Result, publish) -> None:
        if result.frame.index in (3, 4):
            self._next_seq(protocol.topic("masks", result.source))
            self._metrics.account(result.source).publish()
            return
        publish()

    replace_publish(lose_two)
    with pytest.raises(
        StreamsegError,
        match="pattern: no message was received for 2 of 10 images; the first is image 4",
    ):
        predict_served(wild_model, open_pattern(10))


def test_repeated_message_is_an_error(wild_model: Segmenter, replace_publish) -> None:
    def publish_twice(self: Publisher, result: Result, publish) -> None:
        publish()
        if result.frame.index == 3:
            topic = protocol.topic("masks", result.source)
            copy = self._encode(result, self._next_seq(topic))
            self._masks.send_multipart([topic, copy])

    replace_publish(publish_twice)
    with pytest.raises(
        StreamsegError, match=r"pattern: more than one message for 000003\.png was received"
    ):
        predict_served(wild_model, open_pattern(10))


def test_message_that_is_too_large_is_an_error(
    wild_model: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_JSON_BYTES", 2000)
    with pytest.raises(StreamsegError, match=r"for 4 of 4 images \(too_large: 4"):
        predict_served(wild_model, open_pattern(4))


@pytest.mark.parametrize("damage", ["damaged", "missing", "another size"])
def test_unusable_image_raises_same_error_as_direct_evaluation(
    wild_model: Segmenter, folder: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(folder, tmp_path / "own")
    full_dataset = open_dataset(CocoData(images="images", annotations="own.json"), tmp_path / "own")
    dataset = take_first(full_dataset, 5)
    image_file = dataset.images[3].file
    assert isinstance(image_file, Path)
    if damage == "damaged":
        image_file.write_bytes(image_file.read_bytes()[:-600])
    elif damage == "missing":
        image_file.unlink()
    else:
        other = dataset.images[2].file
        image_file.write_bytes(other.read_bytes())
    with pytest.raises(DataError) as direct_error:
        predict_directly(wild_model, dataset)
    with pytest.raises(DataError) as service_error:
        predict_served(wild_model, dataset)
    assert str(service_error.value) == str(direct_error.value)
    assert image_file.name in str(direct_error.value)


class ModelWithHook(type(make_random_model())):  # type: ignore[misc]
    """Model that calls ``hook`` before each forward pass."""

    def forward(self, *arguments: object) -> list:
        self.hook()
        return super().forward(*arguments)


def make_model_with_hook(hook) -> Segmenter:
    model = make_random_model()
    model.__class__ = ModelWithHook
    model.hook = hook  # type: ignore[attr-defined]
    return model


def test_failed_service_is_an_error() -> None:
    def fail() -> None:
        raise ZeroDivisionError("the model broke")

    before = threading.active_count()
    with pytest.raises(StageError, match="worker: the model broke"):
        predict_served(make_model_with_hook(fail), open_pattern(4))
    assert threading.active_count() == before


def test_service_without_results_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_predictions, "TIMEOUT", 0.2)
    before = threading.active_count()
    start = time.monotonic()
    with pytest.raises(ReceiveTimeout, match=r"no result in 0\.2 s"):
        predict_served(make_model_with_hook(lambda: time.sleep(1)), open_pattern(4))
    assert time.monotonic() - start < 20
    assert threading.active_count() == before


def test_temporary_files_are_removed(wild_model: Segmenter, tmp_path: Path, monkeypatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    files = write_pattern_images(tmp_path / "images", 3)
    before = [file.read_bytes() for file in files]
    assert predict_served(wild_model, open_pattern(3))
    assert list(temporary.iterdir()) == []
    assert [file.read_bytes() for file in files] == before


def test_missing_temporary_folder_is_an_error(
    wild_model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match=r"can't make a temporary folder: .*gone.*: set TMPDIR"):
        predict_served(wild_model, open_pattern(2))
