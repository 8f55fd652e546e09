"""Bounded mailbox between two stages, with a policy for when it is full.

``block``: the writer waits, so that nothing is lost (recordings). ``drop_oldest``: the oldest item
of the same source is dropped, so that what is read is recent (live sources). Readers get the
sources in turn, so that one with many items doesn't starve the others. ``NewestInlet`` is a second
way into a mailbox, with a policy of its own: one worker reads cameras and recordings alike.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

Policy: TypeAlias = Literal["block", "drop_oldest"]


class Sourced(Protocol):
    """Item of a mailbox, which must have the name of its source."""

    @property
    def source(self) -> str: ...


T = TypeVar("T", bound=Sourced)


class Closed(Exception):  # noqa: N818 - a signal between stages, not an error
    """The run was aborted: nothing reads from the mailbox any more."""


T_contra = TypeVar("T_contra", bound=Sourced, contravariant=True)


class Inlet(Protocol[T_contra]):
    """Write side of a mailbox, as stages use it."""

    def add_writer(self) -> None: ...
    def put(self, item: T_contra) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Mailbox(Generic[T]):
    """Bounded queue with one lane per source.

    Args:
        capacity: items of one source that may wait.
        policy: behavior when a source has ``capacity`` items waiting.
        on_drop: called with each item that ``drop_oldest`` drops, outside the lock.
        on_put: called after an item is added and after ``close`` and ``abort``; wakes a reader that
            polls sockets.
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
        """Add a writer; the mailbox is closed when every writer has called ``close``."""
        with self._changed:
            self._writers += 1
            self._opened = True

    def close(self) -> None:
        """Remove a writer, which has no more items; readers still get the items that wait."""
        with self._changed:
            self._writers -= 1
            self._changed.notify_all()
        self._wake()

    def abort(self) -> None:
        """Stop at once: writers get ``Closed``, readers end, items that wait are left."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
        self._wake()

    def put(self, item: T) -> None:
        """Add an item: wait for room, or drop the oldest item, as the policy has it.

        Raises:
            Closed: the run was aborted; the item was not added.
        """
        if self._policy == "block":
            self._put_blocking(item)
        else:
            self.put_newest(item, self._capacity, self._on_drop)

    def newest(self, on_drop: Callable[[T], None]) -> NewestInlet[T]:
        """Return an inlet for sources of which only the newest item may wait.

        Args:
            on_drop: called with each item that a newer one replaces, outside the lock.
        """
        return NewestInlet(self, on_drop)

    def put_newest(self, item: T, capacity: int, on_drop: Callable[[T], None] | None) -> None:
        """Add an item without waiting; drop the source's oldest one if there is no room.

        Args:
            item: the item.
            capacity: items of one source that may wait.
            on_drop: called with the item that is dropped, outside the lock.

        Raises:
            Closed: the run was aborted; the item was not added.
        """
        dropped = None
        with self._changed:
            if self._aborted:
                raise Closed
            if self._count(item.source) >= capacity:
                dropped = self._lanes[item.source].popleft()
            self._add(item)
        if dropped is not None and on_drop is not None:
            on_drop(dropped)
        self._wake()

    def _put_blocking(self, item: T) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._aborted or self._count(item.source) < self._capacity
            )
            if self._aborted:
                raise Closed
            self._add(item)
        self._wake()

    def _add(self, item: T) -> None:
        self._lanes.setdefault(item.source, deque()).append(item)
        self._changed.notify_all()

    def get(self, timeout: float | None = None) -> T | None:
        """Return the next item, sources in turn.

        Args:
            timeout: maximum time to wait, in seconds; None waits without limit.

        Returns:
            None once the mailbox is closed and empty, or aborted, and after ``timeout``.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has_items() or self._is_ended(), timeout)
            if self._aborted or not self._has_items():
                return None
            item = self._take()
            self._changed.notify_all()
            return item

    def batches(self, most: int, wait: float) -> Iterator[list[T]]:
        """Yield lists of items, sources in turn, until the mailbox is closed and empty.

        Args:
            most: maximum number of items in a list.
            wait: seconds to wait for more items for a list that isn't full.
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
        """True if no item can be read any more."""
        with self._changed:
            return self._is_ended() and not (self._has_items() and not self._aborted)

    @property
    def aborted(self) -> bool:
        """True after ``abort``."""
        with self._changed:
            return self._aborted

    def _count(self, source: str) -> int:
        return len(self._lanes.get(source, ()))

    def _is_ended(self) -> bool:
        return self._aborted or (self._opened and self._writers <= 0)

    def _has_items(self) -> bool:
        return any(self._lanes.values())

    def _take(self) -> T:
        source = next(source for source, lane in self._lanes.items() if lane)
        lane = self._lanes[source]
        item = lane.popleft()
        self._lanes.move_to_end(source)
        if not lane:
            del self._lanes[source]  # sources come and go: empty lanes would accumulate
        return item

    def _wake(self) -> None:
        if self._on_put is not None:
            self._on_put()


class NewestInlet(Generic[T]):
    """Inlet of a mailbox in which only the newest item of a source waits; see ``newest``."""

    def __init__(self, mailbox: Mailbox[T], on_drop: Callable[[T], None]) -> None:
        self._mailbox = mailbox
        self._on_drop = on_drop

    def add_writer(self) -> None:
        """Add a writer to the mailbox."""
        self._mailbox.add_writer()

    def put(self, item: T) -> None:
        """Add an item without waiting; it replaces one of the same source.

        Raises:
            Closed: the run was aborted; the item was not added.
        """
        self._mailbox.put_newest(item, 1, self._on_drop)

    def close(self) -> None:
        """Remove a writer from the mailbox."""
        self._mailbox.close()

    def abort(self) -> None:
        """Abort the mailbox."""
        self._mailbox.abort()
