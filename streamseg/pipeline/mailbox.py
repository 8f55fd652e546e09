"""A bounded mailbox between two stages, with a named policy for when it is full.

``block``: the writer waits: nothing is lost (recordings). ``drop_oldest``: the oldest item of the
same source makes room, and is reported: what comes out is fresh (live). Readers get the sources
in turn, so that one that writes much doesn't starve the others. A mailbox may have entrances of
another policy: one worker takes from cameras and recordings alike.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

Policy: TypeAlias = Literal["block", "drop_oldest"]


class Sourced(Protocol):
    """What can be put into a mailbox: it says which source it is of."""

    @property
    def source(self) -> str: ...


T = TypeVar("T", bound=Sourced)


class Closed(Exception):  # noqa: N818 - a signal between stages, not an error
    """The mailbox was closed, or the run was stopped: there is no use in writing to it."""


T_contra = TypeVar("T_contra", bound=Sourced, contravariant=True)


class Inlet(Protocol[T_contra]):
    """What a stage writes into: a mailbox, or an entrance of one."""

    def add_writer(self) -> None: ...
    def put(self, item: T_contra) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Mailbox(Generic[T]):
    """A bounded queue with one lane a source.

    Args:
        capacity: items a source may have waiting.
        policy: of a source that has ``capacity`` items waiting.
        on_drop: called with what ``drop_oldest`` throws away, outside the lock.
        on_put: called after each item, so that a reader that sleeps elsewhere can be woken.
    """

    def __init__(
        self,
        capacity: int,
        policy: Policy = "block",
        *,
        on_drop: Callable[[T], None] | None = None,
        on_put: Callable[[], None] | None = None,
    ) -> None:
        self._capacity = capacity
        self._policy = policy
        self._on_drop = on_drop
        self._on_put = on_put
        self._lanes: OrderedDict[str, deque[T]] = OrderedDict()
        self._changed = threading.Condition()
        self._writers = 0
        self._opened = False
        self._aborted = False

    def add_writer(self) -> None:
        """Declare a writer; the mailbox closes when as many have called ``close``."""
        with self._changed:
            self._writers += 1
            self._opened = True

    def close(self) -> None:
        """One writer has no more; readers still get what is waiting."""
        with self._changed:
            self._writers -= 1
            self._changed.notify_all()
        self._wake()

    def abort(self) -> None:
        """Stop now: writers get ``Closed``, readers end, what is waiting stays where it is."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
        self._wake()

    def put(self, item: T) -> None:
        """Add an item, by the policy.

        Raises:
            Closed: the run was stopped; the item was not taken.
        """
        if self._policy == "block":
            self._put_waiting(item)
        else:
            self.put_newest(item, self._capacity, self._on_drop)

    def newest(self, on_drop: Callable[[T], None]) -> Newest[T]:
        """An entrance for sources of which only the newest item is wanted.

        Args:
            on_drop: called with what was overtaken, outside the lock.
        """
        return Newest(self, on_drop)

    def put_newest(self, item: T, capacity: int, on_drop: Callable[[T], None] | None) -> None:
        """Add an item without waiting; the source's oldest one makes room.

        Raises:
            Closed: as ``put``.
        """
        dropped = None
        with self._changed:
            if self._aborted:
                raise Closed
            if self._waiting(item.source) >= capacity:
                dropped = self._lanes[item.source].popleft()
            self._add(item)
        if dropped is not None and on_drop is not None:
            on_drop(dropped)
        self._wake()

    def _put_waiting(self, item: T) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._aborted or self._waiting(item.source) < self._capacity
            )
            if self._aborted:
                raise Closed
            self._add(item)
        self._wake()

    def _add(self, item: T) -> None:
        self._lanes.setdefault(item.source, deque()).append(item)
        self._changed.notify_all()

    def get(self, timeout: float | None = None) -> T | None:
        """The next item, sources in turn; None when closed and empty, or after ``timeout`` s."""
        with self._changed:
            self._changed.wait_for(lambda: self._lanes_ready() or self._ended(), timeout)
            if self._aborted or not self._lanes_ready():
                return None
            item = self._take()
            self._changed.notify_all()
            return item

    def batches(self, most: int, wait: float) -> Iterator[list[T]]:
        """Lists of up to ``most`` items, sources in turn, until the mailbox is closed and empty.

        Args:
            most: items in a list.
            wait: seconds that a list which isn't full waits for more.
        """
        while (first := self.get()) is not None:
            batch = [first]
            deadline = time.monotonic() + wait
            while len(batch) < most:
                item = self.get(max(0.0, deadline - time.monotonic()))
                if item is None:
                    break
                batch.append(item)
            yield batch

    def __iter__(self) -> Iterator[T]:
        while (item := self.get()) is not None:
            yield item

    def __len__(self) -> int:
        with self._changed:
            return sum(len(lane) for lane in self._lanes.values())

    @property
    def finished(self) -> bool:
        """True when nothing will come out any more."""
        with self._changed:
            return self._ended() and not (self._lanes_ready() and not self._aborted)

    @property
    def aborted(self) -> bool:
        """True after ``abort``."""
        with self._changed:
            return self._aborted

    def _waiting(self, source: str) -> int:
        return len(self._lanes.get(source, ()))

    def _ended(self) -> bool:
        return self._aborted or (self._opened and self._writers <= 0)

    def _lanes_ready(self) -> bool:
        return any(self._lanes.values())

    def _take(self) -> T:
        source = next(source for source, lane in self._lanes.items() if lane)
        lane = self._lanes[source]
        item = lane.popleft()
        self._lanes.move_to_end(source)
        if not lane:
            del self._lanes[source]  # sources come and go; an empty lane is not kept for them
        return item

    def _wake(self) -> None:
        if self._on_put is not None:
            self._on_put()


class Newest(Generic[T]):
    """An entrance of a mailbox where only a source's newest item waits; see ``newest``."""

    def __init__(self, mailbox: Mailbox[T], on_drop: Callable[[T], None]) -> None:
        self._mailbox = mailbox
        self._on_drop = on_drop

    def add_writer(self) -> None:
        """See ``Mailbox``."""
        self._mailbox.add_writer()

    def put(self, item: T) -> None:
        """See ``Mailbox``; never waits."""
        self._mailbox.put_newest(item, 1, self._on_drop)

    def close(self) -> None:
        """See ``Mailbox``."""
        self._mailbox.close()

    def abort(self) -> None:
        """See ``Mailbox``."""
        self._mailbox.abort()
