"""A service with keys: who gets in, at which socket, and what becomes of a key that is revoked."""

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
from support.publishers import eventually, jpeg, result, service

import streamseg
from streamseg.config import PublishConfig
from streamseg.errors import ConfigError, KeyFileError, ReceiveTimeout, RefusedError
from streamseg.pipeline.metrics import Metrics
from streamseg.protocol import curve, messages
from streamseg.protocol.curve import KeyFolder, create_pair, parse_public_key, read_pair
from streamseg.sinks.zmq import authentication
from streamseg.sinks.zmq.connection_limiter import Refusals
from streamseg.sinks.zmq.publisher import Publisher


@pytest.fixture
def folder(tmp_path):
    """A service's; alice and bob may come in, eve has a pair and may not."""
    create_pair(tmp_path / "keys", "server")
    folder = KeyFolder(tmp_path / "keys")
    for name in ("alice", "bob", "eve"):
        pair = create_pair(tmp_path, name)
        if name != "eve":
            folder.allow(pair.public, name)
    return folder


@contextlib.contextmanager
def guarded(folder, **options):
    with service(keys=str(folder.path), **options) as running:
        yield running


def connect(running, folder, name, timeout=5.0, **options):
    return streamseg.connect(
        running.masks_at,
        timeout=timeout,
        server_key=folder.path / "server.pub",
        key_file=folder.path.parent / f"{name}.key",
        **options,
    )


@contextlib.contextmanager
def reading(sub):
    """What a subscriber receives; libzmq subscribes anew only when somebody reads."""
    received: list[int] = []

    def read() -> None:
        with contextlib.suppress(ReceiveTimeout, RefusedError):
            received.extend(r.index for r in sub)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    yield received
    reader.join(10)
    assert not reader.is_alive()


def refused(running, reason) -> float:
    value = running.metrics.registry.get_sample_value
    return value("streamseg_refused_connections_total", {"reason": reason}) or 0


def subscribers(running) -> float | None:
    return running.metrics.registry.get_sample_value("streamseg_subscribers")


def test_who_has_an_allowed_key_gets_masks_and_pictures(folder) -> None:
    with (
        guarded(folder) as running,
        connect(running, folder, "alice") as masks,
        connect(
            running, folder, "bob", frames="plain", frames_address=running.frames_at
        ) as pictures,
    ):
        eventually(lambda: running.publisher.wants("video", "gate"))
        running.wait_joined(2)
        running.put(result(7))
        running.show(result(7), None, jpeg())
        assert masks.receive().index == 7
        assert pictures.receive().index == 7
        eventually(lambda: subscribers(running) == 3)  # one more says whose the pictures are
    assert refused(running, "key") == 0


def test_a_key_that_is_not_allowed_is_refused(folder) -> None:
    with guarded(folder) as running:
        with connect(running, folder, "eve") as sub, pytest.raises(RefusedError, match="key"):
            sub.receive()
        assert refused(running, "key") >= 1


@pytest.mark.parametrize("kind", ["masks", "frames", "replay"])
def test_no_socket_lets_anybody_in_without_a_key_or_with_a_wrong_one(folder, kind) -> None:
    server = parse_public_key(folder.path / "server.pub")
    eve = read_pair(folder.path.parent / "eve.key")
    alice = read_pair(folder.path.parent / "alice.key")
    other = zmq.curve_keypair()[0].decode()
    with guarded(folder) as running, zmq.Context() as context:
        for server_key, own in [(None, None), (server, eve), (other, alice), (server, alice)]:
            sock = context.socket(zmq.DEALER if kind == "replay" else zmq.SUB)
            sock.linger = 0
            if server_key is not None:
                sock.curve_serverkey = server_key.encode()
                sock.curve_publickey, sock.curve_secretkey = (
                    own.public.encode(),
                    own.secret.encode(),
                )
            if kind != "replay":
                sock.subscribe(b"")
            monitor = sock.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED)
            sock.connect(running.publisher.endpoints[kind])
            admitted = monitor.poll(3000 if own is alice and server_key == server else 400)
            assert bool(admitted) == (own is alice and server_key == server)
            sock.disable_monitor()
            monitor.close()
            sock.close()


