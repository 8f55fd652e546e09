"""Tests of the publisher with hostile clients at every socket: regular subscribers are served.

The HTTP servers of control and viewer have their own tests.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.processes import read_resident_memory
from support.publishers import (
    GREETING,
    Service,
    encode_ready,
    raw_peer,
    result,
    service,
    wait_until,
)

import streamseg
from streamseg.errors import ReceiveTimeout
from streamseg.pipeline.metrics import Metrics
from streamseg.protocol.address import Address
from streamseg.protocol.curve import KeyFolder, create_pair
from streamseg.sinks.zmq import connection_limiter, endpoints
from streamseg.sinks.zmq.connection_limiter import MAX_HALF_OPEN
from streamseg.sinks.zmq.endpoints import FILES_PER_CONNECTION
from streamseg.sinks.zmq.refusals import RefusalLog
from streamseg.sinks.zmq.tcp_connections import Connection

KINDS = ("masks", "frames", "replay")
PING = b"\x04\x07\x04PING\x00\x00"
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)
HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys")
    create_pair(path / "keys", "server")
    folder = KeyFolder(path / "keys")
    folder.allow(create_pair(path, "alice").public, "alice")
    return folder


@contextlib.contextmanager
def service_and_subscriber(folder, *, with_keys, **options):
    """Run a service and a regular subscriber."""
    if with_keys:
        options["keys"] = str(folder.path)
    key_options = {
        "server_key": folder.path / "server.pub",
        "key_file": folder.path.parent / "alice.key",
    }
    with (
        service(**options) as running,
        streamseg.connect(
            running.masks_endpoint, timeout=10, **(key_options if with_keys else {})
        ) as sub,
    ):
        running.wait_for_subscribers()
        yield running, sub


def count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module", params=[False, True], ids=["no keys", "keys"])
def shared_service(request, folder):
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(endpoints, "HANDSHAKE_MS", 2000)
            running_and_subscriber = stack.enter_context(
                service_and_subscriber(folder, with_keys=request.param)
            )
        yield running_and_subscriber


hostile = st.one_of(
    st.binary(max_size=2000),
    st.builds(
        lambda prefix, rest: prefix + rest,
        st.sampled_from(
            [HTTP, TLS_HELLO, GREETING, GREETING[:11], GREETING.replace(b"NULL\0", b"CURVE")]
            + [GREETING + encode_ready(kind) for kind in (b"SUB", b"DEALER", b"XPUB", b"PAIR")]
        ),
        st.binary(max_size=1000),
    ),
    st.builds(
        lambda kind, flags, size, rest: (
            GREETING + encode_ready(kind) + struct.pack(">BQ", flags, size) + rest
        ),
        st.sampled_from([b"SUB", b"DEALER"]),
        st.integers(0, 7),
        st.one_of(st.integers(0, 600), st.integers(2**31, 2**64 - 1)),
        st.binary(max_size=700),
    ),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=hostile, kind=st.sampled_from(KINDS), end=st.sampled_from(["close", "reset"]))
def test_the_next_result_arrives_after_arbitrary_bytes(shared_service, data, kind, end) -> None:
    running, sub = shared_service
    with raw_peer(running.publisher.endpoints[kind]) as peer, contextlib.suppress(OSError):
        if end == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sendall(data)
    item = result(len(running.done))
    running.put(item)
    assert sub.receive().index == item.frame.index


@pytest.mark.slow
def test_connections_are_counted_correctly_after_arbitrary_bytes(shared_service) -> None:
    running, _ = shared_service
    value = running.metrics.registry.get_sample_value
    wait_until(lambda: value("streamseg_subscribers") == 1)
    limiters = running.publisher._sockets.limiter._limiters
    wait_until(lambda: [each.established for each in limiters.values()] == [1, 0, 0])


@pytest.mark.parametrize("kind", ["masks", "frames"])
def test_a_reset_after_unread_pings_does_not_abort_the_process(kind) -> None:
    """libzmq aborts if it stopped reading from the connection because of a full queue."""
    running = Service()  # bound, but its network thread does not run
    with contextlib.closing(running.publisher) as publisher:
        with raw_peer(publisher.endpoints[kind], handshake=GREETING + encode_ready(b"SUB")) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for _ in range(10):
                peer.sendall((b"\x00\x06\x01masks" * 10 + PING) * 20)
                time.sleep(0.02)
        time.sleep(0.1)
        sock = publisher._sockets._sockets[kind]
        assert sock.rcvhwm == 0, "with a full queue libzmq would stop reading"
        assert sock.getsockopt(zmq.HEARTBEAT_IVL) == 0, "with heartbeats libzmq would abort"
        running.start()
        running.put_and_wait(result(0))
        running.end()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its open files there")
@pytest.mark.parametrize(
    ("kind", "with_keys"),
    [("masks", False), ("masks", True), ("frames", False), ("replay", True)],
)
def test_many_half_open_connections_leave_room_for_others(folder, kind, with_keys) -> None:
    count = 2 * MAX_HALF_OPEN
    with (
        service_and_subscriber(folder, with_keys=with_keys) as (running, sub),
        contextlib.ExitStack() as clients,
    ):
        before = count_open_files()
        for _ in range(count):
            clients.enter_context(raw_peer(running.publisher.endpoints[kind]))
        limiter = running.publisher._sockets.limiter._limiters[kind]
        wait_until(lambda: len(limiter._connections) - limiter.established <= MAX_HALF_OPEN)
        wait_until(
            lambda: count_open_files() - before - count <= FILES_PER_CONNECTION * MAX_HALF_OPEN + 5
        )
        with raw_peer(running.publisher.endpoints[kind], handshake=GREETING):
            pass  # raw_peer has received a greeting
        running.put(result(1))
        assert sub.receive().index == 1


def test_subscribers_over_the_limit_do_not_displace_connected_ones(folder) -> None:
    with (
        service_and_subscriber(folder, with_keys=False, max_connections=5) as (running, sub),
        zmq.Context() as more,
    ):
        others = []
        for _ in range(20):
            other = more.socket(zmq.SUB)
            other.linger = 0
            other.subscribe(b"masks/")
            other.connect(running.masks_endpoint)
            others.append(other)
        value = running.metrics.registry.get_sample_value
        full = {"reason": "full"}
        wait_until(lambda: (value("streamseg_refused_connections_total", full) or 0) > 15)
        for number in range(10):
            running.put(result(number))
            assert sub.receive().index == number
        for other in others:
            other.close()
        wait_until(lambda: value("streamseg_subscribers") == 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts received bytes")
def test_floods_of_distinct_topics_are_survived_with_little_memory(folder) -> None:
    chunk = b"".join(b"\x00\x31\x01" + os.urandom(48) for _ in range(1000))
    with service_and_subscriber(folder, with_keys=False) as (running, sub):
        before = read_resident_memory()
        for number in range(8):
            with contextlib.ExitStack() as clients:
                for _ in range(8):
                    peer = clients.enter_context(
                        raw_peer(running.masks_endpoint, handshake=GREETING + encode_ready(b"SUB"))
                    )
                    peer.settimeout(0.05)
                    with contextlib.suppress(OSError):
                        peer.sendall(chunk * 10)
            running.put(result(number))
            assert sub.receive().index == number
        assert read_resident_memory() - before < 150_000_000
        subscriptions = running.publisher._subscriptions[running.publisher._masks]
        wait_until(lambda: len(subscriptions._counts) <= 2, within=30)
        assert sub.gaps == {"gate": 0}


def test_new_connections_are_accepted_again_some_time_after_a_flood(folder, monkeypatch) -> None:
    monkeypatch.setattr(connection_limiter, "PAUSE_AFTER_FLOOD", 0.5)
    # A small limit, so that the test does not depend on the speed of the machine.
    monkeypatch.setattr(connection_limiter, "MAX_BURST_BYTES", 2048)
    with service_and_subscriber(folder, with_keys=False) as (running, _):
        value = running.metrics.registry.get_sample_value
        loud = {"reason": "loud"}
        with raw_peer(running.masks_endpoint, handshake=GREETING + encode_ready(b"SUB")) as peer:
            peer.settimeout(0.2)
            flood = memoryview(b"\x00\x06\x01masks" * 100_000)

            def is_disconnected() -> bool:
                nonlocal flood
                with contextlib.suppress(OSError):
                    flood = flood[peer.send(flood) :]  # partial sends are continued
                return value("streamseg_refused_connections_total", loud) == 1

            wait_until(is_disconnected)
        with streamseg.connect(running.masks_endpoint, timeout=0.2) as late:

            def receives_result() -> bool:
                running.put(result(len(running.done)))
                with contextlib.suppress(ReceiveTimeout):
                    return late.receive() is not None
                return False

            wait_until(receives_result)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux can drop packets of new connections"
)
def test_new_connections_wait_while_the_listener_is_blocked(folder) -> None:
    with service_and_subscriber(folder, with_keys=False) as (running, sub):
        limiter = running.publisher._sockets.limiter._limiters["masks"]
        wait_until(lambda: limiter.established == 1)
        limiter._paused_until = math.inf
        wait_until(lambda: limiter._listener._is_paused)
        port = int(running.masks_endpoint.rpartition(":")[2])
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), timeout=0.3)
        running.put(result(1))
        assert sub.receive().index == 1
        threading.Timer(0.2, setattr, (limiter, "_paused_until", 0.0)).start()
        with raw_peer(running.masks_endpoint, handshake=GREETING + encode_ready(b"SUB")):
            pass


def test_the_listener_stays_blocked_while_the_network_thread_has_a_backlog() -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as sock:
        limiter = connection_limiter.SocketLimiter("masks", sock, 1, RefusalLog(Metrics()))
        limiter._paused_until = paused_until = time.monotonic() + 60
        limiter.check(is_publisher_behind=False)
        assert limiter._paused_until == paused_until
        now = time.monotonic()
        limiter._paused_until = now + connection_limiter.PAUSE_AFTER_FLOOD / 2
        limiter.check(is_publisher_behind=True)
        assert limiter._paused_until >= now + connection_limiter.PAUSE_AFTER_FLOOD
        limiter._paused_until = 0.0
        limiter.check(is_publisher_behind=True)
        assert limiter._paused_until == 0.0, "there was no flood"
        limiter.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its open files there")
def test_a_reused_file_descriptor_is_not_kept_open(
    tmp_path,
) -> None:
    address = Address("tcp", "127.0.0.1", 1)
    gc.collect()  # subscribers of earlier tests close their files when they are collected
    before = count_open_files()
    with (tmp_path / "file").open("wb") as file, socket.create_server(("127.0.0.1", 0)) as other:
        for fd in (file.fileno(), other.fileno(), 10**6):
            connection = Connection(fd, address)
            assert connection.received_bytes == 0
            connection.shut_down()
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert count_open_files() == before


def test_a_handshake_over_the_time_limit_is_disconnected(folder, monkeypatch) -> None:
    monkeypatch.setattr(endpoints, "HANDSHAKE_MS", 700)
    with (
        service_and_subscriber(folder, with_keys=True) as (running, _),
        raw_peer(running.publisher.endpoints["replay"]) as peer,
    ):
        peer.sendall(GREETING.replace(b"NULL\0", b"CURVE"))
        peer.settimeout(20)
        with contextlib.suppress(ConnectionError):
            while peer.recv(100):
                pass
