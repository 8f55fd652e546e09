"""The publisher's sockets: created, bound, and protected by keys and limits.

``masks`` and ``frames`` are XPUB sockets, ``replay`` is a ROUTER. All belong to the publisher's
thread, which calls ``check_connections`` several times a second and when an authentication request
is waiting.
"""

from __future__ import annotations

import errno
import socket
import stat
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
from streamseg.sinks.zmq.authentication import Authenticator
from streamseg.sinks.zmq.connection_limiter import (
    HANDSHAKE_MS,
    MAX_HALF_OPEN,
    ConnectionLimiter,
    SocketName,
)
from streamseg.sinks.zmq.refusals import RefusalLog

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

MASKS_QUEUED = 256
FRAMES_QUEUED = 16
"""Messages queued per subscriber; further ones are dropped for it."""
RECEIVE_BUFFER_BYTES = 1024
"""Small, so that a peer that sends without end can send little before it is disconnected."""
MAX_INCOMING = 512
"""Bytes of a message from a subscriber: a topic, or a step of the handshake (CURVE needs 276)."""
KEEPALIVE_S = 5
TCP_TIMEOUT_MS = 60_000
"""Time without acknowledgements after which a connection and its queue are dropped. Linux measures
it from when a slow peer last emptied its queue, so it can't be much shorter."""
FILES_PER_CONNECTION = 2
"""libzmq's descriptor and the duplicate in ``Connection``."""

_REMEDIES = {
    errno.EACCES: "; ports below 1024 need administrator rights: choose another port",
    errno.EADDRNOTAVAIL: "; use an address of this machine",
    errno.ENODEV: "; use an address of this machine",
}
_OPTIONS: dict[SocketName, str] = {
    "masks": "bind",
    "frames": "bind-frames",
    "replay": "bind-replay",
}


