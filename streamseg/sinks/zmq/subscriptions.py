"""What is known of the subscribers of an XPUB socket: what they ask for."""

from __future__ import annotations

from streamseg import protocol

MAX_PREFIXES = 10_000
"""Different prefixes kept for a socket: 5,000 sources, each by its name. Beyond that, everything
counts as wanted until those that weren't kept are given up, and who has asked for much is cut off:
see ``Gate.crowded``."""


class Audience:
    """The prefixes that the peers of one socket subscribe to.

    ``XPUB_VERBOSE`` tells of every join, but of a leave only when nobody holds the prefix any
    more. So ``wants`` is exact for ever; ``results_joined`` may count one too many while somebody
    else still holds the prefix of one who has left. (``XPUB_VERBOSER`` tells of every leave, but
    counting joins and leaves goes wrong for good when a peer subscribes to the same twice.)

    Only the thread that owns the socket changes it; it may be read from any.
    """

    def __init__(self) -> None:
        self.results_joined = 0
        self._joins: dict[bytes, int] = {}
        self._unkept = 0  # joins; too many where one prefix was joined twice, never too few

    @property
    def is_crowded(self) -> bool:
        """Whether there are more prefixes than are kept."""
        return len(self._joins) >= MAX_PREFIXES

    @property
    def anybody(self) -> bool:
        """Whether there is a subscription at all."""
        return bool(self._joins) or self._unkept > 0

    def hear(self, message: bytes) -> bytes | None:
        """Take a message of the socket; the prefix, if somebody has joined."""
        prefix = message[1:]
        if message[:1] not in (b"\x00", b"\x01"):
            return None
        if message[:1] == b"\x00":
            left = self._joins.pop(prefix, 0)
            self.results_joined -= left * _may_match_results(prefix)
            self._unkept = max(0, self._unkept - (left == 0))
            return None
        if prefix not in self._joins and self.is_crowded:
            self._unkept += 1
            return prefix
        self._joins[prefix] = self._joins.get(prefix, 0) + 1
        self.results_joined += _may_match_results(prefix)
        return prefix

    def wants(self, topic: bytes) -> bool:
        """Whether somebody subscribes to ``topic``."""
        joins = self._joins
        return self._unkept > 0 or any(topic[:end] in joins for end in range(len(topic) + 1))


def _may_match_results(prefix: bytes) -> bool:
    return len(prefix) <= protocol.MAX_TOPIC_BYTES and any(
        prefix.startswith(kind) or kind.startswith(prefix)
        for kind in (b"masks/", b"frames/", b"video/")
    )
