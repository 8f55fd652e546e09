"""CURVE keys of a subscriber, and the outcome of its handshakes with a service.

libzmq reports a refused handshake only on a monitor socket and never retries it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from streamseg.errors import UsageError
from streamseg.protocol.address import Address
from streamseg.protocol.curve import KeyPair, parse_public_key, read_pair

log = logging.getLogger(__name__)

_MAX_UNEXPLAINED_FAILURES = 3
"""Consecutive handshakes that end without a reason before the service's key is suspected."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The service's public key and the subscriber's own key pair.

    Attributes:
        server: public key of the service.
        own: key pair of the subscriber.
    """

    server: str
    own: KeyPair

    @classmethod
    def load(cls, server_key: str | Path | None, key_file: str | Path | None) -> Keys | None:
        """Read the given keys; returns None if neither is given.

        Raises:
            UsageError: only one of the two is given.
            KeyFileError: a key is invalid, or other users can read the secret key.
        """
        if server_key is None and key_file is None:
            return None
        if key_file is None:
            raise UsageError(
                "server_key without key_file (--server-key without --key): also give the file of "
                "your own secret key; `streamseg keys new` creates one"
            )
        if server_key is None:
            raise UsageError(
                "key_file without server_key (--key without --server-key): also give the public "
                "key of the service"
            )
        return cls(parse_public_key(server_key), read_pair(key_file))

    def apply_to(self, sock: zmq.Socket[bytes]) -> None:
        """Set the keys on a socket that isn't connected yet."""
        sock.setsockopt_string(zmq.CURVE_SERVERKEY, self.server)
        sock.setsockopt_string(zmq.CURVE_PUBLICKEY, self.own.public)
        sock.setsockopt_string(zmq.CURVE_SECRETKEY, self.own.secret)


class HandshakeMonitor:
    """Outcome of the handshakes with a service, over successive sockets.

    Args:
        address: endpoint of the service.
        keys: keys of the sockets, or None.

    Attributes:
        was_admitted: whether any handshake has succeeded.
        is_refused: whether the latest handshake was refused.
        problem: why the latest handshake failed, or None.
    """

    def __init__(self, address: Address, keys: Keys | None) -> None:
        self._address = address
        self._keys = keys
        self._unexplained_failures = 0
        self.was_admitted = False
        self.is_refused = False
        self.problem: str | None = None

    def attach(self, sock: zmq.Socket[bytes]) -> None:
        """Monitor a socket that isn't connected yet."""
        self._sock = sock
        self._monitor = sock.get_monitor_socket(
            zmq.Event.HANDSHAKE_SUCCEEDED
            | zmq.Event.HANDSHAKE_FAILED_AUTH
            | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
            | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
        )

    def detach(self) -> None:
        """Stop monitoring the socket; call this before closing it.

        Queued events are read first: libzmq's I/O thread would otherwise block on a full queue.
        """
        self.read_events()
        self._sock.disable_monitor()
        self._monitor.close(linger=0)

    def read_events(self) -> None:
        """Process the events since the last call; doesn't block."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            self._handle(event["event"], event["value"])

    def _handle(self, event: int, value: int) -> None:
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self.was_admitted = True
            self.is_refused = False
            self.problem = None
            self._unexplained_failures = 0
        elif event == zmq.Event.HANDSHAKE_FAILED_AUTH:
            self.is_refused = True
            key = "our key" if self._keys is None else f"the key {self._keys.own.public}"
            self._report(f"the service refuses {key}: allow it there with `streamseg keys allow`")
        elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self.is_refused = True
            self._report(
                "the service uses no keys: connect without server_key and key_file "
                "(--server-key and --key)"
                if self._keys
                else "the service requires a key: connect with server_key and key_file "
                "(--server-key and --key)"
            )
        else:
            self._unexplained_failures += 1
            if self._keys and self._unexplained_failures >= _MAX_UNEXPLAINED_FAILURES:
                self._report(
                    f"the handshake fails repeatedly: check that {self._keys.server} is the "
                    "service's key"
                )

    def _report(self, problem: str) -> None:
        """Store a problem; log it once unless ``Link.check`` raises it."""
        if problem != self.problem and (self.was_admitted or not self.is_refused):
            log.warning("%s: %s", self._address, problem)
        self.problem = problem
