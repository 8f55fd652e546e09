"""Counts and events for home automation: an MQTT broker is told who is there, comes and goes.

    results → drain: presence of each source → outbox → deliver: the broker's connection

``drain`` never waits for the network: while the broker is away it goes on counting, and the outbox
keeps the latest of everything. docs/mqtt.md has the topics.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from streamseg.config import MqttConfig
from streamseg.pipeline.mailbox import Mailbox
from streamseg.pipeline.metrics import Metrics
from streamseg.protocol.messages import FINAL, State
from streamseg.sinks.mqtt.broker import Broker, Login
from streamseg.sinks.mqtt.home_assistant import Announcement, HomeAssistant
from streamseg.sinks.mqtt.object_presence import Box, Event, Moment, Presence, sightings_in
from streamseg.sinks.mqtt.queue import Outbox
from streamseg.sinks.mqtt.topics import Topics, part_of, shown
from streamseg.structures.results import Result

RESULTS_WAITING = 64
"""Results a source may have waiting; the newest win."""
LOOK_UP_EVERY = 0.1
"""Seconds after which a change of state is noticed at the latest."""


class StatePayload(msgspec.Struct, frozen=True):
    """A source's state, as its retained message says it.

    Attributes:
        state: as in status messages.
        reason: why, in words.
        epoch: of its latest frame.
    """

    state: State
    reason: str
    epoch: int


class EventPayload(msgspec.Struct, frozen=True, rename={"kind": "type"}):
    """An event, as its message says it; see ``presence.Event``."""

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
        """``event``, with as many digits as somebody reads."""
        x1, y1, x2, y2 = (round(edge, 1) for edge in event.box)
        return cls(
            kind=event.type,
            epoch=event.epoch,
            track=event.track,
            label=event.label,
            name=shown(event.name),
            score=round(event.score, 3),
            at=round(event.at, 3),
            since=round(event.since, 3),
            box=(x1, y1, x2, y2),
        )


class MqttSink:
    """Connects nowhere before ``deliver`` runs; ``drain`` and ``deliver`` are a stage each.

    Args:
        config: the broker, and what is said to it.
        model: the model's name.
        names: of its classes.
        chosen: the classes that a source is limited to, by its name; empty for all.
        metrics: take what is dropped, and whether there is a connection.

    Attributes:
        results: to be counted; the newest win.

    Raises:
        ConfigError: the url isn't a broker's, or the password can't be had.
    """

    name = "mqtt"

    def __init__(
        self,
        config: MqttConfig,
        model: str,
        names: Iterable[str],
        chosen: Callable[[str], Collection[str]],
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._names = tuple(names)
        self._chosen = chosen
        self._topics = Topics(config.prefix)
        self._home: HomeAssistant | None = None
        if config.home_assistant is not None:
            self._home = HomeAssistant(config.home_assistant, self._topics, model)
        dropped = metrics.messages_dropped.labels(self.name)
        connected = metrics.sink_connected.labels(self.name)
        self._broker = Broker(
            lambda: Login.of(config), self._topics.status, dropped.inc, connected.set
        )
        self.results: Mailbox[Result] = Mailbox(
            RESULTS_WAITING, "drop_oldest", on_drop=lambda _: dropped.inc()
        )
        self._lock = threading.Lock()
        self._states: dict[str, StatePayload] = {}
        self._changed: set[str] = set()
        self._came_alive: dict[str, int] = {}
        self._leaving: set[str] = set()
        self._voices: dict[str, _Voice] = {}

    def set_state(self, source: str, state: State, reason: str, epoch: int) -> None:
        """Say a new state, after what has been put into the mailbox before; from any thread.

        Args:
            source: its name.
            state: as in status messages; in any but ``live`` nobody is there.
            reason: why, in words.
            epoch: the source's.
        """
        with self._lock:
            self._leaving.discard(source)
            self._states[source] = StatePayload(state, reason, epoch)
            self._changed.add(source)
            if state == "live":
                self._came_alive.setdefault(source, epoch)

    def forget(self, source: str) -> None:
        """Have the broker forget a source; safe from any thread.

        Args:
            source: its name; ``set_state`` brings it back.
        """
        with self._lock:
            self._leaving.add(source)

    def drain(self) -> Iterator[Result]:
        """Count what is put into the mailbox until it is finished and no source has more to say.

        Yields:
            Each result when it was counted.
        """
        try:
            while not self.results.finished:
                yield from self._turn()
            while not (self._all_over() or self.results.aborted):
                time.sleep(LOOK_UP_EVERY)
            self._end()
        finally:
            self._broker.close()

    def deliver(self) -> Iterator[Any]:
        """Keep the broker's connection until ``drain`` has ended, and say ``offline`` then."""
        return self._broker.deliver()

    def _turn(self) -> Iterator[Result]:
        """What waits now. A source is live before its first result, and ended after its last."""
        first = self.results.get(LOOK_UP_EVERY)
        changes = self._take_changes()
        for source, epoch in changes.came_alive.items():
            self._voice(source).come_alive(epoch)
        for result in self._waiting(first):
            voice = self._voices.get(result.source)
            if voice is not None:
                voice.count(result)
            yield result
        for source, said in changes.states.items():
            self._voice(source).say_state(said)
        for source in changes.gone:
            self._voices.pop(source).clear()
        for voice in self._voices.values():
            voice.say_counts(time.monotonic())

    def _waiting(self, first: Result | None) -> Iterator[Result]:
        """The results that wait now, and no later ones."""
        more = len(self.results)
        if first is not None:
            yield first
        for _ in range(more):
            if (result := self.results.get(0)) is not None:
                yield result

    def _all_over(self) -> bool:
        """Whether each source has said its last: that it ended may be told after its results."""
        with self._lock:
            return all(said.state in FINAL for said in self._states.values())

    def _take_changes(self) -> _Changes:
        with self._lock:
            gone = self._leaving - self._changed
            changes = _Changes(
                {source: self._states[source] for source in self._changed}, self._came_alive, gone
            )
            self._leaving -= gone
            self._changed, self._came_alive = set(), {}
            for source in gone:
                del self._states[source]
        return changes

    def _end(self) -> None:
        """The last of everything, whatever ``every`` says."""
        for source, said in self._take_changes().states.items():
            self._voice(source).say_state(said)
        for voice in self._voices.values():
            voice.end()

    def _voice(self, source: str) -> _Voice:
        if source not in self._voices:
            presence = Presence(self._config.appear_after, self._config.gone_after)
            voice = _Voice(
                source, presence, self._broker.outbox, self._topics, self._home, self._config.every
            )
            chosen = self._chosen(source)
            voice.begin(chosen or self._names, announced=bool(chosen))
            self._voices[source] = voice
        return self._voices[source]


