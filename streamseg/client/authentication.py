"""Keys of a subscriber, and what a service does with them: CURVE, and the handshakes it ends in.

libzmq says nothing of a refused handshake but to a monitor, and never tries again.
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
                "server_key without key_file (--server-key without --key): name your own secret's "
                "file too; `streamseg keys new` makes one"
            )
        if server_key is None:
            raise UsageError(
                "key_file without server_key (--key without --server-key): name the service's "
                "public key too"
            )
        return cls(parse_public_key(server_key), read_pair(key_file))

    def put_on(self, sock: zmq.Socket[bytes]) -> None:
        """Use them on a socket, before it is connected."""
        sock.setsockopt_string(zmq.CURVE_SERVERKEY, self.server)
        sock.setsockopt_string(zmq.CURVE_PUBLICKEY, self.own.public)
        sock.setsockopt_string(zmq.CURVE_SECRETKEY, self.own.secret)


class Handshakes:
    """What has become of the handshakes with a service, over one socket after the other.

    Args:
        address: where the sockets are connected to.
        keys: those they use.

    Attributes:
        admitted: whether one has succeeded, ever.
        refused: whether the service has refused the latest one.
        trouble: what stands in the way, as far as it is known.
    """

    def __init__(self, address: Address, keys: Keys | None) -> None:
        self._address = address
        self._keys = keys
        self._broken_off = 0
        self.admitted = False
        self.refused = False
        self.trouble: str | None = None

    def watch(self, sock: zmq.Socket[bytes]) -> None:
        """Look at a socket from now on, which isn't connected yet."""
        self._sock = sock
        self._monitor = sock.get_monitor_socket(
            zmq.Event.HANDSHAKE_SUCCEEDED
            | zmq.Event.HANDSHAKE_FAILED_AUTH
            | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
            | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
        )

    def let_go(self) -> None:
        """Look at the socket no more, before it is closed.

        All that waits is read first: libzmq's thread would wait for room for it, and never end.
        """
        self.look()
        self._sock.disable_monitor()
        self._monitor.close(linger=0)

    def look(self) -> None:
        """Take in what has happened since; never waits."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            self._take(event["event"], event["value"])

    def _take(self, event: int, value: int) -> None:
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self.admitted = True
            self.refused = False
            self.trouble = None
            self._broken_off = 0
        elif event == zmq.Event.HANDSHAKE_FAILED_AUTH:
            self.refused = True
            key = "our key" if self._keys is None else f"the key {self._keys.own.public}"
            self._say(f"the service refuses {key}: `streamseg keys allow` there lets it in")
        elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self.refused = True
            self._say(
                "the service asks for no key: connect without server_key and key_file "
                "(--server-key and --key)"
                if self._keys
                else "the service asks for a key: connect with server_key and key_file "
                "(--server-key and --key)"
            )
        else:
            self._broken_off += 1
            if self._keys and self._broken_off >= _BROKEN_OFF:
                self._say(
                    "the handshake is broken off again and again: is "
                    f"{self._keys.server} the service's key?"
                )

    def _say(self, trouble: str) -> None:
        """Note what is wrong, and say it once if nothing is raised: see ``Link.look_after``."""
        if trouble != self.trouble and (self.admitted or not self.refused):
            log.warning("%s: %s", self._address, trouble)
        self.trouble = trouble
