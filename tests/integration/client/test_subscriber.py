"""The subscriber with a real publisher."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.ports import free_port
from support.publishers import (
    encode_solid_jpeg,
    instances,
    panoptic_result,
    result,
    service,
    wait_until,
)
from support.subscribers import feed_and_take, masks_json, raw_publisher, status_json

import streamseg
from streamseg import protocol
from streamseg.client import link, service_identity
from streamseg.client import session as session_module
from streamseg.client.session import Session
from streamseg.errors import ReceiveTimeout, UsageError, WireError
from streamseg.sinks.zmq import endpoints

# Normal operation


def test_results_are_iterated_until_the_service_ends() -> None:
    with service() as running, streamseg.connect(running.masks_endpoint, timeout=5) as sub:
        running.wait_for_subscribers()
        running.put_and_wait(*[result(i) for i in range(5)])
        running.finish()
        assert [r.index for r in sub] == [0, 1, 2, 3, 4]
        assert sub.ended
        assert sub.receive(timeout=0) is None
        assert sub.gaps == {"gate": 0}
        assert (sub.rejected, sub.reopened) == (0, 0)


def test_results_are_iterated_asynchronously() -> None:
    async def read() -> list[int]:
        async with streamseg.connect(running.masks_endpoint, timeout=5) as sub:
            reading = asyncio.create_task(_indices(sub))
            await asyncio.to_thread(running.wait_for_subscribers)
            await asyncio.to_thread(running.put_and_wait, *[result(i) for i in range(50)])
            await asyncio.to_thread(running.end)
            return await reading

    with service() as running:
        assert asyncio.run(read(), debug=False) == list(range(50))


async def _indices(sub):
    return [r.index async for r in sub]


def test_an_asynchronous_receive_can_be_cancelled_and_loses_nothing() -> None:
    async def read() -> list[int]:
        async with streamseg.connect(running.masks_endpoint, timeout=5) as sub:
            await asyncio.to_thread(running.wait_for_subscribers)
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(sub.receive_async(), 0.05)
            running.put_and_wait(result(0), result(1))
            return [(await sub.receive_async()).index for _ in range(2)]

    with service() as running:
        assert asyncio.run(read()) == [0, 1]


def test_two_subscribers_share_an_event_loop() -> None:
    async def read() -> list[list[int]]:
        subs = [streamseg.connect(running.masks_endpoint, timeout=5) for _ in range(2)]
        tasks = [asyncio.create_task(_indices(sub)) for sub in subs]
        await asyncio.to_thread(running.wait_for_subscribers, 2)
        await asyncio.to_thread(running.put_and_wait, *[result(i) for i in range(20)])
        await asyncio.to_thread(running.end)
        received = await asyncio.gather(*tasks)
        for sub in subs:
            sub.close()
        return received

    with service() as running:
        assert asyncio.run(read()) == [list(range(20))] * 2


def test_late_subscriber_gets_all_results_from_then_on() -> None:
    with service() as running:
        running.put_and_wait(*[result(i) for i in range(10)])
        with streamseg.connect(running.masks_endpoint, timeout=5) as sub:
            running.wait_for_subscribers()
            running.put_and_wait(result(10), result(11))
            assert [sub.receive().seq, sub.receive().seq] == [10, 11]
            assert sub.gaps == {"gate": 0}


def test_late_subscriber_gets_the_end_of_its_source_at_once(monkeypatch) -> None:
    monkeypatch.setattr("streamseg.sinks.zmq.status.STATUS_INTERVAL", 30.0)
    with service() as running:
        running.publisher.set_state("gate", "ended", "end of stream", 0)
        time.sleep(0.2)
        started_at = time.monotonic()
        with streamseg.connect(running.masks_endpoint, ["gate"], timeout=20) as sub:
            assert list(sub) == []
        assert time.monotonic() - started_at < 10


def test_only_named_sources_are_received_and_end_the_iteration() -> None:
    with (
        service() as running,
        streamseg.connect(running.masks_endpoint, ["a", "c"], timeout=5) as sub,
    ):
        running.wait_for_subscribers(2)
        running.put_and_wait(result(0, "a"), result(0, "b"), result(0, "c"), result(0, "aa"))
        running.publisher.set_state("a", "ended", "", 0)
        running.put_and_wait(result(1, "c"))
        running.publisher.set_state("c", "failed", "camera gone", 0)
        running.put_and_wait(result(2, "b"))
        assert [(r.source, r.index) for r in sub] == [("a", 0), ("c", 0), ("c", 1)]
        assert set(sub.gaps) == {"a", "c"}
        assert sub.statuses["c"].reason == "camera gone"


def test_images_arrive_with_their_results_until_the_end() -> None:
    red, blue = encode_solid_jpeg(color=(255, 0, 0)), encode_solid_jpeg(color=(0, 0, 255))

    def publish_images() -> None:
        wait_until(lambda: running.publisher.has_image_subscribers("video", "gate"))
        for i in range(5):
            running.put_images(result(i), red, blue)
        running.finish()

    with service() as running:
        publisher_thread = threading.Thread(target=publish_images)
        publisher_thread.start()
        with streamseg.connect(running.masks_endpoint, frames="plain", timeout=5) as sub:
            received = list(sub)
        publisher_thread.join()
    assert [r.index for r in received][-4:] == [1, 2, 3, 4]
    assert received[0].jpeg == blue
    frame = received[0].frame
    assert (frame.shape, frame.dtype) == ((40, 60, 3), np.uint8)
    assert (abs(frame.astype(int) - (0, 0, 255)) < 8).all()
    assert received[0].instances.names == ["person", "car"]


def test_images_from_an_explicit_address(monkeypatch) -> None:
    monkeypatch.setattr(service_identity, "ANSWER_TIMEOUT", 0.2)
    with (
        service() as running,
        streamseg.connect(
            "tcp://127.0.0.1:1",
            frames="annotated",
            frames_address=running.images_endpoint,
            timeout=5,
        ) as sub,
    ):
        wait_until(lambda: running.publisher.has_image_subscribers("frames", "gate"))
        running.put_images(result(7), encode_solid_jpeg())
        running.finish()
        assert [r.index for r in sub] == [7]


def test_late_image_subscriber_ends_when_only_the_status_socket_is_left(
    monkeypatch,
) -> None:
    monkeypatch.setattr(session_module, "LATE_IMAGES_TIMEOUT", 0.3)
    with raw_publisher() as (sock, at):
        unreachable = f"tcp://127.0.0.1:{free_port()}"
        with streamseg.connect(at, frames="plain", timeout=5) as sub:
            assert sock.poll(5000)
            ended = status_json("ended", endpoints={"frames": unreachable})
            sock.send_multipart([b"status//", ended])
            assert list(sub) == []


def test_panoptic_segments_are_received() -> None:
    session = Session(None, "masks", 10_000)
    received = feed_and_take(session, [b"masks/gate/", masks_json(item=panoptic_result())])
    assert [s.mask.area for s in received.segments] == [s.area for s in received.message.segments]


def test_received_message_converts_to_a_recorded_one() -> None:
    received = feed_and_take(Session(None, "masks", 10_000), [b"masks/gate/", masks_json(3)])
    line = msgspec.json.decode(protocol.encode(protocol.to_recorded(received.message)))
    assert not line.keys() & {
        "service",
        "captured_at",
        "published_at",
        "age_ms",
        "timing",
        "dropped",
    }
    assert protocol.to_recorded(received.message) == protocol.recorded_message(result(3), 3)


# Losses, restarts and timeouts


def test_lost_messages_are_counted_by_source() -> None:
    session = Session(None, "masks", 10_000)
    for source, seq in [("a", 5), ("a", 6), ("a", 9), ("b", 0), ("b", 2), ("a", 10)]:
        assert feed_and_take(session, [f"masks/{source}/".encode(), masks_json(seq, source=source)])
    assert session.gaps == {"a": 2, "b": 1}


def test_duplicate_message_is_returned_once() -> None:
    session = Session(None, "masks", 10_000)
    message = [b"masks/gate/", masks_json(4)]
    assert feed_and_take(session, message).seq == 4
    assert feed_and_take(session, message) is None
    assert (session.rejected, session.gaps) == (0, {"gate": 0})


def test_repeated_and_old_statuses_are_ignored() -> None:
    session = Session(["gate"], "masks", 10_000)
    feed_and_take(session, [b"status/gate/", status_json("live", 5, source="gate")])
    feed_and_take(session, [b"status/gate/", status_json("ended", 4, source="gate")])
    assert not session.ended
    assert session.statuses["gate"].state == "live"


def test_restarted_service_restarts_the_sequence() -> None:
    session = Session(["gate"], "masks", 10_000)
    feed_and_take(session, [b"masks/gate/", masks_json(500)])
    feed_and_take(session, [b"status//", status_json("ended", 9)])
    assert session.ended
    feed_and_take(session, [b"status//", status_json("live", 0, service="two")])
    assert not session.ended
    assert feed_and_take(session, [b"masks/gate/", masks_json(3, service="two")]).seq == 3
    assert session.gaps == {"gate": 0}


def test_subscriber_may_start_before_the_service() -> None:
    bind = f"tcp://127.0.0.1:{free_port()}"
    with streamseg.connect(bind, timeout=10) as sub:
        with pytest.raises(ReceiveTimeout, match="is a service running there"):
            sub.receive(timeout=0.2)
        with service(bind=bind) as running:
            running.wait_for_subscribers()
            running.put(result())
            assert sub.receive().index == 0


def test_timeout_reports_the_latest_states() -> None:
    with service() as running, streamseg.connect(running.masks_endpoint) as sub:
        running.publisher.set_state("gate", "stalled", "no frame for 3 s", 1)

        def is_known() -> bool:
            with pytest.raises(ReceiveTimeout):
                sub.receive(timeout=0.1)
            return "gate" in sub.statuses

        wait_until(is_known)
        started_at = time.monotonic()
        with pytest.raises(ReceiveTimeout, match=r"no result in 0\.4 s.*gate is stalled no frame"):
            sub.receive(timeout=0.4)
        assert 0.3 < time.monotonic() - started_at < 5
        with pytest.raises(ReceiveTimeout):
            sub.receive(timeout=0)
        with pytest.raises(TimeoutError):
            asyncio.run(sub.receive_async(timeout=0.1))


def test_close_twice_ends_the_iteration() -> None:
    sub = streamseg.connect("tcp://127.0.0.1:1")
    sub.close()
    sub.close()
    assert sub.ended
    assert list(sub) == []
    assert sub.receive() is None


@pytest.mark.slow
def test_subscriber_continues_after_a_long_pause_with_a_full_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs in its own process: with ZMTP heartbeats in the client, libzmq aborted it."""
    monkeypatch.setattr(endpoints, "TCP_TIMEOUT_MS", 15_000)
    program = """
import sys, time, streamseg
with streamseg.connect(sys.argv[1], timeout=30) as sub:
    sub.receive()
    time.sleep(float(sys.argv[2]))
    print(sum(1 for _ in sub), sub.statuses[""].state)
"""
    found = instances(100, (1080, 1920))
    with service() as running:
        pause = link.RECONNECT_AFTER + endpoints.TCP_TIMEOUT_MS / 1000 + 5
        child = subprocess.Popen(
            [sys.executable, "-c", program, running.masks_endpoint, str(pause)],
            stdout=subprocess.PIPE,
            text=True,
        )
        running.wait_for_subscribers(within=30)
        deadline = time.monotonic() + pause + 5
        while time.monotonic() < deadline:
            running.put_and_wait(*[result(i, found=found) for i in range(10)])
            time.sleep(0.05)
        running.end()
        output, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        assert output.endswith(" ended\n")


