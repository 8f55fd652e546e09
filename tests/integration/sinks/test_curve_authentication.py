"""Tests of CURVE authentication: allowed, refused and revoked keys at every socket."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
import time

import pytest
import zmq
from support.ports import free_port
from support.publishers import encode_solid_jpeg, result, service, wait_until

import streamseg
from streamseg.config import PublishConfig
from streamseg.errors import ConfigError, KeyFileError, ReceiveTimeout, RefusedError
from streamseg.pipeline.metrics import Metrics
from streamseg.protocol import curve
from streamseg.protocol.address import Address
from streamseg.protocol.curve import KeyFolder, create_pair, parse_public_key, read_pair
from streamseg.sinks.zmq import authentication
from streamseg.sinks.zmq.publisher import Publisher
from streamseg.sinks.zmq.refusals import RefusalLog


@pytest.fixture
def folder(tmp_path):
    """Create the key folder of a service; alice and bob are allowed, eve is not."""
    create_pair(tmp_path / "keys", "server")
    folder = KeyFolder(tmp_path / "keys")
    for name in ("alice", "bob", "eve"):
        pair = create_pair(tmp_path, name)
        if name != "eve":
            folder.allow(pair.public, name)
    return folder


@contextlib.contextmanager
def service_with_keys(folder, **options):
    with service(keys=str(folder.path), **options) as running:
        yield running


def connect(running, folder, name, timeout=5.0, **options):
    return streamseg.connect(
        running.masks_endpoint,
        timeout=timeout,
        server_key=folder.path / "server.pub",
        key_file=folder.path.parent / f"{name}.key",
        **options,
    )


@contextlib.contextmanager
def reading(sub):
    """Read in a thread and yield the received indices; libzmq resubscribes only while reading."""
    received: list[int] = []

    def read() -> None:
        with contextlib.suppress(ReceiveTimeout, RefusedError):
            received.extend(r.index for r in sub)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    yield received
    reader.join(10)
    assert not reader.is_alive()


def count_refused(running, reason) -> float:
    value = running.metrics.registry.get_sample_value
    return value("streamseg_refused_connections_total", {"reason": reason}) or 0


def count_subscribers(running) -> float | None:
    return running.metrics.registry.get_sample_value("streamseg_subscribers")


def test_an_allowed_key_receives_masks_and_images(folder) -> None:
    with (
        service_with_keys(folder) as running,
        connect(running, folder, "alice") as masks,
        connect(
            running, folder, "bob", frames="plain", frames_address=running.images_endpoint
        ) as images,
    ):
        wait_until(lambda: running.publisher.has_image_subscribers("video", "gate"))
        running.wait_for_subscribers(2)
        running.put(result(7))
        running.put_images(result(7), None, encode_solid_jpeg())
        assert masks.receive().index == 7
        assert images.receive().index == 7
        wait_until(
            lambda: count_subscribers(running) == 3
        )  # the images subscriber also reads status//
    assert count_refused(running, "key") == 0


def test_a_key_that_is_not_allowed_is_refused(folder) -> None:
    with service_with_keys(folder) as running:
        with connect(running, folder, "eve") as sub, pytest.raises(RefusedError, match="key"):
            sub.receive()
        assert count_refused(running, "key") >= 1


@pytest.mark.parametrize("kind", ["masks", "frames", "replay"])
def test_every_socket_refuses_missing_and_wrong_keys(folder, kind) -> None:
    server = parse_public_key(folder.path / "server.pub")
    eve = read_pair(folder.path.parent / "eve.key")
    alice = read_pair(folder.path.parent / "alice.key")
    other = zmq.curve_keypair()[0].decode()
    with service_with_keys(folder) as running, zmq.Context() as context:
        for server_key, pair in [(None, None), (server, eve), (other, alice), (server, alice)]:
            sock = context.socket(zmq.DEALER if kind == "replay" else zmq.SUB)
            sock.linger = 0
            if server_key is not None:
                sock.curve_serverkey = server_key.encode()
                sock.curve_publickey, sock.curve_secretkey = (
                    pair.public.encode(),
                    pair.secret.encode(),
                )
            if kind != "replay":
                sock.subscribe(b"")
            monitor = sock.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED)
            sock.connect(running.publisher.endpoints[kind])
            is_valid = pair is alice and server_key == server
            assert bool(monitor.poll(3000 if is_valid else 200)) == is_valid
            sock.disable_monitor()
            monitor.close()
            sock.close()


def test_network_traffic_is_encrypted(folder) -> None:
    """Neither the topic nor the source name appear in the transferred bytes."""
    traffic = bytearray()
    with service_with_keys(folder) as running:
        tap_port = _start_tap(Address.parse(running.masks_endpoint).port, traffic)
        with streamseg.connect(
            f"tcp://127.0.0.1:{tap_port}",
            timeout=5,
            replay=False,
            server_key=folder.path / "server.pub",
            key_file=folder.path.parent / "alice.key",
        ) as sub:
            running.wait_for_subscribers()
            running.put(result(3, source="secret-yard"))
            assert sub.receive().source == "secret-yard"
    assert len(traffic) > 500
    assert b"secret-yard" not in traffic
    assert b"masks" not in traffic


def _start_tap(port, traffic) -> int:
    """Start a proxy to ``port`` that records the traffic; return the port of the proxy."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source, sink) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                traffic.extend(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with listener:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port))
            with client, server:
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                pump(client, server)
                back.join(5)

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def test_revoking_a_key_disconnects_it_and_others_lose_no_result(folder) -> None:
    with (
        service_with_keys(folder) as running,
        connect(running, folder, "alice") as alice,
        connect(running, folder, "bob", timeout=1.5) as bob,
    ):
        running.wait_for_subscribers(2)
        with reading(alice) as received_by_alice, reading(bob) as received_by_bob:
            running.put(*[result(i) for i in range(20)], every=0.02)
            folder.revoke("bob")
            running.put(*[result(i) for i in range(20, 120)], every=0.02)
            wait_until(lambda: len(received_by_alice) == 120)
            running.finish()
        assert received_by_alice == list(range(120)), "replay must fill the gap"
        assert alice.gaps == {"gate": 0}
        results_per_second = 50
        assert 20 <= len(received_by_bob) <= 20 + results_per_second
        assert count_refused(running, "key") >= 1


