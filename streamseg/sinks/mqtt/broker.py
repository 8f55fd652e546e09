"""The connection to an MQTT broker: made, watched, and made again for ever.

One thread, the one that runs ``deliver``, owns the socket. Each connection has a client of paho's
own, so nothing of a connection that broke is left; what it may not have delivered is in the outbox
again. paho's own thread isn't used: it waits with ``select``, which can't take the file descriptors
over 1023 that a service with many subscribers has, and reconnects without jitter.
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
from streamseg.sinks.mqtt.queue import Message, Outbox

log = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"
PORTS = {"mqtt": 1883, "mqtts": 8883}
CONNECT_WITHIN = 3.0
WELCOME_WITHIN = 3.0
"""Seconds until the system has connected, and until the broker has let us in."""
KEEPALIVE = 10
"""Seconds of silence after which the broker is asked for a sign of life, and has as long again."""
ANSWER_WITHIN = 30.0
"""Seconds that a broker gets to acknowledge a message."""
FIRST_DELAY = 0.5
LONGEST_DELAY = 8.0
"""Seconds before the next attempt, each drawn from the upper half."""
STEADY_AFTER = 10.0
"""Seconds that a connection must have held before the next delay is the first again: two services
that go by the same name throw each other out."""
LEAVE_WITHIN = 3.0
"""Seconds that the last messages get."""
MOST_UNANSWERED = 20
"""Messages that the broker may have without having acknowledged them."""
_LOGIN_REFUSED = (134, 135)
"""Reason codes: bad user name or password, not authorized. Mosquitto says the second for both."""
_NOT_MQTT = (MQTTException, ValueError, IndexError, KeyError, struct.error)
"""What paho raises when it reads something else than MQTT."""
_NO_MQTT = "what it says isn't MQTT"


class BrokerLostError(StreamsegError):
    """The connection couldn't be made, or broke; the message says why."""


