"""Keys of a subscriber, and what a service does with them: CURVE, and the handshakes it ends in.

libzmq says nothing of a refused handshake but to a monitor, and never tries again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from streamseg.errors import UsageError
from streamseg.keys import KeyPair, public_key, read_pair
from streamseg.wire import Address

_BROKEN_OFF = 3
"""Handshakes in a row that end without a word, after which the service's key may be wrong."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Whom a subscriber trusts, and who it is.

    Attributes:
        server: the service's public key.
        own: the subscriber's pair.
    """

    server: str
    own: KeyPair

    @classmethod
    def load(cls, server_key: str | Path | None, key_file: str | Path | None) -> Keys | None:
        """The keys that are named, None for a service without.

        Raises:
            UsageError: one is named without the other.
            KeyFileError: what is named isn't a key, or others can read the secret.
        """
        if server_key is None and key_file is None:
            return None
        if key_file is None:
            raise UsageError(
                "server_key without key_file: name your own secret's file too; "
                "`streamseg keys new` makes one"
            )
        if server_key is None:
            raise UsageError("key_file without server_key: name the service's public key too")
        return cls(public_key(server_key), read_pair(key_file))

    def put_on(self, sock: zmq.Socket[bytes]) -> None:
        """Use them on a socket, before it is connected."""
        sock.setsockopt_string(zmq.CURVE_SERVERKEY, self.server)
        sock.setsockopt_string(zmq.CURVE_PUBLICKEY, self.own.public)
        sock.setsockopt_string(zmq.CURVE_SECRETKEY, self.own.secret)


class Handshakes:
    """What has become of a socket's handshakes.

    Args:
        sock: not connected yet.
        address: where it is going to be connected to.
        keys: those it uses.

    Attributes:
        admitted: whether one has succeeded.
        refusal: why the latest one failed, if the service has said so.
        suspicion: what may be wrong, if it hasn't.
    """

    def __init__(self, sock: zmq.Socket[bytes], address: Address, keys: Keys | None) -> None:
        self._sock = sock
        self._address = address
        self._keys = keys
        self._broken_off = 0
        self.admitted = False
        self.refusal: str | None = None
        self.suspicion: str | None = None
        self._monitor = sock.get_monitor_socket(
            zmq.Event.HANDSHAKE_SUCCEEDED
            | zmq.Event.HANDSHAKE_FAILED_AUTH
            | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
            | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
        )

    def look(self) -> None:
        """Take in what has happened since; never waits."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            self._take(event["event"], event["value"])

    def close(self) -> None:
        """Let go of the socket, before it is closed."""
        self._sock.disable_monitor()
        self._monitor.close(linger=0)

    def _take(self, event: int, value: int) -> None:
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self.admitted = True
            self.refusal = self.suspicion = None
            self._broken_off = 0
        elif event == zmq.Event.HANDSHAKE_FAILED_AUTH:
            key = "our key" if self._keys is None else f"the key {self._keys.own.public}"
            self._refuse(f"the service refuses {key}: `streamseg keys allow` there lets it in")
        elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self._refuse(
                "the service asks for no key: connect without server_key and key_file"
                if self._keys
                else "the service asks for a key: connect with server_key and key_file"
            )
        else:
            self._broken_off += 1
            if self._keys and self._broken_off >= _BROKEN_OFF:
                self.suspicion = (
                    f"{self._address}: the handshake is broken off again and again: is "
                    f"{self._keys.server} the service's key?"
                )

    def _refuse(self, why: str) -> None:
        self.refusal = f"{self._address}: {why}"