# Images


def receive_image(jpeg_bytes):
    session = Session(None, "frames", 10_000)
    return feed_and_take(session, [b"frames/gate/", masks_json(), jpeg_bytes])


@pytest.mark.parametrize(
    "jpeg_bytes", [b"", b"\xff\xd8\xff", b"GIF89a", encode_solid_jpeg()[:200], bytes(1000)]
)
def test_undecodable_image_is_a_protocol_error(jpeg_bytes) -> None:
    with pytest.raises(WireError, match="an image can't be decoded"):
        _ = receive_image(jpeg_bytes).frame


def test_image_larger_than_its_frame_is_rejected() -> None:
    with pytest.raises(WireError, match="frame is 4000 x 4000"):
        _ = receive_image(encode_solid_jpeg((4000, 4000))).frame


def test_image_without_subscription_is_a_usage_error() -> None:
    received = feed_and_take(Session(None, "masks", 10_000), [b"masks/gate/", masks_json()])
    with pytest.raises(UsageError, match="frames="):
        _ = received.frame


def test_missing_pillow_is_reported() -> None:
    program = """
import sys
sys.modules["PIL"] = None
from streamseg.client.received import decode_jpeg
from streamseg.errors import UsageError
try:
    decode_jpeg(b"", (1, 1))
except UsageError as error:
    print(error)
"""
    assert "pip install 'streamseg[frames]'" in _run_python(program)


