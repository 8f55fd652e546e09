"""Tests of the ZeroMQ publisher over real sockets: delivery, order, status and hostile clients."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
import zmq
from support.ports import free_port
from support.processes import read_resident_memory
from support.publishers import (
    GREETING,
    Service,
    encode_ready,
    encode_solid_jpeg,
    instances,
    panoptic_result,
    raw_peer,
    result,
    service,
    wait_until,
)

import streamseg
from streamseg import protocol
from streamseg.client.session import MAX_SOURCES
from streamseg.config import PublishConfig
from streamseg.errors import BindError, ConfigError, ReceiveTimeout
from streamseg.pipeline.metrics import Metrics
from streamseg.sinks.zmq import endpoints, publisher
from streamseg.sinks.zmq import status as publishing_statuses
from streamseg.sinks.zmq.publisher import Publisher
from streamseg.sinks.zmq.subscriptions import Subscriptions


def create_publisher(
    bind: str, bind_frames: str | None = None, *, insecure: bool = False
) -> Publisher:
    config = PublishConfig(bind=bind, bind_frames=bind_frames, insecure=insecure)
    return Publisher(config, Metrics())


@contextlib.contextmanager
def raw_subscriber(endpoint, *topics, **options):
    """Connect a plain SUB socket, as a program in any language would do."""
    context = zmq.Context()
    sock = context.socket(zmq.SUB)
    for name, value in options.items():
        setattr(sock, name, value)
    for topic in topics:
        sock.subscribe(topic)
    sock.connect(endpoint)
    try:
        yield sock
    finally:
        sock.close(linger=0)
        context.term()


def receive(sock, within=5):
    assert sock.poll(within * 1000), "no message received"
    return sock.recv_multipart()


def receive_statuses(sock):
    """Yield the received status messages until there are none for 100 ms."""
    while sock.poll(100):
        topic, raw = sock.recv_multipart()
        assert topic.startswith(b"status/")
        yield msgspec.json.decode(raw)


def receive_statuses_until(sock, condition, within=10):
    """Receive status messages until a condition on their list is true."""
    received = []
    deadline = time.monotonic() + within
    while not received or not condition(received):
        assert time.monotonic() < deadline, received
        received.extend(itertools.islice(receive_statuses(sock), 1))
    return received


# Binding


def test_sockets_are_bound_to_consecutive_ports() -> None:
    port = free_port()
    created = create_publisher(f"tcp://127.0.0.1:{port}")
    try:
        assert created.endpoints == {
            "masks": f"tcp://127.0.0.1:{port}",
            "frames": f"tcp://127.0.0.1:{port + 1}",
            "replay": f"tcp://127.0.0.1:{port + 2}",
        }
    finally:
        created.close()


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:*", "tcp://127.0.0.1:0", "tcp://localhost:0"])
def test_a_free_port_is_chosen_for_each_socket(bind) -> None:
    created = create_publisher(bind)
    try:
        ports = {protocol.Address.parse(endpoint).port for endpoint in created.endpoints.values()}
        assert len(ports) == 3
        assert 0 not in ports
    finally:
        created.close()


@pytest.mark.parametrize("offset", [0, 1])
def test_a_port_in_use_is_a_one_line_error_and_the_other_port_is_released(offset) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port + offset)):
        with pytest.raises(BindError, match=f"tcp://127.0.0.1:{port + offset} is in use") as caught:
            create_publisher(f"tcp://127.0.0.1:{port}")
        assert "\n" not in str(caught.value)
        assert ("--bind-frames" in str(caught.value)) == bool(offset)
    socket.create_server(("127.0.0.1", port)).close()
    socket.create_server(("127.0.0.1", port + 1)).close()


@pytest.mark.parametrize(
    "bind", ["5555", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "udp://127.0.0.1:1", "tcp://:1"]
)
def test_an_invalid_address_is_a_config_error(bind) -> None:
    with pytest.raises(ConfigError, match="publish: "):
        create_publisher(bind)


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(BindError, match=r"tcp://192\.0\.2\.1:5555 can't be bound"):
        create_publisher("tcp://192.0.2.1:5555", insecure=True)


@pytest.mark.parametrize(
    "bind", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.0.2.1:5", "tcp://lo:0"]
)
def test_a_non_loopback_address_needs_the_insecure_option(bind) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        create_publisher(bind)
    with pytest.raises(ConfigError, match="--insecure"):
        create_publisher("tcp://127.0.0.1:0", bind)


def test_all_interfaces_can_be_bound_with_the_insecure_option() -> None:
    created = create_publisher("tcp://*:*", insecure=True)
    try:
        assert created.endpoints["masks"].startswith("tcp://0.0.0.0:")
    finally:
        created.close()


def test_an_ipc_path_in_use_is_not_taken_over(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/masks"
    with service(bind=address) as running:
        with pytest.raises(BindError, match="is in use"):
            create_publisher(address)
        with pytest.raises(BindError, match="is in use"):
            create_publisher(f"ipc://{tmp_path}/other", f"ipc://{tmp_path}/masks-frames")
        with streamseg.connect(address, timeout=5) as sub:
            running.wait_for_subscribers()
            running.put(result())
            assert sub.receive().index == 0


def test_an_unused_ipc_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "masks"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
        dead.listen()
    assert stat.S_ISSOCK(path.stat().st_mode)
    create_publisher(f"ipc://{path}").close()


def test_a_regular_file_is_not_replaced_by_an_ipc_socket(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("precious")
    with pytest.raises(BindError, match="a file with that name exists"):
        create_publisher(f"ipc://{path}")
    assert path.read_text() == "precious"


def test_closing_a_publisher_that_never_ran_releases_its_port() -> None:
    bind = f"tcp://127.0.0.1:{free_port()}"
    for _ in range(2):
        created = create_publisher(bind)
        created.close()
        created.close()


# Publishing


def test_results_arrive_completely_in_order_and_are_counted() -> None:
    with service() as running, streamseg.connect(running.masks_endpoint, timeout=5) as sub:
        running.wait_for_subscribers()
        sent = [result(i, found=instances(i % 4)) for i in range(30)]
        running.put_and_wait(*sent)
        running.finish()
        received = list(sub)
        account = running.metrics.account("gate").snapshot()
    assert [r.seq for r in received] == list(range(30))
    assert [r.index for r in received] == list(range(30))
    for got, original in zip(received, sent, strict=True):
        assert got.instances.masks == original.instances.masks
        assert (got.instances.boxes == original.instances.boxes).all()
        assert (got.instances.scores == original.instances.scores).all()
        assert (got.instances.track_ids == original.instances.track_ids).all()
        assert got.instances.names == original.instances.names
        assert got.captured_at == original.frame.captured_at
        assert got.published_at >= got.captured_at
        assert 0 <= got.age_ms < 5000
        assert got.timing == original.timing
        assert got.service == running.publisher.service
    assert running.done == sent
    assert account.balanced
    assert account.published == 30


def test_panoptic_segments_arrive() -> None:
    original = panoptic_result()
    with service() as running, streamseg.connect(running.masks_endpoint, timeout=5) as sub:
        running.wait_for_subscribers()
        running.put(original)
        received = sub.receive()
    assert [(s.id, s.name, s.thing) for s in received.segments] == [
        (1, "person", True),
        (2, "car", False),
    ]
    assert received.segments[1].mask == original.segments[1].mask


def test_images_contain_the_complete_results_and_have_their_own_sequence_numbers() -> None:
    with (
        service() as running,
        raw_subscriber(running.images_endpoint, b"frames/", b"video/") as sub,
    ):
        running.wait_for_subscribers(2)
        running.put_and_wait(*[result(i) for i in range(3)])
        annotated, plain = (
            encode_solid_jpeg(color=(255, 0, 0)),
            encode_solid_jpeg(color=(0, 0, 255)),
        )
        running.put_images(result(3), annotated, plain)
        running.put_images(result(4), None, plain)
        messages = [receive(sub) for _ in range(3)]
    assert [m[0] for m in messages] == [b"frames/gate/", b"video/gate/", b"video/gate/"]
    assert [m[2] for m in messages] == [annotated, plain, plain]
    decoded = [protocol.decode(m[1], protocol.MasksMessage) for m in messages]
    assert [d.seq for d in decoded] == [0, 0, 1]
    assert [d.frame for d in decoded] == [3, 3, 4]
    assert all(protocol.decode_instances(d).masks == instances().masks for d in decoded)


def test_has_image_subscribers_is_true_while_one_is_connected() -> None:
    with service() as running:
        has_subscribers = running.publisher.has_image_subscribers
        assert not has_subscribers("frames", "gate")
        with raw_subscriber(running.images_endpoint, b"frames/gate/") as first:
            wait_until(lambda: has_subscribers("frames", "gate"))
            assert not has_subscribers("video", "gate")
            assert not has_subscribers("frames", "gate2")
            with raw_subscriber(running.images_endpoint, b"frames/gate/", b"video/"):
                wait_until(lambda: has_subscribers("video", "anything"))
                first.unsubscribe(b"frames/gate/")
            wait_until(lambda: not has_subscribers("video", "anything"))
            wait_until(lambda: not has_subscribers("frames", "gate"))
        with raw_subscriber(running.images_endpoint, b""):
            wait_until(lambda: has_subscribers("frames", "gate") and has_subscribers("video", "x"))
        wait_until(lambda: not has_subscribers("frames", "gate"))


def test_without_subscribers_results_are_counted_but_not_encoded() -> None:
    with service() as running:
        unencoded = result(0)
        running.put_and_wait(unencoded)
        assert unencoded.instances.masks._counts is None
        assert running.metrics.account("gate").snapshot().published == 1
        with streamseg.connect(running.masks_endpoint, timeout=5) as sub:
            running.wait_for_subscribers()
            running.put(result(1))
            assert sub.receive().seq == 1


def test_wait_for_subscribers_counts_only_current_subscriptions() -> None:
    stopped, outcomes = threading.Event(), []
    with service() as running:
        waiter = threading.Thread(
            target=lambda: outcomes.append(
                running.publisher.wait_for_subscribers(2, stopped.is_set)
            )
        )
        waiter.start()
        with (
            raw_subscriber(running.masks_endpoint, b"status/"),
            raw_subscriber(running.masks_endpoint, b"mas"),
        ):
            running.wait_for_subscribers(1)
        wait_until(
            lambda: not running.publisher._subscriptions[running.publisher._masks].result_count
        )
        with raw_subscriber(running.masks_endpoint, b""):
            running.wait_for_subscribers(1)
            assert waiter.is_alive()
            with raw_subscriber(running.images_endpoint, b"video/gate/"):
                waiter.join(5)
    assert outcomes == [True]


def test_wait_for_subscribers_returns_when_it_is_stopped() -> None:
    stopped = threading.Event()
    with service() as running:
        threading.Timer(0.2, stopped.set).start()
        assert not running.publisher.wait_for_subscribers(1, stopped.is_set)


def test_wait_for_subscribers_returns_when_the_publisher_closes() -> None:
    outcomes = []
    with service() as running:
        waiter = threading.Thread(
            target=lambda: outcomes.append(running.publisher.wait_for_subscribers(1, lambda: False))
        )
        waiter.start()
    waiter.join(5)
    assert outcomes == [False]


def test_results_that_the_network_thread_takes_too_late_are_dropped_and_counted() -> None:
    running = Service()  # not started
    count = publisher.RESULTS_WAITING + 5
    running.put(*[result(i) for i in range(count)])
    for i in range(publisher.IMAGES_WAITING + 2):
        running.put_images(result(i), encode_solid_jpeg())
    running.start()
    running.end()
    account = running.metrics.account("gate").snapshot()
    assert account.dropped == {"publisher_late": 5}
    assert account.published == publisher.RESULTS_WAITING
    assert account.balanced
    assert account.in_flight == 0
    assert [r.frame.index for r in running.done] == list(range(5, count)), "the newest are kept"
    dropped = running.metrics.registry.get_sample_value
    assert dropped("streamseg_dropped_pictures_total", {"source": "gate"}) == 2


def test_results_that_exceed_the_size_limit_fail(monkeypatch) -> None:
    with service() as running, streamseg.connect(running.masks_endpoint, timeout=5) as sub:
        running.wait_for_subscribers()
        running.put_and_wait(result(0))
        monkeypatch.setattr(protocol, "MAX_JSON_BYTES", 2000)
        running.put_and_wait(result(1, found=instances(30)), result(2))
        assert [sub.receive().seq, sub.receive().seq] == [0, 2]
        assert sub.gaps == {"gate": 1}
        account = running.metrics.account("gate").snapshot()
    assert account.failed == {"too_large": 1}
    assert account.balanced


# Statuses


def statuses_of(source, received):
    """Return the status messages of a source and check that none is missing."""
    selected = [s for s in received if s["source"] == source]
    assert len({s["seq"] - number for number, s in enumerate(selected)}) <= 1, selected
    return selected


def test_statuses_are_published_at_each_interval_on_both_sockets(monkeypatch) -> None:
    interval = 0.25
    monkeypatch.setattr(publishing_statuses, "STATUS_INTERVAL", interval)
    started_at = time.monotonic()
    with (
        service() as running,
        raw_subscriber(running.masks_endpoint, b"status/") as masks,
        raw_subscriber(running.images_endpoint, b"status/") as frames,
    ):
        receive(masks), receive(frames)
        running.put_and_wait(result(0), result(1))
        running.publisher.set_state("gate", "live", "", 0)
        for sock in (masks, frames):
            received = receive_statuses_until(
                sock, lambda s: min(len(statuses_of(source, s)) for source in ("", "gate")) >= 4
            )
            max_count = (time.monotonic() - started_at) / interval + 2
            assert len(statuses_of("", received)) <= max_count
            gate = statuses_of("gate", received)
            assert len(gate) <= max_count
            last = gate[-1]
            assert (last["decoded"], last["published"], last["in_flight"]) == (2, 2, 0)
            assert last["endpoints"] == running.publisher.endpoints


def test_a_status_is_published_at_each_change_on_both_sockets(monkeypatch) -> None:
    monkeypatch.setattr(publishing_statuses, "STATUS_INTERVAL", 60.0)
    with (
        service() as running,
        raw_subscriber(running.masks_endpoint, b"status/") as masks,
        raw_subscriber(running.images_endpoint, b"status/") as frames,
    ):
        receive(masks), receive(frames)
        running.publisher.set_state("gate", "connecting", "", 0)
        running.put_and_wait(result(0), result(1))
        running.publisher.set_state("gate", "stalled", "no frame for 3 s", 4)
        for sock in (masks, frames):
            received = receive_statuses_until(sock, lambda s: s[-1]["state"] == "stalled")
            last = statuses_of("gate", received)[-1]
            assert (last["epoch"], last["reason"]) == (4, "no frame for 3 s")


@pytest.mark.parametrize("kind", ["masks", "frames"])
def test_a_new_subscriber_gets_the_latest_status_immediately_with_its_old_seq(
    kind, monkeypatch
) -> None:
    monkeypatch.setattr(publishing_statuses, "STATUS_INTERVAL", 60.0)
    with service() as running:
        endpoint = running.publisher.endpoints[kind]
        with raw_subscriber(endpoint, b"status/gate/") as first:
            time.sleep(0.2)
            running.publisher.set_state("gate", "live", "", 0)
            before = msgspec.json.decode(receive(first)[1])
            joined_at = time.monotonic()
            with raw_subscriber(endpoint, b"status/gate/") as second:
                after = msgspec.json.decode(receive(second)[1])
                elapsed = time.monotonic() - joined_at
    assert after == before
    assert elapsed < 5


def test_a_state_change_is_published_after_earlier_results() -> None:
    with (
        service() as running,
        streamseg.connect(running.masks_endpoint, ["gate"], timeout=5) as sub,
    ):
        running.wait_for_subscribers()
        for round_ in range(20):
            running.put(*[result(10 * round_ + i) for i in range(10)])
            running.publisher.set_state("gate", "live", str(round_), round_)
            wait_until(lambda n=10 * round_ + 10: len(running.done) == n)
        running.put(*[result(200 + i) for i in range(10)])
        running.publisher.set_state("gate", "ended", "end of stream", 0)
        assert [r.index for r in sub] == list(range(210))
        assert sub.statuses["gate"].reason == "end of stream"


def test_a_state_change_is_published_after_earlier_images() -> None:
    with (
        service() as running,
        streamseg.connect(running.masks_endpoint, ["gate"], frames="annotated", timeout=5) as sub,
    ):
        threading.Thread(target=lambda: _publish_images_and_end(running)).start()
        assert [r.index for r in sub] == [0, 1, 2]


def _publish_images_and_end(running: Service) -> None:
    wait_until(lambda: running.publisher.has_image_subscribers("frames", "gate"))
    for i in range(3):
        running.put_images(result(i), encode_solid_jpeg())
    running.publisher.set_state("gate", "ended", "end of stream", 0)


def test_at_the_end_sources_and_service_are_ended_and_failures_are_kept() -> None:
    with service() as running, streamseg.connect(running.masks_endpoint, timeout=5) as sub:
        running.wait_for_subscribers()
        running.publisher.set_state("gate", "live", "", 2)
        running.publisher.set_state("yard", "failed", "no such host", 1)
        running.put(result())
        running.finish()
        assert len(list(sub)) == 1
        statuses = sub.statuses
    assert (statuses["gate"].state, statuses["gate"].epoch) == ("ended", 2)
    assert (statuses["yard"].state, statuses["yard"].reason) == ("failed", "no such host")
    assert statuses[""].state == "ended"
    assert statuses[""].published == 1


def test_messages_queued_at_the_end_are_still_delivered() -> None:
    """More data than the network buffers, to a subscriber that starts reading after the end."""
    with service() as running, raw_subscriber(running.images_endpoint, b"video/", rcvhwm=2) as sub:
        running.wait_for_subscribers()
        noise = encode_solid_jpeg() + os.urandom(3_000_000)
        for i in range(12):
            running.put_images(result(i), None, noise)
            wait_until(lambda: len(running.publisher.images) == 0)
        ending = threading.Thread(target=running.end)
        ending.start()
        assert [
            protocol.decode(receive(sub)[1], protocol.MasksMessage).frame for _ in range(12)
        ] == list(range(12))
        ending.join()


@pytest.mark.slow
def test_a_slow_subscriber_with_a_full_queue_receives_the_end_of_stream_message() -> None:
    found = instances(100, (1080, 1920))
    with service() as running, streamseg.connect(running.masks_endpoint, timeout=10) as sub:
        running.wait_for_subscribers()
        running.put_and_wait(*[result(i, found=found) for i in range(2500)])
        ending = threading.Thread(target=running.end)
        ending.start()
        received = list(sub)
        ending.join()
        assert sub.gaps["gate"] == received[-1].seq + 1 - len(received)
    assert len(received) < 2500, "the queue was never full"


def test_a_subscriber_that_does_not_read_does_not_delay_the_end_of_the_service(monkeypatch) -> None:
    monkeypatch.setattr(publisher, "LINGER_MS", 200)
    monkeypatch.setattr(publisher, "END_REPEATED_FOR", 0.2)
    monkeypatch.setattr(publisher, "SLOW_READ_INTERVAL", 0.5)
    with service() as running, raw_subscriber(running.images_endpoint, b"video/", rcvhwm=1):
        running.wait_for_subscribers()
        for i in range(12):
            running.put_images(result(i), None, os.urandom(3_000_000))
            wait_until(lambda: len(running.publisher.images) == 0)
        started_at = time.monotonic()
        running.end()
        assert time.monotonic() - started_at < 5


# Subscribers that do not read


READER = """
import sys, time, zmq
sub = zmq.Context().socket(zmq.SUB)
sub.subscribe(b"")
sub.connect(sys.argv[1])
sub.recv_multipart()
print("joined", flush=True)
while True:
    sub.recv_multipart() if sys.argv[2] == "read" else time.sleep(1)