def test_added_and_replaced_keys_apply_without_a_restart(folder) -> None:
    eve = parse_public_key(folder.path.parent / "eve.pub")
    with service_with_keys(folder) as running:
        folder.allow(eve, "eve")
        time.sleep(0.6)
        with connect(running, folder, "eve") as sub:
            running.wait_for_subscribers()
            running.put(result(1))
            assert sub.receive().index == 1
            path = folder.path / "allowed" / "eve.pub"
            path.write_text((folder.path.parent / "alice.pub").read_text())
            wait_until(lambda: count_refused(running, "key") >= 1, within=5)


def test_a_damaged_key_file_does_not_affect_other_keys(folder, caplog) -> None:
    with service_with_keys(folder) as running, connect(running, folder, "alice") as sub:
        running.wait_for_subscribers()
        with reading(sub) as received:
            with caplog.at_level(logging.ERROR):
                (folder.path / "allowed" / "bob.pub").write_text("half a ke")
                wait_until(lambda: "bob.pub" in caplog.text)
            wait_until(lambda: count_subscribers(running) == 1)
            running.put(*[result(i) for i in range(20)], every=0.01)
            wait_until(lambda: 19 in received)
            running.finish()


def test_without_the_folder_all_keys_are_refused(folder) -> None:
    with (
        service_with_keys(folder) as running,
        connect(running, folder, "alice", timeout=0.7) as sub,
    ):
        running.wait_for_subscribers()
        shutil.rmtree(folder.path / "allowed")
        wait_until(lambda: count_refused(running, "key") >= 1)
        running.put(result(1))
        with pytest.raises((ReceiveTimeout, RefusedError)):
            sub.receive()


@pytest.mark.slow
def test_a_folder_is_accepted_again_after_its_permissions_are_corrected(folder) -> None:
    with service_with_keys(folder) as running, connect(running, folder, "alice", timeout=20) as sub:
        running.wait_for_subscribers()
        with reading(sub) as received:
            (folder.path / "allowed").chmod(0o770)
            wait_until(lambda: count_refused(running, "key") >= 1)
            (folder.path / "allowed").chmod(0o700)
            wait_until(lambda: count_subscribers(running) == 1, within=20)
            running.put(result(1))
            wait_until(lambda: received == [1])
            running.finish()


