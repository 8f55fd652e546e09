"""What is served is what was measured: the same rows and numbers, with nothing lost on the way."""

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
    make_wild_model,
    write_pattern_images,
    write_self_labeled_dataset,
    write_weights,
)
from support.paths import SHARED

from streamseg import protocol
from streamseg.config import ModelConfig, Thresholds
from streamseg.config.training import CocoData, DataConfig, EvaluationConfig, PatternData
from streamseg.datasets import Dataset, coco_truth, open_dataset
from streamseg.errors import DataError, OutputError, ReceiveTimeout, StageError, StreamsegError
from streamseg.evaluation import evaluate_coco, service_predictions
from streamseg.evaluation.evaluator import Measurement
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
def wild() -> Segmenter:
    return make_wild_model()


@pytest.fixture(scope="module")
def folder(wild: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("own")
    write_self_labeled_dataset(made, wild)
    return made


@pytest.fixture
def own(folder: Path) -> Dataset:
    return open_dataset(CocoData(images="images", annotations="own.json"), folder)


def first(dataset: Dataset, count: int) -> Dataset:
    """The first pictures of a dataset."""
    return Dataset(dataset.name, dataset.images[:count], dataset.categories, dataset.annotated)


def pattern(frames: int) -> Dataset:
    url = f"test:?size=96x64&frames={frames}&objects=4&seed=5"
    return open_dataset(PatternData(url=url), Path())


def silent(*_: object) -> None:
    pass


def through(model: Segmenter, dataset: Dataset, batch: int = 1) -> list[dict]:
    return predict_through_service(model, dataset, THRESHOLDS, batch=batch, progress=silent).results


def direct(model: Segmenter, dataset: Dataset, batch: int = 1) -> list[dict]:
    return predict_dataset(model, dataset, THRESHOLDS, batch=batch, progress=silent).results


def both_scores(dataset: Dataset, rows: list[dict]) -> list[dict]:
    return [
        scores_to_dict(evaluate_coco(coco_truth(dataset), rows, on)) for on in ("boxes", "masks")
    ]


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch):
    """Have the publisher do something else with a result than to publish it."""
    original = Publisher._publish_result

    def replace_with(instead) -> None:
        monkeypatch.setattr(
            Publisher,
            "_publish_result",
            lambda self, result: instead(self, result, lambda r=result: original(self, r)),
        )

    return replace_with


@pytest.mark.slow
def test_the_messages_of_a_service_give_the_rows_and_the_numbers_of_the_model(
    wild: Segmenter, own: Dataset
) -> None:
    assert len(own.images) > service_predictions.IMAGES_PER_SERVICE, "one piece alone proves little"
    told = []
    rows = predict_through_service(
        wild, own, THRESHOLDS, batch=1, progress=lambda *report: told.append(report)
    ).results
    expected = direct(wild, own)
    assert len(rows) > 500
    assert rows == expected  # ids, boxes, scores and run lengths, in one order, to the last bit
    boxes, masks = both_scores(own, rows)
    assert [boxes, masks] == both_scores(own, expected)
    assert 0.3 < boxes["ap"] < 0.95
    assert 0.3 < masks["ap"] < 0.95
    assert told == [("own", done, 20) for done in range(1, 21)]


def test_batches_change_nothing_but_noise(wild: Segmenter, own: Dataset) -> None:
    few = first(own, 6)
    one, many = direct(wild, few), through(wild, few, batch=4)
    before, after = both_scores(few, one), both_scores(few, many)
    assert [row["image_id"] for row in many] == [row["image_id"] for row in one]
    for on in (0, 1):
        assert after[on]["ap"] == pytest.approx(before[on]["ap"], abs=0.01)


def test_frames_of_the_pattern_are_served_as_they_are_drawn(wild: Segmenter) -> None:
    dataset = pattern(5)
    assert through(wild, dataset) == direct(wild, dataset) != []


