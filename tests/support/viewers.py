"""Viewers for tests, and clients that speak the WebSocket protocol of the viewer page."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from support.publishers import Service
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect

from streamseg.viewer import Viewer


@contextlib.contextmanager
def viewer(address: str, **options: Any) -> Iterator[Viewer]:
    """Run a viewer on a free port; stop it at the end and raise its error, if any."""
    running = Viewer(address, **{"port": 0} | options)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            running.run()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join(10)
        assert not thread.is_alive(), "the viewer did not stop"
        if errors:
            raise errors[0]


def authority(running: Viewer) -> str:
    """Return ``host:port`` of a viewer."""
    return running.url.removeprefix("http://").rstrip("/")


def port_of(running: Viewer) -> int:
    return int(authority(running).rpartition(":")[2])


def is_image_requested(service: Service, source: str = "gate") -> bool:
    """Return whether a viewer subscribes to the images of a source."""
    return service.publisher.has_image_subscribers("video", source)


class Page:
    """Client of the WebSocket of a viewer, as the page would be."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, kind: str, **fields: object) -> None:
        self.socket.send(json.dumps({"kind": kind, **fields}))

    def request_sources(self, *sources: str) -> None:
        """Request the frames of sources."""
        self.send("look", sources=list(sources))

    def acknowledge(self, source: str) -> None:
        self.send("seen", source=source)

    def receive(self, within: float = 5) -> dict | tuple[dict, bytes]:
        """Receive a dashboard message, a pong, or a frame as its message and JPEG."""
        raw = self.socket.recv(within)
        if isinstance(raw, str):
            return json.loads(raw)
        (length,) = struct.unpack(">I", raw[:4])
        return json.loads(raw[4 : 4 + length]), raw[4 + length :]

    def frame(self, within: float = 5, *, acknowledge: bool = True) -> tuple[dict, bytes]:
        """Receive the next frame, skipping other messages."""
        deadline = time.monotonic() + within
        while not isinstance(received := self.receive(deadline - time.monotonic()), tuple):
            pass
        if acknowledge:
            self.acknowledge(received[0]["source"])
        return received

    def wait_closed(self, within: float = 5) -> Close:
        """Wait until the viewer closes the connection and return the close frame."""
        deadline = time.monotonic() + within
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.receive(deadline - time.monotonic())
        close = self.socket.protocol.close_rcvd
        assert close is not None, "disconnected without a close frame"
        return close

    def wait_for_dashboard(
        self, condition: Callable[[dict], object] = bool, within: float = 8
    ) -> dict:
        """Receive until a dashboard message satisfies ``condition``; acknowledge frames."""
        deadline = time.monotonic() + within
        latest = None
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                received = self.receive(max(0.01, deadline - time.monotonic()))
                if isinstance(received, tuple):
                    self.acknowledge(received[0]["source"])
                elif received["kind"] == "board":
                    latest = received
                    if condition(received):
                        return received
        raise AssertionError(f"no such dashboard message in {within} s; the latest: {latest}")


@contextlib.contextmanager
def open_client(
    running: Viewer,
    *,
    host: str | None = None,
    visible_sources: tuple[str, ...] = (),
    **options: Any,
) -> Iterator[Page]:
    """Connect a client to a viewer.

    Args:
        running: the viewer.
        host: value of the Host header; by default the address of the viewer.
        visible_sources: sources whose frames are requested.
        options: of ``websockets.sync.client.connect``.
    """
    address, _, port = authority(running).rpartition(":")
    host = host or authority(running)
    defaults = {"origin": f"http://{host}", "compression": None, "max_size": 2**26}
    with (
        socket.create_connection((address, int(port)), timeout=10) as connection,
        connect(f"ws://{host}/live", sock=connection, **defaults | options) as websocket,
    ):
        client = Page(websocket)
        if visible_sources:
            client.request_sources(*visible_sources)
        yield client


def source_view(dashboard: dict, name: str = "gate") -> dict:
    """Return the numbers of a source in a dashboard message; empty if it is not listed."""
    return next((view for view in dashboard["sources"] if view["source"] == name), {})
