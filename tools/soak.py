"""Soak test: cameras that are killed at random, and normal, idle and hostile subscribers.

    python tools/soak.py --seconds 3600 --out soak-out

Starts eight cameras (MJPEG over HTTP; processes that are killed and restarted at random), a service
(``streamseg serve``) and twenty subscribers: thirteen that read, five that never read, two that
send random bytes. Memory, threads and file descriptors of the service are sampled every second.
They must not grow, the frame counts must balance, and no reading subscriber may lose a message.

Writes ``soak.json`` and ``soak.png``; exits 1 if there is a problem.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import yaml
import zmq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.ports import free_port

import streamseg
from streamseg.config import SourceConfig
from streamseg.errors import ReceiveTimeout
from streamseg.sources import TestPattern

CAMERAS = 8
READERS, LAZY, HOSTILE = 13, 5, 2
FPS = 5
MAX_BATCH = 2
"""The model keeps 10 to 20 MB for each batch size used. With more sizes, some would be used late in
the run and look like a leak."""
KILL_EVERY = 15.0
AWAY_FOR = (1.0, 6.0)
SAMPLE_EVERY = 1.0
WARM_UP = 30.0
"""Time until caches are filled and all subscribers are connected, in seconds."""
MAY_GROW = 0.05
MIN_SAMPLES = 12
"""Minimum number of samples: three per quarter."""


@dataclass(frozen=True)
class Sample:
    """State of the service's process at a point in time.

    Attributes:
        at: seconds since the start.
        rss: resident memory in MiB.
        threads: number of threads.
        files: number of open file descriptors.
        live: number of live cameras.
    """

    at: float
    rss: float
    threads: int
    files: int
    live: int


@dataclass
class Report:
    """Results of the soak test."""

    seconds: float
    samples: list[Sample] = field(default_factory=list)
    kills: int = 0
    received: int = 0
    lost: int = 0
    rejected: int = 0
    garbage: int = 0
    reconnects: int = 0
    problems: list[str] = field(default_factory=list)


class Camera:
    """Camera in a separate process that can be killed and restarted."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.port = free_port()
        self.process = self._start()

    @property
    def url(self) -> str:
        """URL of the MJPEG stream."""
        return f"http://127.0.0.1:{self.port}/"

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start the process again."""
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        arguments = ["--camera", str(self.port), str(self._number)]
        return subprocess.Popen([sys.executable, __file__, *arguments])  # noqa: S603 - ourselves


class MjpegHandler(http.server.BaseHTTPRequestHandler):
    """HTTP handler that answers every request with an endless MJPEG stream."""

    pattern: TestPattern

    def do_GET(self) -> None:
        """Send images until the client disconnects."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):
            for index in range(10**9):
                into = io.BytesIO()
                Image.fromarray(self.pattern.render(index)).save(into, "JPEG")
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + into.getvalue())
                self.wfile.write(b"\r\n")
                time.sleep(1 / FPS)

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


def run_camera(port: int, number: int) -> None:
    """Run a camera; the target of its process."""
    url = f"test:?size=320x240&fps={FPS}&seed={number}"
    MjpegHandler.pattern = TestPattern("camera", SourceConfig(url=url))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), MjpegHandler) as server:
        server.serve_forever()


@contextlib.contextmanager
def run_service(
    cameras: list[Camera], folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a service with the cameras; yield its process and the port of its masks."""
    port = free_port()
    config = {
        "sources": [
            {"url": c.url, "name": f"camera-{n}", "stall_after": 2.0, "open_timeout": 5.0}
            for n, c in enumerate(cameras)
        ],
        "model": {"input_size": 128},
        "worker": {"max_batch": MAX_BATCH, "threads": 1},
        "thresholds": {"score": 0.1},
        "publish": {"bind": f"tcp://127.0.0.1:{port}"},
    }
    file = folder / "soak.yaml"
    file.write_text(yaml.safe_dump(config))
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "streamseg", "serve", str(file)], stdout=log, stderr=log
        )
        try:
            yield process, port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def wait_ready(port: int) -> None:
    """Wait until the service is ready."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port + 3}/readyz", timeout=5),
        ):
            return
        time.sleep(0.2)
    sys.exit("the service wasn't ready within 60 s: see service.log")


def read_results(address: str, over: threading.Event, report: Report, lock: threading.Lock) -> None:
    """Receive all results until ``over`` is set."""
    with streamseg.connect(address) as results:
        received = 0
        while not over.is_set():
            with contextlib.suppress(ReceiveTimeout):
                if results.receive(0.5) is not None:
                    received += 1
        with lock:
            report.received += received
            report.lost += sum(results.gaps.values())
            report.rejected += results.rejected


def send_garbage(port: int, over: threading.Event, report: Report, lock: threading.Lock) -> None:
    """Connect repeatedly and send random bytes until ``over`` is set."""
    while not over.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(os.urandom(random.randrange(1, 4096)))  # noqa: S311
            over.wait(0.2)
            with lock:
                report.garbage += 1
        over.wait(0.3)


def take_sample(process: int, port: int, began: float) -> Sample:
    """Read the current state of the service's process."""
    live = sum(source["state"] == "live" for source in get_sources(port))
    status = Path(f"/proc/{process}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return Sample(
        time.monotonic() - began,
        int(values["VmRSS"].split()[0]) / 1024,
        int(values["Threads"]),
        sum(1 for _ in Path(f"/proc/{process}/fd").iterdir()),
        live,
    )


