"""Keys of a subscriber: accepted, refused, wrong, and the error messages."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
import zmq
from support.publishers import wait_until
from support.subscribers import masks_json, status_json
from support.viewers import open_client, viewer
from zmq.utils import z85

import streamseg
from streamseg import protocol
from streamseg.client import link
from streamseg.errors import KeyFileError, ReceiveTimeout, RefusedError, UsageError
from streamseg.protocol.curve import create_pair
from streamseg.sinks.zmq import replay
from streamseg.sinks.zmq.replay import ReplayBuffer
from streamseg.viewer import Viewer


class KeyedPublisher:
    """Minimal publisher with keys; ``allowed`` may be changed at any time."""

    def __init__(self, pair, bind: str = "tcp://127.0.0.1:*") -> None:
        self.allowed: set[str] = set()
        self._pair = pair
        self._context = zmq.Context()
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind("inproc://zeromq.zap.01")
        self.masks = self._bind_socket(zmq.XPUB, bind)
        self.router = self._bind_socket(zmq.ROUTER)
        self.endpoint = self.masks.getsockopt(zmq.LAST_ENDPOINT).decode()
        self.endpoints = {"replay": self.router.getsockopt(zmq.LAST_ENDPOINT).decode()}
        self.history = ReplayBuffer(60, replay.DEFAULT_BYTES, "one")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._answer_requests, daemon=True)
        self._thread.start()

    def _bind_socket(self, kind, bind="tcp://127.0.0.1:*"):
        sock = self._context.socket(kind)
        sock.linger = 0
        sock.curve_server = True
        sock.curve_secretkey = self._pair.secret.encode()
        sock.setsockopt(zmq.ZAP_DOMAIN, b"streamseg")
        sock.bind(bind)
        return sock

    def _answer_requests(self) -> None:
        while not self._stopped.is_set():
            if self._zap.poll(10):
                version, request, _, _, _, _, key = self._zap.recv_multipart()
                code = b"200" if z85.encode(key).decode() in self.allowed else b"400"
                self._zap.send_multipart([version, request, code, b"", b"", b""])
            if self.router.poll(0):
                self.history.answer_requests(self.router)

    def publish(self, seq, *, lost=False) -> None:
        message = masks_json(seq)
        self.history.add(b"masks/gate/", seq, message)
        if not lost:
            self.masks.send_multipart([b"masks/gate/", message])

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(5)
        for sock in (self.masks, self.router, self._zap):
            sock.close(linger=0)
        self._context.term()


@contextlib.contextmanager
def keyed_publisher(pair, **options) -> Iterator[KeyedPublisher]:
    publisher = KeyedPublisher(pair, **options)
    try:
        yield publisher
    finally:
        publisher.close()


@pytest.fixture
def server(tmp_path):
    return create_pair(tmp_path / "server", "server")


@pytest.fixture
def key_pair(tmp_path):
    """Return the public key of the subscriber and the path of its secret key."""
    return create_pair(tmp_path / "key_pair", "reader").public, tmp_path / "key_pair" / "reader.key"


def test_allowed_subscriber_receives_live_and_replayed_results(server, key_pair, tmp_path) -> None:
    key, file = key_pair
    with keyed_publisher(server) as publisher:
        publisher.allowed.add(key)
        for server_key in (server.public, tmp_path / "server" / "server.pub"):
            with streamseg.connect(
                publisher.endpoint, server_key=server_key, key_file=file, timeout=5
            ) as sub:
                assert publisher.masks.poll(5000)
                while publisher.masks.poll(100):
                    publisher.masks.recv()
                status = status_json(endpoints=publisher.endpoints)
                publisher.masks.send_multipart([b"status//", status])
                publisher.publish(0)
                publisher.publish(1, lost=True)
                publisher.publish(2)
                assert [sub.receive().seq for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"newest": True}, {"frames": "plain"}])
def test_refused_key_raises_at_once(server, key_pair, options) -> None:
    key, file = key_pair
    with keyed_publisher(server) as publisher:
        keys = {"server_key": server.public, "key_file": str(file)}
        started_at = time.monotonic()
        with (
            streamseg.connect(publisher.endpoint, timeout=20, **keys, **options) as sub,
            pytest.raises(RefusedError) as caught,
        ):
            sub.receive()
        assert time.monotonic() - started_at < 10
        message = str(caught.value)
        assert message.startswith(publisher.endpoint)
        assert f"refuses the key {key}: allow it" in message
        with (
            streamseg.connect(publisher.endpoint, timeout=8, **keys) as sub,
            pytest.raises(RefusedError),
        ):
            asyncio.run(sub.receive_async())


def test_subscriber_without_key_gets_an_error_that_names_the_options(server) -> None:
    with (
        keyed_publisher(server) as publisher,
        streamseg.connect(publisher.endpoint, timeout=8) as sub,
        pytest.raises(RefusedError, match="requires a key: connect with server_key and key_file"),
    ):
        sub.receive()


def test_subscriber_with_key_of_a_service_without_keys_gets_an_error(server, key_pair) -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as sock:
        sock.bind("tcp://127.0.0.1:*")
        at = sock.getsockopt(zmq.LAST_ENDPOINT).decode()
        with (
            streamseg.connect(at, server_key=server.public, key_file=key_pair[1], timeout=8) as sub,
            pytest.raises(RefusedError, match="uses no keys"),
        ):
            sub.receive()


def test_wrong_server_key_is_reported(server, key_pair, tmp_path, caplog) -> None:
    other = create_pair(tmp_path / "other", "server")
    with keyed_publisher(server) as publisher:
        publisher.allowed.add(key_pair[0])
        with streamseg.connect(
            publisher.endpoint, server_key=other.public, key_file=key_pair[1]
        ) as sub:

            def is_suspected() -> bool:
                with pytest.raises(ReceiveTimeout) as caught:
                    sub.receive(timeout=0.2)
                return f"check that {other.public} is" in str(caught.value)

            wait_until(is_suspected)
            assert caplog.text.count("is the service's key") == 1


def test_subscriber_refused_after_an_accepted_connection_keeps_retrying(
    server, key_pair, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(link, "RECONNECT_AFTER", 0.5)
    key, file = key_pair
    with keyed_publisher(server) as publisher:
        bind = publisher.endpoint
        publisher.allowed.add(key)
        sub = streamseg.connect(bind, server_key=server.public, key_file=file, timeout=0.2)
        assert publisher.masks.poll(5000)
        time.sleep(0.1)
        publisher.publish(0)
        assert sub.receive(timeout=5).seq == 0
    with keyed_publisher(server, bind=bind) as publisher, sub:
        message, received = "", []

        def is_refused() -> bool:
            nonlocal message
            with pytest.raises(ReceiveTimeout) as caught:
                sub.receive()
            message = str(caught.value)
            return "refuses the key" in message

        wait_until(is_refused)
        publisher.allowed.add(key)
        reader = threading.Thread(target=lambda: received.append(sub.receive(timeout=5).seq))
        reader.start()
        assert publisher.masks.poll(5000), "the subscriber has not reconnected"
        time.sleep(0.1)
        publisher.publish(1)
        reader.join(5)
    assert received == [1]
    assert caplog.text.count("refuses the key") == 1


def test_one_key_without_the_other_is_a_usage_error(server, key_pair, tmp_path) -> None:
    at = "tcp://127.0.0.1:5555"
    with pytest.raises(UsageError, match="server_key without key_file"):
        streamseg.connect(at, server_key=server.public)
    with pytest.raises(UsageError, match="key_file without server_key"):
        streamseg.connect(at, key_file=key_pair[1])
    with pytest.raises(KeyFileError, match="neither a file nor a key of 40 characters"):
        streamseg.connect(at, server_key="x", key_file=key_pair[1])
    with pytest.raises(KeyFileError, match=r"missing\.key"):
        streamseg.connect(at, server_key=server.public, key_file=tmp_path / "missing.key")
    with pytest.raises(KeyFileError, match="public key"):
        streamseg.connect(at, server_key=server.public, key_file=tmp_path / "server" / "server.pub")


@pytest.mark.slow
def test_viewer_refused_at_first_exits_and_refused_later_retries(
    server, key_pair, monkeypatch
) -> None:
    monkeypatch.setattr(link, "RECONNECT_AFTER", 0.5)
    key, file = key_pair
    keys = {"server_key": server.public, "key_file": file}
    with keyed_publisher(server) as publisher:
        bind = publisher.endpoint
        with pytest.raises(RefusedError):
            Viewer(bind, port=0, **keys).run()
        publisher.allowed.add(key)
        stack = contextlib.ExitStack()
        client = stack.enter_context(open_client(stack.enter_context(viewer(bind, **keys))))
        assert publisher.masks.poll(5000)
        for source in ("gate", ""):
            status = [protocol.topic("status", source), status_json(source=source)]
            publisher.masks.send_multipart(status)
        client.wait_for_dashboard(lambda board: board["state"] == "live")
    with stack:
        with keyed_publisher(server, bind=bind):
            client.request_sources("gate")  # images need a separate subscription
            client.wait_for_dashboard(lambda board: board["state"] == "silent")
        with keyed_publisher(server, bind=bind) as publisher:
            publisher.allowed.add(key)
            assert publisher.masks.poll(8000), "the subscriber has not reconnected"
            publisher.masks.send_multipart([b"status//", status_json(service="two")])
            client.wait_for_dashboard(lambda board: board["state"] == "live")
