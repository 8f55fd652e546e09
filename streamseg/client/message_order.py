"""One topic's messages in order, each once, whichever way they come: live, or given again.

No sockets, no clock. While something is missing, what is newer is held back; what is missing is
asked for since ``last``, until it has come or is known to be lost.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Order(Generic[T]):
    """Each method returns what can be given now, in order.

    Attributes:
        last: the number of the latest message that was given or counted as lost; None before the
            first.
        lost: messages that never came.
    """

    def __init__(self) -> None:
        self.last: int | None = None
        self.lost = 0
        self._known = -1  # the highest number that has been heard of
        self._held: deque[tuple[int, T]] = deque()
        self._asked = (-1, -1)

    @property
    def held(self) -> int:
        """Messages held back."""
        return len(self._held)

    @property
    def is_missing_some(self) -> bool:
        """Whether there is, or was, something after ``last`` that hasn't come."""
        return self.last is not None and self._known > self.last

    def live(self, seq: int, item: T, *, room: bool) -> list[T]:
        """Take a message as it was published.

        Args:
            seq: its number.
            item: the message.
            room: whether it may be held back; otherwise it is as if it had been lost on the way.
        """
        if self.last is None:
            self.last = self._known = seq
            return [item]
        if seq <= (self._held[-1][0] if self._held else self.last):
            return []
        self._known = max(self._known, seq)
        if seq == self.last + 1:
            self.last = seq
            return [item]
        if room:
            self._held.append((seq, item))
        return []

    def told(self, seq: int) -> None:
        """There is a message of this number, seen or not."""
        if self.last is not None:
            self._known = max(self._known, seq)

    def ask(self) -> int:
        """The number to ask since; ``answered`` is about this question."""
        assert self.last is not None
        self._asked = (self.last, self._known)
        return self.last

    def again(self, seq: int, item: T) -> list[T]:
        """Take a message that is given again, in order: what was before it can't be had."""
        if self.last is None or seq <= self.last:
            return []
        given = self._pass_to(seq - 1)
        if self.last >= seq:
            return given  # it was held back
        self.last = seq
        self._known = max(self._known, seq)
        return [*given, item, *self._pass_to(seq)]

    def answered(self) -> list[T]:
        """The answer has ended. If it brought nothing, what was known when asking is lost."""
        since, known = self._asked
        if self.last is None or self.last > since:
            return []
        return self._pass_to(min(known, self._held[0][0] - 1) if self._held else known)

    def give_up(self) -> list[T]:
        """Nothing that is missing will come any more."""
        return [] if self.last is None else self._pass_to(self._known)

    def restart(self) -> list[T]:
        """The numbers begin afresh."""
        given = self.give_up()
        self.last, self._known = None, -1
        return given

    def _pass_to(self, seq: int) -> list[T]:
        """Go on to this number: what is held up to there, and right after it; the rest is lost."""
        assert self.last is not None
        given: list[T] = []
        while self._held and self._held[0][0] <= max(seq, self.last + 1):
            at, item = self._held.popleft()
            self.lost += at - self.last - 1
            self.last = at
            given.append(item)
        if seq > self.last:
            self.lost += seq - self.last
            self.last = seq
            given += self._pass_to(seq)
        return given
