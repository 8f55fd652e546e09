"""Subscriber that records when each result and each change of state was received."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from streamseg.protocol.encoding import decode
from streamseg.protocol.messages import MasksMessage, StatusMessage, parse_topic


@dataclass(frozen=True)
class ReceivedResult:
    """Result that was received; ``at`` is in monotonic seconds."""

    at: float
    epoch: int
    size: tuple[int, int]


@dataclass(frozen=True)
class ReceivedState:
    """Change of state that was received; ``at`` is in monotonic seconds."""

    at: float
    state: str
    reason: str
    epoch: int


class RecordingSubscriber:
    """Subscriber that reads in a thread of its own.

    Attributes:
        results: received results, by source.
        states: received changes of state, by source.
        latest: latest status message, by source.
    """

    def __init__(self, address: str) -> None:
        self.results: dict[str, list[ReceivedResult]] = {}
        self.states: dict[str, list[ReceivedState]] = {}
        self.latest: dict[str, StatusMessage] = {}
        self._stopped = threading.Event()
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.rcvhwm = 0
        self._socket.subscribe(b"masks/")
        self._socket.subscribe(b"status/")
        self._socket.connect(address)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._socket.close(linger=0)

    def wait_until(self, condition: Callable[[], object], within: float, description: str) -> float:
        """Wait until ``condition()`` is true; return the seconds that it took.

        Raises:
            TimeoutError: it took longer than ``within`` seconds.
        """
        started_at = time.monotonic()
        while not condition():
            if time.monotonic() - started_at > within:
                latest = {name: states[-3:] for name, states in self.states.items()}
                raise TimeoutError(f"not within {within:g} s: {description}; {latest}")
            time.sleep(0.02)
        return time.monotonic() - started_at

    def is_live(self, name: str) -> bool:
        return bool(self.states.get(name)) and self.states[name][-1].state == "live"

    def epochs(self, name: str) -> list[int]:
        """Return the epochs of a source's results, in order."""
        return list(dict.fromkeys(result.epoch for result in self.results.get(name, [])))

    def first_result(self, name: str, epoch: int) -> ReceivedResult | None:
        """Return the first result of that epoch or a later one."""
        results = self.results.get(name, [])
        return next((result for result in results if result.epoch >= epoch), None)

    def states_between(self, name: str, begin: float, end: float) -> list[ReceivedState]:
        return [state for state in self.states.get(name, []) if begin <= state.at < end]

    def results_per_second(self, name: str, begin: float, seconds: int) -> list[int]:
        """Return the number of results received in each second."""
        counts = Counter(int((r.at - begin) // 1) for r in self.results.get(name, []))
        return [counts[second] for second in range(seconds)]

    def _read(self) -> None:
        while not self._stopped.is_set():
            if not self._socket.poll(100):
                continue
            topic, body = self._socket.recv_multipart()
            kind, source = parse_topic(topic)
            if kind == "masks":
                message = decode(body, MasksMessage)
                result = ReceivedResult(time.monotonic(), message.epoch, message.size)
                self.results.setdefault(source, []).append(result)
            else:
                self._record_status(source, decode(body, StatusMessage))

    def _record_status(self, source: str, status: StatusMessage) -> None:
        self.latest[source] = status
        states = self.states.setdefault(source, [])
        if not states or (states[-1].state, states[-1].reason) != (status.state, status.reason):
            states.append(
                ReceivedState(time.monotonic(), status.state, status.reason, status.epoch)
            )


def is_balanced(status: StatusMessage) -> bool:
    """Return whether every decoded frame is accounted for."""
    settled = status.published + sum(status.dropped.values()) + sum(status.failed.values())
    return status.decoded == settled + status.in_flight
