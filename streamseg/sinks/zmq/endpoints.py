"""The publisher's sockets: opened, bound, and guarded by keys and limits.

``masks`` and ``frames`` publish, ``replay`` answers. All belong to one thread, the publisher's; it
calls ``look_after`` whenever there are ``questions``, and several times a second.
"""

from __future__ import annotations

import errno
import socket
import stat
import time
from collections.abc import Collection
from pathlib import Path
from typing import TypeAlias

import zmq

from streamseg.config import PublishConfig
from streamseg.errors import BindError, ConfigError, StreamsegError, UsageError
from streamseg.pipeline.metrics import Metrics
from streamseg.protocol.address import Address
from streamseg.protocol.curve import KeyFolder
from streamseg.sinks.zmq import replay
from streamseg.sinks.zmq.authentication import Admission
from streamseg.sinks.zmq.connection_limiter import (
    HANDSHAKE_MS,
    MAX_HALF_OPEN,
    Gate,
    Gatekeeper,
    Name,
    Refusals,
)

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

MASKS_QUEUED = 256
FRAMES_QUEUED = 16
"""Messages queued for one subscriber; what comes when its queue is full is lost to it."""
INCOMING_BUFFER = 1024
"""Bytes: small, so that one who never stops sending can't send much before he is cut off."""
MAX_INCOMING = 512
"""Bytes of a message from a subscriber: a topic, or a step of the handshake (CURVE needs 276)."""
KEEPALIVE_S = 5
SILENT_AFTER_MS = 60_000
"""A subscriber whose system has taken nothing for so long is dropped, and its queue with it. Linux
also counts from when somebody slow last had taken all there was, so it can't be much less."""
FILES_OF_EACH = 2
"""Of each connection: libzmq's, and the gate's: see ``Connection``."""

_REMEDIES = {
    errno.EACCES: "; ports below 1024 are the administrator's: choose another one",
    errno.EADDRNOTAVAIL: "; name an address of this machine",
    errno.ENODEV: "; name an address of this machine",
}
_OPTIONS: dict[Name, str] = {"masks": "bind", "frames": "bind-frames", "replay": "bind-replay"}


class Endpoints:
    """Opens and binds at once.

    Args:
        context: of the sockets.
        config: where, who may come in, and how many.
        metrics: counts connections, and those refused.

    Attributes:
        masks: an XPUB socket.
        frames: an XPUB socket.
        replay: a ROUTER, None where ``config`` says that nothing is replayed.
        addresses: where they are bound, by name.

    Raises:
        ConfigError: not an address, or one beyond loopback without keys or ``insecure``.
        KeyFileError: the keys can't be used.
        BindError: an address is taken or can't be bound.
    """

    def __init__(self, context: Context, config: PublishConfig, metrics: Metrics) -> None:
        wanted = _addresses(config)
        self._refusals = Refusals(metrics)
        self._sockets: dict[Name, zmq.Socket[bytes]] = {}
        self._gates: dict[Name, Gate] = {}
        self._admission: Admission | None = None
        self._keeper: Gatekeeper | None = None
        self.addresses: dict[str, str] = {}
        keys = KeyFolder(Path(config.keys)) if config.keys else None
        try:
            if keys is not None:  # first, so that nobody is let in unasked
                self._admission = Admission(context, keys, self._is_full, self._refusals)
            for name, address in wanted.items():
                self._open(context, name, config.max_connections, keys)
                self.addresses[name] = _bind(self._sockets[name], address, _OPTIONS[name])
                self._gates[name].bound(self.addresses[name])
            self._keeper = Gatekeeper(self._gates, metrics)
        except StreamsegError:
            self.close(linger=0)
            raise
        self.masks, self.frames = self._sockets["masks"], self._sockets["frames"]
        self.replay = self._sockets.get("replay")

    @property
    def questions(self) -> list[zmq.Socket[bytes]]:
        """What can be read from when somebody waits to be let in."""
        return [] if self._admission is None else [self._admission.socket]

    def look_after(self, crowded: Collection[zmq.Socket[bytes]]) -> None:
        """Let in who may come in, and have those cut off who may not stay; never waits.

        Args:
            crowded: sockets whose subscribers have asked for more than can be kept.
        """
        if self._keeper is not None:
            if self._keeper.failure is not None:
                raise self._keeper.failure
            self._keeper.note_round()
        if self._admission is not None:
            if self._admission.somebody_was_revoked():
                for gate in self._gates.values():
                    gate.let_all_go()
            self._admission.answer()
        for name, gate in self._gates.items():
            gate.crowded = self._sockets[name] in crowded

    def note_readers(self) -> None:
        """Look from now on whether who is there reads on."""
        for gate in self._gates.values():
            gate.ending_since = time.monotonic()

    @property
    def is_anybody_behind(self) -> bool:
        """Whether somebody has much unread."""
        return any(gate.is_anybody_behind for gate in self._gates.values())

    @property
    def read_on_at(self) -> float:
        """When such a one was last seen to read on, on the monotonic clock."""
        return max(gate.read_on_at for gate in self._gates.values())

    def close(self, linger: int) -> None:
        """Close the sockets.

        Args:
            linger: milliseconds that what is queued gets to leave.
        """
        if self._keeper is not None:
            self._keeper.close()
        for gate in self._gates.values():
            gate.close()
        for sock in self._sockets.values():
            sock.close(linger=linger)
        if self._admission is not None:
            self._admission.close()

    def _open(self, context: Context, name: Name, most: int, keys: KeyFolder | None) -> None:
        """A socket that nobody can stall or fill, and its gate."""
        sock = context.socket(zmq.ROUTER if name == "replay" else zmq.XPUB)
        self._sockets[name] = sock
        if name == "replay":
            replay.set_up(sock)
        else:
            sock.setsockopt(zmq.XPUB_VERBOSE, 1)  # every join, and the last leave: see Audience
            sock.sndhwm = MASKS_QUEUED if name == "masks" else FRAMES_QUEUED
            sock.setsockopt(zmq.MAXMSGSIZE, MAX_INCOMING)
        sock.setsockopt(zmq.RCVBUF, INCOMING_BUFFER)
        sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        _survive_the_lost(sock)
        if keys is not None:
            sock.setsockopt(zmq.CURVE_SERVER, 1)
            sock.setsockopt_string(zmq.CURVE_SECRETKEY, keys.pair.secret)
            sock.setsockopt_string(zmq.ZAP_DOMAIN, name)
            sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody to ask: nobody comes in
        self._gates[name] = Gate(name, sock, most, self._refusals)

    def _is_full(self, name: str) -> bool:
        return any(gate.is_full for known, gate in self._gates.items() if known == name)