"""


@contextlib.contextmanager
def subscriber_process(endpoint, mode):
    """Run a subscriber in a separate process that reads, or sleeps."""
    child = subprocess.Popen(
        [sys.executable, "-c", READER, endpoint, mode], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "joined\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_stopped_subscriber_process_does_not_delay_other_subscribers() -> None:
    found = instances(100, (1080, 1920))
    with service() as running, subscriber_process(running.masks_endpoint, "read") as stopped:
        os.kill(stopped.pid, signal.SIGSTOP)
        with streamseg.connect(running.masks_endpoint, timeout=20) as sub:
            running.wait_for_subscribers(2)
            count = 3 * endpoints.MASKS_QUEUED
            for i in range(count):
                running.put(result(i, found=found))
                received = sub.receive()
                assert received.index == i
                assert received.age_ms < 10_000, "delayed by the stopped subscriber"
            assert sub.gaps == {"gate": 0}
        assert running.metrics.account("gate").snapshot().published == count


@pytest.mark.slow
def test_a_subscriber_that_never_reads_uses_no_more_memory_than_its_queue() -> None:
    image = os.urandom(1_000_000)
    with service() as running, subscriber_process(running.images_endpoint, "sleep"):
        running.wait_for_subscribers()
        memory = []
        for i in range(400):
            running.put_images(result(i), None, image)
            wait_until(lambda: len(running.publisher.images) == 0)
            memory.append(read_resident_memory())
    bound = endpoints.FRAMES_QUEUED * len(image)
    assert memory[-1] - memory[0] < bound + 20_000_000
    assert memory[-1] - memory[100] < 5_000_000, "memory still grows"


# Hostile clients


def hostile_bytes():
    yield b""
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield os.urandom(10_000)
    yield bytes(10_000)
    yield b"\xff" * 10_000
    yield GREETING[:20]
    yield GREETING
    yield GREETING + os.urandom(10_000)
    yield GREETING + encode_ready(b"SUB") + b"\x02" + (1 << 40).to_bytes(8, "big") + b"x" * 1000
    yield GREETING + encode_ready(b"SUB") + b"\x02" + b"\xff" * 8
    yield GREETING + encode_ready(b"SUB") + b"\x00\xff" + b"\x01" * 255
    yield GREETING + encode_ready(b"SUB") + b"\x00\x00" * 1000
    yield GREETING + encode_ready(b"SUB") + b"\x04\x05\x04PING" * 1000
    yield GREETING + encode_ready(b"PUB")
    yield GREETING + encode_ready(b"DEALER" * 30)
    yield GREETING.replace(b"NULL\0", b"CURVE") + bytes(1000)


@pytest.mark.parametrize("kind", ["masks", "frames", "replay"])
def test_the_service_continues_after_hostile_bytes(kind) -> None:
    with (
        service() as running,
        contextlib.ExitStack() as open_peers,
        streamseg.connect(running.masks_endpoint, timeout=5) as sub,
    ):
        running.wait_for_subscribers()
        for number, data in enumerate(hostile_bytes()):
            peer = open_peers.enter_context(raw_peer(running.publisher.endpoints[kind]))
            with contextlib.suppress(ConnectionError):
                peer.sendall(data)
            running.put(result(number))
            assert sub.receive().index == number
        assert sub.gaps == {"gate": 0}


def flood(peer: socket.socket, chunk: bytes, total: int) -> int:
    """Send until the connection is closed or ``total`` bytes are sent; return the sent bytes."""
    sent = 0
    peer.settimeout(1)
    with contextlib.suppress(OSError):
        while sent < total:
            peer.sendall(chunk)
            sent += len(chunk)
    return sent


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts received bytes")
@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        ("endless message", "masks"),
        pytest.param("endless message", "frames", marks=pytest.mark.slow),
        pytest.param("endless subscriptions", "masks", marks=pytest.mark.slow),
        ("endless subscriptions", "frames"),
    ],
)
def test_a_flooding_client_is_disconnected_and_its_memory_released(kind, attack) -> None:
    if attack == "endless message":
        chunk = (b"\x01\xf0" + b"\x07" * 240) * 200
    else:
        chunk = b"".join(b"\x00\x40\x01" + os.urandom(63) for _ in range(700))
    with service() as running, streamseg.connect(running.masks_endpoint, timeout=5) as sub:
        running.wait_for_subscribers()
        before = read_resident_memory()
        with raw_peer(
            running.publisher.endpoints[kind], handshake=GREETING + encode_ready(b"SUB")
        ) as peer:
            sent = flood(peer, chunk, total=400_000_000)
        assert sent < 400_000_000, "the client was not disconnected"
        assert read_resident_memory() - before < 150_000_000
        running.put(result())
        assert sub.receive().index == 0
        wait_until(
            lambda: len(running.publisher._subscriptions[running.publisher._masks]._counts) <= 2
        )


def test_a_subscriber_to_many_sources_is_not_disconnected() -> None:
    names = [f"camera-{i:04}-{'x' * 50}" for i in range(MAX_SOURCES)]
    with service() as running, streamseg.connect(running.masks_endpoint, names, timeout=5) as sub:
        running.wait_for_subscribers(len(names))
        time.sleep(3 * publisher.POLL_TIMEOUT)
        running.publisher.set_state(names[-1], "live", "", 0)
        running.put_and_wait(result(source=names[-1]))
        assert sub.receive().source == names[-1]
        running.publisher.set_state(names[-1], "ended", "", 0)
        with pytest.raises(ReceiveTimeout):
            sub.receive(timeout=0.3)
        assert sub.statuses[names[-1]].state == "ended"


def test_beyond_the_limit_of_prefixes_every_topic_is_wanted(
    monkeypatch,
) -> None:
    monkeypatch.setattr("streamseg.sinks.zmq.subscriptions.MAX_PREFIXES", 3)
    subscriptions = Subscriptions()
    for prefix in (b"masks/a/", b"masks/a/", b"frames/b/", b"x"):
        assert subscriptions.process(b"\x01" + prefix) == prefix
    assert subscriptions.result_count == 3
    assert not subscriptions.includes(b"masks/zzz/")
    subscriptions.process(b"\x01more")
    assert len(subscriptions._counts) == 3
    assert subscriptions.includes(b"masks/zzz/")
    for prefix in (b"more", b"x", b"frames/b/", b"masks/a/"):
        subscriptions.process(b"\x00" + prefix)
    assert subscriptions.result_count == 0
    assert not subscriptions.includes(b"masks/a/")
    subscriptions.process(b"\x01")
    assert subscriptions.includes(b"masks/a/")
    assert subscriptions.result_count == 1


def test_prefixes_beyond_the_limit_are_wanted_until_they_are_unsubscribed(monkeypatch) -> None:
    monkeypatch.setattr("streamseg.sinks.zmq.subscriptions.MAX_PREFIXES", 3)
    subscriptions = Subscriptions()
    for prefix in (b"masks/before/", b"1", b"2", b"3", b"masks/during/"):
        subscriptions.process(b"\x01" + prefix)
    for prefix in (b"1", b"2", b"3"):
        subscriptions.process(b"\x00" + prefix)
    assert subscriptions.includes(b"masks/before/")
    assert subscriptions.includes(b"masks/during/"), (
        "it was subscribed although the limit was reached"
    )
    subscriptions.process(b"\x00masks/during/")
    assert subscriptions.includes(b"masks/before/")
    assert not subscriptions.includes(b"masks/another/"), "not subscribed"


def test_a_prefix_longer_than_any_topic_matches_nothing() -> None:
    subscriptions = Subscriptions()
    subscriptions.process(b"\x01masks/" + b"x" * 100)
    assert subscriptions.has_any
    assert subscriptions.result_count == 0
    assert not subscriptions.includes(b"masks/x/")


@pytest.mark.parametrize("message", [b"", b"\x02masks/", b"masks/"])
def test_a_message_that_is_not_a_subscription_is_ignored(message) -> None:
    subscriptions = Subscriptions()
    assert subscriptions.process(message) is None
    assert subscriptions._counts == {}
