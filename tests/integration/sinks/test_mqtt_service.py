"""A service that tells an MQTT broker: a real model, a real Mosquitto, real programs killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.brokers import Listener, Mosquitto, listening, mosquitto, until
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
    """The bundled model on small pictures, letting much through."""
    return load_model("nanomask", input_size=128, score=0.1)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as made:
        yield made


@pytest.fixture
def listener(broker: Mosquitto) -> Iterator[Listener]:
    with listening(broker) as made:
        yield made


def config(url: str, *sources: SourceConfig, **options: object) -> Config:
    return Config(
        sources=sources,
        worker=WorkerConfig(max_batch=2),
        publish=PublishConfig(bind="tcp://127.0.0.1:*"),
        mqtt=MqttConfig(url=url, **options),  # type: ignore[arg-type]
    )


def test_the_example_for_a_home_tells_who_is_in_the_street(
    broker: Mosquitto,
    listener: Listener,
    nanomask: Segmenter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    raw = load(ROOT / "configs" / "home.yaml")
    override(
        raw, ["sources.0.end=2.05", f"mqtt.url={broker.root}", "publish.bind=tcp://127.0.0.1:*"]
    )
    override(raw, ["mqtt.every=0.05"])  # within the example's a fast machine may be done
    service = Service(validate(raw, "home.yaml"), nanomask)
    service.start()
    service.wait()
    listener.until("streamseg/status", b"offline")
    assert json.loads(listener.latest["streamseg/street/state"]) == {
        "state": "ended",
        "reason": "end of stream",
        "epoch": 0,
    }
    counts = [h.payload for h in listener.heard if h.topic == "streamseg/street/count/person"]
    assert (counts[0], counts[-1]) == (b"0", b"0")
    assert max(map(int, counts)) >= 2
    events = listener.events("street")
    came = [e["track"] for e in events if e["type"] == "appeared" and e["name"] == "person"]
    gone = [e["track"] for e in events if e["type"] == "gone" and e["name"] == "person"]
    assert len(came) >= 2
    assert sorted(came) == sorted(gone)
    sensors = [t for t in listener.latest if t.startswith("homeassistant/sensor/")]
    assert len(sensors) == 3


def test_sources_come_and_go_and_the_broker_knows(
    broker: Mosquitto, listener: Listener, model: Segmenter
) -> None:
    made = config(broker.root, SourceConfig(url=LIVE, name="gate"), home_assistant="ha")
    service = Service(made, model)
    service.start()
    try:
        listener.until_state("streamseg/gate/state", "live")
        service.sources.add(SourceConfig(url=LIVE, name="yard"))
        listener.until_state("streamseg/yard/state", "live")
        service.sources.pause("yard")
        listener.until_state("streamseg/yard/state", "waiting")
        service.sources.resume("yard")
        listener.until_state("streamseg/yard/state", "live")
        service.sources.remove("yard")
        listener.until("streamseg/yard/state", b"")
        until(lambda: listener.latest["streamseg/yard/count/person"] == b"")
        until(lambda: not any(v for t, v in listener.latest.items() if "yard" in t))
        assert any(v for t, v in listener.latest.items() if t.startswith("ha/") and "gate" in t)
    finally:
        service.stop()
        service.wait()
    listener.until("streamseg/status", b"offline")
    listener.until_state("streamseg/gate/state", "ended")
    assert service.metrics.account("gate").snapshot().balanced


def test_masks_go_out_as_before_while_the_broker_is_away(model: Segmenter) -> None:
    nobody = f"mqtt://127.0.0.1:{free_port()}"
    recording = SourceConfig(url=str(CLIP), name="street", end=2.05)
    made = config(nobody, recording)
    waits = PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=1)
    service = Service(Config(sources=made.sources, publish=waits, mqtt=made.mqtt), model)
    service.start()
    with connect(service.endpoints["masks"], timeout=30) as results:
        assert [r.index for r in results] == list(range(21))
    began = time.monotonic()
    service.wait()
    assert time.monotonic() - began < 5
    assert service.metrics.registry.get_sample_value(
        "streamseg_sink_connected", {"sink": "mqtt"}
    ) in (None, 0)


def test_without_paho_the_call_is_wrong_and_says_what_to_install(
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
def test_a_service_that_is_killed_is_said_to_be_offline_by_its_last_will(
    broker: Mosquitto, listener: Listener, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(
        f"sources: [{{url: '{LIVE}', name: gate}}]\n"
        f"mqtt: {{url: '{broker.root}'}}\n"
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
            listener.until("streamseg/status", b"online", within=90)
            listener.until_state("streamseg/gate/state", "live")
        finally:
            process.kill()
    listener.until("streamseg/status", b"offline")
