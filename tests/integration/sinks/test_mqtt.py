"""The MQTT sink against a real Mosquitto: what it says, and what it does when the broker goes."""

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
from support.brokers import Listener, Mosquitto, listening, mosquitto, until
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


def result(pts: float, *tracks: tuple[int, int], epoch: int = 0, source: str = "gate") -> Result:
    """A result with objects, each (track, label)."""
    image = np.zeros((*SIZE, 3), np.uint8)
    frame = Frame(source, int(pts * 10), epoch, pts, time.time(), time.monotonic(), image)
    boxes = np.array([(1, 2, 11, 12)] * len(tracks), np.float32).reshape(-1, 4)
    found = Instances(
        boxes,
        np.full(len(tracks), 0.9, np.float32),
        np.array([label for _, label in tracks], np.int64),
        Masks.from_boxes(boxes, SIZE),
        NAMES,
        np.array([track for track, _ in tracks], np.int64),
    )
    return Result(frame, found, "nanomask")


class Running:
    """A sink whose stages run."""

    def __init__(self, config: MqttConfig, chosen: tuple[str, ...] = ()) -> None:
        self.metrics = Metrics()
        self.sink = MqttSink(
            config, "nanomask", NAMES.values(), lambda _source: chosen, self.metrics
        )
        self.sink.results.add_writer()
        self._sources: set[str] = set()
        self._pipeline = Pipeline()
        self._pipeline.spawn("mqtt:broker", self.sink.deliver())
        self._pipeline.spawn("mqtt", self.sink.drain())

    def live(self, source: str = "gate", epoch: int = 0) -> None:
        self.sink.set_state(source, "live", "", epoch)
        self._sources.add(source)

    def put(self, made: Result) -> None:
        self.sink.results.put(made)

    @property
    def connected(self) -> bool:
        return self._value("streamseg_sink_connected") == 1

    @property
    def dropped(self) -> float:
        return self._value("streamseg_dropped_messages_total")

    def _value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"sink": "mqtt"}) or 0.0

    def close(self) -> float:
        """Let it end; the seconds that took."""
        began = time.monotonic()
        self.sink.results.close()
        for source in self._sources:
            self.sink.set_state(source, "ended", "end of stream", 0)
        self._pipeline.wait()
        return time.monotonic() - began


@contextlib.contextmanager
def running(broker: str, chosen: tuple[str, ...] = (), **options: object) -> Iterator[Running]:
    quick = {"appear_after": 0.5, "gone_after": 1.0, "every": 0.05, **options}
    made = Running(MqttConfig(url=broker, **quick), chosen)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as made:
        yield made


@pytest.fixture
def listener(broker: Mosquitto) -> Iterator[Listener]:
    with listening(broker) as made:
        yield made


def test_counts_events_and_states_are_said(broker: Mosquitto, listener: Listener) -> None:
    with running(broker.root) as sink:
        listener.until("streamseg/status", b"online")
        sink.sink.set_state("gate", "connecting", "", 0)
        listener.until("streamseg/gate/count/person", b"0")
        sink.live()
        for pts in (0.0, 0.5):
            sink.put(result(pts, (1, 1), (2, 1), (3, 2)))
        listener.until("streamseg/gate/count/person", b"2")
        listener.until("streamseg/gate/count/traffic_light", b"1")
        listener.until_state("streamseg/gate/state", "live")
        sink.put(result(1.6, (1, 1)))
        listener.until("streamseg/gate/count/person", b"1")
        sink.sink.set_state("gate", "ended", "end of stream", 0)
        listener.until_state("streamseg/gate/state", "ended")
        listener.until("streamseg/gate/count/person", b"0")
    listener.until("streamseg/status", b"offline")
    events = listener.events("gate")
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


def test_the_end_waits_for_the_last_word_of_each_source(
    broker: Mosquitto, listener: Listener
) -> None:
    with running(broker.root) as sink:
        sink.live()
        listener.until_state("streamseg/gate/state", "live")
        sink.sink.results.close()
        until(lambda: sink.sink.results.finished)
        time.sleep(0.3)
        assert listener.latest["streamseg/status"] == b"online"
        sink.sink.set_state("gate", "ended", "the service was stopped", 0)
        listener.until("streamseg/status", b"offline")
        assert json.loads(listener.latest["streamseg/gate/state"])["state"] == "ended"