class Endpoints:
    """The sockets of one publisher, bound on creation.

    Args:
        context: ZeroMQ context of the sockets.
        config: addresses, keys and limits.
        metrics: counts connections and refusals.

    Attributes:
        masks: XPUB socket of results and status messages.
        frames: XPUB socket of images and status messages.
        replay: ROUTER socket of replay requests; None if replay is disabled.
        addresses: bound endpoints by socket name.
        limiter: limits the connections of all sockets.

    Raises:
        ConfigError: an address is invalid, or not loopback without keys or ``insecure``.
        KeyFileError: the keys are invalid.
        BindError: an address is in use or can't be bound.
    """

    def __init__(self, context: Context, config: PublishConfig, metrics: Metrics) -> None:
        addresses = _parse_addresses(config)
        refusals = RefusalLog(metrics)
        self._sockets: dict[SocketName, zmq.Socket[bytes]] = {}
        self._authenticator: Authenticator | None = None
        self.limiter = ConnectionLimiter(config.max_connections, metrics, refusals)
        self.addresses: dict[str, str] = {}
        keys = KeyFolder(Path(config.keys)) if config.keys else None
        try:
            if keys is not None:  # first, so that every handshake is authenticated
                self._authenticator = Authenticator(context, keys, self.limiter.is_full, refusals)
            for name, address in addresses.items():
                self._open(context, name, keys)
                self.addresses[name] = _bind(self._sockets[name], address, _OPTIONS[name])
                self.limiter.set_endpoint(name, self.addresses[name])
            self.limiter.start()
        except StreamsegError:
            self.close(linger=0)
            raise
        self.masks, self.frames = self._sockets["masks"], self._sockets["frames"]
        self.replay = self._sockets.get("replay")

    @property
    def authentication_sockets(self) -> list[zmq.Socket[bytes]]:
        """The socket of authentication requests, if there are keys, to poll."""
        return [] if self._authenticator is None else [self._authenticator.socket]

    def check_connections(self, overfull: Collection[zmq.Socket[bytes]]) -> None:
        """Answer authentication requests and apply the limits; doesn't block.

        Args:
            overfull: sockets whose peers have more subscriptions than are stored.
        """
        self.limiter.update([name for name, sock in self._sockets.items() if sock in overfull])
        if self._authenticator is not None:
            if self._authenticator.reload_keys():
                self.limiter.close_all_connections()
            self._authenticator.answer_requests()

    def close(self, linger: int) -> None:
        """Close the sockets.

        Args:
            linger: time limit for sending queued messages, in milliseconds.
        """
        self.limiter.close()
        for sock in self._sockets.values():
            sock.close(linger=linger)
        if self._authenticator is not None:
            self._authenticator.close()

    def _open(self, context: Context, name: SocketName, keys: KeyFolder | None) -> None:
        """Create a socket with its options and limits."""
        sock = context.socket(zmq.ROUTER if name == "replay" else zmq.XPUB)
        self._sockets[name] = sock
        if name == "replay":
            replay.set_replay_options(sock)
        else:
            sock.setsockopt(zmq.XPUB_VERBOSE, 1)  # see Subscriptions
            sock.sndhwm = MASKS_QUEUED if name == "masks" else FRAMES_QUEUED
            sock.setsockopt(zmq.MAXMSGSIZE, MAX_INCOMING)
        sock.setsockopt(zmq.RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        _set_tcp_timeouts(sock)
        if keys is not None:
            sock.setsockopt(zmq.CURVE_SERVER, 1)
            sock.setsockopt_string(zmq.CURVE_SECRETKEY, keys.pair.secret)
            sock.setsockopt_string(zmq.ZAP_DOMAIN, name)
            sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # refuse all without a ZAP handler
        self.limiter.add_socket(name, sock)


def open_files_needed(config: PublishConfig) -> int:
    """Return the maximum number of open files that subscribers need, on all sockets."""
    return _files_per_subscriber(config) * (config.max_connections + MAX_HALF_OPEN)


def max_connections_within(config: PublishConfig, open_files: int) -> int:
    """Return the ``max_connections`` possible with this many open files; may be less than 1."""
    return open_files // _files_per_subscriber(config) - MAX_HALF_OPEN


def _files_per_subscriber(config: PublishConfig) -> int:
    """Return the open files of a connection to each socket."""
    return FILES_PER_CONNECTION * (3 if config.replay else 2)


def _set_tcp_timeouts(sock: zmq.Socket[bytes]) -> None:
    """Detect lost peers by TCP keepalives and timeouts instead of ZMTP heartbeats.

    libzmq 4.3.5 aborts the process (``Assertion failed: !_io_error``) if it stopped reading from a
    connection because its receive queue is full, the connection is reset, and then a heartbeat is
    due or one was received. Any client could cause that. So heartbeats are off and the receive
    queue is unbounded; ``ConnectionLimiter`` limits its content.
    """
    sock.rcvhwm = 0
    sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
    sock.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    sock.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
    sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, TCP_TIMEOUT_MS // 1000 // KEEPALIVE_S - 1)
    sock.setsockopt(zmq.TCP_MAXRT, TCP_TIMEOUT_MS)


def _parse_addresses(config: PublishConfig) -> dict[SocketName, Address]:
    """Return the address to bind for each socket.

    Raises:
        ConfigError: an address is invalid, or not loopback without keys or ``insecure``.
    """
    try:
        masks = Address.parse(config.bind)
        images, replays = config.bind_frames, config.bind_replay
        addresses: dict[SocketName, Address] = {"masks": masks}
        addresses["frames"] = masks.for_images if images is None else Address.parse(images)
        if config.replay:
            addresses["replay"] = masks.for_replay if replays is None else Address.parse(replays)
    except UsageError as error:
        raise ConfigError(f"publish: {error}") from None
    for address in addresses.values():
        if not (address.is_loopback or config.keys or config.insecure):
            raise ConfigError(
                f"publish: other machines can reach {address}, and nothing is encrypted: give a "
                "folder of keys with --keys, bind to 127.0.0.1, or use --insecure"
            )
    return addresses


def _bind(sock: zmq.Socket[bytes], address: Address, option: str) -> str:
    """Bind the socket; returns its endpoint with the actual port."""
    if address.transport == "ipc":
        _check_ipc_path(address, option)
    sock.setsockopt(zmq.IPV6, int(":" in address.host))
    # libzmq binds to addresses and interfaces, not to host names.
    host = "127.0.0.1" if address.host == "localhost" else address.host
    try:
        sock.bind(str(Address(address.transport, host, address.port)))
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise BindError(
                f"{address} is in use by another program: choose another address with --{option}"
            ) from None
        remedy = _REMEDIES.get(error.errno or 0, "")
        raise BindError(f"{address} can't be bound: {error}{remedy}") from None
    endpoint = sock.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def _check_ipc_path(address: Address, option: str) -> None:
    """Refuse a path in use: libzmq would delete an existing file or socket."""
    path = Path(address.host)
    if address.host.startswith(("@", "*")) or not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise BindError(f"{address} can't be bound: a file with that name exists")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address.host)
        except ConnectionRefusedError:
            return  # left behind by a program that has ended
        except OSError as error:
            raise BindError(f"{address} can't be bound: {error}") from None
    raise BindError(
        f"{address} is in use by another program: choose another address with --{option}"
    )
