"""MQTT messages of a service with a model and a Mosquitto broker."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.brokers import Mosquitto, MqttSubscriber, mosquitto, mqtt_subscriber, wait_until
from support.commands import Run, command, environment
from support.paths import CLIP, ROOT
from support.ports import free_port

from streamseg import connect, load_model
from streamseg.config import (
    Config,
    MqttConfig,
    PublishConfig,
    SourceConfig,
    WorkerConfig,
    load,
    override,
    validate,
)
from streamseg.models.base import Segmenter
from streamseg.service.service import Service

pytestmark = pytest.mark.timeout(90)
LIVE = "test:?live=1&size=160x120&fps=20"


@pytest.fixture(scope="module")
def model() -> Segmenter:
    """Load the bundled model for small images, with a low score threshold."""
    return load_model("nanomask", input_size=128, score=0.1)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as broker:
        yield broker


@pytest.fixture
def subscriber(broker: Mosquitto) -> Iterator[MqttSubscriber]:
    with mqtt_subscriber(broker) as subscriber:
        yield subscriber


def make_config(url: str, *sources: SourceConfig, **options: object) -> Config:
    return Config(
        sources=sources,
        worker=WorkerConfig(max_batch=2),
        publish=PublishConfig(bind="tcp://127.0.0.1:*"),
        mqtt=MqttConfig(url=url, **options),  # type: ignore[arg-type]
    )


def test_home_example_publishes_counts_and_events(
    broker: Mosquitto,
    subscriber: MqttSubscriber,
    nanomask: Segmenter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    raw = load(ROOT / "configs" / "home.yaml")
    override(
        raw, ["sources.0.end=2.05", f"mqtt.url={broker.url}", "publish.bind=tcp://127.0.0.1:*"]
    )
    override(
        raw, ["mqtt.every=0.05"]
    )  # a fast machine may finish within the interval of the example
    service = Service(validate(raw, "home.yaml"), nanomask)
    service.start()
    service.wait()
    subscriber.wait_for_payload("streamseg/status", b"offline")
    assert json.loads(subscriber.latest["streamseg/street/state"]) == {
        "state": "ended",
        "reason": "end of stream",
        "epoch": 0,
    }
    counts = [m.payload for m in subscriber.received if m.topic == "streamseg/street/count/person"]
    assert (counts[0], counts[-1]) == (b"0", b"0")
    assert max(map(int, counts)) >= 2
    events = subscriber.events("street")
    appeared = [e["track"] for e in events if e["type"] == "appeared" and e["name"] == "person"]
    gone = [e["track"] for e in events if e["type"] == "gone" and e["name"] == "person"]
    assert len(appeared) >= 2
    assert sorted(appeared) == sorted(gone)
    sensors = [t for t in subscriber.latest if t.startswith("homeassistant/sensor/")]
    assert len(sensors) == 3


def test_added_paused_and_removed_sources_are_published(
    broker: Mosquitto, subscriber: MqttSubscriber, model: Segmenter
) -> None:
    config = make_config(broker.url, SourceConfig(url=LIVE, name="gate"), home_assistant="ha")
    service = Service(config, model)
    service.start()
    try:
        subscriber.wait_for_state("streamseg/gate/state", "live")
        service.sources.add(SourceConfig(url=LIVE, name="yard"))
        subscriber.wait_for_state("streamseg/yard/state", "live")
        service.sources.pause("yard")
        subscriber.wait_for_state("streamseg/yard/state", "waiting")
        service.sources.resume("yard")
        subscriber.wait_for_state("streamseg/yard/state", "live")
        service.sources.remove("yard")
        subscriber.wait_for_payload("streamseg/yard/state", b"")
        wait_until(lambda: subscriber.latest["streamseg/yard/count/person"] == b"")
        wait_until(lambda: not any(v for t, v in subscriber.latest.items() if "yard" in t))
        assert any(v for t, v in subscriber.latest.items() if t.startswith("ha/") and "gate" in t)
    finally:
        service.stop()
        service.wait()
    subscriber.wait_for_payload("streamseg/status", b"offline")
    subscriber.wait_for_state("streamseg/gate/state", "ended")
    assert service.metrics.account("gate").snapshot().balanced


def test_results_are_published_while_the_broker_is_unavailable(model: Segmenter) -> None:
    unavailable = f"mqtt://127.0.0.1:{free_port()}"
    recording = SourceConfig(url=str(CLIP), name="street", end=2.05)
    config = make_config(unavailable, recording)
    publish = PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=1)
    service = Service(Config(sources=config.sources, publish=publish, mqtt=config.mqtt), model)
    service.start()
    with connect(service.endpoints["masks"], timeout=30) as results:
        assert [r.index for r in results] == list(range(21))
    stopped_at = time.monotonic()
    service.wait()
    assert time.monotonic() - stopped_at < 5
    assert service.metrics.registry.get_sample_value(
        "streamseg_sink_connected", {"sink": "mqtt"}
    ) in (None, 0)


def test_missing_paho_is_reported_with_its_installation(
    streamseg: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m == "paho" or m.startswith("paho.")]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("sink", "broker"):
        monkeypatch.delitem(sys.modules, f"streamseg.sinks.mqtt.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "paho", None)
    ended = streamseg("serve", "--source", "test:", "--set", "mqtt.url=mqtt://localhost")
    assert ended.returncode == 2
    assert "paho" in ended.stderr
    assert "pip install 'streamseg[mqtt]'" in ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_last_will_publishes_offline_when_the_service_is_killed(
    broker: Mosquitto, subscriber: MqttSubscriber, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(
        f"sources: [{{url: '{LIVE}', name: gate}}]\n"
        f"mqtt: {{url: '{broker.url}'}}\n"
        "control: {enabled: false}\n"
        "publish: {bind: 'tcp://127.0.0.1:*'}\n"
    )
    with subprocess.Popen(
        command("serve", "c.yaml"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            subscriber.wait_for_payload("streamseg/status", b"online", within=90)
            subscriber.wait_for_state("streamseg/gate/state", "live")
        finally:
            process.kill()
    subscriber.wait_for_payload("streamseg/status", b"offline")