def test_who_comes_later_is_told_what_is_retained_and_no_event(broker: Mosquitto) -> None:
    with running(broker.root, appear_after=0) as sink, listening(broker) as first:
        sink.live()
        sink.put(result(0.0, (1, 1)))
        first.until("streamseg/gate/count/person", b"1")
        first.until_state("streamseg/gate/state", "live")
        until(lambda: sum("/count/" in topic for topic in first.latest) == len(NAMES))
        until(lambda: first.events("gate"))
        with listening(broker) as later:
            later.until("streamseg/gate/count/person", b"1")
            later.until("streamseg/status", b"online")
            later.until_state("streamseg/gate/state", "live")
            assert all(heard.retained for heard in later.heard)
            assert later.events("gate") == []


def test_counts_are_said_no_more_often_than_asked_for(
    broker: Mosquitto, listener: Listener
) -> None:
    with running(broker.root, appear_after=0, gone_after=0, every=0.5) as sink:
        sink.live()
        began = time.monotonic()
        for turn in range(60):
            sink.put(result(turn / 20, *([(turn, 1)] if turn % 2 else [])))
            time.sleep(0.02)
        took = time.monotonic() - began
    listener.until("streamseg/status", b"offline")
    said = [h for h in listener.heard if h.topic == "streamseg/gate/count/person"]
    assert 2 <= len(said) <= took / 0.5 + 4, "one at first, one at the end, and two a second"
    assert len(listener.events("gate")) == 60, "each event is said"


def test_names_that_mean_something_to_mqtt_do_no_harm(
    broker: Mosquitto, listener: Listener
) -> None:
    with running(broker.root, appear_after=0, home_assistant="homeassistant") as sink:
        sink.live()
        sink.put(result(0.0, (1, 3), (2, 4)))
        until(lambda: len(listener.events("gate")) == 2)
        assert [e["name"] for e in listener.events("gate")] == [NAMES[3], NAMES[4]]
        until(lambda: sum(v == b"1" for t, v in listener.latest.items() if "/count/" in t) == 2)
    for heard in listener.heard:
        assert heard.topic.count("/") <= 4
        assert len(heard.topic) < 200
    discovered = [json.loads(h.payload) for h in listener.heard if h.topic.startswith("home")]
    assert {entity["name"] for entity in discovered} == {"Live", NAMES[3], NAMES[4]}


def test_a_source_that_is_lost_has_nobody_in_it_until_it_is_back(
    broker: Mosquitto, listener: Listener
) -> None:
    with running(broker.root, appear_after=0) as sink:
        sink.live()
        sink.put(result(0.0, (1, 1)))
        listener.until("streamseg/gate/count/person", b"1")
        sink.sink.set_state("gate", "stalled", "no frame for 5 s", 0)
        listener.until("streamseg/gate/count/person", b"0")
        sink.put(result(0.1, (1, 1)))  # it was with the model
        sink.live(epoch=1)
        sink.put(result(0.0, (1, 1), epoch=1))
        listener.until("streamseg/gate/count/person", b"1")
    listener.until("streamseg/status", b"offline")
    events = [(e["type"], e["epoch"], e["track"]) for e in listener.events("gate")]
    assert events == [("appeared", 0, 1), ("gone", 0, 1), ("appeared", 1, 1), ("gone", 1, 1)]


def test_home_assistant_is_told_what_there_is_and_when_it_is_gone(
    broker: Mosquitto, listener: Listener
) -> None:
    with running(
        broker.root, ("person", "traffic light"), home_assistant="ha/here", prefix="home/cams"
    ) as sink:
        sink.live("front.door")
        listener.until("home/cams/front.door/count/person", b"0")
        listener.until_state("home/cams/front.door/state", "live")
        found = {t: json.loads(p) for t, p in listener.latest.items() if t.startswith("ha/here/")}
        sink.sink.set_state("front.door", "ended", "it was taken away", 0)
        sink.sink.forget("front.door")
        until(lambda: all(listener.latest[topic] == b"" for topic in found))
        until(lambda: listener.latest["home/cams/front.door/state"] == b"")
        with listening(broker) as later:
            later.until("home/cams/status", b"online")
            assert set(later.latest) == {"home/cams/status"}, "nothing is left of it"
    state = next(e for t, e in found.items() if "/binary_sensor/" in t)
    counts = {e["name"]: e for t, e in found.items() if "/sensor/" in t}
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


