"""MQTT sink with a Mosquitto broker: messages, reconnection, authentication and config errors."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.brokers import Mosquitto, MqttSubscriber, mosquitto, mqtt_subscriber, wait_until
from support.ports import free_port

from streamseg.config import MqttConfig, validate
from streamseg.errors import ConfigError
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.runner import Pipeline
from streamseg.sinks.mqtt import queue
from streamseg.sinks.mqtt.broker import MAX_DELAY, Login
from streamseg.sinks.mqtt.queue import Message, MessageQueue
from streamseg.sinks.mqtt.sink import MqttSink
from streamseg.structures.masks import Masks
from streamseg.structures.results import Frame, Instances, Result

pytestmark = pytest.mark.timeout(60)
SIZE = (48, 64)
NAMES = {1: "person", 2: "traffic light", 3: "a/+#\0b", 4: "x" * 300}


def make_result(
    pts: float, *tracks: tuple[int, int], epoch: int = 0, source: str = "gate"
) -> Result:
    """Return a result with objects, each (track id, label)."""
    image = np.zeros((*SIZE, 3), np.uint8)
    frame = Frame(source, int(pts * 10), epoch, pts, time.time(), time.monotonic(), image)
    boxes = np.array([(1, 2, 11, 12)] * len(tracks), np.float32).reshape(-1, 4)
    instances = Instances(
        boxes,
        np.full(len(tracks), 0.9, np.float32),
        np.array([label for _, label in tracks], np.int64),
        Masks.from_boxes(boxes, SIZE),
        NAMES,
        np.array([track for track, _ in tracks], np.int64),
    )
    return Result(frame, instances, "nanomask")


class RunningSink:
    """MQTT sink whose stages run in threads."""

    def __init__(self, config: MqttConfig, selected_names: tuple[str, ...] = ()) -> None:
        self.metrics = Metrics()
        self.sink = MqttSink(
            config, "nanomask", NAMES.values(), lambda _source: selected_names, self.metrics
        )
        self.sink.results.add_writer()
        self._sources: set[str] = set()
        self._pipeline = Pipeline()
        self._pipeline.spawn("mqtt:broker", self.sink.deliver())
        self._pipeline.spawn("mqtt", self.sink.drain())

    def set_live(self, source: str = "gate", epoch: int = 0) -> None:
        self.sink.set_state(source, "live", "", epoch)
        self._sources.add(source)

    def put(self, result: Result) -> None:
        self.sink.results.put(result)

    @property
    def is_connected(self) -> bool:
        return self._value("streamseg_sink_connected") == 1

    @property
    def dropped(self) -> float:
        return self._value("streamseg_dropped_messages_total")

    def _value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"sink": "mqtt"}) or 0.0

    def close(self) -> float:
        """End the sink; return the seconds that it took."""
        started_at = time.monotonic()
        self.sink.results.close()
        for source in self._sources:
            self.sink.set_state(source, "ended", "end of stream", 0)
        self._pipeline.wait()
        return time.monotonic() - started_at


@contextlib.contextmanager
def running_sink(
    broker: str, selected_names: tuple[str, ...] = (), **options: object
) -> Iterator[RunningSink]:
    options = {"appear_after": 0.5, "gone_after": 1.0, "every": 0.05, **options}
    sink = RunningSink(MqttConfig(url=broker, **options), selected_names)  # type: ignore[arg-type]
    try:
        yield sink
    finally:
        sink.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as broker:
        yield broker


@pytest.fixture
def subscriber(broker: Mosquitto) -> Iterator[MqttSubscriber]:
    with mqtt_subscriber(broker) as subscriber:
        yield subscriber


def test_counts_events_and_states_are_published(
    broker: Mosquitto, subscriber: MqttSubscriber
) -> None:
    with running_sink(broker.url) as sink:
        subscriber.wait_for_payload("streamseg/status", b"online")
        sink.sink.set_state("gate", "connecting", "", 0)
        subscriber.wait_for_payload("streamseg/gate/count/person", b"0")
        sink.set_live()
        for pts in (0.0, 0.5):
            sink.put(make_result(pts, (1, 1), (2, 1), (3, 2)))
        subscriber.wait_for_payload("streamseg/gate/count/person", b"2")
        subscriber.wait_for_payload("streamseg/gate/count/traffic_light", b"1")
        subscriber.wait_for_state("streamseg/gate/state", "live")
        sink.put(make_result(1.6, (1, 1)))
        subscriber.wait_for_payload("streamseg/gate/count/person", b"1")
        sink.sink.set_state("gate", "ended", "end of stream", 0)
        subscriber.wait_for_state("streamseg/gate/state", "ended")
        subscriber.wait_for_payload("streamseg/gate/count/person", b"0")
    subscriber.wait_for_payload("streamseg/status", b"offline")
    events = subscriber.events("gate")
    assert [(e["type"], e["track"], e["name"]) for e in events] == [
        ("appeared", 1, "person"),
        ("appeared", 2, "person"),
        ("appeared", 3, "traffic light"),
        ("gone", 2, "person"),
        ("gone", 3, "traffic light"),
        ("gone", 1, "person"),
    ]
    assert set(events[0]) == {
        *("type", "epoch", "track", "label", "name", "score", "at", "since", "box")
    }
    assert (events[0]["score"], events[0]["box"]) == (0.9, [1, 2, 11, 12])
    assert abs(events[0]["at"] - time.time()) < 60
    assert events[0]["since"] <= events[0]["at"]


def test_offline_status_is_published_after_the_end_of_each_source(
    broker: Mosquitto, subscriber: MqttSubscriber
) -> None:
    with running_sink(broker.url) as sink:
        sink.set_live()
        subscriber.wait_for_state("streamseg/gate/state", "live")
        sink.sink.results.close()
        wait_until(lambda: sink.sink.results.finished)
        time.sleep(0.3)
        assert subscriber.latest["streamseg/status"] == b"online"
        sink.sink.set_state("gate", "ended", "the service was stopped", 0)
        subscriber.wait_for_payload("streamseg/status", b"offline")
        assert json.loads(subscriber.latest["streamseg/gate/state"])["state"] == "ended"


def test_late_subscriber_receives_retained_messages_and_no_event(broker: Mosquitto) -> None:
    with running_sink(broker.url, appear_after=0) as sink, mqtt_subscriber(broker) as first:
        sink.set_live()
        sink.put(make_result(0.0, (1, 1)))
        first.wait_for_payload("streamseg/gate/count/person", b"1")
        first.wait_for_state("streamseg/gate/state", "live")
        wait_until(lambda: sum("/count/" in topic for topic in first.latest) == len(NAMES))
        wait_until(lambda: first.events("gate"))
        with mqtt_subscriber(broker) as later:
            later.wait_for_payload("streamseg/gate/count/person", b"1")
            later.wait_for_payload("streamseg/status", b"online")
            later.wait_for_state("streamseg/gate/state", "live")
            assert all(message.retained for message in later.received)
            assert later.events("gate") == []


def test_counts_are_published_at_most_once_per_interval(
    broker: Mosquitto, subscriber: MqttSubscriber
) -> None:
    with running_sink(broker.url, appear_after=0, gone_after=0, every=0.5) as sink:
        sink.set_live()
        started_at = time.monotonic()
        for turn in range(60):
            sink.put(make_result(turn / 20, *([(turn, 1)] if turn % 2 else [])))
            time.sleep(0.02)
        elapsed = time.monotonic() - started_at
    subscriber.wait_for_payload("streamseg/status", b"offline")
    counts = [m for m in subscriber.received if m.topic == "streamseg/gate/count/person"]
    assert 2 <= len(counts) <= elapsed / 0.5 + 4, "one at the start, one at the end, two per second"
    assert len(subscriber.events("gate")) == 60, "events are not limited"


def test_special_characters_of_mqtt_in_names_are_escaped(
    broker: Mosquitto, subscriber: MqttSubscriber
) -> None:
    with running_sink(broker.url, appear_after=0, home_assistant="homeassistant") as sink:
        sink.set_live()
        sink.put(make_result(0.0, (1, 3), (2, 4)))
        wait_until(lambda: len(subscriber.events("gate")) == 2)
        assert [e["name"] for e in subscriber.events("gate")] == [NAMES[3], NAMES[4]]
        wait_until(
            lambda: sum(v == b"1" for t, v in subscriber.latest.items() if "/count/" in t) == 2
        )
    for message in subscriber.received:
        assert message.topic.count("/") <= 4
        assert len(message.topic) < 200
    discovered = [json.loads(m.payload) for m in subscriber.received if m.topic.startswith("home")]
    assert {entity["name"] for entity in discovered} == {"Live", NAMES[3], NAMES[4]}


def test_counts_of_a_disconnected_source_are_zero_until_it_reconnects(
    broker: Mosquitto, subscriber: MqttSubscriber
) -> None:
    with running_sink(broker.url, appear_after=0) as sink:
        sink.set_live()
        sink.put(make_result(0.0, (1, 1)))
        subscriber.wait_for_payload("streamseg/gate/count/person", b"1")
        sink.sink.set_state("gate", "stalled", "no frame for 5 s", 0)
        subscriber.wait_for_payload("streamseg/gate/count/person", b"0")
        sink.put(make_result(0.1, (1, 1)))  # was in flight when the source stalled
        sink.set_live(epoch=1)
        sink.put(make_result(0.0, (1, 1), epoch=1))
        subscriber.wait_for_payload("streamseg/gate/count/person", b"1")
    subscriber.wait_for_payload("streamseg/status", b"offline")
    events = [(e["type"], e["epoch"], e["track"]) for e in subscriber.events("gate")]
    assert events == [("appeared", 0, 1), ("gone", 0, 1), ("appeared", 1, 1), ("gone", 1, 1)]


def test_home_assistant_entities_are_published_and_removed_with_their_source(
    broker: Mosquitto, subscriber: MqttSubscriber
) -> None:
    with running_sink(
        broker.url, ("person", "traffic light"), home_assistant="ha/here", prefix="home/cams"
    ) as sink:
        sink.set_live("front.door")
        subscriber.wait_for_payload("home/cams/front.door/count/person", b"0")
        subscriber.wait_for_state("home/cams/front.door/state", "live")
        entities_by_topic = {
            t: json.loads(p) for t, p in subscriber.latest.items() if t.startswith("ha/here/")
        }
        sink.sink.set_state("front.door", "ended", "the source was removed", 0)
        sink.sink.forget("front.door")
        wait_until(lambda: all(subscriber.latest[topic] == b"" for topic in entities_by_topic))
        wait_until(lambda: subscriber.latest["home/cams/front.door/state"] == b"")
        with mqtt_subscriber(broker) as later:
            later.wait_for_payload("home/cams/status", b"online")
            assert set(later.latest) == {"home/cams/status"}, "nothing of the source is retained"
    state = next(e for t, e in entities_by_topic.items() if "/binary_sensor/" in t)
    counts = {e["name"]: e for t, e in entities_by_topic.items() if "/sensor/" in t}
    assert set(counts) == {"person", "traffic light"}
    assert state["device_class"] == "connectivity"
    assert state["state_topic"] == "home/cams/front.door/state"
    assert "value_json.state == 'live'" in state["value_template"]
    light = counts["traffic light"]
    assert light["state_topic"] == "home/cams/front.door/count/traffic_light"
    assert light["state_class"] == "measurement"
    assert light["availability_topic"] == "home/cams/status"
    entities = [state, *counts.values()]
    assert len({entity["unique_id"] for entity in entities}) == 3
    assert {json.dumps(entity["device"]) for entity in entities} == {json.dumps(state["device"])}
    assert state["device"]["name"] == "front.door"


def test_all_retained_messages_are_published_again_after_a_broker_restart(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    with running_sink(broker.url, appear_after=0) as sink:
        sink.set_live()
        sink.put(make_result(0.0, (1, 1)))
        with mqtt_subscriber(broker) as before:
            before.wait_for_payload("streamseg/gate/count/person", b"1")
            before.wait_for_payload("streamseg/gate/count/traffic_light", b"0")
            before.wait_for_state("streamseg/gate/state", "live")
        broker.kill()
        wait_until(lambda: not sink.is_connected)
        sink.put(make_result(0.1, (1, 1), (2, 1)))
        wait_until(lambda: "refused" in caplog.text)
        broker.start()
        restarted_at = time.monotonic()
        with mqtt_subscriber(broker) as subscriber:
            subscriber.wait_for_payload("streamseg/status", b"online", within=30)
            assert time.monotonic() - restarted_at < 5 + MAX_DELAY
            subscriber.wait_for_payload("streamseg/gate/count/person", b"2")
            subscriber.wait_for_payload("streamseg/gate/count/traffic_light", b"0")
            subscriber.wait_for_state("streamseg/gate/state", "live")
            wait_until(
                lambda: (
                    ("appeared", 2) in [(e["type"], e["track"]) for e in subscriber.events("gate")]
                )
            )
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) <= 3, warnings
    assert warnings[-1].endswith(": connected")


def test_unavailable_broker_does_not_block_and_the_queue_is_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "MAX_EVENTS", 10)
    monkeypatch.setattr("streamseg.sinks.mqtt.broker.MIN_DELAY", 60.0)
    with running_sink(f"mqtt://127.0.0.1:{free_port()}", appear_after=0, gone_after=0) as sink:
        sink.set_live()
        started_at = time.monotonic()
        for turn in range(50):
            sink.put(make_result(turn / 10, (turn, 1)))
        assert time.monotonic() - started_at < 10
        wait_until(lambda: sink.dropped == 99 - 10, describe=lambda: sink.dropped)
        assert sink.close() < 10
        assert sink.dropped == 100, "at the end, the queued events are counted as dropped"


@pytest.mark.slow
def test_suspended_broker_does_not_block_the_sink_or_its_end(broker: Mosquitto) -> None:
    with running_sink(broker.url, appear_after=0, gone_after=0) as sink:
        sink.set_live()
        wait_until(lambda: sink.is_connected)
        broker.freeze()
        try:
            for turn in range(300):
                sink.put(make_result(turn / 10, (turn, 1)))
                wait_until(lambda: len(sink.sink.results) < 30)
            assert sink.close() < 5
        finally:
            broker.thaw()


@pytest.mark.slow
def test_sink_disconnects_from_a_suspended_broker_and_reconnects(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamseg.sinks.mqtt.broker.KEEPALIVE", 1)
    with running_sink(broker.url) as sink:
        wait_until(lambda: sink.is_connected)
        broker.freeze()
        try:
            wait_until(lambda: not sink.is_connected)
        finally:
            broker.thaw()
        wait_until(lambda: sink.is_connected)


def test_missing_login_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mosquitto(tmp_path, logins={"home": "right"}) as broker, running_sink(broker.url):
        wait_until(lambda: "the broker requires a user name and a password" in caplog.text)


def test_refused_login_is_logged_once_without_the_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        mosquitto(tmp_path, logins={"home": "right"}) as broker,
        running_sink(broker.url.replace("//", "//home:wr0ng@")) as sink,
    ):
        wait_until(lambda: caplog.records)
        time.sleep(1.5)
        (record,) = caplog.records
        assert not sink.is_connected
    assert record.getMessage() == (
        f"{broker.url}: the broker refuses the user name or the password; "
        "trying again until it works"
    )


@pytest.mark.parametrize("origin", ["url", "env", "file"])
def test_password_is_read_from_url_environment_and_file(
    origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", "r:ght@/")
    (tmp_path / "secret").write_text("r:ght@/\n")
    with mosquitto(tmp_path, logins={"home": "r:ght@/"}) as broker:
        url, options = {
            "url": (broker.url.replace("//", "//home:r%3Aght%40%2F@"), {}),
            "env": (broker.url, {"user": "home", "password_env": "BROKER_PASSWORD"}),
            "file": (
                broker.url.replace("//", "//home@"),
                {"password_file": str(tmp_path / "secret")},
            ),
        }[origin]
        with running_sink(url, **options) as sink:
            wait_until(lambda: sink.is_connected)


def test_changed_password_file_is_read_at_the_next_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("old-one\n")
    with mosquitto(tmp_path, logins={"home": "new-one"}) as broker:
        url = broker.url.replace("//", "//home@")
        with running_sink(url, password_file=str(secret)) as sink:
            wait_until(lambda: "the broker refuses the user name or the password" in caplog.text)
            secret.unlink()
            wait_until(lambda: "password: its file can't be read" in caplog.text)
            secret.write_text("new-one\n")
            wait_until(lambda: sink.is_connected)
    assert "-one" not in caplog.text


# After a failed handshake, paho leaves the socket to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_tls_certificate_of_the_broker_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    with mosquitto(tmp_path, tls=(certificate, key)) as broker:
        with running_sink(broker.url):
            wait_until(
                lambda: "the certificate of the broker can't be trusted: self" in caplog.text
            )
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with running_sink(broker.url) as sink:
            wait_until(lambda: sink.is_connected)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"\x15\x03\x03\x00\x02\x02\x46", "the peer does not send MQTT"),  # TLS alert
        (b"", "the connection was closed"),
        (b"\x20\x02\x00\x00" + b"\x30\x05abcde", "the peer does not send MQTT"),
    ],
)
def test_server_that_is_not_a_broker_is_reported(
    response: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = server.accept()
                    with sock:
                        sock.recv(1000)
                        sock.sendall(response)

        threading.Thread(target=answer, daemon=True).start()
        with running_sink(f"mqtt://127.0.0.1:{server.getsockname()[1]}"):
            wait_until(lambda: caplog.records)
        server.shutdown(socket.SHUT_RDWR)
    assert f": {reason}; trying again" in caplog.text


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({}, "mqtt: Object missing required field `url`"),
        ({"url": ""}, "mqtt: url is empty"),
        ({"url": "mqtt://h", "evry": 1}, "mqtt.evry: unknown key; did you mean 'every'?"),
        ({"url": "mqtt://h", "every": 0}, "mqtt.every: Expected `float` > 0"),
        ({"url": "mqtt://h", "gone_after": -1}, "mqtt.gone_after: Expected `float` >= 0"),
        ({"url": "mqtt://h", "prefix": "a/+"}, "mqtt.prefix: Expected `str` matching"),
        ({"url": "mqtt://h", "prefix": "a/"}, "mqtt.prefix: Expected `str` matching"),
        ({"url": "mqtt://h", "prefix": "a\n"}, "mqtt.prefix: Expected `str` matching"),
        ({"url": "mqtt://h", "prefix": "$SYS"}, "mqtt.prefix: Expected `str` matching"),
        ({"url": "mqtt://h", "home_assistant": "#"}, "mqtt.home_assistant: Expected `str`"),
        ({"url": "mqtt://h", "password_env": "A", "password_file": "b"}, "mqtt: password_env and"),
    ],
)
def test_invalid_config_section_is_refused_with_its_path(
    section: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        validate({"sources": [{"url": "a.mp4"}], "mqtt": section}, "x.yaml")
    assert str(refused.value).startswith(f"x.yaml: {reason}")


def test_mqtt_without_a_tracker_is_refused() -> None:
    raw = {
        "sources": [{"url": "a.mp4"}],
        "mqtt": {"url": "mqtt://h"},
        "tracker": {"enabled": False},
    }
    with pytest.raises(ConfigError, match=r"needs tracker\.enabled"):
        validate(raw, "x.yaml")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"url": "http://h"}, r"mqtt\.url isn't a broker's address: expected mqtt://"),
        ({"url": "mqtt://"}, r"mqtt\.url isn't"),
        ({"url": "h:1883"}, r"mqtt\.url isn't"),
        ({"url": "mqtt://h:99999"}, r"mqtt\.url isn't"),
        ({"url": "mqtt://h:0"}, r"mqtt\.url isn't"),
        ({"url": "mqtt://u:hunter2@h/topic"}, r"mqtt\.url isn't"),
        ({"url": "mqtt://u:hunter2@[::1"}, r"mqtt\.url isn't"),
        ({"url": f"mqtt://{'a' * 64}.org"}, r"mqtt\.url isn't"),
        ({"url": "mqtt://a b"}, r"mqtt\.url isn't"),
        ({"url": "mqtt://u@h", "user": "v"}, "both give a user name"),
        ({"url": "mqtt://:hunter2@h"}, "needs a user"),
        ({"url": "mqtt://u:hunter2@h", "password_env": "PATH"}, "given in url and by password_env"),
        ({"url": "mqtt://h", "password_env": "PATH"}, "needs a user"),
        (
            {"url": "mqtt://u@h", "password_env": "NOT_SET_ANYWHERE"},
            "password: its environment variable isn't set",
        ),
        ({"url": "mqtt://u@h", "password_file": "/nowhere"}, "can't be read"),
    ],
)
def test_invalid_address_or_login_is_refused_without_the_password(
    options: dict[str, str], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        Login.of(MqttConfig(**options))
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_login_is_displayed_without_the_password() -> None:
    login = Login.of(MqttConfig(url="mqtts://home:hunter2@[::1]"))
    assert (str(login), login.port) == ("mqtts://[::1]:8883", 8883)
    assert "hunter2" not in repr(login)


def test_queue_keeps_the_latest_retained_messages_and_the_order_of_events() -> None:
    dropped: list[int] = []
    messages = MessageQueue(dropped.append, lambda: None)
    for payload in (b"1", b"2"):
        messages.retain("a", payload)
        messages.add_event("e", payload)
    first = messages.take()
    assert first == Message("e", b"1", 1, retain=False)
    messages.restart([first])
    assert [messages.take() for _ in range(4)] == [
        first,
        Message("e", b"2", 1, retain=False),
        Message("a", b"2", 1, retain=True),
        None,
    ]
    messages.retain("a", b"2")
    assert messages.take() is None, "the payload has not changed"
    messages.clear("a")
    messages.retain("never sent", b"x")
    messages.clear("never sent")
    removal = messages.take()
    assert removal == Message("a", b"", 1, retain=True)
    messages.restart([removal])
    assert messages.take() == removal, "not acknowledged, so it is sent again"
    messages.acknowledge(removal)
    messages.restart([])
    assert messages.take() is None
    assert sum(dropped) == 0
