"""Test helpers for the client: messages, faulty publishers and an interruptible connection."""

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


def masks_json(seq=0, *, source="gate", started="one", made=None, **changes):
    made = result(seq, source) if made is None else made
    message = protocol.masks_message(
        protocol.recorded_message(made, seq),
        made,
        service=started,
        published_at=1.0,
        age_ms=2.0,
        dropped={},
    )
    return protocol.encode(msgspec.structs.replace(message, **changes))


def fed(known, parts):
    """Feed a message to a session and return the result, if any."""
    known.feed(parts)
    return known.take()


def status_json(state="live", seq=0, *, source="", started="one", endpoints=None):
    return protocol.encode(
        protocol.StatusMessage(
            v=1,
            service=started,
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
def lying_publisher(queued=1000):
    """Open an XPUB socket for arbitrary messages; yield it and its address."""
    context = zmq.Context()
    sock = context.socket(zmq.XPUB)
    sock.linger = 0
    sock.sndhwm = queued
    sock.bind("tcp://127.0.0.1:*")
    try:
        yield sock, sock.getsockopt(zmq.LAST_ENDPOINT).decode()
    finally:
        sock.close(linger=0)
        context.term()


class Forgetful:
    """Publisher that can lose messages and replays them on request."""

    def __init__(self, *, mute: bool = False, started: str = "one") -> None:
        self.started = started
        self.asked: list[protocol.ReplayRequest] = []
        self._mute = mute
        self._context = zmq.Context()
        self._masks = self._context.socket(zmq.XPUB)
        self._router = self._context.socket(zmq.ROUTER)
        self._history = ReplayBuffer(60, replay.DEFAULT_BYTES, started)
        self._lock = threading.Lock()
        replay.set_replay_options(self._router)
        for sock in (self._masks, self._router):
            sock.bind("tcp://127.0.0.1:*")
        self.at = self._masks.getsockopt(zmq.LAST_ENDPOINT).decode()
        self.replay_at = self._router.getsockopt(zmq.LAST_ENDPOINT).decode()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def joined(self) -> None:
        """Wait for a subscriber."""
        assert self._masks.poll(5000)
        while self._masks.poll(100):
            self._masks.recv()

    def publish(self, *seqs: int, lost: bool = False, kept: bool = True, source="gate") -> None:
        topic = protocol.topic("masks", source)
        for seq in seqs:
            message = masks_json(seq, source=source, started=self.started)
            if kept:
                with self._lock:
                    self._history.add(topic, seq, message)
            if not lost:
                self._masks.send_multipart([topic, message])

    def publish_status(
        self, state="live", seq=0, *, published=0, source="", endpoints=None
    ) -> None:
        addresses = {"replay": self.replay_at} if endpoints is None else endpoints
        raw = status_json(state, seq, source=source, started=self.started, endpoints=addresses)
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
                self.asked.append(
                    protocol.decode(self._router.recv_multipart()[1], protocol.ReplayRequest)
                )
                continue
            with self._lock:
                self._history.answer_requests(self._router)


@contextlib.contextmanager
def forgetful(**options) -> Iterator[Forgetful]:
    publisher = Forgetful(**options)
    try:
        yield publisher
    finally:
        publisher.close()


class Cable:
    """TCP proxy on 127.0.0.1 whose connections can be interrupted and restored."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = int(port)
        self._ends: list[socket.socket] = []
        self._plugged = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.at = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close every connection, and refuse new ones."""
        self._plugged = False
        self._end_all()

    def mend(self) -> None:
        """Accept new connections again."""
        self._plugged = True

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _end_all(self) -> None:
        while self._ends:
            end = self._ends.pop()
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self._plugged:
                    near.close()
                    continue
                far = socket.create_connection((self._host, self._target), timeout=None)
                self._ends += [near, far]
                for reader, writer in ((near, far), (far, near)):
                    threading.Thread(target=_forward, args=(reader, writer), daemon=True).start()


def _forward(reader: socket.socket, writer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := reader.recv(65536):
            writer.sendall(data)
