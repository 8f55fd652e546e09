"""ZAP handler: accepts or refuses CURVE handshakes by the keys in the folder (ZeroMQ RFC 27).

libzmq sends a request for each handshake to an inproc socket of the publisher's context; the
publisher's thread answers it between two messages. The folder is checked several times a second, so
that added and revoked keys take effect without a restart.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

import zmq
from zmq.utils import z85

from streamseg.errors import KeyFileError
from streamseg.protocol.curve import AllowedKeys, KeyFolder
from streamseg.sinks.zmq.refusals import RefusalLog

log = logging.getLogger(__name__)

CHECK_INTERVAL = 0.25
"""Seconds between two checks of the folder."""
_REQUESTS_AT_ONCE = 100
_ACCEPT, _RETRY_LATER, _REFUSE = b"200", b"300", b"400"
"""Status codes of ZAP. libzmq's client retries by itself after 300 and gives up after 400."""


class Authenticator:
    """ZAP handler of the publisher's sockets. Belongs to the publisher's thread.

    Args:
        context: ZeroMQ context of the publisher's sockets.
        folder: key folder of the service.
        is_full: returns whether the named socket has reached its limit of connections.
        refusals: counts and logs refused handshakes.

    Attributes:
        socket: becomes readable when ``answer_requests`` has something to do.

    Raises:
        KeyFileError: a file in the folder is not a public key.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        folder: KeyFolder,
        is_full: Callable[[str], bool],
        refusals: RefusalLog,
    ) -> None:
        self._folder = folder
        self._is_full = is_full
        self._refusals = refusals
        self._fingerprint: object = folder.fingerprint()
        allowed = folder.allowed()
        if allowed.problems:
            raise KeyFileError(allowed.problems[0])
        self._problems = allowed.problems
        self._names = {key: name for name, key in allowed.keys.items()}
        self._next_check_at = time.monotonic() + CHECK_INTERVAL
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")

    def answer_requests(self) -> None:
        """Answer the waiting requests, a bounded number of them; doesn't block."""
        with contextlib.suppress(zmq.Again):
            for _ in range(_REQUESTS_AT_ONCE):
                version, number, domain, *rest = self.socket.recv_multipart(zmq.NOBLOCK)
                code, name = self._decide(domain.decode(), rest)
                self.socket.send_multipart([version, number, code, b"", name.encode(), b""])

    def reload_keys(self) -> bool:
        """Read the folder again if it is time to and it changed.

        Returns:
            Whether a key was revoked.
        """
        if time.monotonic() < self._next_check_at:
            return False
        self._next_check_at = time.monotonic() + CHECK_INTERVAL
        if not self._must_read_folder():
            return False
        before, self._names = self._names, self._read_names()
        for key, name in before.items():
            if key not in self._names:
                log.warning("the key %s was revoked: all subscribers must reconnect", name)
        return not before.keys() <= self._names.keys()

    def close(self) -> None:
        """Close the socket; libzmq then refuses all handshakes."""
        self.socket.close(linger=0)

    def _must_read_folder(self) -> bool:
        """Return whether the folder changed or the last attempt to read it had a problem.

        A problem can end without a change of the files (too many open files, a disk that doesn't
        respond), so the folder is then read each time.
        """
        before = self._fingerprint
        try:
            self._fingerprint = self._folder.fingerprint()
        except KeyFileError:  # reported when the folder is read
            self._fingerprint = None
        changed = self._fingerprint is None or self._fingerprint != before
        return changed or bool(self._problems)

    def _read_names(self) -> dict[str, str]:
        """Return the names by key. An unreadable file is skipped and logged once."""
        try:
            allowed = self._folder.allowed()
        except KeyFileError as error:
            allowed = AllowedKeys({}, (f"all subscribers are refused: {error}",))
        for problem in allowed.problems:
            if problem not in self._problems:
                log.error(problem)
        self._problems = allowed.problems
        return {key: name for name, key in allowed.keys.items()}

    def _decide(self, socket_name: str, rest: list[bytes]) -> tuple[bytes, str]:
        """Return the status code and, if accepted, the name of the key.

        Args:
            socket_name: socket that the client connects to.
            rest: address, routing id, mechanism and credentials.
        """
        address, _, mechanism, *credentials = rest
        if mechanism != b"CURVE" or len(credentials) != 1:
            return _REFUSE, ""
        key = z85.encode(credentials[0]).decode()
        if key not in self._names:
            self._refusals.add("key", f"refused the key {key} from {address.decode()}")
            return _REFUSE, ""
        if self._is_full(socket_name):
            self._refusals.add("full", f"{socket_name}: no connection left for {self._names[key]}")
            return _RETRY_LATER, ""
        return _ACCEPT, self._names[key]
