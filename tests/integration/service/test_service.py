"""Live service, end to end: recordings, the bundled model and sockets."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.paths import CLIP, MEDIA, ROOT

from streamseg import connect, load_model
from streamseg.cli.recorder import raise_service_failure
from streamseg.config import (
    Config,
    ModelConfig,
    PublishConfig,
    SourceConfig,
    Thresholds,
    WorkerConfig,
    load,
    override,
    validate,
)
from streamseg.errors import BindError, SourceError, StageError, StreamsegError, UsageError
from streamseg.models.base import Prediction, Segmenter
from streamseg.pipeline.metrics import AccountSnapshot
from streamseg.pipeline.summary import Summary
from streamseg.service.service import Service

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    """Bundled model with a small input and a low score threshold."""
    return load_model("nanomask", input_size=128, score=0.1)


def config(*sources: SourceConfig, subscribers: int = 1, **more: object) -> Config:
    return Config(
        sources=sources,
        worker=WorkerConfig(max_batch=2),
        publish=PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=subscribers),
        **more,  # type: ignore[arg-type]
    )


def pattern(name: str, frames: int = 30) -> SourceConfig:
    return SourceConfig(url=f"test:?size=160x120&frames={frames}", name=name)


def account_of(summary: Summary, name: str) -> AccountSnapshot:
    return next(s.account for s in summary.sources if s.source == name)


def test_a_subscriber_gets_every_frame_of_a_recording(model: Segmenter) -> None:
    service = Service(config(SourceConfig(url=str(CLIP), name="street", end=2.05)), model)
    service.start()
    with connect(service.endpoints["masks"], timeout=30) as subscriber:
        received = list(subscriber)
        assert subscriber.gaps["street"] == 0
        assert subscriber.statuses["street"].state == "ended"
    summary = service.wait()
    account = account_of(summary, "street")
    assert [r.index for r in received] == list(range(21))
    assert account.decoded == account.published == 21
    assert account.balanced
    assert account.in_flight == 0
    assert all(r.instances.masks.size == (576, 768) for r in received)
    assert any(len(r.instances) for r in received)


def test_images_arrive_with_their_results_and_before_the_end(model: Segmenter) -> None:
    service = Service(config(SourceConfig(url=str(CLIP), name="street", end=1.05)), model)
    service.start()
    with connect(service.endpoints["masks"], frames="annotated", timeout=30) as subscriber:
        received = list(subscriber)
    service.wait()
    assert received[-1].index == 10
    assert all(r.frame.shape == (576, 768, 3) for r in received)


def test_two_sources_share_the_model_and_end_separately(model: Segmenter) -> None:
    service_config = config(pattern("short", 10), pattern("long", 60), subscribers=2)
    service = Service(service_config, model)
    service.start()
    address = service.endpoints["masks"]
    ended: dict[str, float] = {}

    def follow(name: str) -> None:
        with connect(address, sources=[name], timeout=30) as subscriber:
            count = sum(1 for _ in subscriber)
        ended[name] = time.monotonic()
        counts[name] = count

    counts: dict[str, int] = {}
    threads = [threading.Thread(target=follow, args=(name,)) for name in ("short", "long")]
    for thread in threads:
        thread.start()
    summary = service.wait()
    for thread in threads:
        thread.join()
    assert counts == {"short": 10, "long": 60}
    assert ended["short"] < ended["long"]
    assert all(s.account.balanced for s in summary.sources)


@pytest.mark.parametrize("name", ["recording.yaml", "two-sources.yaml"])
def test_the_example_configs_can_be_served(
    name: str, nanomask: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    raw = load(ROOT / "configs" / name)
    ends = [f"sources.{row}.end=0.5" for row in range(len(raw["sources"]))]
    override(raw, ["publish.bind=tcp://127.0.0.1:*", "publish.wait_subscribers=1", *ends])
    service = Service(validate(raw, name), nanomask)
    service.start()
    with connect(service.endpoints["masks"], timeout=30) as subscriber:
        sources = {received.source for received in subscriber}
    service.wait()
    assert sources == {source["name"] for source in raw["sources"]}
    assert service.problems == []


def test_each_source_has_its_own_thresholds(nanomask: Segmenter) -> None:
    only_cars = Thresholds(score=0.3, classes=("car",))
    service_config = config(
        SourceConfig(url=str(CLIP), name="all", end=0.35),
        SourceConfig(url=str(CLIP), name="cars", end=0.35, thresholds=only_cars),
    )
    service = Service(service_config, nanomask)
    service.start()
    names: dict[str, set[str]] = {"all": set(), "cars": set()}
    with connect(service.endpoints["masks"], timeout=30) as subscriber:
        for received in subscriber:
            names[received.source].update(received.instances.names)
    service.wait()
    assert "person" in names["all"]
    assert names["cars"] == {"car"}


def test_an_unknown_class_in_thresholds_is_refused_before_the_start(
    model: Segmenter,
) -> None:
    wrong = SourceConfig(url=str(CLIP), name="a", thresholds=Thresholds(classes=("persn",)))
    with pytest.raises(UsageError, match="person"):
        Service(config(wrong), model)


def test_subscribers_of_an_aborted_service_receive_its_failure(
    model: Segmenter,
) -> None:
    service = Service(config(pattern("a", 5000)), model)
    service.start()
    with connect(service.endpoints["masks"], timeout=30) as subscriber:
        next(iter(subscriber))
        service.abort()
        for _ in subscriber:
            pass
        with pytest.raises(StreamsegError, match="the service failed"):
            raise_service_failure(subscriber)
    service.wait()


def test_the_model_is_warmed_up_when_a_service_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    predict = Segmenter.predict

    def record_sizes(self: Segmenter, images: list[np.ndarray]) -> object:
        sizes.extend(image.shape for image in images)
        return predict(self, images)

    monkeypatch.setattr(Segmenter, "predict", record_sizes)
    service = Service(config(pattern("a"), model=ModelConfig(input_size=128)))
    service.close()
    assert sizes == [(720, 1280, 3)]


def test_a_failing_source_is_reported_and_the_others_run_on(model: Segmenter) -> None:
    damaged = SourceConfig(url=str(MEDIA / "truncated_moov_front.mp4"), name="broken")
    service = Service(config(damaged, pattern("good", 40)), model)
    service.start()
    with connect(service.endpoints["masks"], timeout=30) as subscriber:
        frames = [r.source for r in subscriber]
        assert subscriber.statuses["broken"].state == "failed"
        assert "incomplete" in subscriber.statuses["broken"].reason
    summary = service.wait()
    assert frames.count("broken") == 25
    assert frames.count("good") == 40
    assert len(service.problems) == 1
    assert "incomplete" in service.problems[0]
    assert all(s.account.balanced for s in summary.sources)


def test_a_failing_model_ends_the_service_with_balanced_accounts() -> None:
    class FailingModel(type(load_model("nanomask", input_size=128))):  # type: ignore[misc]
        calls = 0

        def postprocess(self, detections: object) -> list[Prediction]:
            self.calls += 1
            if self.calls == 3:
                raise ZeroDivisionError("the model failed")
            return super().postprocess(detections)

    failing = load_model("nanomask", input_size=128)
    failing.__class__ = FailingModel
    service = Service(config(pattern("a", 200), subscribers=0), failing)
    service.start()
    with pytest.raises(StageError, match="worker: the model failed"):
        service.wait()
    account = account_of(service.summary(), "a")
    assert account.balanced
    assert account.in_flight == 0
    assert account.dropped["stopped"] > 0


@pytest.mark.parametrize("end", ["stop", "abort"])
def test_a_stopped_service_has_balanced_accounts(model: Segmenter, end: str) -> None:
    service = Service(config(pattern("a", 5000), pattern("b", 5000)), model)
    service.start()
    with connect(service.endpoints["masks"], timeout=30) as subscriber:
        received = [next(iter(subscriber)) for _ in range(20)]
        getattr(service, end)()
        received += list(subscriber)
    summary = service.wait()
    published = sum(s.account.published for s in summary.sources)
    assert all(s.account.balanced and s.account.in_flight == 0 for s in summary.sources)
    assert len(received) <= published < 10_000
    if end == "stop":
        assert len(received) == published
        assert all(s.account.dropped == {} for s in summary.sources)


def test_stopping_while_waiting_for_subscribers_ends_at_once(model: Segmenter) -> None:
    service = Service(config(pattern("a"), subscribers=3), model)
    service.start()
    time.sleep(0.2)
    service.stop()
    stopped_at = time.monotonic()
    summary = service.wait()
    assert time.monotonic() - stopped_at < 5
    assert summary.frames == 0


def test_a_service_that_is_stopped_before_its_start_ends(model: Segmenter) -> None:
    service = Service(config(pattern("a"), pattern("b"), subscribers=0), model)
    service.stop()
    service.start()
    stopped_at = time.monotonic()
    service.wait()
    assert time.monotonic() - stopped_at < 5


def test_an_error_before_the_start_leaves_no_thread(model: Segmenter, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(SourceError, match="missing"):
        Service(config(SourceConfig(url=str(tmp_path / "missing.mp4"), name="x")), model)
    running = Service(config(pattern("a")), model)
    address = running.endpoints["masks"]
    with pytest.raises(BindError, match=r"127\.0\.0\.1"):
        Service(Config(sources=(pattern("a"),), publish=PublishConfig(bind=address)), model)
    running.close()
    assert threading.active_count() == before
