"""MQTT messages of one source: its state, object counts, events and Home Assistant sensors."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from streamseg.protocol.messages import State
from streamseg.sinks.mqtt.home_assistant import Announcement, HomeAssistant
from streamseg.sinks.mqtt.object_presence import (
    Box,
    Event,
    FrameTime,
    ObjectPresence,
    to_observations,
)
from streamseg.sinks.mqtt.queue import MessageQueue
from streamseg.sinks.mqtt.topics import Topics, json_text, topic_level
from streamseg.structures.results import Result


class StatePayload(msgspec.Struct, frozen=True):
    """Payload of the retained state of a source.

    Attributes:
        state: state, as in status messages.
        reason: reason of the state.
        epoch: epoch of the latest frame.
    """

    state: State
    reason: str
    epoch: int


class EventPayload(msgspec.Struct, frozen=True, rename={"kind": "type"}):
    """Payload of an event; the fields are those of ``object_presence.Event``."""

    kind: Literal["appeared", "gone"]
    epoch: int
    track: int
    label: int
    name: str
    score: float
    at: float
    since: float
    box: Box

    @classmethod
    def of(cls, event: Event) -> EventPayload:
        """Convert an event; scores and times are rounded to three digits, boxes to one."""
        x1, y1, x2, y2 = (round(coordinate, 1) for coordinate in event.box)
        return cls(
            kind=event.type,
            epoch=event.epoch,
            track=event.track,
            label=event.label,
            name=json_text(event.name),
            score=round(event.score, 3),
            at=round(event.at, 3),
            since=round(event.since, 3),
            box=(x1, y1, x2, y2),
        )


class SourceReporter:
    """Publisher of one source: puts its messages into the queue.

    Args:
        source: source name.
        presence: objects of the source.
        queue: queue of the broker.
        topics: topics of the service.
        home_assistant: builder of discovery messages; None disables discovery.
        min_interval: minimum time between two updates of the counts, in seconds.
    """

    def __init__(
        self,
        source: str,
        presence: ObjectPresence,
        queue: MessageQueue,
        topics: Topics,
        home_assistant: HomeAssistant | None,
        min_interval: float,
    ) -> None:
        self._source = source
        self._presence = presence
        self._queue = queue
        self._topics = topics
        self._home_assistant = home_assistant
        self._min_interval = min_interval
        self._is_live = False
        self._first_epoch = 0
        self._published_counts: dict[str, int] = {}
        self._announced: dict[str, Announcement] = {}
        self._has_changes = False
        self._next_counts_at = 0.0

    def start(self, names: Iterable[str], *, announce: bool) -> None:
        """Publish counts of zero: the broker may have retained counts of an earlier run.

        Args:
            names: names of the classes that are counted.
            announce: whether to announce all classes to Home Assistant now; otherwise a class is
                announced when it is first observed.
        """
        if self._home_assistant is not None:
            self._announce("", self._home_assistant.source(self._source))
        for name in names:
            level = topic_level(name)
            self._publish_count(level, 0)
            if announce:
                self._announce_class(level, name)

    def set_live(self, epoch: int) -> None:
        """Count the results of this epoch and of later ones."""
        self._is_live, self._first_epoch = True, epoch

    def publish_state(self, payload: StatePayload) -> None:
        """Publish a state; in any state but ``live`` no object is present."""
        self._is_live = payload.state == "live"
        if not self._is_live:
            self._publish_events(self._presence.clear())
        self._queue.retain(self._topics.state(self._source), msgspec.json.encode(payload))

    def add_result(self, result: Result) -> None:
        """Update the objects; results of frames from before the source was lost are ignored."""
        frame = result.frame
        if self._is_live and frame.epoch >= self._first_epoch:
            frame_time = FrameTime(frame.epoch, frame.pts, frame.captured_at)
            self._publish_events(self._presence.update(frame_time, to_observations(result)))

    def publish_counts(self, now: float) -> None:
        """Publish changed counts, at most once per ``min_interval``.

        Args:
            now: monotonic time, in seconds.
        """
        if not self._has_changes or now < self._next_counts_at:
            return
        self._has_changes = False
        counts = Counter[str]()
        for name, present in self._presence.counts.items():
            counts[topic_level(name)] += present
            self._announce_class(topic_level(name), name)
        for level in [*self._published_counts, *(counts.keys() - self._published_counts.keys())]:
            if self._published_counts.get(level) != counts[level]:
                self._publish_count(level, counts[level])
                self._next_counts_at = now + self._min_interval

    def finish(self) -> None:
        """Publish that no object is present any more."""
        self._publish_events(self._presence.clear())
        self._next_counts_at = 0.0
        self.publish_counts(time.monotonic())

    def clear(self) -> None:
        """Delete all retained messages of the source."""
        self.finish()
        for announcement in self._announced.values():
            self._queue.clear(announcement.topic)
        for level in self._published_counts:
            self._queue.clear(self._topics.count(self._source, level))
        self._queue.clear(self._topics.state(self._source))

    def _publish_events(self, events: Iterable[Event]) -> None:
        for event in events:
            self._has_changes = True
            payload = msgspec.json.encode(EventPayload.of(event))
            self._queue.add_event(self._topics.event(self._source), payload)

    def _publish_count(self, level: str, count: int) -> None:
        """Publish a count with QoS 0: counts are sent again on each connection."""
        self._published_counts[level] = count
        self._queue.retain(self._topics.count(self._source, level), str(count).encode(), qos=0)

    def _announce_class(self, level: str, name: str) -> None:
        if self._home_assistant is not None and level not in self._announced:
            self._announce(level, self._home_assistant.count(self._source, level, name))

    def _announce(self, level: str, announcement: Announcement) -> None:
        self._announced[level] = announcement
        self._queue.retain(announcement.topic, announcement.payload)
