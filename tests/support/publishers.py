"""Helpers of publisher and client tests: results, a running publisher and raw ZMTP clients."""

from __future__ import annotations

import contextlib
import functools
import io
import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image as Pillow

from streamseg.config import PublishConfig
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.rendering import EncodedImages
from streamseg.sinks.zmq.publisher import RESULTS_WAITING, Publisher
from streamseg.structures.masks import Masks
from streamseg.structures.results import Frame, Image, Instances, Result, Segment

SIZE = (40, 60)
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
CATEGORIES = {1: "person", 3: "car"}


def encode_ready(kind: bytes) -> bytes:
    """Return the READY command of a socket type (ZMTP 3.0, NULL mechanism)."""
    body = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    return b"\x04" + bytes([len(body)]) + body


def instances(count: int = 2, size: tuple[int, int] = SIZE) -> Instances:
    """Return instances with elliptic masks, always the same."""
    crops, origins, boxes = [], [], []
    for row in range(count):
        height, width = 8 + row % 5, 6 + row % 7
        y, x = np.ogrid[:height, :width]
        inside = (2 * y + 1 - height) ** 2 / height**2 + (2 * x + 1 - width) ** 2 / width**2 <= 1
        crops.append(inside)
        origins.append((3 * row % (size[1] - width), 5 * row % (size[0] - height)))
        x1, y1 = origins[-1]
        boxes.append((x1 + 0.1, y1 + 0.2, x1 + width - 0.3, y1 + height - 0.7))
    return Instances(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.3, count, dtype=np.float32),
        np.array([1 if row % 2 == 0 else 3 for row in range(count)], np.int64),
        Masks.from_crops(crops, origins, size),
        CATEGORIES,
        np.arange(count) + 1,
    )


def result(
    index: int = 0, source: str = "gate", *, found: Instances | None = None, epoch: int = 0
) -> Result:
    found = instances() if found is None else found
    now = time.time(), time.monotonic()
    frame = Frame(source, index, epoch, index / 25, *now, _black(found.size))
    return Result(frame, found, "nanomask", {"forward": 12.5})


@functools.cache
def _black(size: tuple[int, int]) -> Image:
    """Return a black image; cached, because allocation would dominate the time of a test."""
    return np.zeros((*size, 3), np.uint8)


def panoptic_result() -> Result:
    found = instances()
    plain = result(found=found)
    segments = tuple(
        Segment(row + 1, int(found.labels[row]), found.names[row], row == 0, found.masks[row])
        for row in range(len(found))
    )
    return Result(plain.frame, found, "panoptic_fpn_r50", {"forward": 12.5}, segments)


def encode_solid_jpeg(
    size: tuple[int, int] = SIZE, color: tuple[int, int, int] = (255, 0, 0)
) -> bytes:
    """Encode an image of one color."""
    file = io.BytesIO()
    Pillow.new("RGB", (size[1], size[0]), color).save(file, "JPEG", quality=95)
    return file.getvalue()


class Service:
    """Publisher with its network thread; tests put results and images.

    Attributes:
        done: published results.
    """

    def __init__(self, bind: str = "tcp://127.0.0.1:*", **options: object) -> None:
        self.metrics = Metrics()
        self.publisher = Publisher(PublishConfig(bind=bind, **options), self.metrics)
        self.publisher.results.add_writer()
        self.publisher.images.add_writer()
        self.done: list[Result] = []
        self._thread = threading.Thread(target=self._drain, daemon=True)

    def _drain(self) -> None:
        for item in self.publisher.drain():
            self.done.append(item)

    @property
    def masks_endpoint(self) -> str:
        return self.publisher.endpoints["masks"]

    @property
    def images_endpoint(self) -> str:
        return self.publisher.endpoints["frames"]

    def start(self) -> Service:
        self._thread.start()
        return self

    def wait_for_subscribers(self, count: int = 1, within: float = 10) -> None:
        timed_out = threading.Event()
        timer = threading.Timer(within, timed_out.set)
        timer.start()
        try:
            assert self.publisher.wait_for_subscribers(count, timed_out.is_set), (
                f"no {count} subscribers in time"
            )
        finally:
            timer.cancel()

    def put(self, *items: Result, every: float = 0.0) -> None:
        for item in items:
            self.metrics.account(item.source).decode()
            self.publisher.results.put(item)
            time.sleep(every)

    def put_and_wait(self, *items: Result) -> None:
        """Put results and wait until they are published, so that none is dropped as late."""
        for start in range(0, len(items), RESULTS_WAITING):
            batch = items[start : start + RESULTS_WAITING]
            count = len(self.done) + len(batch)
            self.put(*batch)
            wait_until(lambda count=count: len(self.done) >= count)

    def put_images(self, item: Result, annotated: bytes | None, plain: bytes | None = None) -> None:
        self.publisher.images.put(EncodedImages(item, annotated, plain))

    def finish(self) -> None:
        """Close the mailboxes: the publisher sends the remaining results and the end of stream."""
        self.publisher.results.close()
        self.publisher.images.close()

    def end(self) -> None:
        """Close the mailboxes and wait for the network thread."""
        self.finish()
        self.join()

    def kill(self) -> None:
        """End without end-of-stream messages, as if the process had been killed."""
        self.publisher._publish_end = lambda: None  # type: ignore[method-assign]
        self.end()

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive(), "the network thread does not end"


@contextlib.contextmanager
def service(**options: object) -> Iterator[Service]:
    running = Service(**options).start()
    try:
        yield running
    finally:
        running.publisher.results.abort()
        running.publisher.images.abort()
        running.join()


def wait_until(condition: object, within: float = 20) -> None:
    """Wait until ``condition()`` is true."""
    deadline = time.monotonic() + within
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not true in {within} s"
        time.sleep(0.005)


def raw_peer(endpoint: str, *, handshake: bytes = b"") -> socket.socket:
    """Open a TCP connection to an endpoint and send the given part of a handshake."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    peer = socket.create_connection((host, int(port)), timeout=5)
    if handshake:
        peer.sendall(handshake)
        greeting = b""
        while len(greeting) < len(GREETING):
            data = peer.recv(len(GREETING) - len(greeting))
            if not data:
                break
            greeting += data
    return peer