def test_what_a_good_subscriber_hears_cannot_be_read_on_the_way(folder) -> None:
    """The bytes on the wire have neither the topic nor the source's name in them."""
    heard = bytearray()
    with guarded(folder) as running:
        at = messages.Address.parse(running.masks_at)
        tapped = _tap(at.port, heard)
        with streamseg.connect(
            f"tcp://127.0.0.1:{tapped}",
            timeout=5,
            replay=False,
            server_key=folder.path / "server.pub",
            key_file=folder.path.parent / "alice.key",
        ) as sub:
            running.wait_joined()
            running.put(result(3, source="secret-yard"))
            assert sub.receive().source == "secret-yard"
    assert len(heard) > 500
    assert b"secret-yard" not in heard
    assert b"masks" not in heard


def _tap(port, heard) -> int:
    """A port that passes on to ``port``, and keeps what goes through."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source, sink) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                heard.extend(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with listener:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            with near, far:
                back = threading.Thread(target=pump, args=(far, near), daemon=True)
                back.start()
                pump(near, far)
                back.join(5)

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def test_a_revoked_key_is_cut_off_and_nobody_else_loses_a_result(folder) -> None:
    with (
        guarded(folder) as running,
        connect(running, folder, "alice") as alice,
        connect(running, folder, "bob", timeout=1.5) as bob,
    ):
        running.wait_joined(2)
        with reading(alice) as alices, reading(bob) as bobs:
            running.put(*[result(i) for i in range(20)], every=0.02)
            folder.revoke("bob")
            running.put(*[result(i) for i in range(20, 120)], every=0.02)
            eventually(lambda: len(alices) == 120)
            running.finish()
        assert alices == list(range(120)), "replay fills the gap"
        assert alice.gaps == {"gate": 0}
        a_second = round(1 / 0.02)
        assert 20 <= len(bobs) <= 20 + a_second
        assert refused(running, "key") >= 1


def test_a_new_key_is_let_in_and_a_changed_one_is_not_without_a_restart(folder) -> None:
    eve = parse_public_key(folder.path.parent / "eve.pub")
    with guarded(folder) as running:
        folder.allow(eve, "eve")
        time.sleep(0.6)
        with connect(running, folder, "eve") as sub:
            running.wait_joined()
            running.put(result(1))
            assert sub.receive().index == 1
            path = folder.path / "allowed" / "eve.pub"
            path.write_text((folder.path.parent / "alice.pub").read_text())
            eventually(lambda: refused(running, "key") >= 1, within=5)


def test_a_damaged_key_keeps_nobody_else_out(folder, caplog) -> None:
    with guarded(folder) as running, connect(running, folder, "alice") as sub:
        running.wait_joined()
        with reading(sub) as received:
            with caplog.at_level(logging.ERROR):
                (folder.path / "allowed" / "bob.pub").write_text("half a ke")
                eventually(lambda: "bob.pub" in caplog.text)
            eventually(lambda: subscribers(running) == 1)
            running.put(*[result(i) for i in range(20)], every=0.05)
            eventually(lambda: 19 in received)
            running.finish()


def test_without_the_folder_nobody_is_let_in(folder, caplog) -> None:
    with guarded(folder) as running, connect(running, folder, "alice", timeout=1.5) as sub:
        running.wait_joined()
        shutil.rmtree(folder.path / "allowed")
        eventually(lambda: refused(running, "key") >= 1)
        running.put(result(1))
        with pytest.raises((ReceiveTimeout, RefusedError)):
            sub.receive()


@pytest.mark.slow
def test_a_folder_that_was_open_to_others_is_good_again_once_it_is_closed(folder) -> None:
    with guarded(folder) as running, connect(running, folder, "alice", timeout=20) as sub:
        running.wait_joined()
        with reading(sub) as received:
            (folder.path / "allowed").chmod(0o770)
            eventually(lambda: refused(running, "key") >= 1)
            (folder.path / "allowed").chmod(0o700)
            eventually(lambda: subscribers(running) == 1, within=20)
            running.put(result(1))
            eventually(lambda: received == [1])
            running.finish()


@pytest.fixture
def admission(folder, monkeypatch):
    """Looks at the folder whenever it is asked."""
    monkeypatch.setattr(authentication, "LOOK_EVERY", 0.0)
    context = zmq.Context()
    admission = authentication.Admission(context, folder, lambda name: False, Refusals(Metrics()))
    yield admission
    admission.close()
    context.term()


def test_a_disk_that_fails_for_a_while_is_asked_again_and_said_once(
    folder, admission, monkeypatch, caplog
) -> None:
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (folder.path / "allowed" / "bob.pub").touch()
    with monkeypatch.context() as disk:
        disk.setattr(curve.os, "open", fails)
        looks = [admission.somebody_was_revoked() for _ in range(5)]
    assert looks == [True, False, False, False, False]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [
        f"{folder.path}/allowed/{name}.pub: Input/output error" for name in ("alice", "bob")
    ]
    assert not admission._names
    assert not admission.somebody_was_revoked()
    assert sorted(admission._names.values()) == ["alice", "bob"]


def test_a_folder_whose_state_cannot_be_told_is_read_at_every_look(folder, admission) -> None:
    loop = folder.path / "allowed" / "loop.pub"
    loop.symlink_to(loop)
    assert not admission.somebody_was_revoked()
    folder.revoke("bob")
    assert admission.somebody_was_revoked()


def test_nobody_is_cut_off_when_only_a_files_mode_or_date_changes(folder, admission) -> None:
    for path in (folder.path / "allowed", folder.path / "allowed" / "bob.pub"):
        path.chmod(0o500)
        assert not admission.somebody_was_revoked()
        path.touch()
        assert not admission.somebody_was_revoked()
        path.chmod(0o700)
    assert sorted(admission._names.values()) == ["alice", "bob"]


def test_more_than_the_limit_are_not_let_in_until_somebody_leaves(folder) -> None:
    with guarded(folder, max_connections=2) as running:
        with connect(running, folder, "alice") as first, connect(running, folder, "bob") as second:
            eventually(lambda: subscribers(running) == 2)
            running.wait_joined(2)
            with connect(running, folder, "alice", timeout=0.7) as third:
                with pytest.raises((ReceiveTimeout, RefusedError)):
                    third.receive()
                running.put(result(1))
                assert first.receive().index == second.receive().index == 1
                eventually(lambda: refused(running, "full") >= 1)
        eventually(lambda: not running.publisher._anybody())
        with connect(running, folder, "bob") as again:
            running.wait_joined()
            running.put(result(2))
            assert again.receive().index == 2


def test_beyond_loopback_is_allowed_with_keys(folder) -> None:
    where = f"tcp://0.0.0.0:{free_port()}"
    with pytest.raises(ConfigError, match="--keys"):
        Publisher(PublishConfig(bind=where), Metrics())
    Publisher(PublishConfig(bind=where, keys=str(folder.path)), Metrics()).close()


def test_keys_that_cannot_be_used_are_said_before_anything_is_bound(folder, tmp_path) -> None:
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


def test_ipc_sockets_have_keys_and_are_cut_too(folder, tmp_path) -> None:
    with (
        guarded(folder, bind=f"ipc://{tmp_path}/masks") as running,
        connect(running, folder, "alice") as alice,
        connect(running, folder, "bob", timeout=1.5) as bob,
    ):
        running.wait_joined(2)
        with reading(alice) as alices, reading(bob) as bobs:
            running.put(result(0))
            eventually(lambda: alices == bobs == [0])
            folder.revoke("bob")
            eventually(lambda: refused(running, "key") >= 1)
            running.put(*[result(i) for i in range(1, 20)], every=0.05)
            eventually(lambda: alices == list(range(20)))
            running.finish()
        assert bobs == [0]
