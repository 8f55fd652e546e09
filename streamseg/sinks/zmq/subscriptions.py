"""Subscriptions of the peers of an XPUB socket."""

from __future__ import annotations

from streamseg import protocol

MAX_PREFIXES = 10_000
"""Different topic prefixes stored per socket: 5,000 sources subscribed to by name. While more are
subscribed to, every topic counts as subscribed, and peers with many subscriptions are disconnected:
see ``ConnectionLimiter.update``."""


class Subscriptions:
    """Topic prefixes that the peers of one socket subscribe to.

    With ``XPUB_VERBOSE``, libzmq passes on every subscription, but an unsubscription only when no
    peer holds the prefix any more. So ``includes`` is always exact, while ``result_count`` may be
    too high while another peer still holds the prefix of one that left. (``XPUB_VERBOSER`` passes
    on every unsubscription, but counting fails when a peer subscribes to a prefix twice.)

    Only the thread that owns the socket may change it; any thread may read it.

    Attributes:
        result_count: subscriptions to results or images.
    """

    def __init__(self) -> None:
        self.result_count = 0
        self._counts: dict[bytes, int] = {}
        self._unstored = 0  # at least the number of subscriptions that are not in _counts

    @property
    def is_full(self) -> bool:
        """Whether no more prefixes are stored."""
        return len(self._counts) >= MAX_PREFIXES

    @property
    def has_any(self) -> bool:
        """Whether there is any subscription."""
        return bool(self._counts) or self._unstored > 0

    def process(self, message: bytes) -> bytes | None:
        """Process a message of the socket; returns the prefix of a new subscription, or None."""
        prefix = message[1:]
        if message[:1] not in (b"\x00", b"\x01"):
            return None
        if message[:1] == b"\x00":
            count = self._counts.pop(prefix, 0)
            self.result_count -= count * _may_match_results(prefix)
            self._unstored = max(0, self._unstored - (count == 0))
            return None
        if prefix not in self._counts and self.is_full:
            self._unstored += 1
            return prefix
        self._counts[prefix] = self._counts.get(prefix, 0) + 1
        self.result_count += _may_match_results(prefix)
        return prefix

    def includes(self, topic: bytes) -> bool:
        """Return whether any peer subscribes to the topic."""
        counts = self._counts
        return self._unstored > 0 or any(topic[:end] in counts for end in range(len(topic) + 1))


def _may_match_results(prefix: bytes) -> bool:
    return len(prefix) <= protocol.MAX_TOPIC_BYTES and any(
        prefix.startswith(kind) or kind.startswith(prefix)
        for kind in (b"masks/", b"frames/", b"video/")
    )
