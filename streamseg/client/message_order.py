"""Ordering of one topic's messages: each one once and in sequence, live or replayed.

Uses no sockets and no clock. While messages are missing, later ones are buffered; the missing ones
are requested since ``last`` until they arrive or are known to be lost.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class MessageOrder(Generic[T]):
    """Reorder buffer of one topic. Its methods return the messages that are next in sequence.

    Attributes:
        last: sequence number of the last message returned or counted as lost; None at first.
        lost: number of messages that never arrived.
    """

    def __init__(self) -> None:
        self.last: int | None = None
        self.lost = 0
        self._newest = -1  # highest sequence number known to have been published
        self._buffer: deque[tuple[int, T]] = deque()
        self._requested = (-1, -1)

    @property
    def buffered(self) -> int:
        """Number of buffered messages."""
        return len(self._buffer)

    @property
    def has_gap(self) -> bool:
        """Whether a message after ``last`` was published but not returned yet."""
        return self.last is not None and self._newest > self.last

    def add_live(self, seq: int, item: T, *, has_room: bool) -> list[T]:
        """Add a message that arrived live.

        Args:
            seq: its sequence number.
            item: the message.
            has_room: whether it may be buffered; otherwise it is treated as not received.
        """
        if self.last is None:
            self.last = self._newest = seq
            return [item]
        if seq <= (self._buffer[-1][0] if self._buffer else self.last):
            return []
        self._newest = max(self._newest, seq)
        if seq == self.last + 1:
            self.last = seq
            return [item]
        if has_room:
            self._buffer.append((seq, item))
        return []

    def note_published(self, seq: int) -> None:
        """Record that a message with this sequence number was published."""
        if self.last is not None:
            self._newest = max(self._newest, seq)

    def start_request(self) -> int:
        """Return the sequence number to request replay since; ends with ``end_request``."""
        assert self.last is not None
        self._requested = (self.last, self._newest)
        return self.last

    def add_replayed(self, seq: int, item: T) -> list[T]:
        """Add a replayed message. Replays are in order: missing ones before it are lost."""
        if self.last is None or seq <= self.last:
            return []
        ready = self._advance_to(seq - 1)
        if self.last >= seq:
            return ready  # it was in the buffer
        self.last = seq
        self._newest = max(self._newest, seq)
        return [*ready, item, *self._advance_to(seq)]

    def end_request(self) -> list[T]:
        """End a request. If it returned nothing, the messages known when it started are lost."""
        since, newest = self._requested
        if self.last is None or self.last > since:
            return []
        return self._advance_to(min(newest, self._buffer[0][0] - 1) if self._buffer else newest)

    def give_up(self) -> list[T]:
        """Count all missing messages as lost."""
        return [] if self.last is None else self._advance_to(self._newest)

    def restart(self) -> list[T]:
        """Start over with new sequence numbers, for a restarted service."""
        ready = self.give_up()
        self.last, self._newest = None, -1
        return ready

    def _advance_to(self, seq: int) -> list[T]:
        """Advance ``last`` to ``seq``: return buffered messages up to and following it."""
        assert self.last is not None
        ready: list[T] = []
        while self._buffer and self._buffer[0][0] <= max(seq, self.last + 1):
            buffered_seq, item = self._buffer.popleft()
            self.lost += buffered_seq - self.last - 1
            self.last = buffered_seq
            ready.append(item)
        if seq > self.last:
            self.lost += seq - self.last
            self.last = seq
            ready += self._advance_to(seq)
        return ready
