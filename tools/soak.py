"""Soak a real service: cameras that are killed at random, subscribers good, lazy and hostile.

    python tools/soak.py --seconds 3600 --out soak-out

Eight cameras (MJPEG over HTTP, each a process that is killed now and then and comes back), one
service (``streamseg serve``, a process of its own), twenty subscribers: thirteen that read, five
that never do, two that send garbage. Every second the service's memory, threads and
descriptors are noted. In the end: is all of that flat, do the accounts balance, and did those who
read get all?

Writes ``soak.json`` and ``soak.png``; exits 1 if any of it isn't so.
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
"""The model keeps memory for each size of batch that has come up, 10 to 20 MB each; with more sizes
than these, some come up late, and that is no leak."""
KILL_EVERY = 15.0
AWAY_FOR = (1.0, 6.0)
SAMPLE_EVERY = 1.0
WARM_UP = 30.0
"""Seconds: until then caches fill and everybody joins."""
MAY_GROW = 0.05
FEWEST = 12
"""Samples: three in a quarter, or there is nothing to compare."""


@dataclass(frozen=True)
class Sample:
    """The service's process at one moment.

    Attributes:
        at: seconds since the beginning.
        rss: MiB.
        threads: how many.
        files: open descriptors.
        live: how many of the cameras are live.
    """

    at: float
    rss: float
    threads: int
    files: int
    live: int


@dataclass
class Report:
    """What the soak came to."""

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
    """A camera's process, which comes and goes."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.port = free_port()
        self.process = self._start()

    @property
    def url(self) -> str:
        """Where its pictures are."""
        return f"http://127.0.0.1:{self.port}/"

    def kill(self) -> None:
        """Gone, as when its plug is pulled."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Back again."""
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        arguments = ["--camera", str(self.port), str(self._number)]
        return subprocess.Popen([sys.executable, __file__, *arguments])  # noqa: S603 - ourselves


class Pictures(http.server.BaseHTTPRequestHandler):
    """The camera's answer to whatever is asked: pictures for ever."""

    pattern: TestPattern

    def do_GET(self) -> None:
        """Send pictures until the reader leaves."""
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
        """Say nothing."""


def serve_pictures(port: int, number: int) -> None:
    """Be a camera."""
    url = f"test:?size=320x240&fps={FPS}&seed={number}"
    Pictures.pattern = TestPattern("camera", SourceConfig(url=url))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Pictures) as server:
        server.serve_forever()


@contextlib.contextmanager
def service(cameras: list[Camera], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A service of these cameras, and the port of its masks."""
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
    """Until the service says that it is."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port + 3}/readyz", timeout=5),
        ):
            return
        time.sleep(0.2)
    sys.exit("the service wasn't ready within 60 s: see service.log")


def read(address: str, over: threading.Event, report: Report, lock: threading.Lock) -> None:
    """A subscriber that reads all."""
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


def pester(port: int, over: threading.Event, report: Report, lock: threading.Lock) -> None:
    """A peer that sends garbage, and comes back when it is cut off."""
    while not over.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(os.urandom(random.randrange(1, 4096)))  # noqa: S311
            over.wait(0.2)
            with lock:
                report.garbage += 1
        over.wait(0.3)


def sample(process: int, port: int, began: float) -> Sample:
    """How the service's process is now."""
    live = sum(source["state"] == "live" for source in ask(port))
    status = Path(f"/proc/{process}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return Sample(
        time.monotonic() - began,
        int(values["VmRSS"].split()[0]) / 1024,
        int(values["Threads"]),
        sum(1 for _ in Path(f"/proc/{process}/fd").iterdir()),
        live,
    )


def ask(port: int) -> list[dict[str, object]]:
    """The service's sources, as ``ctl list --json`` has them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port + 3}/v1/sources", timeout=10) as answer:
        found: list[dict[str, object]] = json.load(answer)
        return found


def reconnects(port: int) -> int:
    """How often the service has connected again."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port + 3}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("streamseg_reconnects_total{")]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in counts))


def soak(seconds: float, folder: Path) -> Report:
    """Run it all."""
    report = Report(seconds)
    lock, over = threading.Lock(), threading.Event()
    cameras = [Camera(number) for number in range(CAMERAS)]
    lazy: list[zmq.Socket[bytes]] = []
    try:
        with service(cameras, folder) as (process, port):
            wait_ready(port)
            address = f"tcp://127.0.0.1:{port}"
            threads = [
                *(
                    threading.Thread(target=read, args=(address, over, report, lock))
                    for _ in range(READERS)
                ),
                *(
                    threading.Thread(target=pester, args=(port + n, over, report, lock))
                    for n in range(HOSTILE)
                ),
            ]
            for thread in threads:
                thread.start()
            lazy = [_lazy(address) for _ in range(LAZY)]
            _torment(cameras, process.pid, port, seconds, report)
            report.reconnects = reconnects(port)
            _check_accounts(ask(port), report)
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
    _check_flat(report)
    if report.lost:
        report.problems.append(f"{report.lost} messages were lost to those who read")
    return report


def _lazy(address: str) -> zmq.Socket[bytes]:
    """A subscriber that never reads."""
    sock = zmq.Context.instance().socket(zmq.SUB)
    sock.rcvhwm = 1
    sock.subscribe(b"")
    sock.connect(address)
    return sock


def _torment(
    cameras: list[Camera], process: int, port: int, seconds: float, report: Report
) -> None:
    """Kill cameras and bring them back, and note how the service takes it."""
    began = time.monotonic()
    away: dict[int, float] = {}
    kill_at = began + KILL_EVERY / 2
    while (now := time.monotonic()) < began + seconds:
        report.samples.append(sample(process, port, began))
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


def _check_flat(report: Report) -> None:
    """Compare the first quarter after the warm-up with the last.

    Only moments when every camera is live are alike: one that is away has no reader and no codec.
    """
    settled = [s for s in report.samples if s.at >= WARM_UP and s.live == CAMERAS]
    if len(settled) < FEWEST:
        report.problems.append(f"all cameras were live in only {len(settled)} samples")
        return
    quarter = len(settled) // 4
    for what in ("rss", "threads", "files"):
        values = [getattr(s, what) for s in settled]
        before, after = np.median(values[:quarter]), np.median(values[-quarter:])
        if after > before * (1 + MAY_GROW):
            report.problems.append(f"{what} went from {before:.0f} to {after:.0f}")


def plot(report: Report, file: Path) -> None:
    """Memory, threads and descriptors over time."""
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
    """Be a camera, or soak."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=Path, default=Path("soak-out"))
    parser.add_argument("--camera", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.camera:
        serve_pictures(*options.camera)
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