@dataclass(frozen=True, slots=True)
class Login:
    """Where a broker is, and who we are.

    Attributes:
        host: a name or an address.
        port: its port.
        tls: whether it is spoken to through TLS.
        user: empty for nobody.
        password: never printed.
    """

    host: str
    port: int
    tls: bool
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def of(cls, config: MqttConfig) -> Login:
        """What a config says.

        Raises:
            ConfigError: the url isn't a broker's, or the password can't be had.
        """
        form = "write it as mqtt://[user[:password]@]host[:port], or mqtts://"
        try:
            parts = urlsplit(config.url)
            scheme, host = parts.scheme.lower(), parts.hostname or ""
            port = PORTS[scheme] if parts.port is None else parts.port
            host.encode("idna")
        except (ValueError, KeyError):
            raise ConfigError(f"mqtt.url isn't a broker's address: {form}") from None
        inside = parts.path.strip("/") or parts.query or parts.fragment
        if not re.fullmatch(r"[\w.:%-]+", host) or inside or port == 0:
            raise ConfigError(f"mqtt.url isn't a broker's address: {form}")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if config.user and user:
            raise ConfigError("mqtt: url and user both say who to log in as")
        user = config.user or user
        if config.password_env or config.password_file:
            if password:
                raise ConfigError("mqtt: the url has a password, and another one is named")
            password = read_secret(config.password_env, config.password_file, "mqtt: password")
        if password and not user:
            raise ConfigError("mqtt: a password needs a user to log in as")
        return cls(host, port, scheme == "mqtts", user, password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{host}:{self.port}"


class Broker:
    """Delivers what is in its outbox while somebody runs ``deliver``.

    Args:
        login: gives where, and as whom; asked for each connection, because passwords are changed.
        status_topic: there it says ``online``, and at the end ``offline``; if it dies, the broker
            says so, as its last will.
        on_drop: told how many events were dropped.
        on_change: told whether there is a connection, when that changes.

    Attributes:
        outbox: what is to be delivered.
    """

    def __init__(
        self,
        login: Callable[[], Login],
        status_topic: str,
        on_drop: Callable[[int], None],
        on_change: Callable[[bool], None],
    ) -> None:
        self.outbox = Outbox(on_drop, self._wake)
        self._read_login = login
        self._login = login()
        self._status_topic = status_topic
        self._on_change = on_change
        self._closing = threading.Event()
        self._waking = threading.Lock()
        self._mouth: socket.socket | None = None
        self._trouble = ""

    def deliver(self) -> Iterator[Any]:
        """Keep a connection and deliver, until ``close``: a stage that yields nothing."""
        ear, self._mouth = socket.socketpair()
        for end in (ear, self._mouth):
            end.setblocking(False)
        try:
            self._keep_connected(ear)
        finally:
            with self._waking:
                self._mouth.close()
                self._mouth = None
            ear.close()
            self.outbox.abandon()
        yield from ()

    def close(self) -> None:
        """Deliver what waits, as far as ``LEAVE_WITHIN`` allows, and leave; returns at once."""
        self._closing.set()
        self._wake()

    def _keep_connected(self, ear: socket.socket) -> None:
        delay = FIRST_DELAY
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                self._connection(ear)
            except BrokerLostError as error:
                self._say_lost(str(error))
            if time.monotonic() - began > STEADY_AFTER:
                delay = FIRST_DELAY
            self._closing.wait(delay * random.uniform(0.5, 1))  # noqa: S311 - no secret
            delay = min(2 * delay, LONGEST_DELAY)

    def _connection(self, ear: socket.socket) -> None:
        """One connection, from being made to its end.

        Raises:
            BrokerLostError: why it broke.
        """
        try:
            self._login = self._read_login()
        except ConfigError as error:
            raise BrokerLostError(str(error)) from None
        connection = _Connection(self._login, self._status_topic, self.outbox, ear)
        try:
            connection.open()
            self._say_connected()
            connection.serve(self._closing)
        finally:
            self._on_change(False)
            connection.close()

    def _say_connected(self) -> None:
        self._on_change(True)
        log.log(logging.WARNING if self._trouble else logging.INFO, "%s: connected", self._login)
        self._trouble = ""

    def _say_lost(self, trouble: str) -> None:
        """Log why, where that has changed: a broker may be away for days."""
        if trouble != self._trouble:
            more = "" if self._closing.is_set() else "; trying again until it works"
            log.warning("%s: %s%s", self._login, trouble, more)
        self._trouble = trouble

    def _wake(self) -> None:
        with self._waking, contextlib.suppress(BlockingIOError):  # full: it is awake
            if self._mouth is not None:
                self._mouth.send(b"x")


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """A message that the broker hasn't acknowledged yet."""

    message: Message
    sent: float


class _Connection:
    """One connection, and the client that is only for it."""

    def __init__(self, login: Login, status_topic: str, outbox: Outbox, ear: socket.socket) -> None:
        self._login = login
        self._status_topic = status_topic
        self._outbox = outbox
        self._ear = ear
        self._selector = selectors.DefaultSelector()
        self._unanswered: dict[int, _Unanswered] = {}
        self._welcome: ReasonCode | None = None
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=_client_id(status_topic),
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_WITHIN
        client.will_set(status_topic, OFFLINE, qos=1, retain=True)
        if login.user:
            client.username_pw_set(login.user, login.password)
        if login.tls:
            client.tls_set_context(ssl.create_default_context())
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish

    def open(self) -> None:
        """Connect and be let in.

        Raises:
            BrokerLostError: that failed.
        """
        try:
            self._client.connect(self._login.host, self._login.port, KEEPALIVE)
        except OSError as error:
            raise BrokerLostError(_why(error)) from None
        sock = self._client.socket()
        if sock is None:
            raise BrokerLostError("the connection was closed")
        self._selector.register(sock, selectors.EVENT_READ)
        self._selector.register(self._ear, selectors.EVENT_READ)
        due = time.monotonic() + WELCOME_WITHIN
        while self._welcome is None:
            if time.monotonic() > due:
                raise BrokerLostError(f"it said nothing for {WELCOME_WITHIN:g} s")
            self._attend()
        self._publish(Message(self._status_topic, ONLINE, 1, retain=True))

    def serve(self, closing: threading.Event) -> None:
        """Deliver until ``closing`` is set and everything has gone out, or it is too late.

        Raises:
            BrokerLostError: the connection broke.
        """
        while not closing.is_set():
            self._hand_over()
            self._attend()
        due = time.monotonic() + LEAVE_WITHIN
        while (len(self._outbox) or self._unanswered) and time.monotonic() < due:
            self._hand_over()
            self._attend()
        self._publish(Message(self._status_topic, OFFLINE, 1, retain=True))
        while self._unanswered and time.monotonic() < due:
            self._attend()
        self._client.disconnect()

    def close(self) -> None:
        """Let go of the socket; what may not have arrived goes back into the outbox."""
        unanswered = [u.message for u in self._unanswered.values()]
        self._selector.close()
        sock = self._client.socket()
        if sock is not None:
            sock.close()
        self._outbox.begin_anew(m for m in unanswered if m.topic != self._status_topic)

    def _hand_over(self) -> None:
        """Give the client what waits, but no more than it can get rid of."""
        while not self._client.want_write() and len(self._unanswered) < MOST_UNANSWERED:
            message = self._outbox.take()
            if message is None:
                return
            self._publish(message)

    def _publish(self, message: Message) -> None:
        sent = self._client.publish(
            message.topic, message.payload, qos=message.qos, retain=message.retain
        )
        if message.qos:
            self._unanswered[sent.mid] = _Unanswered(message, time.monotonic())
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._lost(sent.rc)

    def _attend(self) -> None:
        """Wait until there is something to read, to write or to hand over; at most a second.

        Raises:
            BrokerLostError: the connection broke.
        """
        sock = self._client.socket()
        if sock is None:
            self._lost(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        writes = selectors.EVENT_WRITE if self._client.want_write() else 0
        self._selector.modify(sock, selectors.EVENT_READ | writes)
        decoded = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        ready = {key.fileobj: mask for key, mask in self._selector.select(0 if decoded else 1)}
        if self._ear in ready:
            with contextlib.suppress(BlockingIOError):
                self._ear.recv(4096)
        mask = ready.get(sock, 0)
        if decoded or mask & selectors.EVENT_READ:
            self._check(self._read())
        if mask & selectors.EVENT_WRITE:
            self._check(self._client.loop_write())
        self._check(self._client.loop_misc())
        oldest = next(iter(self._unanswered.values()), None)
        if oldest is not None and time.monotonic() - oldest.sent > ANSWER_WITHIN:
            raise BrokerLostError(f"it acknowledged nothing for {ANSWER_WITHIN:g} s")

    def _read(self) -> MQTTErrorCode:
        try:
            return self._client.loop_read()
        except _NOT_MQTT:
            raise BrokerLostError(_NO_MQTT) from None

    def _check(self, code: MQTTErrorCode) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._lost(code)

    def _lost(self, code: MQTTErrorCode) -> NoReturn:
        if self._welcome is not None and self._welcome.is_failure:
            why = self._why_refused(self._welcome)
        elif code == MQTTErrorCode.MQTT_ERR_CONN_LOST:
            why = "the connection was closed"
        elif code == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            why = _NO_MQTT
        else:
            why = error_string(code).rstrip(".").lower()
        raise BrokerLostError(why)

    def _why_refused(self, code: ReasonCode) -> str:
        if code.value not in _LOGIN_REFUSED:
            return f"it refuses the connection: {code}".lower()
        if self._login.user:
            return "it refuses the user name or the password"
        return "it asks for a user name and a password"

    def _on_connect(
        self,
        _client: Client,
        _data: Any,
        _flags: ConnectFlags,
        code: ReasonCode,
        _more: Properties | None,
    ) -> None:
        self._welcome = code

    def _on_publish(
        self, _client: Client, _data: Any, mid: int, _code: ReasonCode, _more: Properties
    ) -> None:
        answered = self._unanswered.pop(mid, None)
        if answered is not None:
            self._outbox.arrived(answered.message)


def _client_id(status_topic: str) -> str:
    """The same at each start on a machine.

    So a broker which still holds a connection of ours for alive closes it, and says its last will,
    before it lets us in: not after.
    """
    named = f"{platform.node()}/{status_topic}".encode()
    return f"streamseg{hashlib.sha256(named).hexdigest()[:12]}"  # 23 characters are allowed


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate can't be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_WITHIN:g} s"
    return (error.strerror or str(error)).lower()
