"""Live sources read in a thread, with a record of their frames and state changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from streamseg.config import SourceConfig
from streamseg.errors import SourceError
from streamseg.sources import LiveSource, open_source
from streamseg.structures.results import Frame


class SourceReader:
    """Reads a live source in a thread and records its frames and state changes.

    Attributes:
        source: the source.
        state_changes: time (monotonic seconds), state and reason of each change.
        received: time (monotonic seconds) and frame of each received frame.
        error: error that ended the source, or None.
    """

    def __init__(self, source: LiveSource) -> None:
        self.source = source
        self.state_changes: list[tuple[float, str, str]] = []
        self.received: list[tuple[float, Frame]] = []
        self.error: Exception | None = None
        source.on_state = lambda state, reason: self.state_changes.append(
            (time.monotonic(), state, reason)
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for frame in self.source.frames():
                self.received.append((time.monotonic(), frame))
        except SourceError as error:
            self.error = error

    def wait_until(self, condition: Callable[[], object], within: float = 15) -> float:
        """Wait until ``condition()`` is true; return the seconds that it took."""
        started_at = time.monotonic()
        while not condition():
            assert time.monotonic() - started_at < within, self.state_changes[-5:]
            time.sleep(0.01)
        return time.monotonic() - started_at

    def states(self) -> list[str]:
        return [state for _, state, _ in self.state_changes]

    def has_reason(self, text: str) -> bool:
        """Return whether the reason of a state change contains ``text``."""
        return any(text in reason for _, _, reason in self.state_changes)

    def count_frames(self, epoch: int) -> int:
        return sum(frame.epoch == epoch for _, frame in self.received)

    def close(self) -> None:
        self.source.control.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()


def start_reader(url: str, **options: object) -> SourceReader:
    """Open a live source named ``cam`` and start to read it."""
    config = SourceConfig(url=url, name="cam", **{"stall_after": 1.5, "open_timeout": 5, **options})  # type: ignore[arg-type]
    source = open_source(config)
    assert isinstance(source, LiveSource)
    return SourceReader(source)
