"""``newest``: a slow reader gets the newest results; skipped ones are counted."""

from __future__ import annotations

import asyncio
import errno
import threading
import time

import pytest
import zmq
from support.publishers import encode_solid_jpeg, result, service, wait_until
from support.subscribers import masks_json, raw_publisher, status_json

import streamseg
from streamseg.client import link
from streamseg.client.newest_link import NewestLink
from streamseg.errors import ReceiveTimeout
from streamseg.protocol.address import Address


def thread_names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_paused_reader_gets_the_newest_result_of_each_source() -> None:
    with (
        service() as running,
        streamseg.connect(running.masks_endpoint, newest=True, timeout=5) as sub,
    ):
        running.wait_for_subscribers()
        running.put_and_wait(result(0))
        assert sub.receive().seq == 0
        count = 500  # more than the queues of libzmq hold
        running.put_and_wait(*[result(i) for i in range(1, count)])
        running.put_and_wait(*[result(i, "yard") for i in range(3)])
        wait_until(lambda: has_newest(sub, "gate", count - 1) and has_newest(sub, "yard", 2))
        assert {(r.source, r.seq) for r in (sub.receive(), sub.receive())} == {
            ("gate", count - 1),
            ("yard", 2),
        }
        assert sub.gaps == {"gate": count - 2, "yard": 0}
        with pytest.raises(ReceiveTimeout):
            sub.receive(timeout=0.05)
        running.put_and_wait(result(count))
        assert sub.receive().seq == count


def newest_message(sub, topic) -> bytes:
    return sub._result_link._newest.get(topic, [b"", b""])[1]


def has_newest(sub, source, seq) -> bool:
    return f'"seq":{seq},'.encode() in newest_message(sub, f"masks/{source}/".encode())


def test_last_result_is_returned_before_the_end() -> None:
    with service() as running:
        with streamseg.connect(running.masks_endpoint, ["gate"], newest=True, timeout=5) as sub:
            running.wait_for_subscribers()
            running.publisher.set_state("gate", "live", "", 0)
            wait_until(lambda: b'"live"' in newest_message(sub, b"status/gate/"))
            running.put_and_wait(*[result(i) for i in range(5)])
            running.publisher.set_state("gate", "ended", "", 0)
            wait_until(lambda: b'"ended"' in newest_message(sub, b"status/gate/"))
            assert [r.seq for r in sub] == [4]
        assert "newest" not in thread_names()


def test_many_links_can_be_opened_in_turn() -> None:
    """libzmq frees a name some time after its socket was closed, and id() values repeat."""
    context, address = zmq.Context(), Address("tcp", "127.0.0.1", 1)
    for _ in range(300):
        opened = link.Link(
            context, address, [b"masks/"], keys=None, queue_size=1, max_part_bytes=1000
        )
        NewestLink(context, opened).close()
    context.term()


def test_newest_works_with_asyncio_and_images() -> None:
    async def read() -> list[int]:
        async with streamseg.connect(
            running.masks_endpoint, frames="plain", newest=True, timeout=5
        ) as sub:
            first = asyncio.create_task(sub.receive_async())
            await asyncio.to_thread(
                wait_until, lambda: running.publisher.has_image_subscribers("video", "gate")
            )
            running.put_images(result(0), None, encode_solid_jpeg())
            indices = [(await first).index]
            for i in range(1, 30):
                running.put_images(result(i), None, encode_solid_jpeg())
                await asyncio.sleep(0.005)
            while indices[-1] != 29:
                await asyncio.sleep(0.02)
                indices.append((await sub.receive_async()).index)
            return indices

    with service() as running:
        indices = asyncio.run(read())
    assert indices[0] == 0
    assert indices == sorted(set(indices))
    assert len(indices) <= 10


def test_number_of_kept_messages_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr("streamseg.client.newest_link.MAX_SOURCES", 10)
    with raw_publisher() as (sock, at), streamseg.connect(at, newest=True, timeout=5) as sub:
        assert sock.poll(5000)
        for i in range(500):
            sock.send_multipart([f"masks/s{i}/".encode(), b""])
        sock.send_multipart([b"status//", status_json("ended")])
        time.sleep(0.3)
        assert len(sub._result_link._newest) <= 20


def test_newest_recovers_after_an_oversized_message(monkeypatch) -> None:
    monkeypatch.setattr(link, "RECONNECT_AFTER", 0.4)
    monkeypatch.setattr("streamseg.protocol.MAX_JSON_BYTES", 100_000)
    with raw_publisher() as (sock, at), streamseg.connect(at, newest=True, timeout=0.1) as sub:
        assert sock.recv()
        sock.send_multipart([b"masks/gate/", bytes(200_000)])
        received, seq = None, 0
        deadline = time.monotonic() + 10
        while received is None and time.monotonic() < deadline:
            sock.send_multipart([b"masks/gate/", masks_json(seq)])
            seq += 1
            try:
                received = sub.receive()
            except ReceiveTimeout:
                continue
        assert received is not None, "no message received"
        assert sub.reopened >= 1


def test_thread_failure_is_raised_in_receive(monkeypatch) -> None:
    def fail(_self) -> None:
        raise zmq.ZMQError(errno.EMFILE)

    with raw_publisher() as (_, at), streamseg.connect(at, newest=True, timeout=5) as sub:
        monkeypatch.setattr(link.Link, "check", fail)
        with pytest.raises(zmq.ZMQError, match="open files"):
            sub.receive()


def test_close_twice_stops_the_thread_at_once_under_load() -> None:
    stop = threading.Event()

    def flood(sock) -> None:
        while not stop.is_set():
            sock.send_multipart([b"masks/gate/", b"x" * 1000])

    with raw_publisher() as (sock, at):
        sub = streamseg.connect(at, newest=True, timeout=5)
        assert sock.poll(5000)
        flood_thread = threading.Thread(target=flood, args=(sock,))
        flood_thread.start()
        time.sleep(0.2)
        started_at = time.monotonic()
        sub.close()
        sub.close()
        elapsed = time.monotonic() - started_at
        stop.set()
        flood_thread.join()
    assert elapsed < 10, "close waits for the flood"
    assert "newest" not in thread_names()
