"""What the tests of live sources share: one that is read in a thread, and all that it says."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from streamseg.config import SourceConfig
from streamseg.errors import SourceError
from streamseg.sources import LiveSource, open_source
from streamseg.structures.results import Frame


class Watcher:
    """Reads a live source in a thread, and keeps what it says and gives."""

    def __init__(self, source: LiveSource) -> None:
        self.source = source
        self.said: list[tuple[float, str, str]] = []
        self.came: list[tuple[float, Frame]] = []
        self.error: Exception | None = None
        source.on_state = lambda state, reason: self.said.append((time.monotonic(), state, reason))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for frame in self.source.frames():
                self.came.append((time.monotonic(), frame))
        except SourceError as error:
            self.error = error

    def until(self, true: Callable[[], object], within: float = 15) -> float:
        """Wait; the seconds that it took."""
        began = time.monotonic()
        while not true():
            assert time.monotonic() - began < within, self.said[-5:]
            time.sleep(0.01)
        return time.monotonic() - began

    def states(self) -> list[str]:
        return [state for _, state, _ in self.said]

    def frames_of(self, epoch: int) -> int:
        return sum(frame.epoch == epoch for _, frame in self.came)

    def close(self) -> None:
        self.source.control.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()


def watching(url: str, **options: object) -> Watcher:
    made = SourceConfig(url=url, name="cam", **{"stall_after": 1.5, "open_timeout": 5, **options})  # type: ignore[arg-type]
    source = open_source(made)
    assert isinstance(source, LiveSource)
    return Watcher(source)


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
