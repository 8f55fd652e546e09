"""Memory over a long run: a subscriber that never reads must not make the service grow."""

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
LOOK_EVERY = 0.2


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """Peak resident memory of the process, in MiB.

    Attributes:
        frames: how many went through.
        early_mib: after the first ``EARLY`` frames.
        final_mib: after all of them.
        balanced: whether every frame was accounted for.
    """

    frames: int
    early_mib: float
    final_mib: float
    balanced: bool

    @property
    def growth(self) -> float:
        """The final peak over the early one."""
        return self.final_mib / self.early_mib


def measure(frames: int) -> MemoryRow:
    """Serve the test pattern to a subscriber of masks and pictures that never reads.

    The model sees small pictures, so that thousands of frames take minutes. Run it in a process
    of its own: the peak is the process's.
    """
    config = Config(
        sources=(SourceConfig(url=f"test:?size=640x360&frames={frames}", name="pattern"),),
        worker=WorkerConfig(max_batch=4),
        publish=PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=2),
    )
    service = Service(config, load_model("nanomask", input_size=128, score=0.05))
    service.start()
    with _never_reading(service.endpoints):
        early = _peak_after(service, EARLY)
        summary = service.wait()
    account = summary.sources[0].account
    balanced = account.balanced and account.in_flight == 0
    return MemoryRow(summary.frames, early, _peak(), balanced)


@contextmanager
def _never_reading(endpoints: Mapping[str, str]) -> Iterator[None]:
    """Subscriptions to everything, and nobody who takes what comes."""
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
        time.sleep(LOOK_EVERY)
    return _peak()


def _peak() -> float:
    """From /proc: what getrusage says begins at the peak of the process that started this one."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