# Arguments of connect


@pytest.mark.parametrize(
    "address",
    [
        "",
        "5555",
        "127.0.0.1:5555",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:*",
        "tcp://*:5555",
        "tcp://bad host:5555",
        "tcp://256.1.1.1:5555",
        "tcp://[::zz]:5555",
        "tcp://:5555",
        "tcp://-:5555",
        "http://127.0.0.1:5555",
        "ipc://",
        "ipc://" + "x" * 200,
        "inproc://x",
        "tcp://127.0.0.1:5555\n",
    ],
)
def test_invalid_address_is_a_usage_error(address) -> None:
    with pytest.raises(UsageError):
        streamseg.connect(address)
    with pytest.raises(UsageError):
        streamseg.connect("tcp://127.0.0.1:5555", frames="plain", frames_address=address)


@pytest.mark.parametrize(
    "options",
    [
        {"sources": "gate"},
        {"sources": []},
        {"sources": ["a/b"]},
        {"sources": [""]},
        {"sources": ["x" * 65]},
        {"frames": True},
        {"frames": "drawn"},
        {"timeout": -1},
        {"timeout": float("nan")},
    ],
)
def test_invalid_arguments_are_usage_errors(options) -> None:
    with pytest.raises(UsageError):
        streamseg.connect("tcp://127.0.0.1:5555", **options)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_ipv6_works_end_to_end() -> None:
    with service(bind="tcp://[::1]:*") as running:
        assert running.masks_endpoint.startswith("tcp://[::1]:")
        with streamseg.connect(running.masks_endpoint, timeout=5) as sub:
            running.wait_for_subscribers()
            running.put(result())
            assert sub.receive().index == 0


def test_ipc_works_end_to_end_with_images(tmp_path) -> None:
    address = f"ipc://{tmp_path}/masks"
    with (
        service(bind=address) as running,
        streamseg.connect(address, frames="plain", timeout=5) as sub,
    ):
        indices: list[int] = []
        thread = threading.Thread(target=lambda: indices.append(sub.receive().index))
        thread.start()
        wait_until(lambda: running.publisher.has_image_subscribers("video", "gate"))
        running.put_images(result(3), None, encode_solid_jpeg())
        thread.join(5)
    assert indices == [3]


SERVICE_DEPENDENCIES = (
    "torch",
    "torchvision",
    "av",
    "cv2",
    "scipy",
    "yaml",
    "prometheus_client",
    "safetensors",
)


def test_client_imports_no_dependency_of_the_service() -> None:
    program = f"""
import sys
import streamseg
sub = streamseg.connect("tcp://127.0.0.1:1")
try:
    sub.receive(timeout=0.01)
except streamseg.StreamsegError:
    pass
sub.close()
print([name for name in {SERVICE_DEPENDENCIES!r} if name in sys.modules])
"""
    assert _run_python(program) == "[]\n"


def _run_python(program: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return completed.stdout