def open_files_needed(config: PublishConfig) -> int:
    """Return the open files that subscribers may take at the most, on all sockets."""
    return _files_of_one(config) * (config.max_connections + MAX_HALF_OPEN)


def max_connections_within(config: PublishConfig, open_files: int) -> int:
    """Return the ``max_connections`` that need no more open files; less than 1 is impossible."""
    return open_files // _files_of_one(config) - MAX_HALF_OPEN


def _files_of_one(config: PublishConfig) -> int:
    """Return the open files of a connection to each socket."""
    return FILES_OF_EACH * (3 if config.replay else 2)


def _survive_the_lost(sock: zmq.Socket[bytes]) -> None:
    """Notice who is gone without a word, by TCP's means and not by ZMTP's heartbeats.

    libzmq 4.3.5 aborts the process (``Assertion failed: !_io_error``) when it has stopped reading
    from a connection because the queue behind it is full, that connection is reset, and then a
    heartbeat falls due, or a peer's has been read: any stranger could bring that about. So there
    are no heartbeats, and the queue is never full: ``Gate`` bounds what may be in it.
    """
    sock.rcvhwm = 0
    sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
    sock.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    sock.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
    sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, SILENT_AFTER_MS // 1000 // KEEPALIVE_S - 1)
    sock.setsockopt(zmq.TCP_MAXRT, SILENT_AFTER_MS)


def _addresses(config: PublishConfig) -> dict[Name, Address]:
    """Where each socket is to be bound."""
    try:
        masks_at = Address.parse(config.bind)
        wanted: dict[Name, Address] = {"masks": masks_at}
        wanted["frames"] = (
            masks_at.for_images if config.bind_frames is None else Address.parse(config.bind_frames)
        )
        if config.replay:
            wanted["replay"] = (
                masks_at.for_replay
                if config.bind_replay is None
                else Address.parse(config.bind_replay)
            )
    except UsageError as error:
        raise ConfigError(f"publish: {error}") from None
    for address in wanted.values():
        if not (address.is_loopback or config.keys or config.insecure):
            raise ConfigError(
                f"publish: {address} can be reached by other machines, and nothing is encrypted: "
                "name a folder of keys with --keys, bind to 127.0.0.1, or say --insecure"
            )
    return wanted


def _bind(sock: zmq.Socket[bytes], address: Address, option: str) -> str:
    """Bind; the endpoint, with the port that it got."""
    if address.transport == "ipc":
        _check_ipc_path(address, option)
    sock.setsockopt(zmq.IPV6, int(":" in address.host))
    # libzmq binds to addresses and interfaces, not to names of hosts.
    host = "127.0.0.1" if address.host == "localhost" else address.host
    try:
        sock.bind(str(Address(address.transport, host, address.port)))
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise BindError(
                f"{address} is taken by another program: choose another address with --{option}"
            ) from None
        remedy = _REMEDIES.get(error.errno or 0, "")
        raise BindError(f"{address} can't be bound: {error}{remedy}") from None
    endpoint = sock.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def _check_ipc_path(address: Address, option: str) -> None:
    """Refuse a path that libzmq would take from whoever has it: it deletes what is there."""
    path = Path(address.host)
    if address.host.startswith(("@", "*")) or not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise BindError(f"{address} can't be bound: there is a file of that name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address.host)
        except ConnectionRefusedError:
            return  # left behind by a program that is gone
        except OSError as error:
            raise BindError(f"{address} can't be bound: {error}") from None
    raise BindError(
        f"{address} is taken by another program: choose another address with --{option}"
    )