def test_a_broker_that_is_killed_and_comes_back_is_told_everything_anew(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    with running(broker.root, appear_after=0) as sink:
        sink.live()
        sink.put(result(0.0, (1, 1)))
        with listening(broker) as before:
            before.until("streamseg/gate/count/person", b"1")
            before.until("streamseg/gate/count/traffic_light", b"0")
            before.until_state("streamseg/gate/state", "live")
        broker.kill()
        until(lambda: not sink.connected)
        sink.put(result(0.1, (1, 1), (2, 1)))
        until(lambda: "refused" in caplog.text)
        broker.start()
        began = time.monotonic()
        with listening(broker) as listener:
            listener.until("streamseg/status", b"online", within=30)
            assert time.monotonic() - began < 5 + MAX_DELAY
            listener.until("streamseg/gate/count/person", b"2")
            listener.until("streamseg/gate/count/traffic_light", b"0")
            listener.until_state("streamseg/gate/state", "live")
            until(
                lambda: (
                    ("appeared", 2) in [(e["type"], e["track"]) for e in listener.events("gate")]
                )
            )
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) <= 3, warnings
    assert warnings[-1].endswith(": connected")


def test_a_broker_that_is_away_holds_nothing_up_and_costs_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "MAX_EVENTS", 10)
    monkeypatch.setattr("streamseg.sinks.mqtt.broker.MIN_DELAY", 60.0)
    with running(f"mqtt://127.0.0.1:{free_port()}", appear_after=0, gone_after=0) as sink:
        sink.live()
        before = time.monotonic()
        for turn in range(50):
            sink.put(result(turn / 10, (turn, 1)))
        assert time.monotonic() - before < 10
        until(lambda: sink.dropped == 99 - 10, say=lambda: sink.dropped)
        assert sink.close() < 10
        assert sink.dropped == 100, "at the end all are lost, and counted"


@pytest.mark.slow
def test_a_frozen_broker_holds_nothing_up_and_the_end_is_in_time(broker: Mosquitto) -> None:
    with running(broker.root, appear_after=0, gone_after=0) as sink:
        sink.live()
        until(lambda: sink.connected)
        broker.freeze()
        try:
            for turn in range(300):
                sink.put(result(turn / 10, (turn, 1)))
                until(lambda: len(sink.sink.results) < 30)
            assert sink.close() < 5
        finally:
            broker.thaw()


def test_a_frozen_broker_is_given_up_and_found_again(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamseg.sinks.mqtt.broker.KEEPALIVE", 1)
    with running(broker.root) as sink:
        until(lambda: sink.connected)
        broker.freeze()
        try:
            until(lambda: not sink.connected)
        finally:
            broker.thaw()
        until(lambda: sink.connected)


def test_a_broker_that_wants_a_login_and_gets_none_is_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mosquitto(tmp_path, logins={"home": "right"}) as broker, running(broker.root):
        until(lambda: "the broker requires a user name and a password" in caplog.text)


def test_a_refused_login_is_said_once_in_a_line_without_the_password_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        mosquitto(tmp_path, logins={"home": "right"}) as broker,
        running(broker.root.replace("//", "//home:wr0ng@")) as sink,
    ):
        until(lambda: caplog.records)
        time.sleep(1.5)
        (record,) = caplog.records
        assert not sink.connected
    assert record.getMessage() == (
        f"{broker.root}: the broker refuses the user name or the password; "
        "trying again until it works"
    )


