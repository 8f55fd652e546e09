"""MQTT broker connection: connects, sends the message queue, and reconnects with backoff.

The thread that runs ``deliver`` owns the socket. Each connection uses a new paho client, so that no
state of a broken connection remains; messages that may not have arrived return to the queue. The
thread of paho is not used: it waits with ``select``, which does not support file descriptors above
1023 (a service with many subscribers has more), and it reconnects without jitter.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import platform
import random
import re
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from paho.mqtt import MQTTException
from paho.mqtt.client import Client, ConnectFlags, error_string
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from streamseg.config import MqttConfig, read_secret
from streamseg.errors import ConfigError, StreamsegError
from streamseg.sinks.mqtt.queue import Message, MessageQueue

log = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"
PORTS = {"mqtt": 1883, "mqtts": 8883}
CONNECT_TIMEOUT = 3.0
"""Time limit for the TCP connection, in seconds."""
CONNACK_TIMEOUT = 3.0
"""Time limit for the broker to accept the connection, in seconds."""
KEEPALIVE = 10
"""Interval of MQTT pings, and time limit for the answer, in seconds."""
ACKNOWLEDGE_TIMEOUT = 30.0
"""Time limit for the acknowledgement of a message, in seconds."""
MIN_DELAY = 0.5
MAX_DELAY = 8.0
"""Delays between connection attempts, in seconds; each is multiplied by 0.5 to 1 at random."""
STABLE_AFTER = 10.0
"""Duration of a connection after which the delay is reset to ``MIN_DELAY``, in seconds.