@pytest.fixture
def authenticator(folder, monkeypatch):
    """Create an authenticator that checks the folder at every call."""
    monkeypatch.setattr(authentication, "CHECK_INTERVAL", 0.0)
    context = zmq.Context()
    authenticator = authentication.Authenticator(
        context, folder, lambda name: False, RefusalLog(Metrics())
    )
    yield authenticator
    authenticator.close()
    context.term()


def test_a_temporary_disk_error_is_logged_once_and_retried(
    folder, authenticator, monkeypatch, caplog
) -> None:
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (folder.path / "allowed" / "bob.pub").touch()
    with monkeypatch.context() as patch:
        patch.setattr(curve.os, "open", fail)
        revoked = [authenticator.reload_keys() for _ in range(5)]
    assert revoked == [True, False, False, False, False]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [
        f"{folder.path}/allowed/{name}.pub: Input/output error" for name in ("alice", "bob")
    ]
    assert not authenticator._names
    assert not authenticator.reload_keys()
    assert sorted(authenticator._names.values()) == ["alice", "bob"]


def test_a_folder_without_a_fingerprint_is_read_at_every_check(folder, authenticator) -> None:
    loop = folder.path / "allowed" / "loop.pub"
    loop.symlink_to(loop)
    assert not authenticator.reload_keys()
    folder.revoke("bob")
    assert authenticator.reload_keys()


def test_changed_modes_and_dates_revoke_no_key(folder, authenticator) -> None:
    for path in (folder.path / "allowed", folder.path / "allowed" / "bob.pub"):
        path.chmod(0o500)
        assert not authenticator.reload_keys()
        path.touch()
        assert not authenticator.reload_keys()
        path.chmod(0o700)
    assert sorted(authenticator._names.values()) == ["alice", "bob"]


def test_connections_over_the_limit_must_wait_for_a_disconnection(folder) -> None:
    with service_with_keys(folder, max_connections=2) as running:
        with connect(running, folder, "alice") as first, connect(running, folder, "bob") as second:
            wait_until(lambda: count_subscribers(running) == 2)
            running.wait_for_subscribers(2)
            with connect(running, folder, "alice", timeout=0.7) as third:
                with pytest.raises((ReceiveTimeout, RefusedError)):
                    third.receive()
                running.put(result(1))
                assert first.receive().index == second.receive().index == 1
                wait_until(lambda: count_refused(running, "full") >= 1)
        wait_until(lambda: not running.publisher._has_subscribers())
        with connect(running, folder, "bob") as fourth:
            running.wait_for_subscribers()
            running.put(result(2))
            assert fourth.receive().index == 2


def test_a_non_loopback_address_is_allowed_with_keys(folder) -> None:
    address = f"tcp://0.0.0.0:{free_port()}"
    with pytest.raises(ConfigError, match="--keys"):
        Publisher(PublishConfig(bind=address), Metrics())
    Publisher(PublishConfig(bind=address, keys=str(folder.path)), Metrics()).close()


def test_invalid_keys_are_reported_before_binding(folder, tmp_path) -> None:
    port = free_port()
    config = PublishConfig(bind=f"tcp://127.0.0.1:{port}", keys=str(folder.path))
    (folder.path / "allowed" / "bob.pub").write_text("x")
    with pytest.raises(KeyFileError, match=r"bob\.pub"):
        Publisher(config, Metrics())
    (folder.path / "allowed" / "bob.pub").unlink()
    (folder.path / "server.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        Publisher(config, Metrics())
    with pytest.raises(KeyFileError, match=r"there is no server\.key"):
        Publisher(PublishConfig(keys=str(tmp_path)), Metrics())
    (folder.path / "server.key").chmod(0o600)
    Publisher(config, Metrics()).close()


def test_keys_and_revocation_apply_to_ipc_sockets(folder, tmp_path) -> None:
    with (
        service_with_keys(folder, bind=f"ipc://{tmp_path}/masks") as running,
        connect(running, folder, "alice") as alice,
        connect(running, folder, "bob", timeout=1.0) as bob,
    ):
        running.wait_for_subscribers(2)
        with reading(alice) as received_by_alice, reading(bob) as received_by_bob:
            running.put(result(0))
            wait_until(lambda: received_by_alice == received_by_bob == [0])
            folder.revoke("bob")
            wait_until(lambda: count_refused(running, "key") >= 1)
            running.put(*[result(i) for i in range(1, 20)], every=0.01)
            wait_until(lambda: received_by_alice == list(range(20)))
            running.finish()
        assert received_by_bob == [0]
