"""Helpers of client tests: encoded messages, faulty publishers and a TCP proxy."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import msgspec
import zmq
from support.publishers import result

from streamseg import protocol
from streamseg.sinks.zmq import replay
from streamseg.sinks.zmq.replay import ReplayBuffer


def masks_json(seq=0, *, source="gate", service="one", item=None, **changes):
    """Encode the message of a result, with changes of its fields."""
    item = result(seq, source) if item is None else item
    message = protocol.masks_message(
        protocol.recorded_message(item, seq),
        item,
        service=service,
        published_at=1.0,
        age_ms=2.0,
        dropped={},
    )
    return protocol.encode(msgspec.structs.replace(message, **changes))


def feed_and_take(session, parts):
    """Feed a message to a session and return the result, if any."""
    session.feed(parts)
    return session.take()


def status_json(state="live", seq=0, *, source="", service="one", endpoints=None):
    return protocol.encode(
        protocol.StatusMessage(
            v=1,
            service=service,
            source=source,
            seq=seq,
            state=state,
            reason="",
            epoch=0,
            decoded=0,
            published=0,
            dropped={},
            failed={},
            in_flight=0,
            endpoints=endpoints or {},
        )
    )


@contextlib.contextmanager
def raw_publisher(send_hwm=1000):
    """Open an XPUB socket for arbitrary messages; yield it and its address."""
    context = zmq.Context()
    sock = context.socket(zmq.XPUB)
    sock.linger = 0
    sock.sndhwm = send_hwm
    sock.bind("tcp://127.0.0.1:*")
    try:
        yield sock, sock.getsockopt(zmq.LAST_ENDPOINT).decode()
    finally:
        sock.close(linger=0)
        context.term()


class LossyPublisher:
    """Publisher that can lose messages and replays them on request.

    Attributes:
        service: id of the service; changing it simulates a restart.
        requests: replay requests that were received while ``mute``.
        endpoint: address of the masks socket.
        replay_endpoint: address of the replay socket.
    """

    def __init__(self, *, mute: bool = False, service: str = "one") -> None:
        self.service = service
        self.requests: list[protocol.ReplayRequest] = []
        self._mute = mute
        self._context = zmq.Context()
        self._masks = self._context.socket(zmq.XPUB)
        self._router = self._context.socket(zmq.ROUTER)
        self._history = ReplayBuffer(60, replay.DEFAULT_BYTES, service)
        self._lock = threading.Lock()
        replay.set_replay_options(self._router)
        for sock in (self._masks, self._router):
            sock.bind("tcp://127.0.0.1:*")
        self.endpoint = self._masks.getsockopt(zmq.LAST_ENDPOINT).decode()
        self.replay_endpoint = self._router.getsockopt(zmq.LAST_ENDPOINT).decode()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def wait_for_subscriber(self) -> None:
        assert self._masks.poll(5000)
        while self._masks.poll(100):
            self._masks.recv()

    def publish(self, *seqs: int, lost: bool = False, buffered: bool = True, source="gate") -> None:
        topic = protocol.topic("masks", source)
        for seq in seqs:
            message = masks_json(seq, source=source, service=self.service)
            if buffered:
                with self._lock:
                    self._history.add(topic, seq, message)
            if not lost:
                self._masks.send_multipart([topic, message])

    def publish_status(
        self, state="live", seq=0, *, published=0, source="", endpoints=None
    ) -> None:
        addresses = {"replay": self.replay_endpoint} if endpoints is None else endpoints
        raw = status_json(state, seq, source=source, service=self.service, endpoints=addresses)
        status = msgspec.structs.replace(
            protocol.decode(raw, protocol.StatusMessage), published=published
        )
        self._masks.send_multipart([protocol.topic("status", source), protocol.encode(status)])

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(5)
        for sock in (self._masks, self._router):
            sock.close(linger=0)
        self._context.term()

    def _answer(self) -> None:
        while not self._stopped.is_set():
            if not self._router.poll(20):
                continue
            if self._mute:
                self.requests.append(
                    protocol.decode(self._router.recv_multipart()[1], protocol.ReplayRequest)
                )
                continue
            with self._lock:
                self._history.answer_requests(self._router)


@contextlib.contextmanager
def lossy_publisher(**options) -> Iterator[LossyPublisher]:
    publisher = LossyPublisher(**options)
    try:
        yield publisher
    finally:
        publisher.close()


class TcpProxy:
    """TCP proxy on 127.0.0.1 that can close its connections and refuse new ones."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = int(port)
        self._sockets: list[socket.socket] = []
        self._accepting = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def disconnect(self) -> None:
        """Close all connections and refuse new ones."""
        self._accepting = False
        self._close_connections()

    def reconnect(self) -> None:
        """Accept new connections again."""
        self._accepting = True

    def close(self) -> None:
        self.disconnect()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _close_connections(self) -> None:
        while self._sockets:
            sock = self._sockets.pop()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self._accepting:
                    client.close()
                    continue
                server = socket.create_connection((self._host, self._target), timeout=None)
                self._sockets += [client, server]
                for reader, writer in ((client, server), (server, client)):
                    threading.Thread(target=_forward, args=(reader, writer), daemon=True).start()


def _forward(reader: socket.socket, writer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := reader.recv(65536):
            writer.sendall(data)