def get_sources(port: int) -> list[dict[str, object]]:
    """Return the sources of the service as in ``ctl list --json``."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port + 3}/v1/sources", timeout=10) as answer:
        found: list[dict[str, object]] = json.load(answer)
        return found


def count_reconnects(port: int) -> int:
    """Return the number of reconnections of the service."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port + 3}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("streamseg_reconnects_total{")]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in counts))


def soak(seconds: float, folder: Path) -> Report:
    """Run the test and return its results."""
    report = Report(seconds)
    lock, over = threading.Lock(), threading.Event()
    cameras = [Camera(number) for number in range(CAMERAS)]
    lazy: list[zmq.Socket[bytes]] = []
    try:
        with run_service(cameras, folder) as (process, port):
            wait_ready(port)
            address = f"tcp://127.0.0.1:{port}"
            threads = [
                *(
                    threading.Thread(target=read_results, args=(address, over, report, lock))
                    for _ in range(READERS)
                ),
                *(
                    threading.Thread(target=send_garbage, args=(port + n, over, report, lock))
                    for n in range(HOSTILE)
                ),
            ]
            for thread in threads:
                thread.start()
            lazy = [_idle_subscriber(address) for _ in range(LAZY)]
            _kill_cameras(cameras, process.pid, port, seconds, report)
            report.reconnects = count_reconnects(port)
            _check_accounts(get_sources(port), report)
            over.set()
            for thread in threads:
                thread.join()
        if process.returncode:
            report.problems.append(f"the service ended with {process.returncode}")
    finally:
        over.set()
        for sock in lazy:
            sock.close(linger=0)
        for camera in cameras:
            camera.kill()
    _check_growth(report)
    if report.lost:
        report.problems.append(f"{report.lost} messages were lost to those who read")
    return report


def _idle_subscriber(address: str) -> zmq.Socket[bytes]:
    """Return a subscriber socket that is never read."""
    sock = zmq.Context.instance().socket(zmq.SUB)
    sock.rcvhwm = 1
    sock.subscribe(b"")
    sock.connect(address)
    return sock


def _kill_cameras(
    cameras: list[Camera], process: int, port: int, seconds: float, report: Report
) -> None:
    """Kill and restart cameras at random, and sample the service."""
    began = time.monotonic()
    away: dict[int, float] = {}
    kill_at = began + KILL_EVERY / 2
    while (now := time.monotonic()) < began + seconds:
        report.samples.append(take_sample(process, port, began))
        if now >= kill_at:
            number = random.randrange(len(cameras))  # noqa: S311
            if number not in away:
                cameras[number].kill()
                away[number] = now + random.uniform(*AWAY_FOR)  # noqa: S311
                report.kills += 1
            kill_at = now + random.uniform(0.5, 1.5) * KILL_EVERY  # noqa: S311
        for number in [n for n, until in away.items() if now >= until]:
            cameras[number].restart()
            del away[number]
        time.sleep(SAMPLE_EVERY)
    for number in away:
        cameras[number].restart()


def _check_accounts(sources: list[dict[str, object]], report: Report) -> None:
    for source in sources:
        counts = [source["published"], source["in_flight"]]
        for reasons in (source["dropped"], source["failed"]):
            assert isinstance(reasons, dict)
            counts += reasons.values()
        if source["decoded"] != sum(int(str(count)) for count in counts):
            report.problems.append(f"the account of {source['name']} doesn't balance: {source}")


def _check_growth(report: Report) -> None:
    """Compare the first quarter after the warm-up with the last.

    Only samples with all cameras live are compared: a disconnected one has no reader and no codec.
    """
    settled = [s for s in report.samples if s.at >= WARM_UP and s.live == CAMERAS]
    if len(settled) < MIN_SAMPLES:
        report.problems.append(f"all cameras were live in only {len(settled)} samples")
        return
    quarter = len(settled) // 4
    for what in ("rss", "threads", "files"):
        values = [getattr(s, what) for s in settled]
        before, after = np.median(values[:quarter]), np.median(values[-quarter:])
        if after > before * (1 + MAY_GROW):
            report.problems.append(f"{what} went from {before:.0f} to {after:.0f}")


def plot(report: Report, file: Path) -> None:
    """Plot memory, threads and file descriptors over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(8, 6))
    minutes = [s.at / 60 for s in report.samples]
    for axis, what, label in zip(
        axes, ("rss", "threads", "files"), ("MiB resident", "threads", "descriptors"), strict=True
    ):
        axis.plot(minutes, [getattr(s, what) for s in report.samples])
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes")
    axes[0].set_title(
        f"{CAMERAS} cameras, {report.kills} killed; {READERS + LAZY + HOSTILE} subscribers"
    )
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> None:
    """Run the command line, or a camera in its process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=Path, default=Path("soak-out"))
    parser.add_argument("--camera", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.camera:
        run_camera(*options.camera)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    report = soak(options.seconds, options.out)
    (options.out / "soak.json").write_text(json.dumps(asdict(report), indent=1))
    plot(report, options.out / "soak.png")
    print(
        f"{report.kills} kills, {report.reconnects} attempts to connect again, "
        f"{report.received} received, {report.lost} lost, {report.garbage} times garbage"
    )
    for problem in report.problems:
        print(problem)
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
