"""What the viewer's tests share: a viewer that runs, and pages that are only a WebSocket."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect

from streamseg.viewer import Viewer


@contextlib.contextmanager
def viewer(address: str, **options: Any) -> Iterator[Viewer]:
    """A viewer on a free port, stopped and checked in the end."""
    running = Viewer(address, **{"port": 0} | options)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            running.run()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join(10)
        assert not thread.is_alive(), "the viewer doesn't end"
        if failures:
            raise failures[0]


def authority(running: Viewer) -> str:
    """``host:port`` of its page."""
    return running.url.removeprefix("http://").rstrip("/")


class Page:
    """What a page does with its WebSocket, by hand."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def say(self, kind: str, **fields: object) -> None:
        self.socket.send(json.dumps({"kind": kind, **fields}))

    def look(self, *sources: str) -> None:
        self.say("look", sources=list(sources))

    def seen(self, source: str) -> None:
        self.say("seen", source=source)

    def receive(self, within: float = 5) -> dict | tuple[dict, bytes]:
        """A board or pong, or a frame as its message and JPEG."""
        raw = self.socket.recv(within)
        if isinstance(raw, str):
            return json.loads(raw)
        (length,) = struct.unpack(">I", raw[:4])
        return json.loads(raw[4 : 4 + length]), raw[4 + length :]

    def frame(self, within: float = 5, *, seen: bool = True) -> tuple[dict, bytes]:
        """The next frame."""
        until = time.monotonic() + within
        while not isinstance(received := self.receive(until - time.monotonic()), tuple):
            pass
        if seen:
            self.seen(received[0]["source"])
        return received

    def closed(self, within: float = 5) -> Close:
        """How it was closed; whatever comes before is passed over."""
        until = time.monotonic() + within
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.receive(until - time.monotonic())
        closed = self.socket.protocol.close_rcvd
        assert closed is not None, "cut off without a word"
        return closed

    def board(self, true: Callable[[dict], object] = bool, within: float = 8) -> dict:
        """The first board of which ``true`` is; frames before it are passed over, and seen."""
        until = time.monotonic() + within
        last = None
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                received = self.receive(max(0.01, until - time.monotonic()))
                if isinstance(received, tuple):
                    self.seen(received[0]["source"])
                elif received["kind"] == "board":
                    last = received
                    if true(received):
                        return received
        raise AssertionError(f"no such board in {within} s; the last one: {last}")


@contextlib.contextmanager
def page(
    running: Viewer, *, host: str | None = None, looks: tuple[str, ...] = (), **options: Any
) -> Iterator[Page]:
    """A page that was got under the name ``host``."""
    own = authority(running)
    name, _, port = own.rpartition(":")
    host = host or own
    given = {"origin": f"http://{host}", "compression": None, "max_size": 2**26} | options
    with (
        socket.create_connection((name, int(port)), timeout=10) as peer,
        connect(f"ws://{host}/live", sock=peer, **given) as opened,
    ):
        it = Page(opened)
        if looks:
            it.look(*looks)
        yield it


def source(board: dict, name: str = "gate") -> dict:
    """What a board says of a source; nothing if it isn't there."""
    return next((s for s in board["sources"] if s["source"] == name), {})