Two services with the same client id disconnect each other; they must not reconnect at full speed.
"""
DRAIN_TIMEOUT = 3.0
"""Time limit for sending the last messages when the sink is closed, in seconds."""
MAX_UNACKNOWLEDGED = 20
"""Maximum number of messages in flight."""
_LOGIN_REFUSED = (134, 135)
"""Reason codes: bad user name or password, not authorized; Mosquitto sends only the latter."""
_NOT_MQTT = (MQTTException, ValueError, IndexError, KeyError, struct.error)
"""Errors that paho raises when the received data is not MQTT."""
_NOT_MQTT_REASON = "the peer does not send MQTT"


class BrokerLostError(StreamsegError):
    """The connection failed or broke; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Login:
    """Address and credentials of a broker.

    Attributes:
        host: host name or IP address.
        port: TCP port.
        tls: whether the connection uses TLS.
        user: user name; empty for an anonymous connection.
        password: password; never printed.
    """

    host: str
    port: int
    tls: bool
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def of(cls, config: MqttConfig) -> Login:
        """Read address and credentials from a config.

        Raises:
            ConfigError: the URL is not that of a broker, or the password can't be read.
        """
        expected = "expected mqtt://[user[:password]@]host[:port] or mqtts://…"
        try:
            parts = urlsplit(config.url)
            scheme, host = parts.scheme.lower(), parts.hostname or ""
            port = PORTS[scheme] if parts.port is None else parts.port
            host.encode("idna")
        except (ValueError, KeyError):
            raise ConfigError(f"mqtt.url isn't a broker's address: {expected}") from None
        has_more = parts.path.strip("/") or parts.query or parts.fragment
        if not re.fullmatch(r"[\w.:%-]+", host) or has_more or port == 0:
            raise ConfigError(f"mqtt.url isn't a broker's address: {expected}")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if config.user and user:
            raise ConfigError("mqtt: url and user both give a user name: remove one of them")
        user = config.user or user
        if config.password_env or config.password_file:
            if password:
                raise ConfigError(
                    "mqtt: password given in url and by password_env or password_file: keep one"
                )
            password = read_secret(config.password_env, config.password_file, "mqtt: password")
        if password and not user:
            raise ConfigError("mqtt: a password needs a user: set user")
        return cls(host, port, scheme == "mqtts", user, password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{host}:{self.port}"


class Broker:
    """Sender of a message queue; ``deliver`` runs the connection.

    Args:
        login: function that returns address and credentials; called for each connection, because
            passwords may change.
        status_topic: topic of ``online`` and ``offline``; the latter is also the last will.
        on_drop: called with the number of dropped events.
        on_change: called with whether there is a connection, when that changes.

    Attributes:
        queue: messages to send.
    """

    def __init__(
        self,
        login: Callable[[], Login],
        status_topic: str,
        on_drop: Callable[[int], None],
        on_change: Callable[[bool], None],
    ) -> None:
        self.queue = MessageQueue(on_drop, self._wake)
        self._read_login = login
        self._login = login()
        self._status_topic = status_topic
        self._on_change = on_change
        self._closing = threading.Event()
        self._wake_lock = threading.Lock()
        self._wake_sender: socket.socket | None = None
        self._last_failure = ""

    def deliver(self) -> Iterator[Any]:
        """Connect and send messages until ``close``; a stage that yields nothing."""
        wake_receiver, self._wake_sender = socket.socketpair()
        for each in (wake_receiver, self._wake_sender):
            each.setblocking(False)
        try:
            self._keep_connected(wake_receiver)
        finally:
            with self._wake_lock:
                self._wake_sender.close()
                self._wake_sender = None
            wake_receiver.close()
            self.queue.close()
        yield from ()

    def close(self) -> None:
        """Let ``deliver`` send the waiting messages and end; does not block."""
        self._closing.set()
        self._wake()

    def _keep_connected(self, wake_receiver: socket.socket) -> None:
        delay = MIN_DELAY
        while not self._closing.is_set():
            started_at = time.monotonic()
            try:
                self._run_connection(wake_receiver)
            except BrokerLostError as error:
                self._log_failure(str(error))
            if time.monotonic() - started_at > STABLE_AFTER:
                delay = MIN_DELAY
            self._closing.wait(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
            delay = min(2 * delay, MAX_DELAY)

    def _run_connection(self, wake_receiver: socket.socket) -> None:
        """Run one connection until ``close``.

        Raises:
            BrokerLostError: the connection failed or broke.
        """
        try:
            self._login = self._read_login()
        except ConfigError as error:
            raise BrokerLostError(str(error)) from None
        connection = _Connection(self._login, self._status_topic, self.queue, wake_receiver)
        try:
            connection.open()
            self._on_change(True)
            self._log_connected()
            connection.serve(self._closing)
        finally:
            self._on_change(False)
            connection.close()

    def _log_connected(self) -> None:
        level = logging.WARNING if self._last_failure else logging.INFO
        log.log(level, "%s: connected", self._login)
        self._last_failure = ""

    def _log_failure(self, reason: str) -> None:
        """Log a failure if its reason is new: a broker may be unreachable for days."""
        if reason != self._last_failure:
            retry = "" if self._closing.is_set() else "; trying again until it works"
            log.warning("%s: %s%s", self._login, reason, retry)
        self._last_failure = reason

    def _wake(self) -> None:
        with self._wake_lock, contextlib.suppress(BlockingIOError):  # full: a wake-up is pending
            if self._wake_sender is not None:
                self._wake_sender.send(b"x")


@dataclass(frozen=True, slots=True)
class _InFlight:
    """Message that the broker has not acknowledged yet."""

    message: Message
    sent_at: float


class _Connection:
    """Connection with a client of its own."""

    def __init__(
        self, login: Login, status_topic: str, queue: MessageQueue, wake_receiver: socket.socket
    ) -> None:
        self._login = login
        self._status_topic = status_topic
        self._queue = queue
        self._wake_receiver = wake_receiver
        self._selector = selectors.DefaultSelector()
        self._in_flight: dict[int, _InFlight] = {}
        self._connack: ReasonCode | None = None
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=_client_id(status_topic),
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT
        client.will_set(status_topic, OFFLINE, qos=1, retain=True)
        if login.user:
            client.username_pw_set(login.user, login.password)
        if login.tls:
            client.tls_set_context(ssl.create_default_context())
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish

    def open(self) -> None:
        """Connect and wait until the broker accepts the connection.

        Raises:
            BrokerLostError: the connection failed.
        """
        try:
            self._client.connect(self._login.host, self._login.port, KEEPALIVE)
        except OSError as error:
            raise BrokerLostError(_connection_error(error)) from None
        sock = self._client.socket()
        if sock is None:
            raise BrokerLostError("the connection was closed")
        self._selector.register(sock, selectors.EVENT_READ)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        deadline = time.monotonic() + CONNACK_TIMEOUT
        while self._connack is None:
            if time.monotonic() > deadline:
                raise BrokerLostError(f"the broker did not answer within {CONNACK_TIMEOUT:g} s")
            self._process_events()
        self._publish(Message(self._status_topic, ONLINE, 1, retain=True))

    def serve(self, closing: threading.Event) -> None:
        """Send messages until ``closing`` is set, then the rest within ``DRAIN_TIMEOUT``.

        Raises:
            BrokerLostError: the connection broke.
        """
        while not closing.is_set():
            self._send_waiting()
            self._process_events()
        deadline = time.monotonic() + DRAIN_TIMEOUT
        while (len(self._queue) or self._in_flight) and time.monotonic() < deadline:
            self._send_waiting()
            self._process_events()
        self._publish(Message(self._status_topic, OFFLINE, 1, retain=True))
        while self._in_flight and time.monotonic() < deadline:
            self._process_events()
        self._client.disconnect()

    def close(self) -> None:
        """Close the socket and return the unacknowledged messages to the queue."""
        unacknowledged = [each.message for each in self._in_flight.values()]
        self._selector.close()
        sock = self._client.socket()
        if sock is not None:
            sock.close()
        self._queue.restart(m for m in unacknowledged if m.topic != self._status_topic)

    def _send_waiting(self) -> None:
        """Pass messages to the client as long as it can send them."""
        while not self._client.want_write() and len(self._in_flight) < MAX_UNACKNOWLEDGED:
            message = self._queue.take()
            if message is None:
                return
            self._publish(message)

    def _publish(self, message: Message) -> None:
        sent = self._client.publish(
            message.topic, message.payload, qos=message.qos, retain=message.retain
        )
        if message.qos:
            self._in_flight[sent.mid] = _InFlight(message, time.monotonic())
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._raise_lost(sent.rc)

    def _process_events(self) -> None:
        """Wait at most one second for the socket or a wake-up, then read and write.

        Raises:
            BrokerLostError: the connection broke.
        """
        sock = self._client.socket()
        if sock is None:
            self._raise_lost(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        writes = selectors.EVENT_WRITE if self._client.want_write() else 0
        self._selector.modify(sock, selectors.EVENT_READ | writes)
        has_decoded = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        ready = {key.fileobj: mask for key, mask in self._selector.select(0 if has_decoded else 1)}
        if self._wake_receiver in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_receiver.recv(4096)
        mask = ready.get(sock, 0)
        if has_decoded or mask & selectors.EVENT_READ:
            self._check(self._read())
        if mask & selectors.EVENT_WRITE:
            self._check(self._client.loop_write())
        self._check(self._client.loop_misc())
        oldest = next(iter(self._in_flight.values()), None)
        if oldest is not None and time.monotonic() - oldest.sent_at > ACKNOWLEDGE_TIMEOUT:
            raise BrokerLostError(f"no message was acknowledged for {ACKNOWLEDGE_TIMEOUT:g} s")

    def _read(self) -> MQTTErrorCode:
        try:
            return self._client.loop_read()
        except _NOT_MQTT:
            raise BrokerLostError(_NOT_MQTT_REASON) from None

    def _check(self, code: MQTTErrorCode) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._raise_lost(code)

    def _raise_lost(self, code: MQTTErrorCode) -> NoReturn:
        if self._connack is not None and self._connack.is_failure:
            reason = self._refusal(self._connack)
        elif code == MQTTErrorCode.MQTT_ERR_CONN_LOST:
            reason = "the connection was closed"
        elif code == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            reason = _NOT_MQTT_REASON
        else:
            reason = error_string(code).rstrip(".").lower()
        raise BrokerLostError(reason)

    def _refusal(self, code: ReasonCode) -> str:
        if code.value not in _LOGIN_REFUSED:
            return f"the broker refuses the connection: {code}".lower()
        if self._login.user:
            return "the broker refuses the user name or the password"
        return "the broker requires a user name and a password"

    def _on_connect(
        self,
        _client: Client,
        _data: Any,
        _flags: ConnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._connack = code

    def _on_publish(
        self, _client: Client, _data: Any, mid: int, _code: ReasonCode, _properties: Properties
    ) -> None:
        acknowledged = self._in_flight.pop(mid, None)
        if acknowledged is not None:
            self._queue.acknowledge(acknowledged.message)


def _client_id(status_topic: str) -> str:
    """Return a client id that is the same at each start on a machine.

    If the broker still has a connection of an earlier run, it closes that one and publishes its
    last will before it accepts the new connection, and not after.
    """
    identity = f"{platform.node()}/{status_topic}".encode()
    return f"streamseg{hashlib.sha256(identity).hexdigest()[:12]}"  # 23 characters are allowed


def _connection_error(error: OSError) -> str:
    """Return the reason of a failed connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the broker can't be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT:g} s"
    return (error.strerror or str(error)).lower()
