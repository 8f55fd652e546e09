"""Tests of the end-of-stream message: subscribers with a long backlog receive it too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq
from support.publishers import Service, instances, result, service

from streamseg import protocol
from streamseg.sinks.zmq import publisher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
BACKLOG = 200
FOUND = instances(100, (1080, 1920))


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeouts of the end of a publisher."""
    monkeypatch.setattr(publisher, "END_REPEATED_FOR", 0.2)
    monkeypatch.setattr(publisher, "SLOW_READ_INTERVAL", 4.0)
    monkeypatch.setattr(publisher, "LINGER_MS", 100)


@pytest.fixture
def reader() -> Iterator[zmq.Socket[bytes]]:
    """Create a subscriber with small receive buffers."""
    context = zmq.Context()
    sock = context.socket(zmq.SUB)
    sock.linger = 0
    sock.rcvhwm = 1
    sock.setsockopt(zmq.RCVBUF, 16 * 1024)
    sock.rcvtimeo = 10_000
    sock.subscribe(b"")
    yield sock
    context.destroy(0)


def publish_backlog(running: Service, reader: zmq.Socket[bytes]) -> None:
    """Publish more than the receive buffers of the subscriber hold, and end."""
    reader.connect(running.masks_endpoint)
    running.wait_for_subscribers()
    running.put_and_wait(*[result(i, found=FOUND) for i in range(BACKLOG)])
    running.finish()


def receives_end(reader: zmq.Socket[bytes], pause: float, max_messages: int) -> bool:
    """Read slowly until the service has ended; return whether its final status was received."""
    for _ in range(max_messages):
        try:
            topic, message, *_ = reader.recv_multipart()
        except zmq.Again:
            return False
        if (
            topic == protocol.topic("status", "")
            and msgspec.json.decode(message)["state"] == "ended"
        ):
            return True
        time.sleep(pause)
    return False


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:*", "ipc"])
def test_a_slow_subscriber_receives_the_end_after_its_backlog(tmp_path, reader, bind) -> None:
    address = f"ipc://{tmp_path / 'masks'}" if bind == "ipc" else bind
    with service(bind=address) as running:
        publish_backlog(running, reader)
        assert receives_end(reader, 0.01, 10 * BACKLOG)


def test_the_service_does_not_wait_long_for_a_subscriber_that_never_reads(reader) -> None:
    with service() as running:
        publish_backlog(running, reader)
        assert measure_seconds(running.join) < 10


@pytest.mark.parametrize("end", ["fast shutdown", "abort"])
def test_a_fast_shutdown_does_not_wait_for_slow_subscribers(reader, end) -> None:
    with service() as running:
        publish_backlog(running, reader)
        slow_reader = threading.Thread(target=receives_end, args=(reader, 0.05, 100))
        slow_reader.start()
        time.sleep(0.5)
        assert running._thread.is_alive()
        if end == "abort":
            running.publisher.results.abort()
        else:
            running.publisher.begin_fast_shutdown()
        assert measure_seconds(running.join) < 3, "the subscriber reads for five seconds"
        slow_reader.join()


def test_publishing_the_end_ignores_sources_that_were_just_removed() -> None:
    with service() as running:
        statuses = running.publisher._statuses
        statuses.set_state("gate", "live", "", 0)
        statuses.publish({"gate"})
        statuses.forget("gate")
        statuses.publish_end(aborted=True)


def measure_seconds(call: Callable[[], object]) -> float:
    started_at = time.monotonic()
    call()
    return time.monotonic() - started_at