@pytest.mark.slow
def test_coco_pictures_give_the_same_through_a_service(nanomask: Segmenter) -> None:
    if not (SHARED / "data" / "coco80" / "val").exists():
        pytest.skip("no shared/data/coco80/val here")
    whole = open_dataset(
        CocoData(images="coco80/val", annotations="coco80/val.json"), SHARED / "data"
    )
    dataset = first(whole, 20)
    rows, expected = through(nanomask, dataset), direct(nanomask, dataset)
    assert rows == expected
    scores = both_scores(dataset, rows)
    assert scores == both_scores(dataset, expected)
    assert scores[0]["ap"] > 0.2


@pytest.mark.slow
def test_it_is_measured_with_the_suppression_that_is_served(
    wild: Segmenter, tmp_path: Path
) -> None:
    """Of the model by itself the published settings are measured, of the service what it has."""
    write_weights(wild, tmp_path / "wild.safetensors")
    evaluation = EvaluationConfig(
        model=ModelConfig(weights=str(tmp_path / "wild.safetensors"), input_size=INPUT_SIZE),
        data=DataConfig(val=(PatternData(url="test:?size=96x64&frames=2&objects=4&seed=5"),)),
        batch=1,
    )
    own = type(wild).class_agnostic_iou
    for chosen, through_service, iou in (
        ("auto", False, None), ("auto", True, own), (None, True, None), (0.3, False, 0.3),
        (0.3, True, 0.3),
    ):  # fmt: skip
        wanted = replace(THRESHOLDS, class_agnostic_iou=iou)
        rows = predict_dataset(wild, pattern(2), wanted, batch=1, progress=silent).results
        run = Measurement(
            replace(evaluation, class_agnostic_iou=chosen),
            tmp_path,
            silent,
            through_service=through_service,
        )
        report = run.run()
        assert report.datasets[0].results == rows
        assert report.evaluation.class_agnostic_iou == iou
    assert len(rows) < len(direct(wild, pattern(2)))


def test_it_is_the_messages_that_are_measured(wild: Segmenter, own: Dataset, monkeypatch) -> None:
    honest = protocol.encode

    def lie(message: protocol.Message) -> bytes:
        if isinstance(message, protocol.MasksMessage):
            message = replace(message, instances=message.instances[::2])
        return honest(message)

    few = first(own, 6)
    expected = direct(wild, few)
    monkeypatch.setattr(protocol, "encode", lie)
    rows = through(wild, few)
    (before, _), (after, _) = both_scores(few, expected), both_scores(few, rows)
    assert 0 < len(rows) < 0.6 * len(expected)
    assert after["ap"] < before["ap"] - 0.1


def slow(_: Publisher, __: Result, publish) -> None:
    time.sleep(0.15)
    publish()


@pytest.mark.slow
def test_a_slow_network_thread_loses_nothing(wild: Segmenter, publisher) -> None:
    publisher(slow)
    told = []
    predict_through_service(
        wild, pattern(30), THRESHOLDS, batch=4, progress=lambda *report: told.append(report)
    )
    assert told[-1] == ("pattern", 30, 30)
    assert RESULTS_WAITING <= MASKS_QUEUED, "what the publisher holds, its sockets must"