@pytest.mark.parametrize("way", ["url", "env", "file"])
def test_a_password_comes_from_where_the_config_says(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", "r:ght@/")
    (tmp_path / "secret").write_text("r:ght@/\n")
    with mosquitto(tmp_path, logins={"home": "r:ght@/"}) as broker:
        url, options = {
            "url": (broker.root.replace("//", "//home:r%3Aght%40%2F@"), {}),
            "env": (broker.root, {"user": "home", "password_env": "BROKER_PASSWORD"}),
            "file": (
                broker.root.replace("//", "//home@"),
                {"password_file": str(tmp_path / "secret")},
            ),
        }[way]
        with running(url, **options) as sink:
            until(lambda: sink.connected)


def test_a_password_that_is_changed_is_used_at_the_next_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("old-one\n")
    with mosquitto(tmp_path, logins={"home": "new-one"}) as broker:
        url = broker.root.replace("//", "//home@")
        with running(url, password_file=str(secret)) as sink:
            until(lambda: "the broker refuses the user name or the password" in caplog.text)
            secret.unlink()
            until(lambda: "password: its file can't be read" in caplog.text)
            secret.write_text("new-one\n")
            until(lambda: sink.connected)
    assert "-one" not in caplog.text


# Of a handshake that failed, paho leaves the socket to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_through_tls_the_certificate_is_looked_at(
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
        with running(broker.root):
            until(lambda: "the certificate of the broker can't be trusted: self" in caplog.text)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with running(broker.root) as sink:
            until(lambda: sink.connected)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (b"\x15\x03\x03\x00\x02\x02\x46", "the peer does not send MQTT"),  # an alert of TLS
        (b"", "the connection was closed"),
        (b"\x20\x02\x00\x00" + b"\x30\x05abcde", "the peer does not send MQTT"),
    ],
)
def test_a_server_that_is_no_broker_is_said_so(
    says: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = server.accept()
                    with sock:
                        sock.recv(1000)
                        sock.sendall(says)

        threading.Thread(target=answer, daemon=True).start()
        with running(f"mqtt://127.0.0.1:{server.getsockname()[1]}"):
            until(lambda: caplog.records)
        server.shutdown(socket.SHUT_RDWR)
    assert f": {why}; trying again" in caplog.text


@pytest.mark.parametrize(
    ("section", "why"),
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
def test_a_section_that_is_wrong_is_refused_with_its_path(
    section: dict[str, object], why: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        validate({"sources": [{"url": "a.mp4"}], "mqtt": section}, "x.yaml")
    assert str(refused.value).startswith(f"x.yaml: {why}")


def test_without_identities_nothing_can_be_counted() -> None:
    raw = {
        "sources": [{"url": "a.mp4"}],
        "mqtt": {"url": "mqtt://h"},
        "tracker": {"enabled": False},
    }
    with pytest.raises(ConfigError, match=r"needs tracker\.enabled"):
        validate(raw, "x.yaml")


@pytest.mark.parametrize(
    ("options", "why"),
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
def test_a_broker_that_can_t_be_is_refused_without_a_word_of_the_password(
    options: dict[str, str], why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        Login.of(MqttConfig(**options))
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_login_is_shown_without_what_is_secret() -> None:
    login = Login.of(MqttConfig(url="mqtts://home:hunter2@[::1]"))
    assert (str(login), login.port) == ("mqtts://[::1]:8883", 8883)
    assert "hunter2" not in repr(login)


def test_an_outbox_keeps_the_latest_of_what_is_retained_and_the_order_of_events() -> None:
    lost: list[int] = []
    box = MessageQueue(lost.append, lambda: None)
    for payload in (b"1", b"2"):
        box.retain("a", payload)
        box.add_event("e", payload)
    first = box.take()
    assert first == Message("e", b"1", 1, retain=False)
    box.restart([first])
    assert [box.take() for _ in range(4)] == [
        first,
        Message("e", b"2", 1, retain=False),
        Message("a", b"2", 1, retain=True),
        None,
    ]
    box.retain("a", b"2")
    assert box.take() is None, "it is there already"
    box.clear("a")
    box.retain("never sent", b"x")
    box.clear("never sent")
    back = box.take()
    assert back == Message("a", b"", 1, retain=True)
    box.restart([back])
    assert box.take() == back, "it may not have arrived"
    box.acknowledge(back)
    box.restart([])
    assert box.take() is None
    assert sum(lost) == 0
