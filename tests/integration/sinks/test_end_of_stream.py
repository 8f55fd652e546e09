"""The last word of a publisher: it is for those, too, who have much to read before it."""

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
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, but faster."""
    monkeypatch.setattr(publisher, "LAST_WORD", 0.2)
    monkeypatch.setattr(publisher, "READS_AGAIN_WITHIN", 2.0)
    monkeypatch.setattr(publisher, "LINGER_MS", 100)


@pytest.fixture
def reader() -> Iterator[zmq.Socket[bytes]]:
    """A subscriber whose system takes little at a time."""
    context = zmq.Context()
    sock = context.socket(zmq.SUB)
    sock.linger = 0
    sock.rcvhwm = 1
    sock.setsockopt(zmq.RCVBUF, 16 * 1024)
    sock.rcvtimeo = 10_000
    sock.subscribe(b"")
    yield sock
    context.destroy(0)


def filled(running: Service, reader: zmq.Socket[bytes]) -> None:
    """Publish more than its system takes, and end."""
    reader.connect(running.masks_at)
    running.wait_joined()
    running.put_and_wait(*[result(i, found=FOUND) for i in range(BACKLOG)])
    running.finish()


def heard_the_end(reader: zmq.Socket[bytes], pause: float, most: int) -> bool:
    """Read slowly until the service says that it has ended; False if nothing more comes."""
    for _ in range(most):
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
def test_a_slow_reader_hears_the_end_after_all_that_was_before_it(tmp_path, reader, bind) -> None:
    at = f"ipc://{tmp_path / 'masks'}" if bind == "ipc" else bind
    with service(bind=at) as running:
        filled(running, reader)
        assert heard_the_end(reader, 0.01, 10 * BACKLOG)


def test_somebody_who_never_reads_is_not_waited_for_long(reader) -> None:
    with service() as running:
        filled(running, reader)
        assert taken(running.join) < 10


@pytest.mark.parametrize("end", ["hurry", "abort"])
def test_a_service_that_is_told_to_stop_waits_for_nobody_who_is_slow(reader, end) -> None:
    with service() as running:
        filled(running, reader)
        slowly = threading.Thread(target=heard_the_end, args=(reader, 0.05, 100))
        slowly.start()
        time.sleep(0.5)
        assert running._thread.is_alive()
        (running.publisher.hurry if end == "hurry" else running.publisher.results.abort)()
        assert taken(running.join) < 3, "the reader goes on for five"
        slowly.join()


def test_a_source_that_was_just_forgotten_is_no_trouble_at_the_end() -> None:
    with service() as running:
        statuses = running.publisher._statuses
        statuses.note("gate", "live", "", 0)
        statuses.publish({"gate"})
        statuses.forget("gate")
        statuses.publish_end(aborted=True)


def taken(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began
