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


class Observer:
    """Subscriber that reads in a thread of its own.

    Attributes:
        came: results, by source.
        said: changes of state, by source.
        latest: latest status message, by source.
    """

    def __init__(self, address: str) -> None:
        self.results: dict[str, list[ReceivedResult]] = {}
        self.states: dict[str, list[ReceivedState]] = {}
        self.latest: dict[str, StatusMessage] = {}
        self._over = threading.Event()
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.rcvhwm = 0
        self._socket.subscribe(b"masks/")
        self._socket.subscribe(b"status/")
        self._socket.connect(address)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close(linger=0)

    def until(self, true: Callable[[], object], within: float, what: str) -> float:
        """Wait until ``true`` returns a true value; return the seconds that it took.

        Raises:
            TimeoutError: it took longer than ``within`` seconds.
        """
        began = time.monotonic()
        while not true():
            if time.monotonic() - began > within:
                latest = {name: said[-3:] for name, said in self.states.items()}
                raise TimeoutError(f"not within {within:g} s: {what}; {latest}")
            time.sleep(0.02)
        return time.monotonic() - began

    def is_live(self, name: str) -> bool:
        return bool(self.states.get(name)) and self.states[name][-1].state == "live"

    def epochs(self, name: str) -> list[int]:
        """Return the epochs of a source's results, in order."""
        return list(dict.fromkeys(came.epoch for came in self.results.get(name, [])))

    def first_of(self, name: str, epoch: int) -> ReceivedResult | None:
        """Return the first result of that epoch or a later one."""
        return next((c for c in self.results.get(name, []) if c.epoch >= epoch), None)

    def states_between(self, name: str, begin: float, end: float) -> list[ReceivedState]:
        return [said for said in self.states.get(name, []) if begin <= said.at < end]

    def results_per_second(self, name: str, begin: float, seconds: int) -> list[int]:
        """Return the number of results received in each second."""
        counts = Counter(int((came.at - begin) // 1) for came in self.results.get(name, []))
        return [counts[second] for second in range(seconds)]

    def _read(self) -> None:
        while not self._over.is_set():
            if not self._socket.poll(100):
                continue
            topic, body = self._socket.recv_multipart()
            kind, source = parse_topic(topic)
            if kind == "masks":
                message = decode(body, MasksMessage)
                came = ReceivedResult(time.monotonic(), message.epoch, message.size)
                self.results.setdefault(source, []).append(came)
            else:
                self._record_status(source, decode(body, StatusMessage))

    def _record_status(self, source: str, status: StatusMessage) -> None:
        self.latest[source] = status
        said = self.states.setdefault(source, [])
        if not said or (said[-1].state, said[-1].reason) != (status.state, status.reason):
            said.append(ReceivedState(time.monotonic(), status.state, status.reason, status.epoch))


def balanced(status: StatusMessage) -> bool:
    """Return whether every decoded frame is accounted for."""
    settled = status.published + sum(status.dropped.values()) + sum(status.failed.values())
    return status.decoded == settled + status.in_flight
