"""MQTT: a Mosquitto broker that tests stop and restart, and a subscriber to all topics."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from support.cameras import require_program
from support.ports import free_port

SERVER = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


def wait_until(
    condition: Callable[[], object], within: float = 10, describe: Callable[[], object] = str
) -> None:
    """Wait until ``condition()`` is true; ``describe`` returns the message of the failure."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.01)


class Mosquitto:
    """Broker without persistence: retained messages are lost when it is killed.

    Attributes:
        port: TCP port.
        url: URL of the broker.
    """

    def __init__(
        self, folder: Path, *, logins: dict[str, str] | None = None, tls: tuple[Path, Path] | None
    ) -> None:
        self.port = free_port()
        self.url = f"mqtt{'s' if tls else ''}://localhost:{self.port}"
        self._config = folder / f"mosquitto-{self.port}.conf"
        lines = [f"listener {self.port} 127.0.0.1", "persistence false", "user root"]
        lines += ["max_queued_messages 10000"]
        if logins is None:
            lines.append("allow_anonymous true")
        else:
            passwords = folder / f"passwords-{self.port}"
            passwords.touch(0o600)
            for login in logins.items():
                subprocess.run(["mosquitto_passwd", "-b", str(passwords), *login], check=True)
            lines += ["allow_anonymous false", f"password_file {passwords}"]
        if tls is not None:
            certificate, key = tls
            lines += [f"certfile {certificate}", f"keyfile {key}"]
        self._config.write_text("\n".join(lines) + "\n")
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [str(SERVER), "-c", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._accepts_connections)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _accepts_connections(self) -> bool:
        assert self._process.poll() is None, "mosquitto has exited"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        return False


@contextlib.contextmanager
def mosquitto(
    folder: Path,
    *,
    logins: dict[str, str] | None = None,
    tls: tuple[Path, Path] | None = None,
) -> Iterator[Mosquitto]:
    require_program("mosquitto", is_installed=SERVER is not None)
    broker = Mosquitto(folder, logins=logins, tls=tls)
    try:
        yield broker
    finally:
        broker.kill()


@dataclass(frozen=True)
class ReceivedMessage:
    """Received message."""

    topic: str
    payload: bytes
    retained: bool

    def json(self) -> Any:
        return json.loads(self.payload)


class MqttSubscriber:
    """Subscriber to all topics of a broker.

    Attributes:
        received: all messages, in order.
        latest: latest payload, by topic.
    """

    def __init__(self, broker: Mosquitto, login: tuple[str, str] | None = None) -> None:
        self.received: list[ReceivedMessage] = []
        self.latest: dict[str, bytes] = {}
        subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        if login is not None:
            self._client.username_pw_set(*login)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        assert subscribed.wait(10)

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        received = ReceivedMessage(message.topic, bytes(message.payload), message.retain)
        self.received.append(received)
        self.latest[received.topic] = received.payload

    def wait_for_payload(self, topic: str, payload: bytes, within: float = 10) -> None:
        wait_until(
            lambda: self.latest.get(topic) == payload,
            within,
            lambda: f"{topic} is {self.latest.get(topic)!r}, not {payload!r}: {self.latest}",
        )

    def wait_for_state(self, topic: str, state: str, within: float = 10) -> None:
        wait_until(
            lambda: json.loads(self.latest.get(topic, b"{}")).get("state") == state,
            within,
            lambda: f"{topic} is {self.latest.get(topic)!r}, not {state}",
        )

    def events(self, source: str, prefix: str = "streamseg") -> list[Any]:
        return [m.json() for m in list(self.received) if m.topic == f"{prefix}/{source}/event"]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def mqtt_subscriber(
    broker: Mosquitto, login: tuple[str, str] | None = None
) -> Iterator[MqttSubscriber]:
    subscriber = MqttSubscriber(broker, login)
    try:
        yield subscriber
    finally:
        subscriber.close()
