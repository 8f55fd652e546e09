"""Benchmark of memory: a subscriber that never reads must not increase the service's memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq

from streamseg.config import Config, PublishConfig, SourceConfig, WorkerConfig
from streamseg.models import load_model
from streamseg.service.service import Service

EARLY = 500
"""Number of frames before the first measurement."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """Peak resident memory of the process, in MiB.

    Attributes:
        frames: number of processed frames.
        early_mib: peak after the first ``EARLY`` frames.
        final_mib: peak after all frames.
        balanced: whether every frame was published, dropped or failed.
    """

    frames: int
    early_mib: float
    final_mib: float
    balanced: bool

    @property
    def growth(self) -> float:
        """Final peak divided by the early peak."""
        return self.final_mib / self.early_mib


def measure_memory(frames: int) -> MemoryRow:
    """Serve the test pattern to a subscriber to masks and images that never reads.

    The input size of the model is small, so that thousands of frames take minutes. Call this in a
    separate process, because the peak is measured for the whole process.
    """
    config = Config(
        sources=(SourceConfig(url=f"test:?size=640x360&frames={frames}", name="pattern"),),
        worker=WorkerConfig(max_batch=4),
        publish=PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=2),
    )
    service = Service(config, load_model("nanomask", input_size=128, score=0.05))
    service.start()
    with _idle_subscriber(service.endpoints):
        early = _peak_after(service, EARLY)
        summary = service.wait()
    account = summary.sources[0].account
    balanced = account.balanced and account.in_flight == 0
    return MemoryRow(summary.frames, early, _peak_mib(), balanced)


@contextmanager
def _idle_subscriber(endpoints: Mapping[str, str]) -> Iterator[None]:
    """Subscribe to everything without reading any message."""
    with zmq.Context() as context:
        sockets = [context.socket(zmq.SUB) for _ in endpoints]
        for sock, address in zip(sockets, endpoints.values(), strict=True):
            sock.linger = 0
            sock.rcvhwm = 1
            sock.subscribe(b"")
            sock.connect(address)
        yield
        for sock in sockets:
            sock.close()


def _peak_after(service: Service, frames: int) -> float:
    while service.summary().frames < frames:
        time.sleep(POLL_SECONDS)
    return _peak_mib()


def _peak_mib() -> float:
    """Return the peak from /proc: getrusage starts with the peak of the parent process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
