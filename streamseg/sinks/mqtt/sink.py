"""MQTT sink: publishes counts and events of objects, and source states, to a broker.

    results → drain: one SourceReporter per source → message queue → deliver: broker connection

``drain`` never waits for the network: while the broker is unreachable it continues to count, and
the queue keeps the latest value of each topic. ``docs/mqtt.md`` describes the topics.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streamseg.config import MqttConfig
from streamseg.pipeline.mailbox import Mailbox
from streamseg.pipeline.metrics import Metrics
from streamseg.protocol.messages import FINAL, State
from streamseg.sinks.mqtt.broker import Broker, Login
from streamseg.sinks.mqtt.home_assistant import HomeAssistant
from streamseg.sinks.mqtt.object_presence import ObjectPresence
from streamseg.sinks.mqtt.source_reporter import SourceReporter, StatePayload
from streamseg.sinks.mqtt.topics import Topics
from streamseg.structures.results import Result

MAILBOX_CAPACITY = 64
"""Maximum number of waiting results per source; the oldest are dropped."""
POLL_INTERVAL = 0.1
"""Maximum delay until a change of state is published, in seconds."""


class MqttSink:
    """Sink with two stages: ``drain`` counts the results, ``deliver`` runs the connection.

    Args:
        config: broker and options.
        model: model name.
        names: class names of the model.
        selected_names: function that returns the classes to which a source is limited; empty means
            all classes.
        metrics: receives the number of dropped messages and the state of the connection.

    Attributes:
        results: mailbox of the results to count.

    Raises:
        ConfigError: the URL is not that of a broker, or the password can't be read.
    """

    name = "mqtt"

    def __init__(
        self,
        config: MqttConfig,
        model: str,
        names: Iterable[str],
        selected_names: Callable[[str], Collection[str]],
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._names = tuple(names)
        self._selected_names = selected_names
        self._topics = Topics(config.prefix)
        self._home_assistant: HomeAssistant | None = None
        if config.home_assistant is not None:
            self._home_assistant = HomeAssistant(config.home_assistant, self._topics, model)
        dropped = metrics.messages_dropped.labels(self.name)
        connected = metrics.sink_connected.labels(self.name)
        self._broker = Broker(
            lambda: Login.of(config), self._topics.status, dropped.inc, connected.set
        )
        self.results: Mailbox[Result] = Mailbox(
            MAILBOX_CAPACITY, "drop_oldest", on_drop=lambda _: dropped.inc()
        )
        self._lock = threading.Lock()
        self._states: dict[str, StatePayload] = {}
        self._changed: set[str] = set()
        self._became_live: dict[str, int] = {}
        self._removed: set[str] = set()
        self._reporters: dict[str, SourceReporter] = {}

    def set_state(self, source: str, state: State, reason: str, epoch: int) -> None:
        """Publish a state of a source after the results that are waiting; thread-safe.

        Args:
            source: source name.
            state: state, as in status messages; in any state but ``live`` no object is present.
            reason: reason of the state.
            epoch: epoch of the source.
        """
        with self._lock:
            self._removed.discard(source)
            self._states[source] = StatePayload(state, reason, epoch)
            self._changed.add(source)
            if state == "live":
                self._became_live.setdefault(source, epoch)

    def forget(self, source: str) -> None:
        """Delete all retained messages of a source, until its next ``set_state``; thread-safe."""
        with self._lock:
            self._removed.add(source)

    def drain(self) -> Iterator[Result]:
        """Count the results until the mailbox is finished and every source has ended.

        Yields:
            Each result after it was counted.
        """
        try:
            while not self.results.finished:
                yield from self._process_waiting()
            while not (self._are_all_final() or self.results.aborted):
                time.sleep(POLL_INTERVAL)
            for source, payload in self._take_changes().states.items():
                self._reporter(source).publish_state(payload)
            for reporter in self._reporters.values():
                reporter.finish()
        finally:
            self._broker.close()

    def deliver(self) -> Iterator[Any]:
        """Run the connection to the broker until ``drain`` has ended, then publish ``offline``."""
        return self._broker.deliver()

    def _process_waiting(self) -> Iterator[Result]:
        """Process the waiting results and changes of state.

        A source is live before its first result and final after its last, so new live states are
        applied before the results, and all other changes after them.
        """
        first = self.results.get(POLL_INTERVAL)
        changes = self._take_changes()
        for source, epoch in changes.became_live.items():
            self._reporter(source).set_live(epoch)
        for result in self._waiting_results(first):
            reporter = self._reporters.get(result.source)
            if reporter is not None:
                reporter.add_result(result)
            yield result
        for source, payload in changes.states.items():
            self._reporter(source).publish_state(payload)
        for source in changes.removed:
            self._reporters.pop(source).clear()
        for reporter in self._reporters.values():
            reporter.publish_counts(time.monotonic())

    def _waiting_results(self, first: Result | None) -> Iterator[Result]:
        """Yield the results that wait now, but none that arrive later."""
        remaining = len(self.results)
        if first is not None:
            yield first
        for _ in range(remaining):
            if (result := self.results.get(0)) is not None:
                yield result

    def _are_all_final(self) -> bool:
        """Return whether all sources have ended; the state may follow the last result."""
        with self._lock:
            return all(payload.state in FINAL for payload in self._states.values())

    def _take_changes(self) -> _Changes:
        with self._lock:
            removed = self._removed - self._changed
            states = {source: self._states[source] for source in self._changed}
            changes = _Changes(states, self._became_live, removed)
            self._removed -= removed
            self._changed, self._became_live = set(), {}
            for source in removed:
                del self._states[source]
        return changes

    def _reporter(self, source: str) -> SourceReporter:
        if source not in self._reporters:
            reporter = SourceReporter(
                source,
                ObjectPresence(self._config.appear_after, self._config.gone_after),
                self._broker.queue,
                self._topics,
                self._home_assistant,
                self._config.every,
            )
            selected = self._selected_names(source)
            reporter.start(selected or self._names, announce=bool(selected))
            self._reporters[source] = reporter
        return self._reporters[source]


@dataclass(frozen=True, slots=True)
class _Changes:
    """Changes of source states since the previous call.

    Attributes:
        states: latest state of each source whose state changed.
        became_live: sources that became live since then, with the first epoch.
        removed: sources that were removed.
    """

    states: Mapping[str, StatePayload]
    became_live: Mapping[str, int]
    removed: Collection[str]
