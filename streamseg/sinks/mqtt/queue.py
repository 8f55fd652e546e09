"""What waits for an MQTT broker: the latest of each retained topic, and the newest events.

A broker may be away for days. Of what is retained only the latest value counts, so that takes no
more room then; of events the newest are kept, and those that made room are counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MOST_EVENTS = 1000
"""Events that wait for the broker; the newest win."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message to a broker.

    Attributes:
        topic: where.
        payload: what; empty takes a retained message back.
        qos: 0, or 1 for what must arrive.
        retain: whether the broker keeps it for who comes later.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool


class Outbox:
    """Filled by one thread, emptied by another.

    Args:
        on_drop: told how many events were dropped.
        on_put: called when there is something to take.
    """

    def __init__(self, on_drop: Callable[[int], None], on_put: Callable[[], None]) -> None:
        self._on_drop = on_drop
        self._on_put = on_put
        self._lock = threading.Lock()
        self._kept: dict[str, Message] = {}
        self._due: dict[str, None] = {}
        self._known_there: set[str] = set()
        self._events: deque[Message] = deque()

    def keep(self, topic: str, payload: bytes, *, qos: int = 1) -> None:
        """Have the broker retain this; nothing happens if it is what is kept already."""
        message = Message(topic, payload, qos, retain=True)
        with self._lock:
            if self._kept.get(topic) == message:
                return
            self._kept[topic] = message
            self._due[topic] = None
        self._on_put()

    def clear(self, topic: str) -> None:
        """Take what is retained back, from a broker that may have it."""
        with self._lock:
            if topic in self._known_there:
                self._kept[topic] = Message(topic, b"", 1, retain=True)
                self._due[topic] = None
            else:
                self._kept.pop(topic, None)
                self._due.pop(topic, None)
        self._on_put()

    def send(self, topic: str, payload: bytes) -> None:
        """Send an event; the oldest makes room."""
        with self._lock:
            self._events.append(Message(topic, payload, 1, retain=False))
        self._shorten()
        self._on_put()

    def take(self) -> Message | None:
        """The next message; None if nothing waits."""
        with self._lock:
            if self._events:
                return self._events.popleft()
            if not self._due:
                return None
            topic = next(iter(self._due))
            del self._due[topic]
            self._known_there.add(topic)
            return self._kept[topic]

    def arrived(self, message: Message) -> None:
        """The broker has it."""
        with self._lock:
            if not message.payload and self._kept.get(message.topic) is message:
                del self._kept[message.topic]
                self._known_there.discard(message.topic)

    def begin_anew(self, unanswered: Iterable[Message]) -> None:
        """There is a new connection: everything that is kept is to be sent again.

        Args:
            unanswered: messages of the last connection that may not have arrived.
        """
        with self._lock:
            self._events.extendleft(reversed([m for m in unanswered if not m.retain]))
            self._due = dict.fromkeys(self._kept)
        self._shorten()

    def abandon(self) -> None:
        """Nothing will be sent any more: the events that wait are lost."""
        with self._lock:
            lost = len(self._events)
            self._events.clear()
        self._on_drop(lost)

    def __len__(self) -> int:
        with self._lock:
            return len(self._events) + len(self._due)

    def _shorten(self) -> None:
        with self._lock:
            lost = max(0, len(self._events) - MOST_EVENTS)
            for _ in range(lost):
                self._events.popleft()
        if lost:
            self._on_drop(lost)