@dataclass(frozen=True, slots=True)
class _Changes:
    """What was told since the last time.

    Attributes:
        states: the latest of each source that has another one.
        came_alive: sources that were live meanwhile, whatever they are now, and the first epoch
            in which they were.
        gone: sources that have said their last.
    """

    states: Mapping[str, StatePayload]
    came_alive: Mapping[str, int]
    gone: Collection[str]


class _Voice:
    """Says what is to be said of one source.

    Args:
        source: its name.
        presence: of what is seen in it.
        outbox: takes the messages.
        topics: where they go.
        home: announces what there is; None doesn't.
        every: least seconds between counts.
    """

    def __init__(
        self,
        source: str,
        presence: Presence,
        outbox: Outbox,
        topics: Topics,
        home: HomeAssistant | None,
        every: float,
    ) -> None:
        self._source = source
        self._presence = presence
        self._outbox = outbox
        self._topics = topics
        self._home = home
        self._every = every
        self._live = False
        self._from_epoch = 0
        self._said: dict[str, int] = {}
        self._announced: dict[str, Announcement] = {}
        self._stale = False
        self._due = 0.0

    def begin(self, names: Iterable[str], *, announced: bool) -> None:
        """Nobody is there yet: an earlier run may have left other counts with the broker.

        Args:
            names: of the classes that may be seen.
            announced: whether Home Assistant is told of all of them now, not when they are seen.
        """
        if self._home is not None:
            self._announce("", self._home.source(self._source))
        for name in names:
            self._say_count(part_of(name), 0)
            if announced:
                self._announce_count(part_of(name), name)

    def come_alive(self, epoch: int) -> None:
        """What is seen from this epoch on counts."""
        self._live, self._from_epoch = True, epoch

    def say_state(self, said: StatePayload) -> None:
        """How the source is; in any state but ``live`` nobody is there."""
        self._live = said.state == "live"
        if not self._live:
            self._say_events(self._presence.end())
        self._outbox.keep(self._topics.state(self._source), msgspec.json.encode(said))

    def count(self, result: Result) -> None:
        """Who is there now; not in what was on its way when the source was lost."""
        frame = result.frame
        if self._live and frame.epoch >= self._from_epoch:
            moment = Moment(frame.epoch, frame.pts, frame.captured_at)
            self._say_events(self._presence.see(moment, sightings_in(result)))

    def say_counts(self, now: float) -> None:
        """The counts that have changed, unless some were said only just now.

        Args:
            now: seconds, monotonic.
        """
        if not self._stale or now < self._due:
            return
        self._stale = False
        counts = Counter[str]()
        for name, there in self._presence.counts.items():
            counts[part_of(name)] += there
            self._announce_count(part_of(name), name)
        for part in [*self._said, *(counts.keys() - self._said.keys())]:
            if self._said.get(part) != counts[part]:
                self._say_count(part, counts[part])
                self._due = now + self._every

    def end(self) -> None:
        """Nobody is there any more."""
        self._say_events(self._presence.end())
        self._due = 0.0
        self.say_counts(time.monotonic())

    def clear(self) -> None:
        """Take back all that the broker retains."""
        self.end()
        for announcement in self._announced.values():
            self._outbox.clear(announcement.topic)
        for part in self._said:
            self._outbox.clear(self._topics.count(self._source, part))
        self._outbox.clear(self._topics.state(self._source))

    def _say_events(self, events: Iterable[Event]) -> None:
        for event in events:
            self._stale = True
            payload = msgspec.json.encode(EventPayload.of(event))
            self._outbox.send(self._topics.event(self._source), payload)

    def _say_count(self, part: str, count: int) -> None:
        """A count's message is sent anew with each connection, so none has to be acknowledged."""
        self._said[part] = count
        self._outbox.keep(self._topics.count(self._source, part), str(count).encode(), qos=0)

    def _announce_count(self, part: str, name: str) -> None:
        if self._home is not None and part not in self._announced:
            self._announce(part, self._home.count(self._source, part, name))

    def _announce(self, part: str, announcement: Announcement) -> None:
        self._announced[part] = announcement
        self._outbox.keep(announcement.topic, announcement.payload)
