"""Who may come in: answers libzmq's question about every handshake (ZAP, RFC 27 of ZeroMQ).

The question comes to an inproc socket of the publisher's own context, and its network thread
answers between two messages. Only CURVE is let in, with a key of the folder; the folder is looked
at several times a second, so that a new key is taken, and a revoked one isn't, without a restart.
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
from streamseg.sinks.zmq.connection_limiter import Refusals

log = logging.getLogger(__name__)

LOOK_EVERY = 0.25
"""Seconds between two looks at the folder."""
_ANSWERED_AT_ONCE = 100
_WELCOME, _LATER, _REFUSED = b"200", b"300", b"400"
"""ZAP's codes: come in; try again, as libzmq does by itself; and never again, so it gives up."""


class Admission:
    """Answers who may come in. Belongs to the network thread.

    Args:
        context: whose sockets ask.
        folder: with the keys that may.
        is_full: whether the socket of that name has no room for one more.
        refusals: where those are counted that may not.

    Attributes:
        socket: can be read from when there is something for ``answer``.

    Raises:
        KeyFileError: a file of the folder isn't a public key.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        folder: KeyFolder,
        is_full: Callable[[str], bool],
        refusals: Refusals,
    ) -> None:
        self._folder = folder
        self._is_full = is_full
        self._refusals = refusals
        self._seen: object = folder.fingerprint()
        allowed = folder.allowed()
        if allowed.problems:
            raise KeyFileError(allowed.problems[0])
        self._problems = allowed.problems
        self._names = {key: name for name, key in allowed.keys.items()}
        self._look_due = time.monotonic() + LOOK_EVERY
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")

    def answer(self) -> None:
        """Answer what has been asked so far, up to a bound."""
        with contextlib.suppress(zmq.Again):
            for _ in range(_ANSWERED_AT_ONCE):
                version, number, domain, *rest = self.socket.recv_multipart(zmq.NOBLOCK)
                code, name = self._decide(domain.decode(), rest)
                self.socket.send_multipart([version, number, code, b"", name.encode(), b""])

    def somebody_was_revoked(self) -> bool:
        """Look at the folder, if it is time to; whether a key isn't in it any more."""
        if time.monotonic() < self._look_due:
            return False
        self._look_due = time.monotonic() + LOOK_EVERY
        if not self._is_to_be_read():
            return False
        before, self._names = self._names, self._read()
        for key, name in before.items():
            if key not in self._names:
                log.warning("the key %s was revoked: everybody shakes hands again", name)
        return not before.keys() <= self._names.keys()

    def close(self) -> None:
        """Answer nobody any more: libzmq refuses all then."""
        self.socket.close(linger=0)

    def _is_to_be_read(self) -> bool:
        """Whether the folder has changed, or may be good now and look as before.

        The latter is so after any problem: not all of them are of the files' own making, so not
        all show on the files when they are over (too many open files, a disk that doesn't answer).
        """
        before = self._seen
        try:
            self._seen = self._folder.fingerprint()
        except KeyFileError:  # reading it will say so
            self._seen = None
        return self._seen is None or self._seen != before or bool(self._problems)

    def _read(self) -> dict[str, str]:
        """Names by key. A file that can't be read lets nobody in, and keeps nobody else out."""
        try:
            allowed = self._folder.allowed()
        except KeyFileError as error:
            allowed = AllowedKeys({}, (f"nobody may come in: {error}",))
        for problem in allowed.problems:
            if problem not in self._problems:  # else it has been said
                log.error(problem)
        self._problems = allowed.problems
        return {key: name for name, key in allowed.keys.items()}

    def _decide(self, socket_name: str, rest: list[bytes]) -> tuple[bytes, str]:
        """A code, and the name of who may come in.

        Args:
            socket_name: which one is knocked at.
            rest: address, routing id, mechanism and its credentials.
        """
        address, _, mechanism, *credentials = rest
        if mechanism != b"CURVE" or len(credentials) != 1:
            return _REFUSED, ""
        key = z85.encode(credentials[0]).decode()
        if key not in self._names:
            self._refusals.add("key", f"refused the key {key}, from {address.decode()}")
            return _REFUSED, ""
        if self._is_full(socket_name):
            self._refusals.add("full", f"{socket_name}: no room for {self._names[key]}")
            return _LATER, ""
        return _WELCOME, self._names[key]