@pytest.mark.slow
def test_without_pieces_a_slow_network_thread_would_lose_and_that_is_an_error(
    wild: Segmenter, publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(self: Publisher, result: Result, publish) -> None:
        """Until something was dropped: however slow the machine is, it comes to that."""
        end = time.monotonic() + 60
        while not self._metrics.account(result.source).snapshot().dropped:
            assert time.monotonic() < end
            time.sleep(0.01)
        publish()

    publisher(stuck)
    monkeypatch.setattr(service_predictions, "IMAGES_PER_SERVICE", 1000)
    lost = r"no message was received for \d+ of 30 images \(publisher_late: \d+\)"
    with pytest.raises(StreamsegError, match=lost):
        through(wild, pattern(30), batch=4)


def test_a_message_that_is_lost_is_an_error(wild: Segmenter, publisher) -> None:
    def lossy(self: Publisher, result: Result, publish) -> None:
        if result.frame.index in (3, 4):
            self._next_seq(protocol.topic("masks", result.source))
            self._metrics.account(result.source).publish()
            return
        publish()

    publisher(lossy)
    with pytest.raises(
        StreamsegError,
        match="pattern: no message was received for 2 of 10 images; the first is image 4",
    ):
        through(wild, pattern(10))


def test_a_message_that_comes_twice_is_an_error(wild: Segmenter, publisher) -> None:
    def twice(self: Publisher, result: Result, publish) -> None:
        publish()
        if result.frame.index == 3:
            topic = protocol.topic("masks", result.source)
            again = self._encode(result, self._next_seq(topic))
            self._masks.send_multipart([topic, again])

    publisher(twice)
    with pytest.raises(
        StreamsegError, match=r"pattern: more than one message for 000003\.png was received"
    ):
        through(wild, pattern(10))


def test_a_message_that_is_too_large_is_an_error(
    wild: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_JSON_BYTES", 2000)
    with pytest.raises(StreamsegError, match=r"for 4 of 4 images \(too_large: 4"):
        through(wild, pattern(4))


@pytest.mark.parametrize("spoil", ["damaged", "missing", "turned"])
def test_a_picture_that_cant_be_used_is_said_as_without_a_service(
    wild: Segmenter, folder: Path, tmp_path: Path, spoil: str
) -> None:
    shutil.copytree(folder, tmp_path / "own")
    whole = open_dataset(CocoData(images="images", annotations="own.json"), tmp_path / "own")
    dataset = first(whole, 5)
    victim = dataset.images[3].picture
    assert isinstance(victim, Path)
    if spoil == "damaged":
        victim.write_bytes(victim.read_bytes()[:-600])
    elif spoil == "missing":
        victim.unlink()
    else:
        other = dataset.images[2].picture
        victim.write_bytes(other.read_bytes())  # of another size
    with pytest.raises(DataError) as alone:
        direct(wild, dataset)
    with pytest.raises(DataError) as service:
        through(wild, dataset)
    assert str(service.value) == str(alone.value)
    assert victim.name in str(alone.value)


class Odd(type(make_wild_model())):  # type: ignore[misc]
    """A model that does something else in its forward."""

    def forward(self, *arguments: object) -> list:
        self.instead()
        return super().forward(*arguments)


def odd(instead) -> Segmenter:
    model = make_wild_model()
    model.__class__ = Odd
    model.instead = instead  # type: ignore[attr-defined]
    return model


def test_a_service_that_fails_is_an_error() -> None:
    def fail() -> None:
        raise ZeroDivisionError("the model broke")

    before = threading.active_count()
    with pytest.raises(StageError, match="worker: the model broke"):
        through(odd(fail), pattern(4))
    assert threading.active_count() == before


def test_a_service_that_goes_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_predictions, "TIMEOUT", 0.5)
    before = threading.active_count()
    begun = time.monotonic()
    with pytest.raises(ReceiveTimeout, match=r"no result in 0\.5 s"):
        through(odd(lambda: time.sleep(2)), pattern(4))
    assert time.monotonic() - begun < 20
    assert threading.active_count() == before


def test_nothing_is_left_behind(wild: Segmenter, tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    files = write_pattern_images(tmp_path / "images", 3)
    before = [file.read_bytes() for file in files]
    assert through(wild, pattern(3))
    assert list(place.iterdir()) == []
    assert [file.read_bytes() for file in files] == before


def test_without_a_temporary_folder_nothing_is_served(
    wild: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match=r"can't make a temporary folder: .*gone.*: set TMPDIR"):
        through(wild, pattern(2))
