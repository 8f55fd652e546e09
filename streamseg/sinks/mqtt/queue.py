"""MQTT queue: messages that wait for the broker, bounded however long it is unreachable.

Only the latest value of each retained topic is kept. Of the events the newest are kept; dropped
events are counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MAX_EVENTS = 1000
"""Maximum number of waiting events; the oldest are dropped."""


@dataclass(frozen=True, slots=True)
class Message:
    """MQTT message.

    Attributes:
        topic: topic.
        payload: payload; an empty one deletes a retained message.
        qos: quality of service: 0, or 1 if the broker must acknowledge the message.
        retain: whether the broker stores the message for later subscribers.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool


class MessageQueue:
    """Queue between the thread that creates messages and the one that sends them.

    Args:
        on_drop: called with the number of dropped events.
        on_put: called when a message was added.
    """

    def __init__(self, on_drop: Callable[[int], None], on_put: Callable[[], None]) -> None:
        self._on_drop = on_drop
        self._on_put = on_put
        self._lock = threading.Lock()
        self._retained: dict[str, Message] = {}
        self._pending_topics: dict[str, None] = {}
        self._sent_topics: set[str] = set()
        self._events: deque[Message] = deque()

    def retain(self, topic: str, payload: bytes, *, qos: int = 1) -> None:
        """Set the retained message of a topic; an unchanged message is not sent again."""
        message = Message(topic, payload, qos, retain=True)
        with self._lock:
            if self._retained.get(topic) == message:
                return
            self._retained[topic] = message
            self._pending_topics[topic] = None
        self._on_put()

    def clear(self, topic: str) -> None:
        """Delete the retained message of a topic, also from the broker if it may have been sent."""
        with self._lock:
            if topic in self._sent_topics:
                self._retained[topic] = Message(topic, b"", 1, retain=True)
                self._pending_topics[topic] = None
            else:
                self._retained.pop(topic, None)
                self._pending_topics.pop(topic, None)
        self._on_put()

    def add_event(self, topic: str, payload: bytes) -> None:
        """Add an event; the oldest event is dropped if there are too many."""
        with self._lock:
            self._events.append(Message(topic, payload, 1, retain=False))
        self._drop_oldest_events()
        self._on_put()

    def take(self) -> Message | None:
        """Remove and return the next message, or return None if the queue is empty."""
        with self._lock:
            if self._events:
                return self._events.popleft()
            if not self._pending_topics:
                return None
            topic = next(iter(self._pending_topics))
            del self._pending_topics[topic]
            self._sent_topics.add(topic)
            return self._retained[topic]

    def acknowledge(self, message: Message) -> None:
        """Record that the broker has received a message."""
        with self._lock:
            if not message.payload and self._retained.get(message.topic) is message:
                del self._retained[message.topic]
                self._sent_topics.discard(message.topic)

    def restart(self, unacknowledged: Iterable[Message]) -> None:
        """Prepare for a new connection: every retained message is sent again.

        Args:
            unacknowledged: messages of the previous connection that may not have arrived.
        """
        with self._lock:
            self._events.extendleft(reversed([m for m in unacknowledged if not m.retain]))
            self._pending_topics = dict.fromkeys(self._retained)
        self._drop_oldest_events()

    def close(self) -> None:
        """Drop the events that were not sent."""
        with self._lock:
            dropped = len(self._events)
            self._events.clear()
        self._on_drop(dropped)

    def __len__(self) -> int:
        with self._lock:
            return len(self._events) + len(self._pending_topics)

    def _drop_oldest_events(self) -> None:
        with self._lock:
            dropped = max(0, len(self._events) - MAX_EVENTS)
            for _ in range(dropped):
                self._events.popleft()
        if dropped:
            self._on_drop(dropped)
